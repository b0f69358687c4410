//! What holds for the whole tree: sizes of files, directions of dependencies, documented reasons and fields, links. Needs no cluster.

mod links;
mod reference;

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::fs;
use std::path::{Path, PathBuf};

/// Longest source file; most are far shorter.
const MAX_LINES: usize = 600;
const UPDATE: &str = "UPDATE";

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR"))
        .parent()
        .expect("the crate is in the workspace")
        .to_path_buf()
}

fn sources() -> Vec<PathBuf> {
    let mut found = Vec::new();
    let mut folders: Vec<PathBuf> = ["crds", "operator", "worker", "cli", "tests", "xtask", "examples"]
        .iter()
        .map(|name| root().join(name))
        .collect();
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(&folder).expect("the folder is there") {
            let path = entry.expect("the entry can be read").path();
            if path.is_dir() && !path.ends_with("target") {
                folders.push(path);
            } else if path.extension().is_some_and(|extension| extension == "rs") {
                found.push(path);
            }
        }
    }
    assert!(found.len() > 50, "the sources were not found");
    found
}

#[test]
fn files_are_short_and_open_with_what_they_decide() {
    let mut problems = Vec::new();
    for path in sources() {
        let text = fs::read_to_string(&path).expect("sources are UTF-8");
        let name = path.strip_prefix(root()).unwrap_or(&path).display().to_string();
        let lines = text.lines().count();
        if lines > MAX_LINES {
            problems.push(format!("{name} has {lines} lines, at most {MAX_LINES}"));
        }
        if !text.starts_with("//!") {
            problems.push(format!("{name} does not open with //! and what it decides"));
        }
    }
    assert!(problems.is_empty(), "{}", problems.join("\n"));
}

#[test]
fn dependencies_point_one_way() {
    let forbidden: BTreeMap<&str, &[&str]> = BTreeMap::from([
        ("crds", &["assayer-operator", "assayer-worker", "tokio", "ort"][..]),
        ("operator", &["ort", "assayer-worker", "oci-client", "parquet"][..]),
        ("worker", &["kube", "k8s-openapi", "assayer-operator"][..]),
        ("xtask", &["assayer-operator", "assayer-worker"][..]),
        ("examples/scanner", &["assayer-operator", "assayer-worker", "kube"][..]),
    ]);
    for (folder, names) in forbidden {
        let text = fs::read_to_string(root().join(folder).join("Cargo.toml")).expect("the manifest is there");
        let dependencies = text
            .split("[dependencies]")
            .nth(1)
            .expect("the manifest has dependencies");
        let dependencies = dependencies.split("[dev-dependencies]").next().unwrap_or_default();
        for name in names {
            let used = dependencies
                .lines()
                .any(|line| line.split(['=', '.', ' ']).next() == Some(name));
            assert!(!used, "{folder} must not depend on {name}");
        }
    }
    let worker = fs::read_to_string(root().join("worker/Cargo.toml")).expect("the manifest is there");
    assert!(
        !worker.contains("features = [\"kube\"]"),
        "the worker takes the contract without the API types"
    );
}

#[test]
fn every_reason_is_documented() {
    let mut page = String::from(
        "# Reasons\n\nEvery reason that a condition or an Event of Assayer can have. Made from `crds/src/conditions.rs`: \
         `UPDATE=1 cargo test -p assayer-tests tidy` writes this page anew.\n\n| reason | meaning |\n| --- | --- |\n",
    );
    let mut reasons = assayer_crds::conditions::REASONS.to_vec();
    reasons.sort_by_key(|reason| reason.name);
    for reason in reasons {
        let meaning = reason.meaning.trim().replace('|', "\\|");
        writeln!(page, "| `{}` | {meaning} |", reason.name).expect("a string takes all");
    }
    let path = root().join("docs/reasons.md");
    if std::env::var_os(UPDATE).is_some() {
        fs::write(&path, &page).expect("docs/ can be written");
    }
    let found = fs::read_to_string(&path).unwrap_or_default();
    assert!(
        found == page,
        "docs/reasons.md is not what the code says: run UPDATE=1 cargo test -p assayer-tests tidy"
    );
}
