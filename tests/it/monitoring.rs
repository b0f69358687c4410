//! Alert rules and dashboard: checked by promtool, and about nothing that the operator does not export.

use std::{collections::BTreeSet, fs, path::Path, process::Command};

use anyhow::{Context, Result, ensure};
use serde_json::{Value, json};
use xtask::{cluster, progress::Progress};

use crate::{chart::root, installed::chart};

fn promtool(arguments: &[&str]) -> Result<()> {
    let output = Command::new(cluster::promtool(&Progress::silent())?)
        .args(arguments)
        .output()
        .context("run promtool")?;
    let said = format!(
        "{}{}",
        String::from_utf8_lossy(&output.stdout),
        String::from_utf8_lossy(&output.stderr)
    );
    ensure!(output.status.success(), "promtool {arguments:?}: {said}");
    Ok(())
}

fn alerts() -> Result<Value> {
    Ok(serde_saphyr::from_str(&fs::read_to_string(
        chart().join("files/alerts.yaml"),
    )?)?)
}

/// Every expression of the dashboard, with the variables that Grafana would fill in.
fn dashboard_expressions() -> Result<Vec<String>> {
    let dashboard: Value = serde_json::from_str(&fs::read_to_string(chart().join("files/dashboard.json"))?)?;
    let panels = dashboard["panels"].as_array().context("a dashboard without panels")?;
    let targets = panels
        .iter()
        .flat_map(|panel| panel["targets"].as_array().into_iter().flatten());
    let expressions: Vec<_> = targets
        .filter_map(|target| Some(target["expr"].as_str()?.replace("$namespace", ".*")))
        .collect();
    ensure!(expressions.len() >= panels.len(), "a panel without an expression");
    Ok(expressions)
}

fn alert_expressions() -> Result<Vec<String>> {
    let rules = alerts()?["groups"][0]["rules"]
        .as_array()
        .cloned()
        .context("no rules")?;
    Ok(rules
        .iter()
        .filter_map(|rule| Some(rule["expr"].as_str()?.to_owned()))
        .collect())
}

#[test]
fn promtool_accepts_the_rules_and_what_they_fire_on() -> Result<()> {
    promtool(&[
        "check",
        "rules",
        &chart().join("files/alerts.yaml").display().to_string(),
    ])?;
    promtool(&[
        "test",
        "rules",
        &root().join("tests/fixtures/alerts_test.yaml").display().to_string(),
    ])
}

#[test]
fn promtool_accepts_every_expression_of_the_dashboard() -> Result<()> {
    let expressions = dashboard_expressions()?;
    let rules: Vec<Value> = expressions
        .iter()
        .enumerate()
        .map(|(number, expression)| json!({"record": format!("panel:{number}"), "expr": expression}))
        .collect();
    let folder = tempfile::tempdir()?;
    let file = folder.path().join("dashboard.yaml");
    fs::write(
        &file,
        json!({"groups": [{"name": "dashboard", "rules": rules}]}).to_string(),
    )?;
    promtool(&["check", "rules", &file.display().to_string()])
}

#[test]
fn every_alert_has_a_runbook() -> Result<()> {
    let handbook = fs::read_to_string(root().join("docs/alerts.md"))?;
    for rule in alerts()?["groups"][0]["rules"].as_array().context("no rules")? {
        let name = rule["alert"].as_str().context("a rule without a name")?;
        ensure!(
            handbook.contains(&format!("\n## {name}\n")),
            "docs/alerts.md has no heading `## {name}`"
        );
        ensure!(
            rule["annotations"]["runbook"] == format!("docs/alerts.md#{}", name.to_lowercase()),
            "runbook of {name}"
        );
    }
    Ok(())
}

#[test]
fn every_metric_is_one_that_the_operator_exports() -> Result<()> {
    let mut sources = String::new();
    read_sources(&root().join("operator/src"), &mut sources)?;
    let unknown: BTreeSet<String> = [alert_expressions()?, dashboard_expressions()?]
        .concat()
        .iter()
        .flat_map(|expression| metrics_in(expression))
        .filter(|metric| !sources.contains(&format!("\"{}\"", metric.trim_end_matches("_bucket"))))
        .collect();
    ensure!(unknown.is_empty(), "not exported by operator/src: {unknown:?}");
    Ok(())
}

fn metrics_in(expression: &str) -> Vec<String> {
    let words = expression.split(|c: char| !(c.is_ascii_alphanumeric() || c == '_'));
    words
        .filter(|word| word.starts_with("assayer_"))
        .map(str::to_owned)
        .collect()
}

fn read_sources(folder: &Path, into: &mut String) -> Result<()> {
    for entry in fs::read_dir(folder)? {
        let path = entry?.path();
        if path.is_dir() {
            read_sources(&path, into)?;
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            into.push_str(&fs::read_to_string(&path)?);
        }
    }
    Ok(())
}
