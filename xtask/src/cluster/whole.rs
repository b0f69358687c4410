//! A whole one-node Kubernetes with a registry: started in order, stopped in order, and the machine left as it was.
//! Needs root; one at a time on a machine.

use std::{
    fs,
    net::{IpAddr, Ipv4Addr, SocketAddr},
    path::{Path, PathBuf},
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, bail};
use k8s_openapi::api::core::v1::Node;
use kube::Api;
use serde::{Deserialize, Serialize};

use super::{
    ControlPlane, ControlPlaneOptions, audit, containerd, leftovers,
    leftovers::Guard,
    network, node,
    place::{NODE, Place},
    ports,
    registry::Registry,
};
use crate::{
    cache::{self, Lock},
    images,
    process::{self, Process},
    progress::Progress,
    tools::{debian, go},
};

const NODE_READY_WITHIN: Duration = Duration::from_secs(90);
/// How long what a killed cluster has started may take to end.
const DYING: Duration = Duration::from_secs(3);
/// Below this, the kubelet would soon let no pod in, and images would not fit.
const LEAST_DISK: u64 = 2 << 30;
/// Asked for first, so that references and kubeconfigs stay valid from run to run; taken ones are replaced by free ones.
const USUAL_REGISTRY_PORT: u16 = 5000;
const USUAL_API_PORT: u16 = 6443;
/// Bytes; about fifty builds of our images.
const REGISTRY_LIMIT: u64 = 4 << 30;

/// A running cluster; everything ends when it is dropped. If this process is killed, the next start cleans up.
#[derive(Debug)]
pub struct Cluster {
    // Dropped in this order: what makes pods, what runs them, what they talk to; then the machine is cleaned.
    kubelet: Process,
    proxy: Process,
    scheduler: Process,
    containerd: Process,
    control_plane: ControlPlane,
    registry: Registry,
    address: Ipv4Addr,
    guard: Guard,
    _lock: Lock,
}

/// What another process needs to use a running cluster.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Running {
    /// The process that holds it.
    pub pid: u32,
    /// The administrator's kubeconfig.
    pub kubeconfig: PathBuf,
    /// Host and port of its registry (plain HTTP).
    pub registry: String,
    /// The node's address.
    pub address: Ipv4Addr,
}

impl Cluster {
    /// Installs and builds what is missing, then starts; the node is Ready when this returns.
    pub async fn start(progress: &Progress) -> Result<Self> {
        let lock = only_one()?;
        let place = Place::find()?;
        forget_running(&place)?;
        prepare(progress)?;
        clean_before_start(&place, progress)?;
        place.create()?;
        enough_disk(&place.state)?;
        let guard = Guard { place: place.clone() };
        let address = ports::own_address()?;

        bound_registry(&place, progress)?;
        let step = progress.step("start registry");
        let port = usual_or_free(address, USUAL_REGISTRY_PORT);
        let mut registry = Registry::start(address, port, &place.registry, &place.logs)?;
        registry.wait_until_ready().await?;
        let sandbox = images::push_pause(&registry.host())?;
        step.done(registry.host());

        let step = progress.step("start control plane");
        network::open(&place)?;
        let containerd = containerd::start(&place, &registry.host(), &sandbox)?.with_grace(Duration::from_secs(5));
        let control_plane = ControlPlane::start(&ControlPlaneOptions {
            controller_manager: true,
            address,
            port: usual_or_free(address, USUAL_API_PORT),
            api_server_flags: audit::flags(&place.state, &audit::log(&place.logs))?,
            folder: Some(place.state.clone()),
            logs: Some(place.logs.clone()),
        })
        .await?;
        step.done(control_plane.server());

        let step = progress.step("start node");
        let scheduler = node::start_scheduler(&place, &control_plane)?;
        let proxy = node::start_proxy(&place, &control_plane)?;
        let kubelet = node::start_kubelet(&place, &control_plane, address)?.with_grace(Duration::from_secs(2));
        let mut cluster = Self {
            kubelet,
            proxy,
            scheduler,
            containerd,
            control_plane,
            registry,
            address,
            guard,
            _lock: lock,
        };
        cluster.wait_for_node().await?;
        fs::write(
            running_file(&cluster.guard.place),
            serde_json::to_vec(&cluster.running())?,
        )?;
        step.done(format!("{NODE} is Ready"));
        Ok(cluster)
    }

    /// What another process needs to use it.
    pub fn running(&self) -> Running {
        Running {
            pid: std::process::id(),
            kubeconfig: self.kubeconfig().to_owned(),
            registry: self.registry(),
            address: self.address,
        }
    }

