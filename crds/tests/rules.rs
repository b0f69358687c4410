//! The CEL rules of the published schemas, evaluated in this process: what is accepted, what is refused, with which words.
//!
//! The same table is tried on a real API server by `assayer-tests`. A rule that no case breaks fails the test.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    reason = "a test that can't go on has failed"
)]

use std::collections::BTreeSet;

use kube::core::cel::Validator;
use serde::Deserialize;
use serde_json::Value;

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Case {
    kind: String,
    by: String,
    #[serde(default)]
    update: bool,
    #[serde(default)]
    set: serde_json::Map<String, Value>,
    #[serde(default)]
    remove: Vec<String>,
    refused: String,
}

fn accepted() -> Vec<Value> {
    [
        include_str!("rules/modeloptimization.yaml"),
        include_str!("rules/modelpromotion.yaml"),
        include_str!("rules/promotionpolicy.yaml"),
    ]
    .iter()
    .map(|text| serde_saphyr::from_str(text).expect("the accepted object is YAML"))
    .collect()
}

fn cases() -> Vec<Case> {
    serde_saphyr::from_str(include_str!("rules/cases.yaml")).expect("the cases are YAML")
}

fn schema(kind: &str) -> Value {
    let definition = assayer_crds::all()
        .into_iter()
        .find(|definition| definition.spec.names.kind == kind)
        .unwrap_or_else(|| panic!("{kind} is not a kind of ours"));
    serde_json::to_value(&definition.spec.versions[0].schema.as_ref().unwrap().open_api_v3_schema).unwrap()
}

fn changed(object: &Value, case: &Case) -> Value {
    let mut object = object.clone();
    for pointer in &case.remove {
        let (parent, key) = pointer.rsplit_once('/').unwrap();
        let parent = object.pointer_mut(parent).and_then(Value::as_object_mut);
        assert!(
            parent.unwrap().remove(key).is_some(),
            "{pointer} is not there to be removed"
        );
    }
    for (pointer, value) in &case.set {
        let (parent, key) = pointer.rsplit_once('/').unwrap();
        let parent = object
            .pointer_mut(parent)
            .unwrap_or_else(|| panic!("{pointer} has no parent"));
        match parent {
            Value::Object(map) => {
                map.insert(key.to_owned(), value.clone());
            }
            other => panic!("{pointer} is in {other}, not in an object"),
        }
    }
    object
}

fn messages(kind: &str, object: &Value, old: Option<&Value>) -> Vec<String> {
    match Validator::new().validate(&schema(kind), object, old) {
        Ok(()) => Vec::new(),
        Err(errors) => errors.iter().map(ToString::to_string).collect(),
    }
}

fn rules_in(schema: &Value, found: &mut BTreeSet<String>) {
    match schema {
        Value::Object(map) => {
            for rule in map
                .get("x-kubernetes-validations")
                .and_then(Value::as_array)
                .into_iter()
                .flatten()
            {
                found.insert(rule["message"].as_str().expect("every rule says what to do").to_owned());
            }
            map.values().for_each(|value| rules_in(value, found));
        }
        Value::Array(list) => list.iter().for_each(|value| rules_in(value, found)),
        _ => {}
    }
}

#[test]
fn accepted_objects_break_no_rule_and_are_read_without_loss() {
    for object in accepted() {
        let kind = object["kind"].as_str().unwrap();
        assert_eq!(messages(kind, &object, None), Vec::<String>::new(), "{kind}");
        assert_eq!(
            messages(kind, &object, Some(&object)),
            Vec::<String>::new(),
            "{kind}, unchanged"
        );
        let read = match kind {
            "ModelOptimization" => serde_json::from_value::<assayer_crds::ModelOptimization>(object.clone()).err(),
            "ModelPromotion" => serde_json::from_value::<assayer_crds::ModelPromotion>(object.clone()).err(),
            _ => serde_json::from_value::<assayer_crds::PromotionPolicy>(object.clone()).err(),
        };
        assert!(read.is_none(), "{kind} can't be read: {read:?}");
    }
}

#[test]
fn every_rule_refuses_with_its_own_words() {
    let accepted = accepted();
    let mut unbroken = BTreeSet::new();
    for object in &accepted {
        rules_in(&schema(object["kind"].as_str().unwrap()), &mut unbroken);
    }
    for case in cases().iter().filter(|case| case.by == "rule") {
        let object = accepted
            .iter()
            .find(|object| object["kind"] == case.kind.as_str())
            .unwrap();
        let said = messages(&case.kind, &changed(object, case), case.update.then_some(object));
        assert!(
            said.iter().any(|message| message.contains(&case.refused)),
            "{} with {:?} without {:?} should be refused with `{}`, but the answer is {said:?}",
            case.kind,
            case.set,
            case.remove,
            case.refused
        );
        unbroken.retain(|rule| !rule.contains(&case.refused));
    }
    assert!(unbroken.is_empty(), "no case breaks these rules: {unbroken:#?}");
}
