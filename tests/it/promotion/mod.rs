//! The promotion's controller against a real API server, with the chart's policies in force, the operator's own rights and real people;
//! only the Deployment's controller is of paper.

mod course;
mod gap;
mod scene;
mod unreadable;

use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use assayer_crds::names::{FIELD_MANAGER, RERUN};
use kube::api::{Api, DeleteParams, Patch, PatchParams};
use serde_json::json;

use scene::{NAMESPACE, Scene, WORKLOAD, wait};

/// From approval to the first write; the published figure is a second on an idle machine.
const FIRST_WRITE: Duration = Duration::from_secs(5);

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_promotion_from_request_to_live_and_back() -> Result<()> {
    let scene = Scene::open().await?;
    scene.promote("prod", "magika-a").await?;
    scene.reach("prod", "Pending", "SourceNotFound").await?;
    let first = scene.optimization("magika-a", "int8-a").await?;
    scene.reach("prod", "Rejected", "NoPolicy").await?;
    scene.policy().await?;
    let waiting = scene.reach("prod", "AwaitingApproval", "ApprovalMissing").await?;
    let digest = waiting.request.context("no request")?.digest;
    let asks = waiting
        .conditions
        .iter()
        .find(|c| c.type_ == "Approved")
        .context("no Approved")?;
    ensure!(asks.message.contains(&format!(
        "kubectl annotate mpromo prod -n ml approve.assayer.dev/security={digest}"
    )));
    ensure!(waiting.summary.approvals == "0/1");

    goes_live(&scene, first.as_str()).await?;
    quiet_when_idle(&scene).await?;
    survives_git(&scene, first.as_str()).await?;
    goes_back(&scene, first.as_str()).await?;
    drifts(&scene).await?;
    leaves_the_workload_alone(&scene).await?;
    scene.close().await
}

async fn goes_live(scene: &Scene, first: &str) -> Result<()> {
    scene.apply_from_git().await?;
    let took = scene.approve("prod").await?;
    ensure!(took < FIRST_WRITE, "the first write came {took:?} after the approval");
    ensure!(
        scene
            .reference()
            .await?
            .is_some_and(|reference| reference == format!("r.test/models/magika@{first}"))
    );
    scene.rollout_completes().await?;
    let live = scene.reach("prod", "Live", "Live").await?;
    let model = live.live.context("no live model")?;
    ensure!(model.artifact.artifact_digest == first && model.approvals[0].user == "bob" && model.ticket == "CHG-1");
    ensure!(
        live.attempt
            .is_some_and(|attempt| attempt.delivery.is_some() && attempt.cause == "RolloutComplete")
    );
    // Events are told after the status is written.
    wait("events from the request to live", || async {
        let events = scene.events("prod").await?;
        for reason in ["ApprovalMissing", "RolloutStarted", "Live"] {
            ensure!(
                events.iter().any(|event| event == reason),
                "no event {reason}: {events:?}"
            );
        }
        Ok(())
    })
    .await
}

/// The steady state writes nothing.
async fn quiet_when_idle(scene: &Scene) -> Result<()> {
    let versions = || async {
        let promotion = scene.promotions().get("prod").await?.metadata.resource_version;
        let deployment = scene.deployments().get(WORKLOAD).await?.metadata.resource_version;
        anyhow::Ok((promotion, deployment))
    };
    tokio::time::sleep(Duration::from_secs(1)).await;
    let before = versions().await?;
    tokio::time::sleep(Duration::from_secs(3)).await;
    ensure!(
        before == versions().await?,
        "something was written while nothing happened"
    );
    Ok(())
}

