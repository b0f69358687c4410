//! The committed definitions equal the code: `crds/*.yaml` and the chart's copy of them.
//!
//! `UPDATE=1 cargo test -p assayer-crds --test generated` rewrites both.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    reason = "a test that can't go on has failed"
)]

use std::{
    fs,
    path::{Path, PathBuf},
};

use k8s_openapi::apiextensions_apiserver::pkg::apis::apiextensions::v1::CustomResourceDefinition;

const HEADER: &str =
    "# Generated from crds/src by `UPDATE=1 cargo test -p assayer-crds --test generated`. Do not edit.\n";

fn folders() -> [PathBuf; 2] {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    [root.to_owned(), root.join("../charts/assayer/files/crds")]
}

fn rendered(definition: &CustomResourceDefinition) -> (String, String) {
    let name = format!("{}.yaml", definition.spec.names.plural);
    let text = serde_saphyr::to_string(definition).expect("a definition is plain data");
    (name, format!("{HEADER}{text}"))
}

#[test]
fn committed_definitions_equal_the_code() {
    let update = std::env::var_os("UPDATE").is_some();
    let expected: Vec<_> = assayer_crds::all().iter().map(rendered).collect();
    for folder in folders() {
        if update {
            fs::create_dir_all(&folder).expect("the folder can be made");
            for (name, text) in &expected {
                fs::write(folder.join(name), text).expect("the file can be written");
            }
        }
        for (name, text) in &expected {
            let path = folder.join(name);
            let committed = fs::read_to_string(&path).unwrap_or_default();
            assert!(
                committed == *text,
                "{} differs from the code: run `UPDATE=1 cargo test -p assayer-crds --test generated` and commit the result",
                path.display()
            );
        }
        let mut yaml: Vec<_> = fs::read_dir(&folder)
            .expect("the folder exists")
            .map(|entry| {
                entry
                    .expect("the folder can be read")
                    .file_name()
                    .to_string_lossy()
                    .into_owned()
            })
            .filter(|name| Path::new(name).extension().is_some_and(|extension| extension == "yaml"))
            .collect();
        yaml.sort();
        let mut names: Vec<_> = expected.iter().map(|(name, _)| name.clone()).collect();
        names.sort();
        assert_eq!(
            yaml,
            names,
            "{} holds a definition that the code does not have",
            folder.display()
        );
    }
}

#[test]
fn committed_definitions_read_back_as_what_the_code_has() {
    for (definition, (name, text)) in assayer_crds::all()
        .iter()
        .map(|definition| (definition, rendered(definition)))
    {
        let read: serde_json::Value = serde_saphyr::from_str(&text).expect("the YAML can be read");
        let expected = serde_json::to_value(definition).expect("a definition is plain data");
        assert_eq!(read, expected, "{name} means something else when it is read back");
    }
}
