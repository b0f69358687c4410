//! What makes this machine a node: kubelet, kube-proxy and the scheduler. Decides their configuration; it grants nothing
//! that a default Kubernetes does not.

use std::{
    fs,
    net::{IpAddr, Ipv4Addr},
    path::{Path, PathBuf},
};

use anyhow::{Context, Result};
use serde_json::{Value, json};

use super::{
    containerd,
    control_plane::ControlPlane,
    place::{CGROUP, NODE, POD_RANGE, Place},
    ports,
};
use crate::{process::Process, tools::go};

const CGROUPS: &str = "/sys/fs/cgroup";
/// The controllers that a kubelet wants to find.
const CONTROLLERS: [&str; 5] = ["cpu", "cpuset", "memory", "pids", "io"];

pub(super) fn start_kubelet(place: &Place, control_plane: &ControlPlane, address: Ipv4Addr) -> Result<Process> {
    make_cgroups()?;
    let user = format!("system:node:{NODE}");
    let kubeconfig = control_plane.kubeconfig_for(&user, &["system:nodes"])?;
    let serving = control_plane
        .authority()
        .server("kubelet", &[NODE.to_owned(), address.to_string()])?;
    let [port] = ports::free(IpAddr::V4(address))?;
    let config = json!({
        "apiVersion": "kubelet.config.k8s.io/v1beta1",
        "kind": "KubeletConfiguration",
        "address": address,
        "port": port,
        "healthzPort": 0,
        "authentication": {
            "anonymous": {"enabled": false},
            "webhook": {"enabled": true},
            "x509": {"clientCAFile": control_plane.authority().certificate_file()},
        },
        "authorization": {"mode": "Webhook"},
        "tlsCertFile": serving.certificate,
        "tlsPrivateKeyFile": serving.key,
        "containerRuntimeEndpoint": format!("unix://{}", containerd::socket(place).display()),
        "cgroupDriver": "cgroupfs",
        "cgroupRoot": format!("/{CGROUP}"),
        "failCgroupV1": false,
        "failSwapOn": false,
        // Needs CAP_SYS_RESOURCE to be anything else.
        "oomScoreAdj": 0,
        // There is no cluster DNS; pods use addresses.
        "resolvConf": "",
        // There is no cluster DNS; pods use addresses. Names are refused at once here instead of timing out elsewhere, and
        // pods carry no warning about it.
        "clusterDNS": [address],
        "clusterDomain": "cluster.local",
        // A developer's disk is often almost full, and that is no reason to evict.
        "evictionHard": {
            "memory.available": "100Mi",
            "nodefs.available": "256Mi",
            "nodefs.inodesFree": "1%",
            "imagefs.available": "256Mi",
        },
        "imageGCHighThresholdPercent": 100,
        "imageGCLowThresholdPercent": 99,
        "serializeImagePulls": false,
        "podLogsDir": place.state.join("pod-logs"),
        "volumePluginDir": place.state.join("volume-plugins"),
    });
    let config = write_config(place, "kubelet", &config)?;
    let arguments = [
        format!("--config={}", config.display()),
        format!("--kubeconfig={}", kubeconfig.display()),
        format!("--root-dir={}", place.state.join("kubelet").display()),
        format!("--hostname-override={NODE}"),
        // Or it may choose the bridge's.
        format!("--node-ip={address}"),
    ];
    Process::start(
        "kubelet",
        &go::path("kubelet")?,
        arguments,
        &[],
        &place.logs.join("kubelet.log"),
    )
}

pub(super) fn start_proxy(place: &Place, control_plane: &ControlPlane) -> Result<Process> {
    let kubeconfig = control_plane.kubeconfig_for("system:kube-proxy", &[])?;
    let [healthz, metrics] = ports::free(IpAddr::V4(Ipv4Addr::LOCALHOST))?;
    let config = json!({
        "apiVersion": "kubeproxy.config.k8s.io/v1alpha1",
        "kind": "KubeProxyConfiguration",
        "mode": "iptables",
        "clientConnection": {"kubeconfig": kubeconfig},
        "clusterCIDR": POD_RANGE,
        "hostnameOverride": NODE,
        "healthzBindAddress": format!("127.0.0.1:{healthz}"),
        "metricsBindAddress": format!("127.0.0.1:{metrics}"),
        "oomScoreAdj": 0,
        // The limits of a container's or sandbox's host are not ours to change.
        "conntrack": {"maxPerCore": 0, "min": 0},
        "iptables": {"minSyncPeriod": "100ms"},
    });
    let arguments = [format!(
        "--config={}",
        write_config(place, "kube-proxy", &config)?.display()
    )];
    Process::start(
        "kube-proxy",
        &go::path("kube-proxy")?,
        arguments,
        &[],
        &place.logs.join("kube-proxy.log"),
    )
}

pub(super) fn start_scheduler(place: &Place, control_plane: &ControlPlane) -> Result<Process> {
    let arguments = control_plane.component("system:kube-scheduler", &place.state.join("scheduler"))?;
    let log = place.logs.join("kube-scheduler.log");
    Process::start("kube-scheduler", &go::path("kube-scheduler")?, arguments, &[], &log)
}

fn write_config(place: &Place, name: &str, config: &Value) -> Result<PathBuf> {
    let path = place.state.join(format!("{name}.json"));
    fs::write(&path, serde_json::to_vec_pretty(config)?).with_context(|| format!("write {}", path.display()))?;
    Ok(path)
}

/// The parent of all pods' control groups: by it they are found again after a kill.
fn make_cgroups() -> Result<()> {
    let root = Path::new(CGROUPS);
    if root.join("cgroup.controllers").exists() {
        let group = root.join(CGROUP);
        fs::create_dir_all(&group).with_context(|| format!("create {}", group.display()))?;
        return [root, &group].into_iter().try_for_each(delegate_controllers);
    }
    for entry in fs::read_dir(root)? {
        let hierarchy = entry?.path();
        // Links (`cpu` to `cpu,cpuacct`) lead to a hierarchy that is listed as well.
        if hierarchy.is_symlink() || !hierarchy.join("cgroup.procs").exists() {
            continue;
        }
        let group = hierarchy.join(CGROUP);
        fs::create_dir_all(&group).with_context(|| format!("create {}", group.display()))?;
        for file in ["cpuset.cpus", "cpuset.mems"] {
            if let Ok(inherited) = fs::read_to_string(hierarchy.join(file)) {
                fs::write(group.join(file), inherited)
                    .with_context(|| format!("write {file} of {}", group.display()))?;
            }
        }
    }
    Ok(())
}

/// Version 2 of control groups: children get a controller only if their parent hands it down.
fn delegate_controllers(group: &Path) -> Result<()> {
    let available = fs::read_to_string(group.join("cgroup.controllers")).context("read cgroup.controllers")?;
    for controller in CONTROLLERS
        .iter()
        .filter(|name| available.split_whitespace().any(|word| word == **name))
    {
        let path = group.join("cgroup.subtree_control");
        fs::write(&path, format!("+{controller}"))
            .with_context(|| format!("write +{controller} to {}", path.display()))?;
    }
    Ok(())
}
