//! Pushes images with crane, which skips blobs that the registry has, and knows the user's credentials.

use std::{fs, process::Command};

use anyhow::{Context, Result};

use super::{
    image::{Image, Start},
    layer::Contents,
};
use crate::{cache, process, tools::go};

/// Where images go.
#[derive(Debug, Clone)]
pub struct Registry {
    /// Host, port and, if wanted, the beginning of the repositories' names: `192.168.1.5:5000` or `ghcr.io/someone`.
    pub prefix: String,
    /// Talk to it without TLS, as to the local cluster's.
    pub plain_http: bool,
}

impl Registry {
    /// Host and port alone.
    pub fn host(&self) -> &str {
        self.prefix.split('/').next().unwrap_or_default()
    }
}

/// Pushes `image` as `name` and gives its reference by digest. The tag is there so that no registry collects it.
pub fn push(image: &Image, registry: &Registry, name: &str) -> Result<String> {
    let repository = format!("{}/{name}", registry.prefix);
    let reference = format!("{repository}@{}", image.digest);
    let mut asked = Command::new(go::path("crane")?);
    if asked
        .arg("manifest")
        .arg(&reference)
        .args(flags(registry))
        .output()
        .is_ok_and(|found| found.status.success())
    {
        return Ok(reference);
    }
    let layout = image.write_layout(name)?;
    let tag = format!("{repository}:{}", &image.digest["sha256:".len()..][..12]);
    process::run(
        Command::new(go::path("crane")?)
            .arg("push")
            .arg(&layout)
            .arg(&tag)
            .args(flags(registry)),
    )
    .with_context(|| format!("push image {name} to {}", registry.prefix))?;
    // Only the registry's copy is needed from here on.
    fs::remove_dir_all(&layout).with_context(|| format!("remove {}", layout.display()))?;
    Ok(reference)
}

fn flags(registry: &Registry) -> &'static [&'static str] {
    if registry.plain_http { &["--insecure"] } else { &[] }
}

/// Builds and pushes the image that holds a pod's namespaces, to the local registry `host`.
pub fn push_pause(host: &str) -> Result<String> {
    let folder = tempfile::tempdir_in(cache::folder("images")?)?;
    let program = folder.path().join("pause");
    let source = cache::workspace().join("xtask/pause/pause.c");
    let mut compile = Command::new("gcc");
    process::run(
        compile
            .args(["-static", "-Os", "-s", "-Wall", "-o"])
            .arg(&program)
            .arg(source),
    )
    .context("build the image of pods' sandboxes (Debian packages gcc and libc6-dev)")?;
    let layer = Contents::default().file("/pause", 0o755, fs::read(&program)?).build()?;
    let start = Start {
        entrypoint: vec!["/pause".into()],
        environment: Vec::new(),
        user: "65535:65535".into(),
    };
    let registry = Registry {
        prefix: host.to_owned(),
        plain_http: true,
    };
    push(&Image::new(vec![layer], &start)?, &registry, "pause")
}
