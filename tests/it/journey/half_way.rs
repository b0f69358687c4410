//! An optimization that is suspended, then goes on, then is deleted while its workers run: nothing of it is left but what it has
//! published.

use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use assayer_crds::names;
use k8s_openapi::api::batch::v1::Job;
use k8s_openapi::api::core::v1::{ConfigMap, Pod};
use kube::ResourceExt as _;
use kube::api::{Api, DeleteParams, ListParams, Patch, PatchParams};
use serde_json::json;

use super::stage::{NAMESPACE, Stage, phase, ready};

/// The garbage collector learns of new kinds every half minute.
const COLLECTED: Duration = Duration::from_mins(3);
const NAME: &str = "half-way";

pub(super) async fn leaves_nothing(stage: &Stage<'_>) -> Result<String> {
    stage.optimize(NAMESPACE, NAME, |_| {}).await?;
    let object = stage
        .until(NAMESPACE, NAME, "its first Job", |object| phase(object) == "Baselining")
        .await?;
    let own = ListParams::default().labels(&format!(
        "{}={}",
        names::OPTIMIZATION_UID,
        object.uid().context("no uid")?
    ));
    let jobs: Api<Job> = Api::namespaced(stage.client(), NAMESPACE);
    let pods: Api<Pod> = Api::namespaced(stage.client(), NAMESPACE);
    let maps: Api<ConfigMap> = Api::namespaced(stage.client(), NAMESPACE);

    until("a worker runs", || async {
        Ok(pods.list(&own).await?.iter().any(runs))
    })
    .await?;
    suspend(stage, true).await?;
    stage
        .until(NAMESPACE, NAME, "the halt", |object| ready(object).0 == "Suspended")
        .await?;
    until("nothing runs while it is suspended", || async {
        Ok(jobs.list(&own).await?.items.is_empty() && pods.list(&own).await?.items.is_empty())
    })
    .await?;

    suspend(stage, false).await?;
    // From here on there is a kept report as well.
    stage
        .until(NAMESPACE, NAME, "candidates", |object| phase(object) == "Optimizing")
        .await?;
    until("a worker runs and a report is kept", || async {
        Ok(pods.list(&own).await?.iter().any(runs) && !maps.list(&own).await?.items.is_empty())
    })
    .await?;
    stage
        .optimizations(NAMESPACE)
        .delete(NAME, &DeleteParams::default())
        .await?;
    until("nothing of it is left", || async {
        let left = jobs.list(&own).await?.items.len() + pods.list(&own).await?.items.len();
        Ok(left + maps.list(&own).await?.items.len() == 0)
    })
    .await?;
    Ok("no Job, no pod, no config map of it is left".to_owned())
}

async fn suspend(stage: &Stage<'_>, suspend: bool) -> Result<()> {
    let patch = json!({"spec": {"suspend": suspend}});
    stage
        .optimizations(NAMESPACE)
        .patch(NAME, &PatchParams::default(), &Patch::Merge(&patch))
        .await?;
    Ok(())
}

fn runs(pod: &Pod) -> bool {
    let status = pod.status.as_ref();
    let containers = status.into_iter().flat_map(|status| {
        let init = status.init_container_statuses.iter().flatten();
        init.chain(status.container_statuses.iter().flatten())
    });
    let mut seen = containers.filter_map(|container| container.state.as_ref());
    pod.metadata.deletion_timestamp.is_none() && seen.any(|state| state.running.is_some())
}

async fn until<F: Future<Output = Result<bool>>>(what: &str, holds: impl Fn() -> F) -> Result<()> {
    let until = Instant::now() + COLLECTED;
    while !holds().await? {
        ensure!(Instant::now() < until, "it did not come about that {what}");
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    Ok(())
}
