//! kstatus conformance of every object of ours that a test leaves behind. The rules are `assayer_operator::status::violations`'s; here
//! is only decided which objects they hold for: those whose status the operator applied. What a test wrote by hand is its own business.

use std::path::Path;

use anyhow::{Context as _, Result, ensure};
use assayer_crds::{ModelOptimization, ModelPromotion, PromotionPolicy, names};
use assayer_operator::status::violations;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Condition;
use kube::api::{ApiResource, DynamicObject, ListParams};
use kube::config::{KubeConfigOptions, Kubeconfig};
use kube::{Api, Client, Config, ResourceExt as _};
use serde_json::json;

/// Checks all objects of the cluster; returns how many the operator has written a status of.
pub(crate) async fn check(client: &Client) -> Result<usize> {
    let kinds = [
        ApiResource::erase::<ModelOptimization>(&()),
        ApiResource::erase::<ModelPromotion>(&()),
        ApiResource::erase::<PromotionPolicy>(&()),
    ];
    let (mut written, mut problems) = (0, Vec::new());
    for kind in kinds {
        // Untyped: an object that can't be read as ours has a status all the same.
        let found = Api::<DynamicObject>::all_with(client.clone(), &kind)
            .list(&ListParams::default())
            .await;
        let found = match found {
            // The test has removed our kinds.
            Err(kube::Error::Api(status)) if status.is_not_found() => continue,
            found => found.with_context(|| format!("list {}", kind.plural))?,
        };
        for object in found.iter().filter(|object| is_ours(object)) {
            written += 1;
            let name = format!(
                "{} {}/{}",
                kind.kind,
                object.namespace().unwrap_or_default(),
                object.name_any()
            );
            problems.extend(of(object).into_iter().map(|problem| format!("{name}: {problem}")));
        }
    }
    ensure!(problems.is_empty(), "against kstatus:\n{}", problems.join("\n"));
    Ok(written)
}

/// Checks the cluster of a kubeconfig on a thread and a runtime of its own: for destructors.
pub(crate) fn check_blocking(kubeconfig: &Path) -> Result<usize> {
    let work = || {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        runtime.block_on(async {
            let kubeconfig = Kubeconfig::read_from(kubeconfig)?;
            let config = Config::from_custom_kubeconfig(kubeconfig, &KubeConfigOptions::default()).await?;
            check(&Client::try_from(config)?).await
        })
    };
    let checked = std::thread::scope(|scope| scope.spawn(work).join());
    checked.map_err(|_| anyhow::anyhow!("the check panicked"))?
}

fn is_ours(object: &DynamicObject) -> bool {
    object.managed_fields().iter().any(|entry| {
        entry.manager.as_deref() == Some(names::FIELD_MANAGER)
            && entry.operation.as_deref() == Some("Apply")
            && entry.subresource.as_deref() == Some("status")
    })
}

fn of(object: &DynamicObject) -> Vec<String> {
    let status = &object.data["status"];
    let conditions: Vec<Condition> = serde_json::from_value(status["conditions"].clone()).unwrap_or_default();
    let observed = status["observedGeneration"].as_i64();
    let mut problems = violations(&conditions, observed);
    if observed > object.metadata.generation {
        problems.push(format!(
            "observedGeneration {observed:?} is beyond generation {:?}",
            object.metadata.generation
        ));
    }
    problems
}

#[test]
fn an_object_without_ready_is_found() -> Result<()> {
    let object = |conditions| {
        let made: DynamicObject = serde_json::from_value(json!({
            "apiVersion": "assayer.dev/v1alpha1", "kind": "ModelPromotion", "metadata": {"name": "a", "generation": 1},
            "status": {"observedGeneration": 1, "conditions": conditions},
        }))?;
        anyhow::Ok(of(&made))
    };
    let ready = json!({"type": "Ready", "status": "True", "reason": "Live", "message": "", "observedGeneration": 1, "lastTransitionTime": "2026-01-01T00:00:00Z"});
    ensure!(object(json!([ready]))?.is_empty());
    ensure!(object(json!([]))? == ["Ready is missing"]);
    let mut unknown = ready;
    unknown["reason"] = json!("Whim");
    ensure!(object(json!([unknown]))? == ["Ready has the undocumented reason Whim"]);
    Ok(())
}
