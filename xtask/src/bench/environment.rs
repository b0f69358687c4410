//! Python environments of the bench, each tool in one of its own, in the cache. Decides where they are; never installs outside.

use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context, Result};
use sha2::{Digest, Sha256};
use tempfile::TempDir;

use super::cached;
use crate::{process, progress::Progress, tools::debian};

/// How folders begin that are for this run only, or not whole yet.
const UNFINISHED: &str = ".unfinished-";

/// Removes what a killed run left; the caller holds the lock of the bench.
pub(super) fn sweep() -> Result<()> {
    for entry in fs::read_dir(cached()?)? {
        let entry = entry?;
        if entry.file_name().to_string_lossy().starts_with(UNFINISHED) {
            fs::remove_dir_all(entry.path()).with_context(|| format!("remove {}", entry.path().display()))?;
        }
    }
    Ok(())
}

/// An empty folder beside what is cached, removed when it is dropped, or else by the next run.
pub(super) fn aside() -> Result<TempDir> {
    Ok(tempfile::Builder::new().prefix(UNFINISHED).tempdir_in(cached()?)?)
}

/// The folder `name` in the bench's cache, filled by `fill` aside and moved there once it is whole.
pub(super) fn once(name: &str, fill: impl FnOnce(&Path) -> Result<()>) -> Result<PathBuf> {
    let folder = cached()?.join(name);
    if !folder.exists() {
        let aside = aside()?;
        fill(aside.path())?;
        fs::rename(aside.keep(), &folder).with_context(|| format!("rename to {}", folder.display()))?;
    }
    Ok(folder)
}

/// The Python of an environment with exactly these packages, made if it is not in the cache yet.
pub(super) fn python(name: &str, packages: &[&str], progress: &Progress) -> Result<PathBuf> {
    let folder = once(&format!("{name}-{}", mark(packages)), |aside| {
        let step = progress.step(format!("install {} for the bench", packages.join(", ")));
        let make = |aside: &Path| process::run(Command::new("python3").args(["-m", "venv"]).arg(aside));
        if make(aside).is_err() {
            // Debian's Python 3 comes without.
            debian::ensure(&["python3", "python3-venv"], progress)?;
            make(aside)?;
        }
        let mut pip = Command::new(aside.join("bin/python"));
        pip.args(["-m", "pip", "install", "--disable-pip-version-check", "--no-input"]);
        let said = process::read_shown(pip.args(packages), &step).with_context(|| format!("install {name}"))?;
        step.done(said.lines().last().map_or("", |_| name));
        Ok(())
    })?;
    Ok(folder.join("bin/python"))
}

/// Eight hex digits that change with what goes in.
pub(super) fn mark(parts: &[&str]) -> String {
    let digest = Sha256::digest(parts.join("\n").as_bytes());
    hex::encode(&digest[..4])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn other_packages_are_another_environment() {
        assert_ne!(mark(&["a==1", "b"]), mark(&["a==2", "b"]));
        assert_eq!(mark(&["a==1"]).len(), 8);
    }
}
