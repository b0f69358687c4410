//! The published schema, held against a manifest without a cluster: structure, bounds, patterns, and the CEL rules.
//!
//! Decides nothing of its own: what it refuses is what the API server would refuse. Never reads what URIs name.

use std::collections::BTreeSet;

use anyhow::{Context as _, Result, bail};
use assayer_crds::ModelOptimization;
use kube::CustomResourceExt as _;
use regex::Regex;
use serde_json::Value;

/// Most problems that are told at once.
const MOST: usize = 20;

/// Refuses a `ModelOptimization` that the API server would refuse, with every reason.
pub(crate) fn check(object: &Value) -> Result<()> {
    let definition = ModelOptimization::crd();
    let schema = definition
        .spec
        .versions
        .first()
        .and_then(|version| version.schema.as_ref());
    let schema = schema
        .and_then(|schema| schema.open_api_v3_schema.as_ref())
        .context("the kind has no schema")?;
    let schema = serde_json::to_value(schema)?;
    let mut problems = Vec::new();
    walk(&schema, object, "", &mut problems)?;
    // Rules may rest on the structure.
    if problems.is_empty()
        && let Err(errors) = kube_cel::Validator::new().validate(&schema, object, None)
    {
        problems.extend(errors.iter().map(ToString::to_string));
    }
    if problems.is_empty() {
        return Ok(());
    }
    problems.truncate(MOST);
    bail!("{}", problems.join("\n       "))
}

fn walk(schema: &Value, value: &Value, path: &str, problems: &mut Vec<String>) -> Result<()> {
    let mut say = |what: String| problems.push(format!("{}: {what}", if path.is_empty() { "." } else { path }));
    let kind = schema["type"].as_str().unwrap_or_default();
    let fits = match kind {
        "object" => value.is_object(),
        "array" => value.is_array(),
        "string" => value.is_string(),
        "boolean" => value.is_boolean(),
        "integer" => value.is_i64() || value.is_u64(),
        "number" => value.is_number(),
        _ => true,
    };
    if !fits {
        let quoted = if value.is_object() || value.is_array() {
            String::new()
        } else {
            format!(" {value}")
        };
        say(format!("must be of type {kind}, not{quoted} {}", kind_of(value)));
        return Ok(());
    }
    if let Some(allowed) = schema["enum"].as_array()
        && !allowed.contains(value)
    {
        let words: Vec<String> = allowed
            .iter()
            .map(|word| word.as_str().map_or_else(|| word.to_string(), str::to_owned))
            .collect();
        // What they are, and why another is not among them.
        let about = schema["description"].as_str().unwrap_or_default().replace('\n', " ");
        say(format!("{value} is not one of {}. {about}", words.join(", "))
            .trim_end()
            .to_owned());
    }
    match value {
        Value::String(text) => string(schema, text, say)?,
        Value::Number(number) => {
            let number = number.as_f64().unwrap_or_default();
            if schema["minimum"].as_f64().is_some_and(|least| number < least)
                || schema["maximum"].as_f64().is_some_and(|most| number > most)
            {
                say(format!(
                    "{number} must be from {} to {}",
                    schema["minimum"], schema["maximum"]
                ));
            }
        }
        Value::Array(items) => array(schema, items, path, problems)?,
        Value::Object(fields) => object(schema, fields, path, problems)?,
        Value::Null | Value::Bool(_) => {}
    }
    Ok(())
}

fn kind_of(value: &Value) -> &'static str {
    match value {
        Value::Null => "(empty)",
        Value::Bool(_) => "(a boolean)",
        Value::Number(_) => "(a number: put it in quotes where text is asked for)",
        Value::String(_) => "(text)",
        Value::Array(_) => "a list",
        Value::Object(_) => "an object",
    }
}

fn string(schema: &Value, text: &str, mut say: impl FnMut(String)) -> Result<()> {
    let shown: String = text.chars().take(80).collect();
    let length = text.chars().count() as u64;
    if schema["minLength"].as_u64().is_some_and(|least| length < least)
        || schema["maxLength"].as_u64().is_some_and(|most| length > most)
    {
        let least = schema["minLength"].as_u64().unwrap_or(0);
        say(format!(
            "`{shown}` has {length} characters, must have from {least} to {}",
            schema["maxLength"]
        ));
    }
    if let Some(pattern) = schema["pattern"].as_str()
        && !Regex::new(pattern).context("a pattern of the schema")?.is_match(text)
    {
        say(format!("`{shown}` does not match {pattern}"));
    }
    Ok(())
}

