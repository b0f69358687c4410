//! Where the one local cluster of this machine keeps its things, and the names by which its leftovers are found.

use std::{fs, path::PathBuf};

use anyhow::{Context, Result};

use crate::cache;

/// The bridge that pods hang on.
pub(super) const BRIDGE: &str = "assayer0";
/// Pods' addresses.
pub(super) const POD_RANGE: &str = "10.213.0.0/16";
/// Parent of all pods' control groups, in every hierarchy.
pub(super) const CGROUP: &str = "assayer";
/// The node's name.
pub(super) const NODE: &str = "assayer-node";
/// Stands in every iptables rule that is ours.
pub(super) const RULE_COMMENT: &str = "assayer local cluster";

/// The folders of the local cluster.
#[derive(Debug, Clone)]
pub(super) struct Place {
    /// Everything that ends with the cluster.
    pub(super) state: PathBuf,
    /// Sockets and mounts: a short path, for a socket's is at most 107 bytes.
    pub(super) run: PathBuf,
    /// Logs of the last run; kept until the next.
    pub(super) logs: PathBuf,
    /// The registry's blobs; kept for good.
    pub(super) registry: PathBuf,
}

impl Place {
    pub(super) fn find() -> Result<Self> {
        // The kernel's list of mounts names them without links.
        let folder = cache::folder("cluster")?.canonicalize()?;
        Ok(Self {
            state: folder.join("state"),
            run: PathBuf::from("/run/assayer-cluster"),
            logs: folder.join("logs"),
            registry: folder.join("registry"),
        })
    }

    /// Makes the folders; the logs of the run before go.
    pub(super) fn create(&self) -> Result<()> {
        if self.logs.exists() {
            fs::remove_dir_all(&self.logs).with_context(|| format!("remove {}", self.logs.display()))?;
        }
        for folder in [&self.state, &self.run, &self.logs, &self.registry] {
            fs::create_dir_all(folder).with_context(|| format!("create {}", folder.display()))?;
        }
        Ok(())
    }
}
