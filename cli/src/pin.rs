//! `assayer pin`: a manifest in which everything is named by digest. Decides names of repositories for pushed files.

use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result, bail};
use assayer_worker::storage::{Access, Location, resolve};
use clap::Args;

use crate::manifest::{Manifest, OCI, OUTPUT, dotted, there};
use crate::push::{self, AccessOptions};
use crate::terminal;

/// What to pin.
#[derive(Args)]
pub(crate) struct Options {
    /// Manifest of a `ModelOptimization`; - for stdin
    #[arg(short, long, value_name = "FILE")]
    file: PathBuf,
    /// Push local files, to repositories below this prefix
    #[arg(long, value_name = "oci://REGISTRY/PREFIX")]
    push: Option<String>,
    #[command(flatten)]
    access: AccessOptions,
}

/// Prints the pinned manifest to stdout.
pub(crate) async fn run(options: &Options) -> Result<()> {
    let manifest = Manifest::read(&options.file)?;
    // Before anything is pushed: a cluster would refuse it anyway.
    manifest.checked(|_| true)?;
    if let Some(prefix) = &options.push {
        Location::parse(&below(prefix, "name")).context("--push")?;
    }
    let uris = manifest.uris()?;
    for (field, uri) in uris
        .iter()
        .filter(|(field, uri)| *field != OUTPUT && !uri.starts_with(OCI))
    {
        there(field, &manifest.local(uri))?;
    }
    let access = options.access.access()?;
    let mut changes = Vec::new();
    for (field, uri) in uris {
        let output = field == OUTPUT;
        let pinned = match (uri.starts_with(OCI), output) {
            (true, true) => continue,
            (true, false) => pin(&uri, &access).await.with_context(|| named(field, &uri))?,
            (false, true) => repository(options, &stem(Path::new(&uri)), field, &uri)?,
            (false, false) => push_file(options, &manifest, field, &uri, &access).await?,
        };
        if pinned != uri {
            terminal::note(&format!("{} -> {pinned}", named(field, &uri)));
            changes.push((uri, pinned));
        }
    }
    let pinned = manifest.with_uris(&changes)?;
    pinned.checked(|_| false)?;
    terminal::print(pinned.text.trim_end());
    Ok(())
}

fn named(field: &str, uri: &str) -> String {
    format!("{}: {uri}", dotted(field))
}

async fn pin(uri: &str, access: &Access) -> Result<String> {
    let location = Location::parse(uri)?;
    let digest = resolve(&location, access).await?;
    Ok(location.at(&digest))
}

async fn push_file(options: &Options, manifest: &Manifest, field: &str, uri: &str, access: &Access) -> Result<String> {
    let path = manifest.local(uri);
    let target = repository(options, &stem(&path), field, uri)?;
    let location = Location::parse(&target)?;
    let pushed = push::artifact(&path, &location, access)
        .await
        .with_context(|| named(field, uri))?;
    Ok(pushed.uri)
}

fn repository(options: &Options, name: &str, field: &str, uri: &str) -> Result<String> {
    match &options.push {
        Some(prefix) => Ok(below(prefix, name)),
        None => bail!(
            "{}: a cluster can't read local files: name a repository with --push oci://registry/prefix",
            named(field, uri)
        ),
    }
}

fn below(prefix: &str, name: &str) -> String {
    format!("{}/{name}", prefix.trim_end_matches('/'))
}

/// A repository's name from a file's: lower case, without the extension.
fn stem(path: &Path) -> String {
    let stem = path
        .file_stem()
        .map(|stem| stem.to_string_lossy().to_lowercase())
        .unwrap_or_default();
    let clean: String = stem
        .chars()
        .map(|c| if c.is_ascii_alphanumeric() { c } else { '-' })
        .collect();
    let clean = clean.trim_matches('-').to_owned();
    if clean.is_empty() { "artifact".to_owned() } else { clean }
}

#[cfg(test)]
mod tests {
    use super::stem;
    use std::path::Path;

    #[test]
    fn repositories_are_named_after_files() {
        assert_eq!(stem(Path::new("files/Magika v3.onnx")), "magika-v3");
        assert_eq!(stem(Path::new("files/out")), "out");
        assert_eq!(stem(Path::new("..")), "artifact");
    }
}