fn array(schema: &Value, items: &[Value], path: &str, problems: &mut Vec<String>) -> Result<()> {
    let count = items.len() as u64;
    if schema["minItems"].as_u64().is_some_and(|least| count < least)
        || schema["maxItems"].as_u64().is_some_and(|most| count > most)
    {
        let least = schema["minItems"].as_u64().unwrap_or(0);
        problems.push(format!(
            "{path}: has {count} items, must have from {least} to {}",
            schema["maxItems"]
        ));
    }
    let keys: Vec<&str> = schema["x-kubernetes-list-map-keys"]
        .as_array()
        .into_iter()
        .flatten()
        .filter_map(Value::as_str)
        .collect();
    let unique = !keys.is_empty() || schema["x-kubernetes-list-type"] == "set";
    let mut seen = BTreeSet::new();
    for (index, item) in items.iter().enumerate() {
        let key = if keys.is_empty() {
            item.to_string()
        } else {
            keys.iter().map(|key| item[key].to_string()).collect()
        };
        if unique && !seen.insert(key.clone()) {
            problems.push(format!("{path}[{index}]: {key} is there twice"));
        }
        walk(&schema["items"], item, &format!("{path}[{index}]"), problems)?;
    }
    Ok(())
}

fn object(
    schema: &Value,
    fields: &serde_json::Map<String, Value>,
    path: &str,
    problems: &mut Vec<String>,
) -> Result<()> {
    for name in schema["required"]
        .as_array()
        .into_iter()
        .flatten()
        .filter_map(Value::as_str)
    {
        if !fields.contains_key(name) {
            problems.push(format!("{path}.{name}: is required"));
        }
    }
    let count = fields.len() as u64;
    if schema["maxProperties"].as_u64().is_some_and(|most| count > most) {
        problems.push(format!(
            "{path}: has {count} entries, at most {}",
            schema["maxProperties"]
        ));
    }
    let known = schema["properties"].as_object();
    for (name, value) in fields {
        let inside = format!("{path}.{name}");
        match known.and_then(|known| known.get(name)) {
            Some(schema) => walk(schema, value, &inside, problems)?,
            None if schema["additionalProperties"].is_object() => {
                walk(&schema["additionalProperties"], value, &inside, problems)?;
            }
            None => {
                if let Some(known) = known.filter(|known| !path.is_empty() || !known.contains_key(name)) {
                    let top = path.is_empty() && matches!(name.as_str(), "apiVersion" | "kind" | "metadata");
                    if !top {
                        let names: Vec<&str> = known.keys().map(String::as_str).collect();
                        problems.push(format!("{inside}: unknown field; there are {}", names.join(", ")));
                    }
                }
            }
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn good() -> Value {
        serde_saphyr::from_str(include_str!("../../crds/tests/rules/modeloptimization.yaml")).unwrap()
    }

    fn refused(pointer: &str, value: Value) -> String {
        let mut object = good();
        let (parent, name) = pointer.rsplit_once('/').unwrap();
        match object.pointer_mut(parent).unwrap() {
            Value::Array(items) => items.push(value),
            parent => parent[name] = value,
        }
        check(&object).unwrap_err().to_string()
    }

    #[test]
    fn what_the_api_server_accepts_is_accepted() {
        check(&good()).unwrap();
    }

    #[test]
    fn what_it_refuses_is_refused_with_field_and_reason() {
        let first = good()["spec"]["candidates"][0].clone();
        for (pointer, value, words) in [
            ("/spec/searched", json!({}), ".spec.searched: unknown field"),
            ("/spec/owner/group", json!(""), ".spec.owner.group: `` has 0 characters"),
            (
                "/spec/owner/group",
                json!(7),
                ".spec.owner.group: must be of type string",
            ),
            ("/spec/task/kind", json!("Regression"), "is not one of Classification"),
            (
                "/spec/candidates/0/stages/0/quantize/mode",
                json!("BFloat16"),
                "no kernel for them on CPUs",
            ),
            ("/spec/candidates", json!([]), ".spec.candidates: has 0 items"),
            ("/spec/candidates/-", first, "is there twice"),
            ("/spec/candidates/0/name", json!("../../etc"), "does not match"),
            ("/spec/data/calibration/samples", json!(0), "must be from 1"),
            ("/spec/model/uri", json!("files/m.onnx"), "assayer pin"),
            ("/spec/gates/0/max", json!("5ms"), "exactly one bound"),
        ] {
            let said = refused(pointer, value);
            assert!(said.contains(words), "{pointer}: {said}");
        }
    }

    #[test]
    fn a_missing_field_is_named() {
        let mut object = good();
        object["spec"].as_object_mut().unwrap().remove("owner");
        assert!(
            check(&object)
                .unwrap_err()
                .to_string()
                .contains(".spec.owner: is required")
        );
    }
}