/// The operator owns the reference and nothing else, so that a forced apply from git leaves it.
async fn survives_git(scene: &Scene, first: &str) -> Result<()> {
    let deployment = scene.apply_from_git().await?;
    let fields = deployment.metadata.managed_fields.unwrap_or_default();
    let ours: Vec<_> = fields
        .iter()
        .filter(|entry| entry.manager.as_deref() == Some(FIELD_MANAGER))
        .collect();
    ensure!(ours.len() == 1, "{ours:?}");
    let owned = ours[0].fields_v1.as_ref().map(|fields| fields.0.clone());
    let expected = json!({"f:spec": {"f:template": {"f:spec": {"f:volumes": {"k:{\"name\":\"model\"}": {".": {}, "f:image": {"f:reference": {}}, "f:name": {}}}}}}});
    ensure!(owned.as_ref() == Some(&expected), "{owned:?}");
    ensure!(
        scene
            .reference()
            .await?
            .is_some_and(|reference| reference.ends_with(first))
    );
    Ok(())
}

/// A second candidate whose rollout sticks: the former model comes back, and its digest is not tried again until somebody asks.
async fn goes_back(scene: &Scene, first: &str) -> Result<()> {
    let second = scene.optimization("magika-b", "int8-b").await?;
    let spec = json!({"change": {"ticket": "CHG-2"}, "source": {"modelOptimization": {"name": "magika-b"}}});
    scene.edit("prod", spec).await?;
    let waiting = scene.reach("prod", "AwaitingApproval", "ApprovalMissing").await?;
    ensure!(
        waiting.live.is_some_and(|live| live.artifact.artifact_digest == first),
        "the live model must stay"
    );
    scene.approve("prod").await?;
    ensure!(
        scene
            .reference()
            .await?
            .is_some_and(|reference| reference.ends_with(second.as_str()))
    );
    scene.rollout_sticks().await?;
    wait("the former model is back", || async {
        ensure!(
            scene
                .reference()
                .await?
                .is_some_and(|reference| reference.ends_with(first))
        );
        Ok(())
    })
    .await?;
    scene.rollout_completes().await?;
    let back = scene.reach("prod", "RolledBack", "RolledBack").await?;
    ensure!(back.rolled_back.iter().any(|refused| refused.digest == second.as_str()));
    ensure!(back.live.is_some_and(|live| live.artifact.artifact_digest == first));
    ensure!(
        back.attempt
            .is_some_and(|attempt| attempt.former_approved && attempt.state == "RolledBack")
    );
    scene.annotate("prod", RERUN, "again").await?;
    wait("it is tried again", || async {
        ensure!(
            scene
                .reference()
                .await?
                .is_some_and(|reference| reference.ends_with(second.as_str()))
        );
        Ok(())
    })
    .await?;
    scene.rollout_completes().await?;
    let live = scene.reach("prod", "Live", "Live").await?;
    ensure!(live.rerun.as_deref() == Some("again") && live.rolled_back.is_empty());
    Ok(())
}

/// Somebody changes the workload by hand: it is told, and left.
async fn drifts(scene: &Scene) -> Result<()> {
    let patch = json!({"spec": {"template": {"spec": {"volumes": [{"name": "model", "image": {"reference": "r.test/by-hand@sha256:1"}}]}}}});
    let params = PatchParams {
        field_manager: Some("kubectl-patch".to_owned()),
        ..PatchParams::default()
    };
    scene
        .deployments()
        .patch(WORKLOAD, &params, &Patch::Strategic(patch))
        .await?;
    let drifted = scene.reach("prod", "Failed", "Drifted").await?;
    ensure!(drifted.live.is_none());
    ensure!(scene.reference().await?.as_deref() == Some("r.test/by-hand@sha256:1"));
    Ok(())
}

async fn leaves_the_workload_alone(scene: &Scene) -> Result<()> {
    let before = scene.deployments().get(WORKLOAD).await?.metadata.resource_version;
    let promotions: Api<assayer_crds::ModelPromotion> = Api::namespaced(scene.admin.clone(), NAMESPACE);
    promotions.delete("prod", &DeleteParams::default()).await?;
    wait("the promotion is gone", || async {
        ensure!(promotions.get_opt("prod").await?.is_none());
        Ok(())
    })
    .await?;
    tokio::time::sleep(Duration::from_secs(1)).await;
    ensure!(scene.deployments().get(WORKLOAD).await?.metadata.resource_version == before);
    Ok(())
}
