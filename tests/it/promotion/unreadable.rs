//! Objects of a newer schema, on a real API server: they say that this version can't read them, and come back once they can be read.

use anyhow::{Context as _, Result, ensure};
use assayer_crds::{ModelPromotion, PromotionPolicy};
use k8s_openapi::apiextensions_apiserver::pkg::apis::apiextensions::v1::CustomResourceDefinition;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Condition;
use kube::Client;
use kube::api::{Api, ApiResource, DynamicObject, Patch, PatchParams};
use serde_json::{Value, json};

use super::scene::{NAMESPACE, Scene, wait};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_can_not_be_read_says_which_field_it_is() -> Result<()> {
    let scene = Scene::open().await?;
    scene.policy().await?;
    scene.apply_from_git().await?;
    scene.optimization("magika-a", "int8-a").await?;
    scene.promote("prod", "magika-a").await?;
    let before = scene.reach("prod", "AwaitingApproval", "ApprovalMissing").await?;
    promotion(&scene).await?;
    policy(&scene).await?;
    let after = scene.reach("prod", "AwaitingApproval", "ApprovalMissing").await?;
    ensure!(
        after.conditions.len() == before.conditions.len(),
        "nothing is left of the complaint: {:?}",
        after.conditions
    );
    scene.close().await
}

async fn promotion(scene: &Scene) -> Result<()> {
    let field = "/spec/versions/0/schema/openAPIV3Schema/properties/spec/properties/change/properties/urgency";
    know(&scene.admin, "modelpromotions.assayer.dev", field).await?;
    let resource = ApiResource::erase::<ModelPromotion>(&());
    let objects: Api<DynamicObject> = Api::namespaced_with(scene.admin.clone(), NAMESPACE, &resource);
    let set = |urgency: Value| json!({"spec": {"change": {"urgency": urgency}}});
    keep(&objects, "prod", &set(json!("high")), "/spec/change/urgency").await?;
    complains(&objects, "prod", &["spec.change", "urgency", "correct the field"]).await?;
    // What was there is still there.
    let status = objects.get("prod").await?.data["status"].clone();
    ensure!(
        status["request"]["digest"].is_string() && status["phase"] == "AwaitingApproval",
        "{status}"
    );
    wait("an Event says so", || async {
        ensure!(scene.events("prod").await?.iter().any(|event| event == "InvalidSpec"));
        Ok(())
    })
    .await?;
    let patch = Patch::Merge(set(Value::Null));
    objects.patch("prod", &PatchParams::default(), &patch).await?;
    scene.reach("prod", "AwaitingApproval", "ApprovalMissing").await?;
    Ok(())
}

async fn policy(scene: &Scene) -> Result<()> {
    let field = "/spec/versions/0/schema/openAPIV3Schema/properties/spec/properties/colour";
    know(&scene.admin, "promotionpolicies.assayer.dev", field).await?;
    let resource = ApiResource::erase::<PromotionPolicy>(&());
    let objects: Api<DynamicObject> = Api::all_with(scene.admin.clone(), &resource);
    keep(&objects, "default", &json!({"spec": {"colour": "red"}}), "/spec/colour").await?;
    complains(&objects, "default", &["spec", "colour"]).await?;
    // A policy that nobody can read may ask for anything.
    scene.reach("prod", "Rejected", "NoPolicy").await?;
    let patch = Patch::Merge(json!({"spec": {"colour": null}}));
    objects.patch("default", &PatchParams::default(), &patch).await?;
    Ok(())
}

/// A newer schema knows one field more.
async fn know(admin: &Client, definition: &str, pointer: &str) -> Result<()> {
    let definitions: Api<CustomResourceDefinition> = Api::all(admin.clone());
    let patch = serde_json::from_value(json!([{"op": "add", "path": pointer, "value": {"type": "string"}}]))?;
    definitions
        .patch(definition, &PatchParams::default(), &Patch::<()>::Json(patch))
        .await?;
    Ok(())
}

/// Writes the field until the API server knows it and keeps it.
async fn keep(objects: &Api<DynamicObject>, name: &str, patch: &Value, pointer: &str) -> Result<()> {
    wait("the field is kept", || async {
        let written = objects
            .patch(name, &PatchParams::default(), &Patch::Merge(patch))
            .await?;
        ensure!(written.data.pointer(pointer).is_some());
        Ok(())
    })
    .await
}

async fn complains(objects: &Api<DynamicObject>, name: &str, words: &[&str]) -> Result<()> {
    wait("it says that it can't be read", || async {
        let found = objects.get(name).await?;
        let conditions: Vec<Condition> = serde_json::from_value(found.data["status"]["conditions"].clone())?;
        let ready = conditions
            .iter()
            .find(|condition| condition.type_ == "Ready")
            .context("no Ready")?;
        ensure!(ready.status == "False" && ready.reason == "InvalidSpec", "{ready:?}");
        ensure!(ready.observed_generation == found.metadata.generation);
        ensure!(conditions.iter().any(|condition| condition.type_ == "Stalled"));
        for word in words {
            ensure!(ready.message.contains(word), "{} should say {word}", ready.message);
        }
        Ok(())
    })
    .await
}