    /// The control plane: clients and kubeconfigs for whomever.
    pub fn control_plane(&self) -> &ControlPlane {
        &self.control_plane
    }

    /// The administrator's kubeconfig.
    pub fn kubeconfig(&self) -> &Path {
        self.control_plane.kubeconfig()
    }

    /// Host and port of the registry, as they stand in image references.
    pub fn registry(&self) -> String {
        self.registry.host()
    }

    /// This machine's own address: the node's, the API server's and the registry's; pods reach it.
    pub fn address(&self) -> Ipv4Addr {
        self.address
    }

    /// Where the logs of all parts are; they stay until the next start.
    pub fn logs(&self) -> &Path {
        &self.guard.place.logs
    }

    /// What service accounts did, as the API server saw it: one event a line.
    pub fn audit_log(&self) -> PathBuf {
        audit::log(&self.guard.place.logs)
    }

    /// The folder in which the registry keeps blobs, for those who want to damage one.
    pub fn registry_storage(&self) -> &Path {
        &self.guard.place.registry
    }

    /// An error with the end of the log of whichever part has ended.
    pub fn check(&mut self) -> Result<()> {
        self.control_plane.check()?;
        self.registry.check()?;
        for part in [
            &mut self.containerd,
            &mut self.kubelet,
            &mut self.proxy,
            &mut self.scheduler,
        ] {
            part.check()?;
        }
        Ok(())
    }

    async fn wait_for_node(&mut self) -> Result<()> {
        let nodes: Api<Node> = Api::all(self.control_plane.client().await?);
        let until = Instant::now() + NODE_READY_WITHIN;
        loop {
            self.check()?;
            // Not there until the kubelet has registered it.
            let node = nodes.get_opt(NODE).await.context("look at the node")?;
            let why = why_not_ready(node.as_ref());
            if why.is_empty() {
                return Ok(());
            }
            if Instant::now() > until {
                let within = NODE_READY_WITHIN.as_secs();
                bail!(
                    "the node was not Ready within {within} s: {why}; logs are in {}",
                    self.logs().display()
                );
            }
            tokio::time::sleep(Duration::from_millis(200)).await;
        }
    }
}

/// Removes what a cluster that was killed has left. Refused while one runs.
pub fn clean_up(progress: &Progress) -> Result<()> {
    let _lock = only_one()?;
    let place = Place::find()?;
    let step = progress.step("clean up the local cluster");
    let found = leftovers::exist(&place)?;
    leftovers::clean(&place)?;
    step.done(if found { "" } else { "nothing was left" });
    Ok(())
}

fn enough_disk(folder: &Path) -> Result<()> {
    let disk = rustix::fs::statvfs(folder).with_context(|| format!("look at the disk of {}", folder.display()))?;
    let free = disk.f_bavail.saturating_mul(disk.f_frsize);
    if free < LEAST_DISK {
        bail!(
            "the disk of {} has {} MiB free, and a node needs {} MiB: make room, or choose another disk with {}",
            folder.display(),
            free >> 20,
            LEAST_DISK >> 20,
            cache::CACHE_VARIABLE
        );
    }
    Ok(())
}

fn only_one() -> Result<Lock> {
    if !rustix::process::geteuid().is_root() {
        bail!("the local cluster runs real pods on this machine and so needs root: run it with sudo");
    }
    // The children of a killed one hold the lock until they are gone, too.
    let until = Instant::now() + DYING;
    let mut taken = Lock::try_take("cluster")?;
    while taken.is_none() && Instant::now() < until {
        thread::sleep(DYING / 30);
        taken = Lock::try_take("cluster")?;
    }
    taken.context(
        "a local cluster runs already: stop it (`cargo xtask cluster down`), or use it (`cargo xtask cluster env`)",
    )
}

/// Whether a local cluster is starting, running or stopping just now, in whichever process.
pub fn is_running() -> Result<bool> {
    Ok(Lock::try_take("cluster")?.is_none())
}

/// The cluster that is up just now, in whichever process; none while it starts.
pub fn running() -> Result<Option<Running>> {
    let path = running_file(&Place::find()?);
    if !is_running()? || !path.exists() {
        return Ok(None);
    }
    let text = fs::read(&path).with_context(|| format!("read {}", path.display()))?;
    let running: Running = serde_json::from_slice(&text).with_context(|| format!("read {}", path.display()))?;
    // A killed one leaves its file, and the next one may just have taken the lock.
    Ok(process::is_alive(running.pid).then_some(running))
}

