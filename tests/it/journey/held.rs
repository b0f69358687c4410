//! Pods that never start: their image can't be pulled, a quota refuses them, no node takes them, a Secret is missing. Each shows what
//! it waits for, and is given up at its deadline with that as the reason.

use anyhow::{Context as _, Result, ensure};
use serde_json::{Value, json};

use super::Scene;
use super::bad_input::nothing_was_made;
use super::stage::{FULL, NAMESPACE, SERVER, Stage, over, phase, ready, says, words};

/// What holds a pod up.
struct Holds {
    name: &'static str,
    namespace: &'static str,
    reason: &'static str,
    words: Vec<String>,
    edit: fn(&mut Value),
}

/// All of them. The operator is given workers whose image is not there: it is pulled only when nothing else holds a pod up.
pub(super) fn scenes<'a>(stage: &'a Stage<'a>) -> Result<Vec<Scene<'a>>> {
    let absent = format!("{}/assayer-worker@sha256:{}", stage.registry(), "0".repeat(64));
    stage
        .world
        .use_workers(&absent)
        .context("give the operator another image of the workers")?;
    let all = [
        Holds {
            name: "image-absent",
            namespace: NAMESPACE,
            reason: "ImageUnavailable",
            words: words(&[&absent, "not found", "workerImage"]),
            edit: |_| {},
        },
        Holds {
            name: "quota-full",
            namespace: FULL,
            reason: "PodRefused",
            words: words(&[
                "exceeded quota: no-pods",
                "requested: pods=1",
                "limited: pods=0",
                "raise",
            ]),
            edit: |_| {},
        },
        Holds {
            name: "no-such-node",
            namespace: NAMESPACE,
            reason: "Unschedulable",
            words: words(&[
                "0/1 nodes are available",
                "node affinity/selector",
                "environments[].pod",
            ]),
            edit: |spec| spec["environments"][0]["pod"]["nodeSelector"] = json!({"trials/none": "such"}),
        },
        Holds {
            name: "secret-absent",
            namespace: NAMESPACE,
            reason: "PodNotStarted",
            words: words(&["secret \"no-such-secret\" not found", "create"]),
            edit: |spec| spec["run"]["pullSecret"] = json!("no-such-secret"),
        },
    ];
    let all = all.into_iter().map(|holds| {
        let scene: Scene<'a> = (holds.name, Box::pin(is_given_up(stage, holds)));
        scene
    });
    Ok(all.collect())
}

async fn is_given_up(stage: &Stage<'_>, holds: Holds) -> Result<String> {
    let (namespace, name) = (holds.namespace, holds.name);
    let edit = |spec: &mut Value| {
        spec["run"]["deadline"] = json!("1s");
        (holds.edit)(spec);
    };
    stage.optimize(namespace, name, edit).await?;
    stage.promote(namespace, name, SERVER).await?;
    let told = |object: &assayer_crds::ModelOptimization| {
        phase(object) == "Baselining" && ready(object).0 == holds.reason && says(ready(object).1, &holds.words).is_ok()
    };
    let waits = stage
        .until(namespace, name, "the reason", |object| over(object) || told(object))
        .await?;
    ensure!(
        !over(&waits),
        "it ended before it said what it waits for: {:?}",
        ready(&waits)
    );
    let ended = stage.until(namespace, name, "its end", over).await?;
    let (reason, message) = ready(&ended);
    ensure!(
        phase(&ended) == "Failed" && reason == holds.reason,
        "{}, {reason}: {message}",
        phase(&ended)
    );
    says(message, &holds.words)?;
    says(message, &words(&["until the deadline"]))?;
    stage.event(namespace, name, holds.reason, &holds.words).await?;
    nothing_was_made(&ended)?;
    stage.is_refused(namespace, name).await?;
    Ok(format!("{reason}: {message}"))
}
