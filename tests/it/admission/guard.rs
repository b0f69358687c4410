//! Every policy refuses something by its own name, and goes quiet when its binding is gone: what the operator's guard relies on.

use std::pin::Pin;

use anyhow::{Result, ensure};
use assayer_crds::{ModelPromotion, names};
use k8s_openapi::api::{
    admissionregistration::v1::ValidatingAdmissionPolicyBinding,
    batch::v1::Job,
    core::v1::{ConfigMap, Pod},
};
use kube::{
    Api,
    api::{DeleteParams, Patch, PatchParams, PostParams},
};
use serde_json::{Value, json};

use super::scene::{DIGEST, MALLORY, NAMESPACE, Scene, Stamps, assert_refused};
use crate::installed::{SYSTEM, eventually, refusal, yaml};

type Refusal<'a> = Pin<Box<dyn Future<Output = Result<String>> + 'a>>;

/// Something that one policy refuses, as a dry run.
pub(crate) struct Probe {
    pub(crate) policy: &'static str,
    pub(crate) refused: fn(&Scene) -> Refusal<'_>,
}

pub(crate) const PROBES: [Probe; 8] = [
    Probe {
        policy: "assayer-approvals",
        refused: |scene| Box::pin(forged_approval(scene)),
    },
    Probe {
        policy: "assayer-status",
        refused: |scene| Box::pin(foreign_status(scene)),
    },
    Probe {
        policy: "assayer-optimization-authors",
        refused: |scene| Box::pin(optimization_without_jobs(scene)),
    },
    Probe {
        policy: "assayer-promotion-authors",
        refused: |scene| Box::pin(promotion_without_target(scene)),
    },
    Probe {
        policy: "assayer-worker-jobs",
        refused: |scene| Box::pin(foreign_job(scene)),
    },
    Probe {
        policy: "assayer-worker-pods",
        refused: |scene| Box::pin(foreign_pod(scene)),
    },
    Probe {
        policy: "assayer-worker-entry",
        refused: |scene| Box::pin(entered_pod(scene)),
    },
    Probe {
        policy: "assayer-evidence",
        refused: |scene| Box::pin(foreign_evidence(scene)),
    },
];

fn dry_run() -> PostParams {
    PostParams {
        dry_run: true,
        ..PostParams::default()
    }
}

/// What the operator does every 30 s: it creates, as a dry run in its own namespace, a promotion that is approved already.
pub(crate) async fn forged_approval(scene: &Scene) -> Result<String> {
    let mut manifest = scene.manifest("assayer-guard", MALLORY);
    manifest["metadata"] =
        json!({"name": "assayer-guard", "annotations": {format!("{}guard", names::APPROVE): DIGEST}});
    let forged: ModelPromotion = serde_json::from_value(manifest)?;
    let promotions = Api::<ModelPromotion>::namespaced(scene.operator.clone(), SYSTEM);
    refusal(promotions.create(&dry_run(), &forged).await)
}

async fn foreign_status(scene: &Scene) -> Result<String> {
    let name = "foreign-status";
    let promotions = Api::<ModelPromotion>::namespaced(scene.installed.admin.clone(), NAMESPACE);
    if promotions.get_opt(name).await?.is_none() {
        scene.requested(name).await?;
    }
    let parameters = PatchParams {
        dry_run: true,
        ..PatchParams::default()
    };
    let status = Patch::Merge(json!({"status": {"phase": "Live"}}));
    refusal(promotions.patch_status(name, &parameters, &status).await)
}

async fn optimization_without_jobs(scene: &Scene) -> Result<String> {
    let mut manifest = yaml(include_str!("../../../crds/tests/rules/modeloptimization.yaml"));
    manifest["metadata"]["namespace"] = NAMESPACE.into();
    let optimization = serde_json::from_value(manifest)?;
    let api = Api::<assayer_crds::ModelOptimization>::namespaced(scene.client(MALLORY), NAMESPACE);
    refusal(api.create(&dry_run(), &optimization).await)
}

