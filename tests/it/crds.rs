//! The published definitions on a real API server: accepted as they stand, and every case of the rule table refused with its words.

use anyhow::{Context, Result};
use kube::{
    Api, Client,
    api::{ApiResource, DynamicObject, PatchParams, PostParams},
    core::GroupVersionKind,
};
use serde::Deserialize;
use serde_json::Value;
use xtask::cluster::{ControlPlane, ControlPlaneOptions};

use crate::installed::{eventually, kubectl, refusal, yaml};

#[derive(Deserialize)]
struct Case {
    kind: String,
    #[serde(default)]
    update: bool,
    #[serde(default)]
    set: serde_json::Map<String, Value>,
    #[serde(default)]
    remove: Vec<String>,
    refused: String,
}

const ACCEPTED: [&str; 3] = [
    include_str!("../../crds/tests/rules/modeloptimization.yaml"),
    include_str!("../../crds/tests/rules/modelpromotion.yaml"),
    include_str!("../../crds/tests/rules/promotionpolicy.yaml"),
];

fn api(client: &Client, object: &Value) -> Api<DynamicObject> {
    let kind = object["kind"].as_str().unwrap_or_default();
    let resource = ApiResource::from_gvk(&GroupVersionKind::gvk("assayer.dev", "v1alpha1", kind));
    if kind == "PromotionPolicy" {
        Api::all_with(client.clone(), &resource)
    } else {
        Api::namespaced_with(client.clone(), "default", &resource)
    }
}

fn dry_run() -> PostParams {
    PostParams {
        dry_run: true,
        ..PostParams::default()
    }
}

fn changed(object: &Value, case: &Case) -> Result<Value> {
    let mut object = object.clone();
    for pointer in &case.remove {
        let (parent, key) = pointer.rsplit_once('/').context("a pointer")?;
        let parent = object.pointer_mut(parent).and_then(Value::as_object_mut);
        parent
            .and_then(|parent| parent.remove(key))
            .with_context(|| format!("{pointer} is not there"))?;
    }
    for (pointer, value) in &case.set {
        let (parent, key) = pointer.rsplit_once('/').context("a pointer")?;
        let parent = object.pointer_mut(parent).and_then(Value::as_object_mut);
        parent
            .with_context(|| format!("{pointer} has no parent"))?
            .insert(key.to_owned(), value.clone());
    }
    Ok(object)
}

/// Creates (or replaces) with strict field validation, as kubectl does.
async fn attempt(client: &Client, object: &Value, case: &Case) -> Result<String> {
    let api = api(client, object);
    if case.update {
        let name = object["metadata"]["name"].as_str().unwrap_or_default();
        let patch = kube::api::Patch::Merge(serde_json::json!({"spec": object["spec"]}));
        let parameters = PatchParams {
            dry_run: true,
            ..PatchParams::default()
        };
        return refusal(api.patch(name, &parameters, &patch).await);
    }
    // kube's `create` can't ask for strict field validation, which is kubectl's default.
    let mut object = object.clone();
    object["metadata"]["name"] = "refused".into();
    let path = format!("{}?dryRun=All&fieldValidation=Strict", api.resource_url());
    let request = http::Request::post(path)
        .header("content-type", "application/json")
        .body(serde_json::to_vec(&object)?)?;
    refusal(client.request::<Value>(request).await)
}

