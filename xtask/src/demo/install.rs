//! Images and chart: what a platform team does once.

use anyhow::{Context, Result};

use super::world::{Person, SYSTEM, World};
use crate::{
    cache,
    images::{self, Ours, Programs},
    progress::Progress,
};

/// Builds and pushes our images, and installs the chart with `helm`. Gives what was compiled on the way.
pub(super) fn images_and_chart(world: &World, progress: &Progress) -> Result<Programs> {
    let mut operator = String::new();
    let mut worker = String::new();
    let built = images::build(&Ours::ALL, progress)?;
    for (ours, image) in built.images {
        let step = progress.step(format!("push {}", ours.name()));
        let reference = images::push(&image, &world.registry, ours.name())?;
        match ours {
            Ours::Operator => operator.clone_from(&reference),
            Ours::Worker => worker.clone_from(&reference),
            Ours::Scanner => std::fs::write(world.folder().join("scanner.image"), &reference)?,
        }
        step.done(reference);
    }
    let step = progress.step("install the chart with helm");
    let chart = cache::workspace().join("charts/assayer");
    let chart = chart.to_str().context("the chart's path is not UTF-8")?.to_owned();
    let mut arguments = vec![
        "upgrade".to_owned(),
        "--install".into(),
        "assayer".into(),
        chart,
        "--create-namespace".into(),
    ];
    let host = world.registry.prefix.split('/').next().unwrap_or_default();
    let mut values = vec![format!("image={operator}"), format!("workerImage={worker}")];
    if world.registry.plain_http {
        values.push(format!("plainHttp={{{host}}}"));
    }
    for value in values {
        arguments.extend(["--set".to_owned(), value]);
    }
    arguments.extend(["--wait".to_owned(), "--timeout".into(), "120s".into()]);
    let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
    if let Err(error) = world.helm(&arguments) {
        let pods = world.kubectl(Person::Admin, &["-n", SYSTEM, "get", "pods,jobs,events", "-o", "wide"]);
        let logs = world.kubectl(
            Person::Admin,
            &["-n", SYSTEM, "logs", "deployment/assayer-operator", "--tail=30"],
        );
        return Err(error.context(format!("{}\n{}", pods.unwrap_or_default(), logs.unwrap_or_default())));
    }
    step.done("the operator is available");
    Ok(built.programs)
}
