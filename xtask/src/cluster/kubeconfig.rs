//! Kubeconfigs by client certificate. Pure, but for writing the file.

use std::path::Path;

use anyhow::{Context, Result};
use base64::{Engine, prelude::BASE64_STANDARD};
use kube::config::{KubeConfigOptions, Kubeconfig};
use serde_json::{Value, json};

use super::pki::Identity;

/// A kubeconfig for `server` that is all in one piece: no other file is needed.
pub(super) fn build(server: &str, authority: &str, identity: &Identity) -> Value {
    json!({
        "apiVersion": "v1",
        "kind": "Config",
        "current-context": "assayer",
        "contexts": [{"name": "assayer", "context": {"cluster": "assayer", "user": "assayer"}}],
        "clusters": [{"name": "assayer", "cluster": {
            "server": server,
            "certificate-authority-data": BASE64_STANDARD.encode(authority),
        }}],
        "users": [{"name": "assayer", "user": {
            "client-certificate-data": BASE64_STANDARD.encode(&identity.certificate),
            "client-key-data": BASE64_STANDARD.encode(&identity.key),
        }}],
    })
}

/// Writes a kubeconfig for its owner's eyes only (JSON is YAML).
pub(super) fn write(path: &Path, kubeconfig: &Value) -> Result<()> {
    use std::os::unix::fs::OpenOptionsExt;
    let file = std::fs::File::options()
        .create(true)
        .truncate(true)
        .write(true)
        .mode(0o600)
        .open(path);
    let file = file.with_context(|| format!("write {}", path.display()))?;
    serde_json::to_writer_pretty(file, kubeconfig).with_context(|| format!("write {}", path.display()))
}

/// A client that uses the kubeconfig.
pub(super) async fn client(kubeconfig: Value) -> Result<kube::Client> {
    // Whoever links us may have chosen already.
    drop(rustls::crypto::ring::default_provider().install_default());
    let kubeconfig: Kubeconfig = serde_json::from_value(kubeconfig)?;
    let config = kube::Config::from_custom_kubeconfig(kubeconfig, &KubeConfigOptions::default()).await?;
    Ok(kube::Client::try_from(config)?)
}
