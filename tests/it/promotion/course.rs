//! What may come between a request and its end, on a real API server: a no, a pause, another promotion, another way of delivery.

use anyhow::{Context as _, Result, ensure};
use assayer_crds::names::{APPROVE, REJECT, REQUESTED_BY};
use assayer_crds::{ModelPromotion, ModelPromotionStatus};
use k8s_openapi::api::apps::v1::Deployment;
use kube::ResourceExt as _;
use kube::api::{Api, Patch, PatchParams, PostParams};
use serde_json::json;

use super::scene::{NAMESPACE, Scene, wait};
use crate::installed::IMAGE;

const FETCHER: &str = "fetcher";

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_no_a_pause_and_another_promotion() -> Result<()> {
    let scene = Scene::open().await?;
    scene.policy().await?;
    scene.apply_from_git().await?;
    let first = scene.optimization("magika-a", "int8-a").await?;
    let second = scene.optimization("magika-b", "int8-b").await?;
    let third = scene.optimization("magika-c", "int8-c").await?;
    scene.promote("prod", "magika-a").await?;
    no_before_anything_was_written(&scene).await?;
    a_pause_keeps_the_approval(&scene, first.as_str()).await?;
    one_at_a_time(&scene, first.as_str(), second.as_str(), third.as_str()).await?;
    by_variable(&scene, first.as_str()).await?;
    scene.close().await
}

fn message(status: &ModelPromotionStatus, type_: &str) -> String {
    let found = status.conditions.iter().find(|condition| condition.type_ == type_);
    found.map(|condition| condition.message.clone()).unwrap_or_default()
}

fn reason(status: &ModelPromotionStatus, type_: &str) -> String {
    let found = status.conditions.iter().find(|condition| condition.type_ == type_);
    found.map(|condition| condition.reason.clone()).unwrap_or_default()
}

async fn no_before_anything_was_written(scene: &Scene) -> Result<()> {
    scene.reach("prod", "AwaitingApproval", "ApprovalMissing").await?;
    scene.vote("prod", REJECT).await?;
    let rejected = scene.reach("prod", "Rejected", "RejectedByPeople").await?;
    ensure!(message(&rejected, "Approved").contains("bob (security) rejected this request (read the numbers)"));
    ensure!(rejected.rejected.len() == 1 && rejected.attempt.is_none());
    ensure!(scene.reference().await?.is_none());
    // Another request may be asked for.
    let spec = json!({"change": {"ticket": "CHG-2"}});
    scene.edit("prod", spec).await?;
    scene.reach("prod", "AwaitingApproval", "ApprovalMissing").await?;
    Ok(())
}