#[tokio::test]
async fn definitions_are_accepted_and_refuse_what_they_say() -> Result<()> {
    let control_plane = ControlPlane::start(&ControlPlaneOptions::default()).await?;
    let folder = format!("{}/../crds", env!("CARGO_MANIFEST_DIR"));
    let files: Vec<String> = ["modeloptimizations", "modelpromotions", "promotionpolicies"]
        .iter()
        .map(|name| format!("-f={folder}/{name}.yaml"))
        .collect();
    let mut arguments = vec!["apply", "--validate=strict"];
    arguments.extend(files.iter().map(String::as_str));
    let answer = kubectl(&control_plane, &arguments, "")?;
    assert_eq!(answer.refused, "");
    assert!(!answer.said.contains("Warning"), "{}", answer.said);

    let client = control_plane.client().await?;
    let accepted: Vec<Value> = ACCEPTED.iter().map(|text| yaml(text)).collect();
    for object in &accepted {
        let api = api(&client, object);
        eventually("the definition to be served", || async {
            let object: DynamicObject = serde_json::from_value(object.clone())?;
            Ok(api.create(&dry_run(), &object).await?)
        })
        .await?;
        let typed: DynamicObject = serde_json::from_value(object.clone())?;
        api.create(&PostParams::default(), &typed).await?;
    }

    let cases: Vec<Case> = serde_saphyr::from_str(include_str!("../../crds/tests/rules/cases.yaml"))?;
    let mut wrong = Vec::new();
    for case in &cases {
        let object = accepted.iter().find(|object| object["kind"] == case.kind.as_str());
        let object = changed(object.context("no accepted object of the kind")?, case)?;
        match attempt(&client, &object, case).await {
            Ok(message) if message.contains(&case.refused) => {}
            answer => wrong.push(format!("{} {:?} -{:?}: {answer:?}", case.kind, case.set, case.remove)),
        }
    }
    assert!(
        wrong.is_empty(),
        "{} of {}:\n{}",
        wrong.len(),
        cases.len(),
        wrong.join("\n")
    );
    Ok(())
}

/// Objects of ours in the pages of `docs/`.
fn documented() -> Result<Vec<(String, String)>> {
    let mut found = Vec::new();
    for entry in std::fs::read_dir(format!("{}/../docs", env!("CARGO_MANIFEST_DIR")))? {
        let path = entry?.path();
        let text = std::fs::read_to_string(&path)?;
        for block in text.split("```yaml\n").skip(1) {
            let block = block.split("```").next().unwrap_or_default();
            if block.contains("apiVersion: assayer.dev/") {
                let page = path.file_name().unwrap_or_default().to_string_lossy();
                // Namespaces of examples are not there.
                found.push((page.into_owned(), block.replace("namespace: ml", "namespace: default")));
            }
        }
    }
    Ok(found)
}

#[tokio::test]
async fn documented_objects_are_accepted() -> Result<()> {
    let control_plane = ControlPlane::start(&ControlPlaneOptions::default()).await?;
    let folder = format!("{}/../crds", env!("CARGO_MANIFEST_DIR"));
    kubectl(&control_plane, &["create", "-f", &folder], "")?;
    let documented = documented()?;
    assert!(documented.len() >= 3, "the examples were not found");
    for (page, object) in documented {
        eventually(&format!("{page}: {object}"), || async {
            let arguments = ["create", "--dry-run=server", "--validate=strict", "-f", "-"];
            let answer = kubectl(&control_plane, &arguments, &object)?;
            anyhow::ensure!(answer.refused.is_empty(), "{}", answer.refused);
            Ok(())
        })
        .await?;
    }
    Ok(())
}

#[tokio::test]
async fn explain_reads_like_documentation() -> Result<()> {
    let control_plane = ControlPlane::start(&ControlPlaneOptions::default()).await?;
    let folder = format!("{}/../crds", env!("CARGO_MANIFEST_DIR"));
    kubectl(
        &control_plane,
        &["apply", "-f", &format!("{folder}/modeloptimizations.yaml")],
        "",
    )?;
    let told = eventually("explanations to be served", || async {
        let answer = kubectl(&control_plane, &["explain", "modeloptimization.spec.gates"], "")?;
        anyhow::ensure!(answer.refused.is_empty(), "{}", answer.refused);
        Ok(answer.said)
    })
    .await?;
    for part in ["What must hold.", "maxDrop", "\"0.01\"` is one", "Block, Warn, DryRun"] {
        assert!(told.contains(part), "`{part}` is missing in:\n{told}");
    }
    Ok(())
}
