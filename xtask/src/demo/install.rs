//! Images and chart: what a platform team does once.

use std::path::Path;

use anyhow::{Context, Result};

use super::world::{Person, SYSTEM, World};
use crate::{
    cache,
    images::{self, Built, Ours},
    progress::Progress,
};

/// The release's name.
pub(super) const RELEASE: &str = "assayer";

/// Our images in the world's registry, by digest.
pub(super) struct Pushed {
    operator: String,
    worker: String,
    pub(super) scanner: String,
}

/// Pushes our images.
pub(super) fn push(world: &World, built: &Built, progress: &Progress) -> Result<Pushed> {
    let mut pushed = Pushed {
        operator: String::new(),
        worker: String::new(),
        scanner: String::new(),
    };
    for (ours, image) in &built.images {
        let step = progress.step(format!("push {}", ours.name()));
        let reference = images::push(image, &world.registry, ours.name())?;
        step.done(&reference);
        match ours {
            Ours::Operator => pushed.operator = reference,
            Ours::Worker => pushed.worker = reference,
            Ours::Scanner => pushed.scanner = reference,
        }
    }
    Ok(pushed)
}

/// Installs the chart with `helm`.
pub(super) fn chart(world: &World, pushed: &Pushed, progress: &Progress) -> Result<()> {
    let step = progress.step("install the chart with helm");
    let mut values = vec![
        format!("image={}", pushed.operator),
        format!("workerImage={}", pushed.worker),
    ];
    if world.registry.plain_http {
        values.push(format!("plainHttp={{{}}}", world.registry.host()));
    }
    upgrade(world, &["--install", "--create-namespace"], &values)?;
    step.done("the operator is available");
    Ok(())
}

/// Brings the release to these values, and waits until its operator is available.
pub(super) fn upgrade(world: &World, flags: &[&str], values: &[String]) -> Result<()> {
    let chart = cache::workspace().join("charts/assayer");
    let mut arguments = vec!["upgrade", RELEASE, utf8(&chart)?, "--wait", "--timeout", "120s"];
    arguments.extend(flags);
    for value in values {
        arguments.extend(["--set", value]);
    }
    let Err(error) = world.helm(&arguments) else {
        return Ok(());
    };
    let pods = world.kubectl(Person::Admin, &["-n", SYSTEM, "get", "pods,jobs,events", "-o", "wide"]);
    let logs = world.kubectl(
        Person::Admin,
        &["-n", SYSTEM, "logs", "deployment/assayer-operator", "--tail=30"],
    );
    Err(error.context(format!("{}\n{}", pods.unwrap_or_default(), logs.unwrap_or_default())))
}

fn utf8(path: &Path) -> Result<&str> {
    path.to_str().context("the chart's path is not UTF-8")
}
