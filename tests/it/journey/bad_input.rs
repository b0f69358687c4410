//! Input that can't be used, each kind in a scene of its own: the worker's words come through to condition and Event, the run ends,
//! and nothing of it can be promoted.

use std::sync::Arc;

use anyhow::{Context as _, Result, ensure};
use serde_json::{Value, json};

use super::Scene;
use super::inputs::{Inputs, UNKNOWN};
use super::stage::{NAMESPACE, SERVER, Stage, over, phase, ready, says, words};

/// How one thing is wrong, and what must be said about it.
struct Wrong {
    name: &'static str,
    edit: Box<dyn FnOnce(&mut Value) + Send>,
    /// Seen on the way, where it is tried again.
    first: Option<&'static str>,
    reason: &'static str,
    words: Vec<String>,
}

fn wrong(
    name: &'static str,
    reason: &'static str,
    says: &[&str],
    edit: impl FnOnce(&mut Value) + Send + 'static,
) -> Wrong {
    Wrong {
        name,
        edit: Box::new(edit),
        first: None,
        reason,
        words: words(says),
    }
}

/// All of them; the inputs are made first.
pub(super) fn scenes<'a>(stage: &'a Stage<'a>, inputs: &Arc<Inputs>) -> Result<Vec<Scene<'a>>> {
    let all = all(stage, inputs)?.into_iter().map(|wrong| {
        // What was damaged stays so until the last scene is over.
        let inputs = Arc::clone(inputs);
        let scene: Scene<'a> = (
            wrong.name,
            Box::pin(async move {
                let ended = is_refused(stage, wrong).await;
                drop(inputs);
                ended
            }),
        );
        scene
    });
    Ok(all.collect())
}

fn all(stage: &Stage<'_>, inputs: &Inputs) -> Result<Vec<Wrong>> {
    let absent = format!("oci://{}/trials/inputs@sha256:{}", stage.registry(), "0".repeat(64));
    let host = stage.registry().split(':').next().context("the registry has no host")?;
    // The port of tcpmux: nobody listens there.
    let away = format!("oci://{host}:1/models/magika@sha256:{}", "0".repeat(64));
    let model = |uri: &str| {
        let uri = uri.to_owned();
        move |spec: &mut Value| spec["model"]["uri"] = json!(uri)
    };
    let evaluation = inputs.empty.clone();
    let mut retried = wrong(
        "registry-away",
        "RetriesExhausted",
        &[
            "StorageUnavailable",
            "model.uri",
            &format!("{host}:1/models/magika"),
            "given up after 2 of 2 attempts",
            "reach",
        ],
        {
            let edit = model(&away);
            move |spec| {
                edit(spec);
                spec["run"]["retries"] = json!(1);
            }
        },
    );
    retried.first = Some("Retrying");
    Ok(vec![
        retried,
        wrong(
            "artifact-absent",
            "NotFound",
            &["model.uri", &absent, "does not exist", "push it"],
            model(&absent),
        ),
        wrong(
            "model-unreadable",
            "ModelInvalid",
            &["baseline", "not a well-formed ONNX file"],
            model(&inputs.no_model),
        ),
        wrong(
            "operator-unknown",
            "OperatorUnknown",
            &["baseline", UNKNOWN, "is not supported"],
            model(&inputs.unknown_operator),
        ),
        wrong(
            "digest-mismatch",
            "DigestMismatch",
            &["model.uri", "expected sha256:", "got sha256:", "pin it again"],
            model(&inputs.damaged),
        ),
        wrong(
            "column-missing",
            "ColumnMissing",
            &["column `featurez` is not in the data set", "it has", "features"],
            |spec| {
                spec["data"]["inputs"][0]["column"] = json!("featurez");
            },
        ),
        wrong(
            "data-empty",
            "DataEmpty",
            &["data.evaluation", "0 rows", "at least 1"],
            move |spec| {
                spec["data"]["evaluation"]["uri"] = json!(evaluation);
            },
        ),
        wrong(
            "data-shared",
            "DataShared",
            &["data.evaluation", "512 of 512 evaluation rows", "use disjoint sets"],
            |spec| {
                spec["data"]["calibration"]["uri"] = spec["data"]["evaluation"]["uri"].clone();
            },
        ),
        wrong(
            "memory-small",
            "OutOfMemory",
            &["limits.memory", "24Mi", "raise"],
            |spec| {
                spec["environments"][0]["pod"]["resources"] =
                    json!({"requests": {"cpu": "50m", "memory": "24Mi"}, "limits": {"cpu": "1", "memory": "24Mi"}});
            },
        ),
    ])
}

async fn is_refused(stage: &Stage<'_>, wrong: Wrong) -> Result<String> {
    let name = wrong.name;
    stage.optimize(NAMESPACE, name, wrong.edit).await?;
    stage.promote(NAMESPACE, name, SERVER).await?;
    if let Some(first) = wrong.first {
        let seen = stage
            .until(NAMESPACE, name, first, |object| ready(object).0 == first)
            .await?;
        says(ready(&seen).1, &words(&["attempt 2"]))?;
    }
    let ended = stage.until(NAMESPACE, name, "its end", over).await?;
    let (reason, message) = ready(&ended);
    ensure!(
        phase(&ended) == "Failed" && reason == wrong.reason,
        "{}, {reason}: {message}",
        phase(&ended)
    );
    says(message, &wrong.words)?;
    stage.event(NAMESPACE, name, wrong.reason, &wrong.words).await?;
    nothing_was_made(&ended)?;
    stage.is_refused(NAMESPACE, name).await?;
    Ok(format!("{reason}: {message}"))
}

/// No candidate has anything that could be promoted.
pub(super) fn nothing_was_made(object: &assayer_crds::ModelOptimization) -> Result<()> {
    let status = object.status.as_ref().context("no status")?;
    ensure!(status.selected.is_none(), "{:?} is selected", status.selected);
    for candidate in &status.candidates {
        ensure!(
            candidate.state == "Failed" && candidate.artifact.is_none() && candidate.evidence.is_none(),
            "{candidate:#?}"
        );
    }
    Ok(())
}
