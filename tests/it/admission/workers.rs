//! Worker Jobs, their pods and evidence: made by the operator and the Job controller, changed and entered by nobody.

use anyhow::{Result, ensure};
use assayer_crds::names;
use k8s_openapi::api::{
    batch::v1::Job,
    core::v1::{ConfigMap, Pod},
};
use kube::{
    Api, Client,
    api::{DeleteParams, Patch, PatchParams, PostParams},
};
use serde_json::{Value, json};

use super::{
    guard::{entered, evidence, pod_spec, worker_job, worker_pod},
    scene::{ALICE, NAMESPACE, Scene, Stamps, assert_refused},
};

const JOB: &[&str] = &[
    "denied request: assayer: user ",
    "only the operator creates worker Jobs",
];
const POD: &[&str] = &[
    "denied request: assayer: user ",
    "only the Job controller creates worker pods",
];
const POD_STAYS: &[&str] = &[
    "denied request: assayer: user ",
    "the annotations of assayer.dev and the images of a worker pod stay",
];
const EVIDENCE_STAYS: &[&str] = &[
    "denied request: assayer: user ",
    "evidence stays as the operator recorded it",
];

fn merge(patch: Value) -> (PatchParams, Patch<Value>) {
    (PatchParams::default(), Patch::Merge(patch))
}

async fn job_controller(scene: &Scene) -> Result<Client> {
    // By a certificate: the service account's name is what the policy goes by.
    let user = "system:serviceaccount:kube-system:job-controller";
    scene
        .installed
        .control_plane
        .client_for(user, &["system:masters"])
        .await
}

#[tokio::test]
async fn worker_jobs_are_the_operators() -> Result<()> {
    let scene = Scene::open(Stamps::ByCluster).await?;
    let (alice, admin) = (scene.client(ALICE), scene.installed.admin.clone());
    let jobs = |client: &Client| Api::<Job>::namespaced(client.clone(), NAMESPACE);
    let create = PostParams::default();

    assert_refused(
        "an editor's",
        jobs(&alice).create(&create, &worker_job("a")?).await,
        JOB,
    )?;
    assert_refused(
        "the administrator's",
        jobs(&admin).create(&create, &worker_job("a")?).await,
        JOB,
    )?;
    // The label in the template alone would make worker pods just the same.
    let mut hidden = worker_job("a")?;
    hidden.metadata.labels = None;
    assert_refused("a hidden one", jobs(&alice).create(&create, &hidden).await, JOB)?;
    let mut plain = hidden;
    if let Some(spec) = &mut plain.spec {
        spec.template.metadata = None;
    }
    jobs(&alice).create(&create, &plain).await?;
    let label = json!({"spec": {"template": {"metadata": {"labels": {names::WORKER: "true"}}}}});
    let (parameters, patch) = merge(label);
    let result = jobs(&alice).patch("a", &parameters, &patch).await;
    assert_refused(
        "the label of a suspended Job",
        result,
        &["denied request: assayer: user alice can not add, change or remove label assayer.dev/worker"],
    )?;

    jobs(&scene.operator).create(&create, &worker_job("assayer-b")?).await?;
    // Removing it is no use: the API server puts the template's labels back.
    let (parameters, patch) = merge(json!({"metadata": {"labels": {names::WORKER: "no"}}}));
    let result = jobs(&alice).patch("assayer-b", &parameters, &patch).await;
    assert_refused(
        "the label of ours",
        result,
        &["can not add, change or remove label assayer.dev/worker"],
    )?;
    // Queues edit our suspended Jobs: that goes on.
    let (parameters, patch) =
        merge(json!({"spec": {"suspend": false, "template": {"spec": {"nodeSelector": {"gpu": "yes"}}}}}));
    jobs(&admin).patch("assayer-b", &parameters, &patch).await?;
    Ok(())
}

#[tokio::test]
async fn worker_pods_are_made_by_the_job_controller_and_stay_as_they_are() -> Result<()> {
    let scene = Scene::open(Stamps::ByCluster).await?;
    let admin = Api::<Pod>::namespaced(scene.installed.admin.clone(), NAMESPACE);
    let controller = Api::<Pod>::namespaced(job_controller(&scene).await?, NAMESPACE);
    let create = PostParams::default();

    assert_refused("anybody's", admin.create(&create, &worker_pod("x")?).await, POD)?;
    let by_operator = Api::<Pod>::namespaced(scene.operator.clone(), NAMESPACE);
    let result = by_operator.create(&create, &worker_pod("x")?).await;
    assert_refused("the operator's own", result, &["cannot create resource \"pods\""])?;
    let mut pod = worker_pod("assayer-w")?;
    pod.metadata.annotations = Some([(names::PLAN.to_owned(), "{}".to_owned())].into());
    controller.create(&create, &pod).await?;
    let changes = [
        json!({"metadata": {"annotations": {names::PLAN: "{\"v\":2}"}}}),
        json!({"metadata": {"annotations": {names::ATTEMPT: "2"}}}),
        json!({"metadata": {"labels": {names::WORKER: null}}}),
        json!({"metadata": {"labels": {names::WORKER: "no"}}}),
        json!({"spec": {"containers": [{"name": "run", "image": "registry.test/evil:1"}]}}),
    ];
    for change in changes {
        let result = admin
            .patch("assayer-w", &PatchParams::default(), &Patch::Strategic(change))
            .await;
        assert_refused("a change", result, POD_STAYS)?;
    }
    // What the Job controller and others do to a pod goes on.
    let (parameters, patch) =
        merge(json!({"metadata": {"labels": {"x": "y"}, "finalizers": ["batch.kubernetes.io/job-tracking"]}}));
    controller.patch("assayer-w", &parameters, &patch).await?;

    // A pod of somebody's own is none of our business, until it wants to be one of ours.
    let plain = serde_json::from_value(json!({"metadata": {"name": "plain"}, "spec": pod_spec()}))?;
    admin.create(&create, &plain).await?;
    let (parameters, patch) = merge(json!({"metadata": {"labels": {names::WORKER: "true"}}}));
    assert_refused(
        "a later label",
        admin.patch("plain", &parameters, &patch).await,
        POD_STAYS,
    )?;
    Ok(())
}