/// A killed one has left its file.
fn forget_running(place: &Place) -> Result<()> {
    let path = running_file(place);
    if path.exists() {
        fs::remove_file(&path).with_context(|| format!("remove {}", path.display()))
    } else {
        Ok(())
    }
}

fn running_file(place: &Place) -> PathBuf {
    place.state.join("running.json")
}

fn prepare(progress: &Progress) -> Result<()> {
    debian::ensure(&debian::TO_BUILD, progress)?;
    debian::ensure(&debian::TO_RUN_A_NODE, progress)?;
    go::ensure(&go::all().collect::<Vec<_>>(), progress)?;
    Registry::ensure(progress)
}

fn clean_before_start(place: &Place, progress: &Progress) -> Result<()> {
    if leftovers::exist(place)? {
        let step = progress.step("clean up after a run that was killed");
        leftovers::clean(place)?;
        step.done("");
    } else if network::has_service_rules()? {
        bail!("another Kubernetes has its rules on this machine (iptables chains KUBE-*): two would fight over them");
    }
    Ok(())
}

/// Every change of ours pushes new images; nobody needs the old ones.
fn bound_registry(place: &Place, progress: &Progress) -> Result<()> {
    let size = size_below(&place.registry)?;
    if size <= REGISTRY_LIMIT {
        return Ok(());
    }
    progress.say(&format!("the registry holds {} MiB: emptying it", size >> 20));
    fs::remove_dir_all(&place.registry).with_context(|| format!("remove {}", place.registry.display()))?;
    fs::create_dir_all(&place.registry).with_context(|| format!("create {}", place.registry.display()))
}

fn size_below(folder: &Path) -> Result<u64> {
    let mut size = 0;
    for entry in fs::read_dir(folder).with_context(|| format!("list {}", folder.display()))? {
        let entry = entry?;
        let found = entry.metadata()?;
        size += if found.is_dir() {
            size_below(&entry.path())?
        } else {
            found.len()
        };
    }
    Ok(size)
}

fn usual_or_free(address: Ipv4Addr, port: u16) -> Option<u16> {
    std::net::TcpListener::bind(SocketAddr::new(IpAddr::V4(address), port))
        .is_ok()
        .then_some(port)
}

/// Empty when the node is Ready and nothing keeps pods off it.
fn why_not_ready(node: Option<&Node>) -> String {
    let Some(node) = node else {
        return "the kubelet has not registered it".into();
    };
    let taints = node
        .spec
        .as_ref()
        .and_then(|spec| spec.taints.as_deref())
        .unwrap_or_default();
    if let Some(taint) = taints.first() {
        return format!("it has the taint {}", taint.key);
    }
    let conditions = node
        .status
        .as_ref()
        .and_then(|status| status.conditions.as_deref())
        .unwrap_or_default();
    match conditions.iter().find(|condition| condition.type_ == "Ready") {
        Some(ready) if ready.status == "True" => String::new(),
        Some(ready) => ready.message.clone().unwrap_or_else(|| "it is not Ready".into()),
        None => "it has no condition Ready".into(),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn check(node: serde_json::Value, expected: &str) {
        let node: Node = serde_json::from_value(node).unwrap();
        assert_eq!(why_not_ready(Some(&node)), expected);
    }

    #[test]
    fn the_size_of_a_folder_counts_all_files_below() {
        let folder = tempfile::tempdir().unwrap();
        fs::create_dir_all(folder.path().join("a/b")).unwrap();
        fs::write(folder.path().join("a/b/x"), [0; 300]).unwrap();
        fs::write(folder.path().join("y"), [0; 7]).unwrap();
        assert_eq!(size_below(folder.path()).unwrap(), 307);
    }

    #[test]
    fn a_node_is_ready_only_without_taints_and_with_its_condition() {
        let ready = json!([{"type": "Ready", "status": "True", "message": "fine"}]);
        check(json!({"metadata": {}, "status": {"conditions": ready}}), "");
        let taints = json!([{"key": "node.kubernetes.io/not-ready", "effect": "NoSchedule"}]);
        check(
            json!({"metadata": {}, "spec": {"taints": taints}, "status": {"conditions": ready}}),
            "it has the taint node.kubernetes.io/not-ready",
        );
        let waiting = json!([{"type": "Ready", "status": "False", "message": "no network"}]);
        check(json!({"metadata": {}, "status": {"conditions": waiting}}), "no network");
        check(json!({"metadata": {}}), "it has no condition Ready");
        assert_eq!(why_not_ready(None), "the kubelet has not registered it");
    }
}
