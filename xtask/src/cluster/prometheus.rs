//! A real Prometheus, as Debian packages it, unpacked and not installed: no service of it is ever started.

use std::{
    fs,
    net::{IpAddr, Ipv4Addr, SocketAddr},
    path::PathBuf,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, bail};
use tempfile::TempDir;

use super::ports;
use crate::{
    process::{self, Process},
    progress::Progress,
    tools::debian,
};

const PACKAGE: &str = "prometheus";
const READY_WITHIN: Duration = Duration::from_secs(30);

/// A running Prometheus; ends when dropped or when this process dies, and its data with it.
#[derive(Debug)]
pub struct Prometheus {
    process: Process,
    address: SocketAddr,
    _folder: TempDir,
}

impl Prometheus {
    /// Fetches the programs if they are not in the cache yet.
    pub fn ensure(progress: &Progress) -> Result<()> {
        debian::unpacked(PACKAGE, "usr/bin/prometheus", progress)?;
        promtool(progress).map(drop)
    }

    /// Starts it on a free port of `address` with `config` (the YAML of its configuration file), and waits until it is ready.
    pub async fn start(address: Ipv4Addr, config: &str) -> Result<Self> {
        let program = debian::unpacked(PACKAGE, "usr/bin/prometheus", &Progress::silent())?;
        let folder = tempfile::Builder::new().prefix("assayer-prometheus-").tempdir()?;
        let path = folder.path().join("prometheus.yml");
        fs::write(&path, config).with_context(|| format!("write {}", path.display()))?;
        let [port] = ports::free(IpAddr::V4(address))?;
        let address = SocketAddr::from((address, port));
        let arguments = [
            format!("--config.file={}", path.display()),
            format!("--storage.tsdb.path={}", folder.path().join("data").display()),
            format!("--web.listen-address={address}"),
            "--log.level=warn".into(),
        ];
        let log = folder.path().join("prometheus.log");
        let process = Process::start("prometheus", &program, arguments, &[], &log)?;
        let mut prometheus = Self {
            process,
            address,
            _folder: folder,
        };
        prometheus.wait_until_ready().await?;
        Ok(prometheus)
    }

    /// Its base URL.
    pub fn url(&self) -> String {
        format!("http://{}", self.address)
    }

    /// An error with the end of its log if it has ended.
    pub fn check(&mut self) -> Result<()> {
        self.process.check()
    }

    async fn wait_until_ready(&mut self) -> Result<()> {
        // The TLS provider is chosen by whoever runs us; here nothing is encrypted, but the client wants one.
        drop(rustls::crypto::ring::default_provider().install_default());
        let client = reqwest::Client::builder().timeout(Duration::from_secs(2)).build()?;
        let url = format!("{}/-/ready", self.url());
        let until = Instant::now() + READY_WITHIN;
        loop {
            self.process.check()?;
            if client
                .get(&url)
                .send()
                .await
                .is_ok_and(|response| response.status().is_success())
            {
                return Ok(());
            }
            if Instant::now() > until {
                bail!(
                    "Prometheus is not ready at {url}:\n{}",
                    process::tail(self.process.log())
                );
            }
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
    }
}

/// Prometheus' checker of rules and configurations.
pub fn promtool(progress: &Progress) -> Result<PathBuf> {
    debian::unpacked(PACKAGE, "usr/bin/promtool", progress)
}
