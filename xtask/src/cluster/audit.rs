//! The API server's audit log: which service account used which verb on what. Decides what is logged; never what was right.
//!
//! Only metadata (no object is written down), and only of service accounts that are not Kubernetes' own.

use std::{
    fs,
    path::{Path, PathBuf},
};

use anyhow::{Context, Result};
use serde_json::json;

/// Writes the policy into `state` and gives the API server's flags; the log goes to `log`.
pub(super) fn flags(state: &Path, log: &Path) -> Result<Vec<String>> {
    let policy = json!({
        "apiVersion": "audit.k8s.io/v1",
        "kind": "Policy",
        "omitStages": ["RequestReceived"],
        "rules": [
            {"level": "None", "userGroups": ["system:serviceaccounts:kube-system"]},
            {"level": "Metadata", "userGroups": ["system:serviceaccounts"]},
        ],
    });
    let path = state.join("audit-policy.json");
    fs::write(&path, policy.to_string()).with_context(|| format!("write {}", path.display()))?;
    Ok(vec![
        format!("--audit-policy-file={}", path.display()),
        format!("--audit-log-path={}", log.display()),
    ])
}

/// The log's file.
pub(super) fn log(logs: &Path) -> PathBuf {
    logs.join("audit.log")
}
