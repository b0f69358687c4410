//! Kueue's side of the bargain without Kueue: Jobs are made suspended, with its label, and show as queued; admitted by hand they run.
//! Then the artifact that they made vanishes from the registry, and the promotion of it says that it can't be mounted.

use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use assayer_crds::{ModelPromotionStatus, names};
use k8s_openapi::api::batch::v1::Job;
use kube::ResourceExt as _;
use kube::api::{Api, ListParams, Patch, PatchParams};
use serde_json::json;

use super::stage::{NAMESPACE, Stage, over, phase, ready, says, words};

const NAME: &str = "queued";
const QUEUE: &str = "quantizers";
/// Longest run.
const WITHIN: Duration = Duration::from_mins(4);

pub(super) async fn runs_when_admitted(stage: &Stage<'_>) -> Result<String> {
    let edit = |spec: &mut serde_json::Value| spec["environments"][0]["pod"]["queueName"] = json!(QUEUE);
    stage.optimize(NAMESPACE, NAME, edit).await?;
    let queued = stage
        .until(NAMESPACE, NAME, "the queue", |object| {
            over(object) || phase(object) == "Queued"
        })
        .await?;
    ensure!(ready(&queued).0 == "Queued", "{:?}", ready(&queued));
    says(ready(&queued).1, &words(&["waits in its queue"]))?;

    let until = Instant::now() + WITHIN;
    let mut admitted = 0;
    while !over(&stage.optimizations(NAMESPACE).get(NAME).await?) {
        admitted += admit(stage).await?;
        ensure!(Instant::now() < until, "it does not end");
        tokio::time::sleep(Duration::from_millis(200)).await;
    }
    let ended = stage.optimizations(NAMESPACE).get(NAME).await?;
    ensure!(phase(&ended) == "Succeeded", "{}: {:?}", phase(&ended), ready(&ended));
    ensure!(
        admitted == 3,
        "{admitted} Jobs were admitted: baseline, making and measurement are three"
    );
    let status = ended.status.context("no status")?;
    let artifact = status
        .candidates
        .into_iter()
        .next()
        .and_then(|candidate| candidate.artifact);
    cannot_be_mounted(stage, &artifact.context("no artifact")?.artifact_digest).await
}

/// Admits what is suspended; returns how many Jobs that were.
async fn admit(stage: &Stage<'_>) -> Result<usize> {
    let jobs: Api<Job> = Api::namespaced(stage.client(), NAMESPACE);
    let queued = ListParams::default().labels(&format!("{}={QUEUE}", names::KUEUE_QUEUE));
    let mut admitted = 0;
    for job in jobs.list(&queued).await? {
        if job.spec.as_ref().and_then(|spec| spec.suspend) == Some(true) {
            let started = job.status.as_ref().and_then(|status| status.start_time.as_ref());
            ensure!(started.is_none(), "{} has started in its queue", job.name_any());
            let admit = json!({"spec": {"suspend": false}});
            jobs.patch(&job.name_any(), &PatchParams::default(), &Patch::Merge(admit))
                .await?;
            admitted += 1;
        }
    }
    Ok(admitted)
}

/// The kubelet can't pull what is no longer there: the promotion fails in its words and remembers the digest.
async fn cannot_be_mounted(stage: &Stage<'_>, digest: &str) -> Result<String> {
    let host = stage.registry();
    let manifest = format!("http://{host}/v2/trials/{NAME}/manifests/{digest}");
    let deleted = reqwest::Client::new().delete(&manifest).send().await?;
    ensure!(deleted.status().is_success(), "DELETE {manifest}: {}", deleted.status());
    let server = "unmounted";
    stage.serve(NAMESPACE, server).await?;
    stage.promote(NAMESPACE, NAME, server).await?;
    let told = |status: &ModelPromotionStatus, type_: &str| {
        let found = status.conditions.iter().find(|condition| condition.type_ == type_);
        found
            .map(|found| (found.reason.clone(), found.message.clone()))
            .unwrap_or_default()
    };
    let over = |status: &ModelPromotionStatus| ["Failed", "Live", "RolledBack"].contains(&status.phase.as_str());
    let waits = stage
        .promotion(NAMESPACE, NAME, |status| {
            over(status) || told(status, "RolledOut").0 == "ArtifactNotMountable"
        })
        .await?;
    ensure!(
        !over(&waits),
        "it ended before it said that the artifact can't be mounted: {waits:#?}"
    );
    says(&told(&waits, "RolledOut").1, &words(&[digest, "container server"]))?;
    let ended = stage.promotion(NAMESPACE, NAME, over).await?;
    ensure!(ended.phase == "Failed" && ended.live.is_none(), "{ended:#?}");
    says(
        &told(&ended, "Ready").1,
        &words(&[digest, "code = NotFound", "no former model", "has to act"]),
    )?;
    ensure!(
        ended.rolled_back.iter().any(|refused| refused.digest == digest),
        "the digest is not remembered"
    );
    Ok(told(&ended, "Ready").1)
}