async fn promotion_without_target(scene: &Scene) -> Result<String> {
    let promotion = serde_json::from_value(scene.manifest("untargeted", MALLORY))?;
    refusal(scene.promotions(MALLORY).create(&dry_run(), &promotion).await)
}

/// A Job with the worker's label.
pub(crate) fn worker_job(name: &str) -> Result<Job> {
    let labels = json!({names::WORKER: "true"});
    Ok(serde_json::from_value(json!({
        "metadata": {"name": name, "labels": labels},
        "spec": {"suspend": true, "template": {"metadata": {"labels": labels}, "spec": pod_spec()}},
    }))?)
}

/// A pod with the worker's label.
pub(crate) fn worker_pod(name: &str) -> Result<Pod> {
    let labels = json!({names::WORKER: "true"});
    Ok(serde_json::from_value(
        json!({"metadata": {"name": name, "labels": labels}, "spec": pod_spec()}),
    )?)
}

pub(crate) fn pod_spec() -> Value {
    json!({"restartPolicy": "Never", "containers": [{"name": "run", "image": "registry.test/worker:1"}]})
}

/// A config map that looks like evidence.
pub(crate) fn evidence(name: &str) -> Result<ConfigMap> {
    Ok(serde_json::from_value(json!({
        "metadata": {"name": name, "labels": {names::EVIDENCE: "true"}},
        "data": {names::EVIDENCE_KEY: "{}"},
    }))?)
}

async fn foreign_job(scene: &Scene) -> Result<String> {
    let jobs = Api::<Job>::namespaced(scene.installed.admin.clone(), NAMESPACE);
    refusal(jobs.create(&dry_run(), &worker_job("foreign")?).await)
}

async fn foreign_pod(scene: &Scene) -> Result<String> {
    let pods = Api::<Pod>::namespaced(scene.installed.admin.clone(), NAMESPACE);
    refusal(pods.create(&dry_run(), &worker_pod("foreign")?).await)
}

/// Connects to a pod's `exec` as an HTTP request: admission refuses before anything is upgraded.
pub(crate) async fn entered(scene: &Scene, pod: &str, subresource: &str) -> Result<String> {
    let path = format!("/api/v1/namespaces/{NAMESPACE}/pods/{pod}/{subresource}?container=run&command=id&stdout=true");
    let request = http::Request::post(path).body(Vec::new())?;
    refusal(scene.installed.admin.request_text(request).await)
}

async fn entered_pod(scene: &Scene) -> Result<String> {
    entered(scene, "assayer-magika-int8-1a2b3c4d-x2x4z", "exec").await
}

async fn foreign_evidence(scene: &Scene) -> Result<String> {
    let maps = Api::<ConfigMap>::namespaced(scene.installed.admin.clone(), NAMESPACE);
    refusal(maps.create(&dry_run(), &evidence("assayer-evidence-1")?).await)
}

#[tokio::test]
async fn the_guard_sees_whether_the_policy_is_in_force() -> Result<()> {
    // Opening the scene has already seen every policy refuse by its own name.
    let scene = Scene::open(Stamps::ByCluster).await?;
    assert!(
        forged_approval(&scene)
            .await?
            .contains("ValidatingAdmissionPolicy 'assayer-approvals'")
    );

    let bindings = Api::<ValidatingAdmissionPolicyBinding>::all(scene.installed.admin.clone());
    bindings.delete("assayer-approvals", &DeleteParams::default()).await?;
    eventually("the forged approval to pass without the binding", || async {
        ensure!(forged_approval(&scene).await.is_err(), "it is still refused");
        Ok(())
    })
    .await?;
    Ok(())
}

#[tokio::test]
async fn the_operator_may_create_promotions_in_its_own_namespace_only() -> Result<()> {
    let scene = Scene::open(Stamps::ByCluster).await?;
    let manifest: ModelPromotion = serde_json::from_value(scene.manifest("assayer-guard", MALLORY))?;
    let promotions = Api::<ModelPromotion>::namespaced(scene.operator.clone(), NAMESPACE);
    let result = promotions.create(&dry_run(), &manifest).await;
    assert_refused(
        "a promotion by the operator elsewhere",
        result,
        &["cannot create resource \"modelpromotions\""],
    )
}
