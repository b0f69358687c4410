//! An image: its configuration, its manifest, its digest, and the OCI layout on disk that any tool can read.

use std::{
    fs,
    path::{Path, PathBuf},
};

use anyhow::{Context, Result};
use serde_json::{Value, json};

use super::layer::{Layer, digest_of};
use crate::cache;

const CONFIG: &str = "application/vnd.oci.image.config.v1+json";
const MANIFEST: &str = "application/vnd.oci.image.manifest.v1+json";
const LAYER: &str = "application/vnd.oci.image.layer.v1.tar";

/// How a container of the image starts.
#[derive(Debug, Clone)]
pub struct Start {
    /// The program and its fixed arguments.
    pub entrypoint: Vec<String>,
    /// `NAME=value`.
    pub environment: Vec<String>,
    /// User and group ids, as in `65532:65532`.
    pub user: String,
}

/// An image without a repository yet.
#[derive(Debug, Clone)]
pub struct Image {
    layers: Vec<Layer>,
    config: Vec<u8>,
    manifest: Vec<u8>,
    /// The manifest's digest: what pods name.
    pub digest: String,
}

impl Image {
    /// Puts layers (lowest first) together. The same parts give the same digest: there is no time in it.
    pub fn new(layers: Vec<Layer>, start: &Start) -> Result<Self> {
        let diff_ids: Vec<&str> = layers.iter().map(|layer| layer.digest.as_str()).collect();
        let config = serde_json::to_vec(&json!({
            "architecture": architecture(),
            "os": "linux",
            "config": {"Entrypoint": start.entrypoint, "Env": start.environment, "User": start.user, "WorkingDir": "/"},
            "rootfs": {"type": "layers", "diff_ids": diff_ids},
        }))?;
        let described: Vec<Value> = layers
            .iter()
            .map(|layer| describe(LAYER, &layer.tar, &layer.digest))
            .collect();
        let manifest = serde_json::to_vec(&json!({
            "schemaVersion": 2,
            "mediaType": MANIFEST,
            "config": describe(CONFIG, &config, &digest_of(&config)),
            "layers": described,
        }))?;
        let digest = digest_of(&manifest);
        Ok(Self {
            layers,
            config,
            manifest,
            digest,
        })
    }

    /// Writes an OCI layout to the cache and gives its folder. Files are named by their digest, so an unchanged image
    /// is not written again.
    pub fn write_layout(&self, name: &str) -> Result<PathBuf> {
        let folder = cache::folder("images")?.join(format!("{name}-{}", &self.digest["sha256:".len()..][..16]));
        let blobs = folder.join("blobs/sha256");
        fs::create_dir_all(&blobs).with_context(|| format!("create {}", blobs.display()))?;
        for layer in &self.layers {
            write_blob(&blobs, &layer.digest, &layer.tar)?;
        }
        write_blob(&blobs, &digest_of(&self.config), &self.config)?;
        write_blob(&blobs, &self.digest, &self.manifest)?;
        fs::write(folder.join("oci-layout"), r#"{"imageLayoutVersion":"1.0.0"}"#)?;
        let index = json!({"schemaVersion": 2, "manifests": [describe(MANIFEST, &self.manifest, &self.digest)]});
        fs::write(folder.join("index.json"), index.to_string())?;
        Ok(folder)
    }
}

fn describe(media_type: &str, bytes: &[u8], digest: &str) -> Value {
    json!({"mediaType": media_type, "size": bytes.len(), "digest": digest})
}

fn write_blob(blobs: &Path, digest: &str, bytes: &[u8]) -> Result<()> {
    let path = blobs.join(digest.trim_start_matches("sha256:"));
    // One of that name and length is whole: a partial one would be shorter.
    if fs::metadata(&path).is_ok_and(|found| found.len() == bytes.len() as u64) {
        return Ok(());
    }
    fs::write(&path, bytes).with_context(|| format!("write {}", path.display()))
}

/// This machine's, in OCI's words.
fn architecture() -> &'static str {
    match std::env::consts::ARCH {
        "x86_64" => "amd64",
        "aarch64" => "arm64",
        other => other,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::images::layer::Contents;

    #[test]
    fn the_manifest_names_its_parts_by_digest_and_nothing_else_changes_it() {
        let layer = Contents::default()
            .file("/a", 0o755, b"program".to_vec())
            .build()
            .unwrap();
        let start = |user: &str| Start {
            entrypoint: vec!["/a".into()],
            environment: Vec::new(),
            user: user.into(),
        };
        let image = Image::new(vec![layer.clone()], &start("65532:65532")).unwrap();
        let manifest: Value = serde_json::from_slice(&image.manifest).unwrap();
        assert_eq!(manifest["layers"][0]["digest"], layer.digest.as_str());
        assert_eq!(manifest["config"]["digest"], digest_of(&image.config).as_str());
        let config: Value = serde_json::from_slice(&image.config).unwrap();
        assert_eq!(config["rootfs"]["diff_ids"][0], layer.digest.as_str());
        assert_eq!(
            Image::new(vec![layer.clone()], &start("65532:65532")).unwrap().digest,
            image.digest
        );
        assert_ne!(Image::new(vec![layer], &start("0:0")).unwrap().digest, image.digest);
    }
}
