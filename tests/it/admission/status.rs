//! Status is written by the operator's running pods and by nobody else, whatever rights they hold.

use anyhow::{Result, ensure};
use assayer_crds::ModelPromotion;
use k8s_openapi::api::{authentication::v1::BoundObjectReference, core::v1::Pod};
use kube::{
    Api, Client,
    api::{Patch, PatchParams, PostParams},
};
use serde_json::json;

use super::{
    guard::pod_spec,
    scene::{NAMESPACE, RITA, ROOT, Scene, Stamps, annotations, assert_refused},
};
use crate::installed::{SYSTEM, kubectl};

const REFUSED: &[&str] = &[
    "denied request: assayer: user ",
    "can not write the status of modelpromotions/mine",
    "pod-bound token",
];

async fn write(client: Client) -> kube::Result<ModelPromotion> {
    let status = Patch::Merge(
        json!({"metadata": {"annotations": {"approve.assayer.dev/security": "x"}}, "status": {"phase": "Live"}}),
    );
    Api::<ModelPromotion>::namespaced(client, NAMESPACE)
        .patch_status("mine", &PatchParams::default(), &status)
        .await
}

#[tokio::test]
async fn only_a_running_pod_of_the_operator_writes_status() -> Result<()> {
    let scene = Scene::open(Stamps::ByCluster).await?;
    scene.requested("mine").await?;
    let role = [
        "create",
        "clusterrolebinding",
        "everything",
        "--clusterrole=cluster-admin",
        "--user=rita",
        "--serviceaccount=assayer-system:default",
        "--serviceaccount=ml:default",
    ];
    kubectl(&scene.installed.control_plane, &role, "")?;

    assert_refused(
        "the requester with every right",
        write(scene.client(RITA)).await,
        REFUSED,
    )?;
    assert_refused("the administrator", write(scene.client(ROOT)).await, REFUSED)?;
    let unbound = scene
        .installed
        .service_account(SYSTEM, "assayer-operator", None)
        .await?;
    assert_refused("a token that no pod holds", write(unbound).await, REFUSED)?;

    let pod = serde_json::from_value(json!({"metadata": {"name": "assayer-operator-fake"}, "spec": pod_spec()}))?;
    let pod = Api::<Pod>::namespaced(scene.installed.admin.clone(), NAMESPACE)
        .create(&PostParams::default(), &pod)
        .await?;
    let bound = BoundObjectReference {
        api_version: Some("v1".into()),
        kind: Some("Pod".into()),
        name: pod.metadata.name,
        uid: pod.metadata.uid,
    };
    let other = scene
        .installed
        .service_account(NAMESPACE, "default", Some(bound))
        .await?;
    assert_refused("another account's pod of the same name", write(other).await, REFUSED)?;

    let written = write(scene.operator.clone()).await?;
    ensure!(written.status.as_ref().is_some_and(|status| status.phase == "Live"));
    ensure!(
        annotations(&written).get("approve.assayer.dev/security").is_none(),
        "status brought an annotation along"
    );
    Ok(())
}

#[tokio::test]
async fn the_operator_writes_nothing_but_status() -> Result<()> {
    let scene = Scene::open(Stamps::ByCluster).await?;
    scene.waiting("mine").await?;
    let promotions = Api::<ModelPromotion>::namespaced(scene.operator.clone(), NAMESPACE);
    let annotation = Patch::Merge(json!({"metadata": {"annotations": {"approve.assayer.dev/security": "x"}}}));
    let result = promotions.patch("mine", &PatchParams::default(), &annotation).await;
    assert_refused(
        "an annotation by the operator",
        result,
        &["cannot patch resource \"modelpromotions\""],
    )
}
