//! Objects that this version can't read: their conditions and a Warning Event say so, and which field it is.
//!
//! Reads as untyped JSON first, so that there is something to tell it on. Changes nothing else in a status, and decides nothing about the
//! object: whatever rests on it stays closed.

use assayer_crds::conditions::INVALID_SPEC;
use assayer_crds::names;
use jiff::Timestamp;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{Condition, ObjectMeta};
use kube::api::{Api, ApiResource, DynamicObject, Patch, PatchParams, TypeMeta};
use kube::{Resource, ResourceExt as _};
use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::{Map, Value};

use crate::client::limited;
use crate::context::Context;
use crate::error::Error;
use crate::events::{self, Note};
use crate::status::{Conditions, Standing};

#[derive(Debug, Serialize)]
struct StatusPatch<'a> {
    #[serde(flatten)]
    types: TypeMeta,
    metadata: ObjectMeta,
    status: &'a Map<String, Value>,
}

/// Reads an object live; nothing when it is gone.
///
/// # Errors
/// When it can't be fetched, or when this version can't read it: then the object says so.
pub async fn read<K>(ctx: &Context, namespace: Option<&str>, name: &str) -> Result<Option<K>, Error>
where
    K: Resource<DynamicType = ()> + DeserializeOwned,
{
    let resource = ApiResource::erase::<K>(&());
    let api: Api<DynamicObject> = match namespace {
        Some(namespace) => Api::namespaced_with(ctx.client.clone(), namespace, &resource),
        None => Api::all_with(ctx.client.clone(), &resource),
    };
    let what = match namespace {
        Some(namespace) => format!("{} {namespace}/{name}", resource.kind),
        None => format!("{} {name}", resource.kind),
    };
    let found = limited(&what, api.get_opt(name)).await?.map_err(Error::read(&what))?;
    let Some(raw) = found else { return Ok(None) };
    match typed(&raw) {
        Ok(object) => Ok(Some(object)),
        Err(problem) => {
            tell(ctx, &api, &resource, &raw, &problem).await?;
            Err(Error::Malformed { what, problem })
        }
    }
}

/// Reads `raw` as its kind, or says which field can't be read and why.
fn typed<K: DeserializeOwned>(raw: &DynamicObject) -> Result<K, String> {
    let value = serde_json::to_value(raw).map_err(|error| error.to_string())?;
    serde_path_to_error::deserialize(value).map_err(|error| {
        format!(
            "{}: {}; version {} of the operator can't read it: correct the field, or run the version that knows it",
            error.path(),
            error.inner(),
            env!("CARGO_PKG_VERSION")
        )
    })
}

/// The whole status of `raw` with Ready and Stalled saying `problem`; everything else in it stays as it is.
fn said(raw: &DynamicObject, problem: &str, now: Timestamp) -> Map<String, Value> {
    let mut status = raw
        .data
        .get("status")
        .and_then(Value::as_object)
        .cloned()
        .unwrap_or_default();
    let before: Vec<Condition> = status
        .get("conditions")
        .and_then(|conditions| serde_json::from_value(conditions.clone()).ok())
        .unwrap_or_default();
    let mut conditions = Conditions::new(&before, raw.metadata.generation.unwrap_or_default(), now);
    conditions.settle(Standing::Stalled, INVALID_SPEC, problem);
    // Conditions are strings, numbers and times: they are always JSON.
    if let Ok(list) = serde_json::to_value(conditions.into_list()) {
        status.insert("conditions".to_owned(), list);
    }
    status
}