#[tokio::test]
async fn nobody_enters_a_worker_pod() -> Result<()> {
    let scene = Scene::open(Stamps::ByCluster).await?;
    for subresource in ["exec", "attach"] {
        let said = entered(&scene, "assayer-w-1", subresource).await?;
        ensure!(
            said.contains(&format!(
                "assayer: user admin can not use {subresource} on pod assayer-w-1"
            )),
            "{said}"
        );
        let said = entered(&scene, "scanner-1", subresource).await?;
        ensure!(!said.contains("assayer:"), "another pod is not ours to close: {said}");
    }
    let pods = Api::<Pod>::namespaced(job_controller(&scene).await?, NAMESPACE);
    pods.create(&PostParams::default(), &worker_pod("assayer-w")?).await?;
    let debug = json!({"spec": {"ephemeralContainers": [{"name": "debug", "image": "registry.test/shell:1"}]}});
    let admin = Api::<Pod>::namespaced(scene.installed.admin.clone(), NAMESPACE);
    let result = admin
        .patch_ephemeral_containers("assayer-w", &PatchParams::default(), &Patch::Strategic(debug))
        .await;
    assert_refused(
        "a debug container",
        result,
        &["can not use ephemeralcontainers on pod assayer-w"],
    )
}

#[tokio::test]
async fn evidence_is_made_by_the_operator_and_never_changed() -> Result<()> {
    let scene = Scene::open(Stamps::ByCluster).await?;
    let admin = Api::<ConfigMap>::namespaced(scene.installed.admin.clone(), NAMESPACE);
    let create = PostParams::default();
    let refused = [
        "denied request: assayer: user admin can not create config map",
        "only the operator records evidence",
    ];

    assert_refused("by label", admin.create(&create, &evidence("other")?).await, &refused)?;
    let mut unlabelled = evidence("assayer-evidence-1")?;
    unlabelled.metadata.labels = None;
    assert_refused("by name", admin.create(&create, &unlabelled).await, &refused)?;

    let operator = Api::<ConfigMap>::namespaced(scene.operator.clone(), NAMESPACE);
    operator.create(&create, &evidence("assayer-evidence-1")?).await?;
    let changes = [
        json!({"data": {names::EVIDENCE_KEY: "{\"forged\":true}"}}),
        json!({"metadata": {"labels": {names::EVIDENCE: null}}}),
        json!({"metadata": {"annotations": {names::ARTIFACT_DIGEST: "sha256:0"}}}),
        json!({"metadata": {"ownerReferences": [{"apiVersion": "v1", "kind": "ConfigMap", "name": "x", "uid": "y"}]}}),
    ];
    for change in changes {
        let (parameters, patch) = merge(change);
        assert_refused(
            "a change",
            admin.patch("assayer-evidence-1", &parameters, &patch).await,
            EVIDENCE_STAYS,
        )?;
    }
    let result = operator
        .patch(
            "assayer-evidence-1",
            &PatchParams::default(),
            &Patch::Merge(json!({"data": {"x": "y"}})),
        )
        .await;
    assert_refused(
        "a change by the operator",
        result,
        &["cannot patch resource \"configmaps\""],
    )?;
    // A foreground deletion sets a finalizer, which must be removable.
    let (parameters, patch) = merge(json!({"metadata": {"finalizers": ["test.assayer.dev/hold"]}}));
    admin.patch("assayer-evidence-1", &parameters, &patch).await?;
    let (parameters, patch) = merge(json!({"metadata": {"finalizers": null}}));
    admin.patch("assayer-evidence-1", &parameters, &patch).await?;
    admin.delete("assayer-evidence-1", &DeleteParams::default()).await?;

    let ordinary = serde_json::from_value(json!({"metadata": {"name": "settings"}, "data": {"a": "b"}}))?;
    admin.create(&create, &ordinary).await?;
    let (parameters, patch) = merge(json!({"metadata": {"labels": {names::EVIDENCE: "true"}}}));
    assert_refused(
        "a later label",
        admin.patch("settings", &parameters, &patch).await,
        EVIDENCE_STAYS,
    )?;
    Ok(())
}
