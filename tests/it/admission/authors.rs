//! Whoever makes the operator act must be able to do what it then does.

use anyhow::Result;
use assayer_crds::{ModelOptimization, ModelPromotion, names};
use kube::{
    Api,
    api::{Patch, PatchParams, PostParams},
};
use serde_json::{Value, json};

use super::scene::{ALICE, MALLORY, NAMESPACE, Person, RITA, Scene, Stamps, assert_refused};
use crate::installed::yaml;

const NO_JOBS: &[&str] = &[
    "denied request: assayer: user mallory can not create Jobs in namespace ml",
    "verb create on jobs.batch",
];
const NO_TARGET: &[&str] = &[
    "denied request: assayer: user mallory can not patch Deployment ml/scanner",
    "verb patch on that Deployment",
];

async fn change_optimization(scene: &Scene, person: Person, patch: Value) -> kube::Result<ModelOptimization> {
    Api::<ModelOptimization>::namespaced(scene.client(person), NAMESPACE)
        .patch("magika-int8", &PatchParams::default(), &Patch::Merge(patch))
        .await
}

#[tokio::test]
async fn authors_hold_the_rights_that_the_operator_uses_for_them() -> Result<()> {
    let scene = Scene::open(Stamps::ByCluster).await?;

    let mut manifest = yaml(include_str!("../../../crds/tests/rules/modeloptimization.yaml"));
    manifest["metadata"]["namespace"] = NAMESPACE.into();
    let optimization: ModelOptimization = serde_json::from_value(manifest)?;
    let by_mallory = Api::<ModelOptimization>::namespaced(scene.client(MALLORY), NAMESPACE);
    assert_refused(
        "an optimization",
        by_mallory.create(&PostParams::default(), &optimization).await,
        NO_JOBS,
    )?;
    let by_alice = Api::<ModelOptimization>::namespaced(scene.client(ALICE), NAMESPACE);
    by_alice.create(&PostParams::default(), &optimization).await?;
    let resume = json!({"spec": {"suspend": true}});
    assert_refused(
        "a change",
        change_optimization(&scene, MALLORY, resume.clone()).await,
        NO_JOBS,
    )?;
    let rerun = json!({"metadata": {"annotations": {names::RERUN: "1"}}});
    assert_refused(
        "a rerun",
        change_optimization(&scene, MALLORY, rerun.clone()).await,
        NO_JOBS,
    )?;
    change_optimization(&scene, MALLORY, json!({"metadata": {"labels": {"team": "x"}}})).await?;
    change_optimization(&scene, ALICE, resume).await?;
    change_optimization(&scene, ALICE, rerun.clone()).await?;

    let promotion: ModelPromotion = serde_json::from_value(scene.manifest("theirs", MALLORY))?;
    let made = scene
        .promotions(MALLORY)
        .create(&PostParams::default(), &promotion)
        .await;
    assert_refused("a promotion", made, NO_TARGET)?;
    scene
        .promotions(RITA)
        .create(&PostParams::default(), &promotion)
        .await?;
    let change = json!({"spec": {"change": {"ticket": "CHG-1"}}});
    assert_refused("a change", scene.patch(MALLORY, "theirs", &change).await, NO_TARGET)?;
    assert_refused("a rerun", scene.patch(MALLORY, "theirs", &rerun).await, NO_TARGET)?;
    scene.patch(ALICE, "theirs", &change).await?;
    Ok(())
}
