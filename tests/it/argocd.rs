//! The health checks for Argo CD, run by a Lua interpreter on objects as the operator leaves them.

use std::{fmt::Write as _, fs, path::PathBuf};

use anyhow::{Context, Result, anyhow};
use mlua::{Lua, LuaSerdeExt};
use serde::Deserialize;
use serde_json::{Value, json};

#[derive(Debug, Deserialize)]
struct Health {
    status: String,
    message: String,
}

const KINDS: [&str; 3] = ["ModelOptimization", "ModelPromotion", "PromotionPolicy"];

fn folder() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../charts/argocd")
}

fn script(kind: &str) -> Result<String> {
    let path = folder().join("assayer.dev").join(kind).join("health.lua");
    fs::read_to_string(&path).with_context(|| path.display().to_string())
}

fn health(kind: &str, object: &Value) -> Result<Health> {
    run(&script(kind)?, object).map_err(|error| anyhow!("{kind}: {error}"))
}

fn run(script: &str, object: &Value) -> mlua::Result<Health> {
    let lua = Lua::new();
    lua.globals().set("obj", lua.to_value(object)?)?;
    let table = lua.load(script).eval::<mlua::Value>()?;
    lua.from_value(table)
}

fn object(phase: &str, suspend: bool, observed: i64) -> Value {
    json!({
        "metadata": {"name": "x", "generation": 2},
        "spec": {"suspend": suspend},
        "status": {"observedGeneration": observed, "phase": phase, "conditions": [
            {"type": "Reconciling", "status": "True", "message": "not this one"},
            {"type": "Ready", "status": "Unknown", "message": "what is going on"},
        ]},
    })
}

#[test]
fn every_phase_has_the_health_that_it_deserves() -> Result<()> {
    let rows = [
        ("ModelOptimization", "Pending", "Progressing"),
        ("ModelOptimization", "Queued", "Progressing"),
        ("ModelOptimization", "Baselining", "Progressing"),
        ("ModelOptimization", "Optimizing", "Progressing"),
        ("ModelOptimization", "Validating", "Progressing"),
        ("ModelOptimization", "Succeeded", "Healthy"),
        ("ModelOptimization", "Rejected", "Degraded"),
        ("ModelOptimization", "Failed", "Degraded"),
        ("ModelPromotion", "Pending", "Progressing"),
        ("ModelPromotion", "Verifying", "Progressing"),
        ("ModelPromotion", "AwaitingApproval", "Suspended"),
        ("ModelPromotion", "Scheduled", "Suspended"),
        ("ModelPromotion", "Progressing", "Progressing"),
        ("ModelPromotion", "Live", "Healthy"),
        ("ModelPromotion", "Superseded", "Healthy"),
        ("ModelPromotion", "RolledBack", "Degraded"),
        ("ModelPromotion", "Rejected", "Degraded"),
        ("ModelPromotion", "Failed", "Degraded"),
        ("ModelPromotion", "AWordOfANewerOperator", "Progressing"),
    ];
    for (kind, phase, expected) in rows {
        let found = health(kind, &object(phase, false, 2))?;
        assert_eq!(found.status, expected, "{kind} {phase}");
        assert_eq!(found.message, format!("{phase}: what is going on"));
        let stale = health(kind, &object(phase, false, 1))?;
        assert_eq!(stale.status, "Progressing", "{kind} {phase} of an older generation");
        assert!(stale.message.contains("generation 2"), "{}", stale.message);
    }
    Ok(())
}

#[test]
fn suspension_is_seen_unless_the_work_is_done_or_under_way() -> Result<()> {
    let rows = [
        ("ModelOptimization", "Optimizing", "Suspended"),
        ("ModelOptimization", "Succeeded", "Healthy"),
        ("ModelPromotion", "Verifying", "Suspended"),
        ("ModelPromotion", "Progressing", "Progressing"),
        ("ModelPromotion", "Live", "Healthy"),
        ("ModelPromotion", "RolledBack", "Degraded"),
    ];
    for (kind, phase, expected) in rows {
        assert_eq!(
            health(kind, &object(phase, true, 2))?.status,
            expected,
            "{kind} {phase}"
        );
    }
    Ok(())
}

#[test]
fn policies_follow_their_condition() -> Result<()> {
    for (ready, expected) in [("True", "Healthy"), ("False", "Degraded"), ("Unknown", "Progressing")] {
        let mut policy = object("", false, 2);
        policy["status"]["conditions"][1]["status"] = ready.into();
        assert_eq!(health("PromotionPolicy", &policy)?.status, expected, "{ready}");
    }
    Ok(())
}

#[test]
fn objects_without_a_status_are_progressing() -> Result<()> {
    for kind in KINDS {
        let fresh = json!({"metadata": {"name": "x", "generation": 1}, "spec": {}});
        assert_eq!(health(kind, &fresh)?.status, "Progressing", "{kind}");
    }
    Ok(())
}

#[test]
fn the_config_map_carries_the_scripts() -> Result<()> {
    let mut expected = String::from(
        "# Generated from assayer.dev/*/health.lua by `UPDATE=1 cargo test -p assayer-tests --test it argocd`. Do not edit.\n\
         apiVersion: v1\nkind: ConfigMap\nmetadata:\n  name: argocd-cm\ndata:\n",
    );
    for kind in KINDS {
        writeln!(expected, "  resource.customizations.health.assayer.dev_{kind}: |")?;
        for line in script(kind)?.lines() {
            writeln!(expected, "    {line}")?;
        }
    }
    let path = folder().join("argocd-cm.yaml");
    if std::env::var_os("UPDATE").is_some() {
        fs::write(&path, &expected)?;
    }
    let committed = fs::read_to_string(&path).unwrap_or_default();
    assert_eq!(
        committed,
        expected,
        "{} is out of date: run with UPDATE=1",
        path.display()
    );
    Ok(())
}
