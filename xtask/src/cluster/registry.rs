//! A real OCI registry (CNCF Distribution, as Debian packages it) on the node's own address, over plain HTTP. Its blobs
//! stay in the cache from run to run, so that a second run pushes nothing. Decides nothing about what is in it.

use std::{
    fs,
    net::{IpAddr, Ipv4Addr, SocketAddr},
    path::Path,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, bail};
use serde_json::json;

use super::ports;
use crate::{
    process::{self, Process},
    progress::Progress,
    tools::debian,
};

const PACKAGE: &str = "docker-registry";
const READY_WITHIN: Duration = Duration::from_secs(20);

/// A running registry; ends when dropped or when this process dies.
#[derive(Debug)]
pub struct Registry {
    process: Process,
    address: SocketAddr,
}

impl Registry {
    /// Fetches the program if it is not in the cache yet.
    pub fn ensure(progress: &Progress) -> Result<()> {
        debian::unpacked(PACKAGE, "usr/bin/docker-registry", progress).map(drop)
    }

    /// Starts it on a port of `address`; blobs and tags in `storage`, its log in the folder `logs`.
    pub fn start(address: Ipv4Addr, port: Option<u16>, storage: &Path, logs: &Path) -> Result<Self> {
        let program = debian::unpacked(PACKAGE, "usr/bin/docker-registry", &Progress::silent())?;
        let port = match port {
            Some(port) => port,
            None => ports::free::<1>(IpAddr::V4(address))?[0],
        };
        let address = SocketAddr::from((address, port));
        let config = json!({
            "version": 0.1,
            "log": {"level": "warn", "accesslog": {"disabled": true}},
            "storage": {"filesystem": {"rootdirectory": storage}, "delete": {"enabled": true}},
            "http": {"addr": address.to_string()},
        });
        let path = logs.join("registry.json");
        fs::write(&path, config.to_string()).with_context(|| format!("write {}", path.display()))?;
        let log = logs.join("registry.log");
        let process = Process::start(
            "registry",
            &program,
            ["serve".into(), path.display().to_string()],
            &[],
            &log,
        )?;
        Ok(Self { process, address })
    }

    /// Waits until it answers.
    pub async fn wait_until_ready(&mut self) -> Result<()> {
        let until = Instant::now() + READY_WITHIN;
        while !ports::answers(self.address) {
            self.process.check()?;
            if Instant::now() > until {
                let log = self.process.log();
                bail!(
                    "the registry does not answer at {}:\n{}",
                    self.address,
                    process::tail(log)
                );
            }
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
        // Somebody else may have answered on a port that ours could not take.
        self.process.check()
    }

    /// Host and port, as they stand in image references.
    pub fn host(&self) -> String {
        self.address.to_string()
    }

    /// An error with the end of its log if it has ended.
    pub fn check(&mut self) -> Result<()> {
        self.process.check()
    }
}
