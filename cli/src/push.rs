//! `assayer push`: a file or folder becomes an image-shaped artifact, so that the kubelet can mount it.

use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result};
use assayer_worker::storage::{Access, Credentials, Location, Pushed, pack, push};
use clap::Args;

use crate::terminal;

/// What to push, and where.
#[derive(Args)]
pub(crate) struct Options {
    /// Model file, data set, or folder
    path: PathBuf,
    /// Where to; with or without a tag
    #[arg(value_name = "oci://REGISTRY/REPOSITORY")]
    uri: String,
    #[command(flatten)]
    access: AccessOptions,
}

/// How to speak to registries.
#[derive(Args, Clone)]
pub(crate) struct AccessOptions {
    /// Registry (host:port) to speak to without TLS; may be given several times
    #[arg(long, value_name = "HOST")]
    pub(crate) plain_http: Vec<String>,
    /// Credentials [default: ~/.docker/config.json where it exists]
    #[arg(long, value_name = "FILE")]
    registry_config: Option<PathBuf>,
}

impl AccessOptions {
    /// With the credentials read.
    pub(crate) fn access(&self) -> Result<Access> {
        let credentials = match self.file() {
            Some(file) => parse(&file, &read(&file)?)?,
            None => Credentials::default(),
        };
        Ok(Access {
            plain_http: self.plain_http.clone(),
            credentials,
        })
    }

    /// The text of the credentials file, checked; for processes of their own.
    pub(crate) fn text(&self) -> Result<Option<Vec<u8>>> {
        let Some(file) = self.file() else { return Ok(None) };
        let bytes = read(&file)?;
        parse(&file, &bytes)?;
        Ok(Some(bytes))
    }

    fn file(&self) -> Option<PathBuf> {
        self.registry_config.clone().or_else(|| {
            let home = PathBuf::from(std::env::var_os("HOME")?);
            Some(home.join(".docker/config.json")).filter(|file| file.exists())
        })
    }
}

fn read(file: &Path) -> Result<Vec<u8>> {
    std::fs::read(file).with_context(|| format!("read {}", file.display()))
}

fn parse(file: &Path, bytes: &[u8]) -> Result<Credentials> {
    Credentials::parse(bytes).map_err(|why| anyhow::anyhow!("{}: {why}", file.display()))
}

/// Pushes and prints the URI by digest.
pub(crate) async fn run(options: &Options) -> Result<()> {
    let location = Location::parse(&options.uri)?;
    let pushed = artifact(&options.path, &location, &options.access.access()?).await?;
    terminal::note(&format!("model digest {}, tag {}", pushed.model_digest, pushed.tag));
    terminal::print(&pushed.uri);
    Ok(())
}

/// Packs and pushes `path`, under the location's tag or one made from its digest.
pub(crate) async fn artifact(path: &Path, location: &Location, access: &Access) -> Result<Pushed> {
    let packed = pack(path)?;
    let tag = location
        .tag
        .clone()
        .unwrap_or_else(|| format!("assayer-{}", packed.model_digest.short(12)));
    Ok(push(&packed, location, &tag, access).await?)
}
