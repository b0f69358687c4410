//! The reference tables in `docs/<kind>.md`, written from the published definitions in `crds/*.yaml`.
//!
//! Decides their form only: every word about a field is the schema's own. What stands above the mark in a page is left as it is.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::fs;

use serde_json::Value;

use super::{UPDATE, root};

/// Below this line a page is made, above it written.
const MARK: &str = "<!-- From here on made from crds/*.yaml: UPDATE=1 cargo test -p assayer-tests tidy -->\n";
/// Kubernetes' own type, which is not explained again.
const CONDITIONS: &str = ".conditions";

#[test]
fn pages_of_kinds_are_what_the_definitions_say() {
    let mut wrong = Vec::new();
    let files = fs::read_dir(root().join("crds")).expect("crds/ is there");
    let mut definitions = 0;
    for file in files.map(|entry| entry.expect("the entry can be read").path()) {
        if file.extension().is_none_or(|extension| extension != "yaml") {
            continue;
        }
        definitions += 1;
        let text = fs::read_to_string(&file).expect("definitions are UTF-8");
        let definition: Value = serde_saphyr::from_str(&text).expect("definitions are YAML");
        let name = text_of(&definition["spec"]["names"]["singular"]);
        let path = root().join(format!("docs/{name}.md"));
        let page = fs::read_to_string(&path).unwrap_or_default();
        let Some((written, _)) = page.split_once(MARK) else {
            wrong.push(format!("docs/{name}.md lacks the line {MARK}"));
            continue;
        };
        let expected = format!("{written}{MARK}\n{}", reference(&definition["spec"]));
        if std::env::var_os(UPDATE).is_some() {
            fs::write(&path, &expected).expect("docs/ can be written");
        } else if page != expected {
            wrong.push(format!(
                "docs/{name}.md is not what crds/ says: run UPDATE=1 cargo test -p assayer-tests tidy"
            ));
        }
    }
    assert!(definitions >= 3, "the definitions were not found");
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

/// The tables of one kind.
struct Tables {
    spec: String,
    status: String,
    rules: String,
    /// Where a shape was first explained, by its properties.
    seen: BTreeMap<String, String>,
}

fn reference(spec: &Value) -> String {
    let version = &spec["versions"][0];
    let schema = &version["schema"]["openAPIV3Schema"];
    let mut tables = Tables {
        spec: String::new(),
        status: String::new(),
        rules: String::new(),
        seen: BTreeMap::new(),
    };
    for part in ["spec", "status"] {
        tables.inside(part, &schema["properties"][part]);
    }
    let short: Vec<String> = texts(&spec["names"]["shortNames"]);
    let columns = |wide: bool| {
        let all = version["additionalPrinterColumns"].as_array().into_iter().flatten();
        let chosen = all.filter(|column| (column["priority"].as_i64().unwrap_or(0) > 0) == wide);
        let names: Vec<String> = chosen.map(|column| text_of(&column["name"])).collect();
        names.join(", ")
    };
    let mut page = format!(
        "## Reference\n\n`{}/{}`, kind `{}`, {}. `kubectl get {}` shows the columns {}",
        text_of(&spec["group"]),
        text_of(&version["name"]),
        text_of(&spec["names"]["kind"]),
        match spec["scope"].as_str() {
            Some("Cluster") => "cluster-scoped",
            _ => "namespaced",
        },
        short.join(" or "),
        columns(false),
    );
    match columns(true).as_str() {
        "" => page.push('.'),
        wide => write!(page, "; with `-o wide` also {wide}.").expect("a string takes all"),
    }
    let said = |part: &str| text_of(&schema["properties"][part]["description"]);
    write!(
        page,
        "\n\n### Spec\n\n{}\n\n| field | type | required | default | limits | meaning |\n| --- | --- | --- | --- | --- | --- |\n{}",
        said("spec"),
        tables.spec
    )
    .expect("a string takes all");
    if !tables.rules.is_empty() {
        write!(
            page,
            "\n### Rules\n\nWhat the API server refuses besides, and in which words:\n\n| where | words |\n| --- | --- |\n{}",
            tables.rules
        )
        .expect("a string takes all");
    }
    write!(
        page,
        "\n### Status\n\n{}\n\n| field | type | meaning |\n| --- | --- | --- |\n{}",
        said("status"),
        tables.status
    )
    .expect("a string takes all");
    page
}

impl Tables {
    /// Rows of everything inside the object `schema` at `path`.
    fn inside(&mut self, path: &str, schema: &Value) {
        self.rules(path, schema);
        let Some(properties) = schema["properties"].as_object() else {
            return;
        };
        let required = texts(&schema["required"]);
        for (name, field) in properties {
            let path = format!("{path}.{name}");
            self.field(&path, field, required.contains(name));
        }
    }

    fn field(&mut self, path: &str, field: &Value, required: bool) {
        // What is explained further: the object itself, or those in a list or map.
        let (suffix, inner) = if field["items"].is_object() {
            ("[]", &field["items"])
        } else if field["additionalProperties"].is_object() {
            (".*", &field["additionalProperties"])
        } else {
            ("", field)
        };
        let mut kind = type_of(field);
        let known = inner["properties"].as_object().and_then(|properties| {
            let shape = serde_json::to_string(properties).expect("a schema is JSON");
            let first = self.seen.entry(shape).or_insert_with(|| path.to_owned());
            (first != path).then(|| first.clone())
        });
        let theirs = path.ends_with(CONDITIONS);
        if let Some(first) = &known {
            write!(kind, ", as `{first}`").expect("a string takes all");
        } else if theirs {
            "list of Kubernetes' Condition".clone_into(&mut kind);
        }
        let meaning = escaped(&text_of(&field["description"]));
        let row = if path.starts_with("spec.") {
            let default = match &field["default"] {
                Value::Null => String::new(),
                value => format!("`{}`", value.as_str().map_or_else(|| value.to_string(), str::to_owned)),
            };
            let must = if required { "yes" } else { "" };
            let limits = escaped(&limits(field).join("; "));
            format!("| `{path}` | {kind} | {must} | {default} | {limits} | {meaning} |\n")
        } else {
            format!("| `{path}` | {kind} | {meaning} |\n")
        };
        if path.starts_with("spec.") {
            self.spec.push_str(&row);
        } else {
            self.status.push_str(&row);
        }
        if !suffix.is_empty() {
            self.rules(path, field);
        }
        if known.is_none() && !theirs {
            self.inside(&format!("{path}{suffix}"), inner);
        }
    }

    fn rules(&mut self, path: &str, schema: &Value) {
        // Nobody but the operator writes status: only the rules of specs are for people.
        let rules = schema["x-kubernetes-validations"].as_array().into_iter().flatten();
        for rule in rules.filter(|_| path.starts_with("spec")) {
            let words = escaped(&text_of(&rule["message"]));
            writeln!(self.rules, "| `{path}` | {words} |").expect("a string takes all");
        }
    }
}

fn type_of(field: &Value) -> String {
    let plain = |schema: &Value| match schema["format"].as_str() {
        Some("date-time") => "time".to_owned(),
        _ => text_of(&schema["type"]),
    };
    if field["items"].is_object() {
        format!("list of {}s", plain(&field["items"]))
    } else if field["additionalProperties"].is_object() {
        format!("map of {}s", plain(&field["additionalProperties"]))
    } else {
        plain(field)
    }
}

/// What a value must keep to, each bound in words.
fn limits(field: &Value) -> Vec<String> {
    let mut limits = Vec::new();
    for (least, most, of) in [
        ("minItems", "maxItems", " items"),
        ("minProperties", "maxProperties", " entries"),
        ("minLength", "maxLength", " characters"),
        ("minimum", "maximum", ""),
    ] {
        match (number(&field[least]), number(&field[most])) {
            (Some(least), Some(most)) => limits.push(format!("{least} to {most}{of}")),
            (None, Some(most)) => limits.push(format!("at most {most}{of}")),
            (Some(least), None) => limits.push(format!("at least {least}{of}")),
            (None, None) => {}
        }
    }
    match field["x-kubernetes-list-type"].as_str() {
        Some("map") => limits.push(format!(
            "`{}` is unique",
            texts(&field["x-kubernetes-list-map-keys"]).join("`, `")
        )),
        Some("set") => limits.push("nothing twice".to_owned()),
        _ => {}
    }
    if field["enum"].is_array() {
        limits.push(format!("one of `{}`", texts(&field["enum"]).join("`, `")));
    }
    if let Some(pattern) = field["pattern"].as_str() {
        limits.push(format!("`{pattern}`"));
    }
    for inner in [&field["items"], &field["additionalProperties"]] {
        if inner.is_object() && inner["properties"].is_null() {
            limits.extend(self::limits(inner).into_iter().map(|limit| format!("each {limit}")));
        }
    }
    limits
}

/// A bound without the `.0` of whole numbers.
fn number(value: &Value) -> Option<String> {
    value.as_f64().map(|number| number.to_string())
}

fn text_of(value: &Value) -> String {
    value.as_str().unwrap_or_default().to_owned()
}

fn texts(list: &Value) -> Vec<String> {
    list.as_array().into_iter().flatten().map(text_of).collect()
}

/// For a cell of a table; outside of code, an angle bracket would begin a tag.
fn escaped(text: &str) -> String {
    let parts = text.split('`').enumerate().map(|(index, part)| {
        if index % 2 == 0 {
            part.replace('<', "\\<")
        } else {
            part.to_owned()
        }
    });
    parts.collect::<Vec<_>>().join("`").replace('|', "\\|")
}