/// The administrator suspends and resumes: that makes neither another request nor another requester.
async fn a_pause_keeps_the_approval(scene: &Scene, first: &str) -> Result<()> {
    let promotions: Api<ModelPromotion> = Api::namespaced(scene.admin.clone(), NAMESPACE);
    let suspend = |on: bool| {
        let promotions = promotions.clone();
        async move {
            let patch = json!({"spec": {"suspend": on}});
            promotions
                .patch("prod", &PatchParams::default(), &Patch::Merge(patch))
                .await
        }
    };
    let asked = scene.status("prod").await?.request.context("no request")?.digest;
    suspend(true).await?;
    let paused = scene.reach("prod", "Pending", "Suspended").await?;
    ensure!(paused.request.is_some_and(|request| request.digest == asked));
    scene.vote("prod", APPROVE).await?;
    let resumed = suspend(false).await?;
    ensure!(resumed.annotations().get(REQUESTED_BY).map(String::as_str) == Some("rita"));
    wait("it goes on with the approval that it has", || async {
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
    scene.reach("prod", "Live", "Live").await?;
    Ok(())
}

/// Two approved promotions of one workload: the second waits, a no takes the first one back, and the second takes the workload over.
async fn one_at_a_time(scene: &Scene, first: &str, second: &str, third: &str) -> Result<()> {
    scene.promote("canary", "magika-b").await?;
    scene.reach("canary", "AwaitingApproval", "ApprovalMissing").await?;
    scene.approve("canary").await?;
    scene.reach("canary", "Progressing", "RolloutStarted").await?;
    scene.promote("next", "magika-c").await?;
    let waits = scene.reach("next", "AwaitingApproval", "ApprovalMissing").await?;
    ensure!(message(&waits, "RolledOut").contains("ModelPromotion canary works on Deployment scanner"));
    scene.vote("next", APPROVE).await?;
    scene.reach("next", "Pending", "TargetBusy").await?;
    ensure!(
        scene
            .reference()
            .await?
            .is_some_and(|reference| reference.ends_with(second))
    );

    scene.vote("canary", REJECT).await?;
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
    let back = scene.reach("canary", "RolledBack", "RolledBack").await?;
    ensure!(reason(&back, "Approved") == "RejectedByPeople", "{:?}", back.conditions);
    ensure!(message(&back, "Ready").contains("bob (security) rejected the request during the roll-out"));
    ensure!(
        back.rolled_back.is_empty(),
        "a no is about the request, not about the artifact"
    );

    wait("the one that waited goes on", || async {
        ensure!(
            scene
                .reference()
                .await?
                .is_some_and(|reference| reference.ends_with(third))
        );
        Ok(())
    })
    .await?;
    scene.rollout_completes().await?;
    scene.reach("next", "Live", "Live").await?;
    let former = scene.reach("prod", "Superseded", "Superseded").await?;
    ensure!(former.live.is_none() && message(&former, "Ready").contains("ModelPromotion next"));
    Ok(())
}

/// A server that fetches its model by itself gets the artifact's address in a variable, and nothing else of the manifest is touched.
async fn by_variable(scene: &Scene, first: &str) -> Result<()> {
    let manifest = json!({
        "apiVersion": "apps/v1", "kind": "Deployment", "metadata": {"name": FETCHER},
        "spec": {"replicas": 1, "selector": {"matchLabels": {"app": FETCHER}}, "template": {
            "metadata": {"labels": {"app": FETCHER}},
            "spec": {"containers": [{"name": "server", "image": IMAGE, "env": [{"name": "LEVEL", "value": "info"}]}]}
        }}
    });
    let made: Deployment = serde_json::from_value(manifest)?;
    scene.deployments().create(&PostParams::default(), &made).await?;
    let delivery = json!({"env": {"name": "MODEL_URI", "container": "server"}});
    scene.promote_into("by-env", "magika-a", FETCHER, delivery).await?;
    scene.reach("by-env", "AwaitingApproval", "ApprovalMissing").await?;
    scene.vote("by-env", APPROVE).await?;
    let variables = || async {
        let pod = scene
            .deployments()
            .get(FETCHER)
            .await?
            .spec
            .and_then(|spec| spec.template.spec);
        let container = pod.context("no pod template")?.containers.into_iter().next();
        let env = container.and_then(|container| container.env).unwrap_or_default();
        let pairs = env.into_iter().map(|env| (env.name, env.value.unwrap_or_default()));
        anyhow::Ok(pairs.collect::<Vec<_>>())
    };
    let expected = [
        ("LEVEL".to_owned(), "info".to_owned()),
        ("MODEL_URI".to_owned(), format!("oci://r.test/models/magika@{first}")),
    ];
    wait("the variable is there", || async {
        let found = variables().await?;
        ensure!(found == expected, "{found:?}");
        Ok(())
    })
    .await?;
    let generation = scene.deployments().get(FETCHER).await?.metadata.generation;
    let complete = json!({"status": {"observedGeneration": generation, "replicas": 1, "updatedReplicas": 1, "readyReplicas": 1, "availableReplicas": 1}});
    scene
        .deployments()
        .patch_status(FETCHER, &PatchParams::default(), &Patch::Merge(complete))
        .await?;
    scene.reach("by-env", "Live", "Live").await?;
    Ok(())
}