async fn tell(
    ctx: &Context,
    api: &Api<DynamicObject>,
    resource: &ApiResource,
    raw: &DynamicObject,
    problem: &str,
) -> Result<(), Error> {
    let status = said(raw, problem, ctx.clock.now());
    if raw.data.get("status").and_then(Value::as_object) == Some(&status) {
        return Ok(());
    }
    let name = raw.name_any();
    let patch = StatusPatch {
        types: TypeMeta {
            api_version: resource.api_version.clone(),
            kind: resource.kind.clone(),
        },
        metadata: ObjectMeta {
            name: Some(name.clone()),
            uid: raw.uid(),
            resource_version: raw.resource_version(),
            ..ObjectMeta::default()
        },
        status: &status,
    };
    let what = format!("status of {} {name}", resource.kind);
    let params = PatchParams::apply(names::FIELD_MANAGER).force();
    let written = limited(&what, api.patch_status(&name, &params, &Patch::Apply(&patch))).await?;
    match written {
        Err(kube::Error::Api(answer)) if answer.is_not_found() => return Ok(()),
        Err(error) => return Err(Error::write(what)(error)),
        Ok(_) => {}
    }
    let note = Note::warning(INVALID_SPEC, "ReadObject", problem);
    events::publish(&ctx.recorder, &raw.object_ref(resource), &[note]).await;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::promotion::fixtures;
    use assayer_crds::{ModelPromotion, PromotionPolicy};
    use serde_json::json;

    fn raw(object: &impl Serialize, edit: impl FnOnce(&mut Value)) -> DynamicObject {
        let mut value = serde_json::to_value(object).unwrap();
        edit(&mut value);
        serde_json::from_value(value).unwrap()
    }

    #[test]
    fn the_field_is_named() {
        let promotion = fixtures::promotion();
        assert_eq!(typed::<ModelPromotion>(&raw(&promotion, |_| ())).unwrap(), promotion);
        for (pointer, value, words) in [
            ("/spec/change/urgency", json!("high"), "spec.change"),
            (
                "/spec/target/workload/kind",
                json!("Rocket"),
                "spec.target.workload.kind",
            ),
            ("/spec/suspend", json!("perhaps"), "spec.suspend: invalid type"),
        ] {
            let odd = raw(&promotion, |object| {
                let (parent, field) = pointer.rsplit_once('/').unwrap();
                object.pointer_mut(parent).unwrap()[field] = value;
            });
            let problem = typed::<ModelPromotion>(&odd).unwrap_err();
            assert!(problem.starts_with(words), "{problem} should begin with {words}");
        }
        let odd = raw(&fixtures::policy(), |policy| {
            policy["spec"]["tiers"][1]["approvals"][0]["count"] = json!("many");
        });
        let problem = typed::<PromotionPolicy>(&odd).unwrap_err();
        assert!(problem.starts_with("spec.tiers[1].approvals[0].count: "), "{problem}");
    }

    #[test]
    fn everything_else_in_the_status_stays() {
        let odd = raw(&fixtures::promotion(), |object| {
            object["metadata"]["generation"] = json!(7);
            object["status"] = json!({
                "observedGeneration": 6, "phase": "Live", "live": {"model": "magika", "unheardOf": [1]},
                "conditions": [
                    {"type": "Ready", "status": "True", "reason": "Live", "message": "", "lastTransitionTime": "2026-01-01T00:00:00Z"},
                    {"type": "RolledOut", "status": "True", "reason": "Live", "message": "", "lastTransitionTime": "2026-01-01T00:00:00Z"}
                ]
            });
        });
        let status = said(&odd, "spec.change: odd", fixtures::now());
        assert_eq!(status["live"], json!({"model": "magika", "unheardOf": [1]}));
        assert_eq!(
            (&status["phase"], &status["observedGeneration"]),
            (&json!("Live"), &json!(6))
        );
        let conditions = status["conditions"].as_array().unwrap();
        let find = |type_: &str| conditions.iter().find(|c| c["type"] == type_).unwrap();
        assert_eq!(find("RolledOut")["status"], "True");
        for (type_, status) in [("Ready", "False"), ("Stalled", "True")] {
            let found = find(type_);
            assert_eq!(
                (
                    &found["status"],
                    &found["reason"],
                    &found["message"],
                    &found["observedGeneration"]
                ),
                (
                    &json!(status),
                    &json!(INVALID_SPEC),
                    &json!("spec.change: odd"),
                    &json!(7)
                )
            );
        }
        // Said once: the next look finds it said.
        let again = raw(&odd, |object| object["status"] = Value::Object(status.clone()));
        assert_eq!(said(&again, "spec.change: odd", fixtures::now()), status);
    }
}
