//! The optimization half: data, pinned manifests, phases as they pass, a rejected and a selected candidate.

use std::{
    collections::BTreeMap,
    fs,
    path::{Path, PathBuf},
    process::Command,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, bail, ensure};
use assayer_crds::ModelOptimization;
use assayer_crds::optimization::CandidateStatus;
use kube::Api;

use super::world::{NAMESPACE, Person, World};
use crate::{cache, example, process, progress::Progress};

const WITHIN: Duration = Duration::from_mins(5);
/// The optimization that is promoted, and the one whose model the server refuses.
const OPTIMIZATION: &str = "magika-int8";
const REEXPORT: &str = "magika-reexport";
/// The candidate that is the fastest on the processors measured so far.
const EXPECTED: &str = "static-int8";

/// Manifests with digests in them.
pub(super) struct Pinned {
    manifests: Vec<String>,
}

/// How the optimization ended.
pub(super) struct Optimized {
    /// The candidate that passed every gate.
    pub(super) selected: CandidateStatus,
}

/// The folder of the example's manifests.
pub(super) fn example_file(name: &str) -> PathBuf {
    cache::workspace().join("examples/magika").join(name)
}

/// Makes the namespace with its people's rights, and the manifests: model and data are pushed with `assayer pin --push`.
pub(super) fn publish_example(world: &World, assayer: &Path, progress: &Progress) -> Result<Pinned> {
    example::ensure(&example::default_folder(), progress)?;
    for file in ["namespace.yaml", "rbac.yaml"] {
        world.apply(Person::Admin, &read(file)?)?;
    }
    let [role, group] = ["--role=model-editor", "--group=interns"];
    world.kubectl(Person::Admin, &["create", "rolebinding", "interns-edit", role, group])?;
    let mut manifests = Vec::new();
    for file in ["modeloptimization.yaml", "modeloptimization-reexport.yaml"] {
        let step = progress.step(format!("assayer pin -f examples/magika/{file} --push"));
        manifests.push(pin(assayer, &example_file(file), world)?);
        step.done("model and data are pushed, and named by digest");
    }
    Ok(Pinned { manifests })
}

/// The text of one of the example's manifests.
pub(super) fn read(file: &str) -> Result<String> {
    let path = example_file(file);
    fs::read_to_string(&path).with_context(|| format!("read {}", path.display()))
}

fn pin(assayer: &Path, manifest: &Path, world: &World) -> Result<String> {
    let mut command = Command::new(assayer);
    command
        .args(["pin", "-f"])
        .arg(manifest)
        .arg("--push")
        .arg(format!("oci://{}/demo", world.registry.prefix));
    if world.registry.plain_http {
        command.arg("--plain-http").arg(world.registry.host());
    }
    process::read(&mut command)
}

/// Applies the policy, then the optimizations as an editor, and follows them to their end.
pub(super) async fn watch(world: &World, pinned: &Pinned, progress: &Progress) -> Result<Optimized> {
    world.apply(Person::Admin, &read("promotionpolicy.yaml")?)?;
    for manifest in &pinned.manifests {
        let said = world.apply(Person::Erin, manifest)?;
        progress.say(&format!("{}: {}", Person::Erin.name(), said.trim()));
    }
    let api: Api<ModelOptimization> = Api::namespaced(world.client.clone(), NAMESPACE);
    let main = follow(&api, OPTIMIZATION, progress).await?;
    let selected_name = main
        .status
        .as_ref()
        .and_then(|status| status.selected.clone())
        .context("nothing was selected")?;
    let candidates = main.status.map(|status| status.candidates).unwrap_or_default();
    let (selected, rejected): (Vec<_>, Vec<_>) = candidates.into_iter().partition(|c| c.name == selected_name);
    let selected = selected
        .into_iter()
        .next()
        .context("the selected candidate is not in status")?;
    if selected.name != EXPECTED {
        progress.say(&format!(
            "{} is faster than {EXPECTED} on this processor",
            selected.name
        ));
    }
    ensure!(
        selected.evidence.is_some() && selected.artifact.is_some(),
        "the selected candidate has no evidence"
    );
    for candidate in &rejected {
        say_rejected(candidate, progress)?;
    }
    for verdict in &selected.verdicts {
        progress.say(&format!(
            "{}: {} {}: {}",
            selected.name, verdict.verdict, verdict.gate, verdict.message
        ));
    }
    let reexport = follow(&api, REEXPORT, progress).await?;
    ensure!(
        reexport.status.is_some_and(|status| status.selected.is_some()),
        "{REEXPORT} selected nothing"
    );
    Ok(Optimized { selected })
}

/// The gates decide, and they measure this processor: a candidate that passed and was only not the fastest is said to be that.
fn say_rejected(candidate: &CandidateStatus, progress: &Progress) -> Result<()> {
    let failed: Vec<_> = candidate
        .verdicts
        .iter()
        .filter(|verdict| verdict.verdict == "Failed")
        .collect();
    if failed.is_empty() {
        ensure!(
            candidate.state == "Passed",
            "{} is {}: {}",
            candidate.name,
            candidate.state,
            candidate.message
        );
        progress.say(&format!(
            "{} passed every gate on this processor and was only not the fastest",
            candidate.name
        ));
    }
    for verdict in failed {
        progress.say(&format!(
            "{} rejected by {}: {}",
            candidate.name, verdict.gate, verdict.message
        ));
    }
    Ok(())
}

async fn follow(api: &Api<ModelOptimization>, name: &str, progress: &Progress) -> Result<ModelOptimization> {
    let mut step = progress.step(format!("{name}: Pending"));
    let mut phase = String::from("Pending");
    let until = Instant::now() + WITHIN;
    let mut messages = BTreeMap::new();
    loop {
        let found = api.get(name).await.with_context(|| format!("read {name}"))?;
        if let Some(status) = &found.status {
            let current = found.metadata.generation == status.observed_generation;
            for work in status.work.iter().filter(|work| !work.message.is_empty()) {
                if messages.insert(work.step.clone(), work.message.clone()).as_ref() != Some(&work.message) {
                    progress.say(&format!("{name}: {} {}: {}", work.step, work.state, work.message));
                }
            }
            if current && status.phase != phase && !status.phase.is_empty() {
                step.done("");
                phase.clone_from(&status.phase);
                step = progress.step(format!("{name}: {phase}"));
            }
            if current && phase == "Succeeded" {
                step.done(status.selected.as_deref().unwrap_or("nothing selected"));
                return Ok(found);
            }
            if current && ["Rejected", "Failed"].contains(&phase.as_str()) {
                bail!("{name} is {phase}: {}", ready_message(&found));
            }
        }
        if Instant::now() > until {
            bail!(
                "{name} was still {phase} after {} s: {}",
                WITHIN.as_secs(),
                ready_message(&found)
            );
        }
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
}

fn ready_message(object: &ModelOptimization) -> &str {
    let conditions = object.status.iter().flat_map(|status| &status.conditions);
    let mut ready = conditions.filter(|condition| condition.type_ == "Ready");
    ready.next().map_or("no condition", |ready| &ready.message)
}
