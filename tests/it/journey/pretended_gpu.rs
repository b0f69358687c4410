//! A node that says it has a GPU and has none: the pod is scheduled there, the worker's probe fails, and the verdict of that
//! environment is an error in ONNX Runtime's own words. Nothing is promotable, though the other environment is fine.

use std::{collections::BTreeSet, time::Duration};

use anyhow::{Context as _, Result, ensure};
use assayer_crds::ModelOptimization;
use assayer_crds::names::STEP;
use k8s_openapi::api::batch::v1::Job;
use k8s_openapi::api::core::v1::Node;
use kube::ResourceExt as _;
use kube::api::{Api, ListParams, Patch, PatchParams};
use serde_json::json;

use super::stage::{NAMESPACE, SERVER, Stage, over, phase, ready, says, words};

const NAME: &str = "no-gpu";
const RESOURCE: &str = "nvidia.com/gpu";

pub(super) async fn is_an_error(stage: &Stage<'_>) -> Result<String> {
    pretend(stage).await?;
    let edit = |spec: &mut serde_json::Value| {
        let mut gpu = spec["environments"][0].clone();
        gpu["name"] = json!("gpu");
        gpu["executionProvider"] = json!("CUDA");
        if let Some(all) = spec["environments"].as_array_mut() {
            all.push(gpu);
        }
        if let Some(gates) = spec["gates"].as_array_mut() {
            gates.push(json!({"name": "gpu-p99", "metric": "latencyP99", "environment": "gpu", "maxRatio": "0.80"}));
        }
    };
    stage.optimize(NAMESPACE, NAME, edit).await?;
    stage.promote(NAMESPACE, NAME, SERVER).await?;
    let (ended, asked) = tokio::try_join!(stage.until(NAMESPACE, NAME, "its end", over), asked_for_a_gpu(stage))?;
    ensure!(asked == ["baseline/gpu"], "{asked:?} asked for {RESOURCE}");

    let (reason, message) = ready(&ended);
    ensure!(
        phase(&ended) == "Failed" && reason == "ProviderUnavailable",
        "{}, {reason}: {message}",
        phase(&ended)
    );
    // ONNX Runtime's own words.
    let own = words(&[
        "CUDA can't be used here",
        "CUDA execution provider is not enabled in this build",
    ]);
    says(message, &own)?;
    says(condition(&ended, "BaselineRecorded")?, &own)?;
    stage.event(NAMESPACE, NAME, "ProviderUnavailable", &own).await?;

    let status = ended.status.as_ref().context("no status")?;
    let measured: Vec<&str> = status.baseline.iter().map(|one| one.environment.as_str()).collect();
    ensure!(measured == ["cpu"], "the baseline was measured in {measured:?}");
    ensure!(status.selected.is_none(), "{:?} is selected", status.selected);
    let verdicts = &status.candidates.first().context("no candidate")?.verdicts;
    let of = |gate: &str| {
        verdicts
            .iter()
            .find(|one| one.gate == gate)
            .with_context(|| format!("no verdict of {gate}"))
    };
    for gate in ["gpu-p99", "accuracy"] {
        let verdict = of(gate)?;
        ensure!(verdict.verdict == "Error", "{gate}: {verdict:?}");
        says(&verdict.message, &words(&["gpu", "ProviderUnavailable"]))?;
    }
    stage.is_refused(NAMESPACE, NAME).await?;
    Ok(format!("{reason}: {message}"))
}

fn condition<'a>(object: &'a ModelOptimization, type_: &str) -> Result<&'a str> {
    let mut conditions = object.status.iter().flat_map(|status| &status.conditions);
    let found = conditions.find(|condition| condition.type_ == type_);
    let found = found.with_context(|| format!("no condition {type_}"))?;
    ensure!(found.status == "False", "{type_} is {}", found.status);
    Ok(&found.message)
}

/// The node's status gets one, as a device plugin would have it.
async fn pretend(stage: &Stage<'_>) -> Result<()> {
    let nodes: Api<Node> = Api::all(stage.client());
    let node = nodes.list(&ListParams::default()).await?.items.into_iter().next();
    let name = node.and_then(|node| node.metadata.name).context("no node")?;
    let status = json!({"status": {"capacity": {RESOURCE: "1"}, "allocatable": {RESOURCE: "1"}}});
    nodes
        .patch_status(&name, &PatchParams::default(), &Patch::Merge(status))
        .await?;
    Ok(())
}

/// The steps whose pods asked for the resource. What was given up is deleted soon: looked at all the while.
async fn asked_for_a_gpu(stage: &Stage<'_>) -> Result<Vec<String>> {
    let jobs: Api<Job> = Api::namespaced(stage.client(), NAMESPACE);
    let mut steps = BTreeSet::new();
    while !over(&stage.optimizations(NAMESPACE).get(NAME).await?) {
        for job in jobs.list(&ListParams::default()).await? {
            let own = job.owner_references().iter().any(|owner| owner.name == NAME);
            if own && json!(job.spec).to_string().contains(RESOURCE) {
                steps.extend(job.annotations().get(STEP).cloned());
            }
        }
        tokio::time::sleep(Duration::from_millis(200)).await;
    }
    Ok(steps.into_iter().collect())
}
