//! containerd with its CRI plugin, our own CNI network and the local registry over plain HTTP. Decides their configuration
//! only; pods are the kubelet's.

use std::{
    fs,
    path::{Path, PathBuf},
};

use anyhow::{Context, Result};
use serde_json::json;

use super::place::{BRIDGE, POD_RANGE, Place};
use crate::{process::Process, tools::go};

/// Debian's place for CNI plugins (package `containernetworking-plugins`).
const CNI_PLUGINS: &str = "/usr/lib/cni";

/// Writes the configuration and starts it.
pub(super) fn start(place: &Place, registry: &str, sandbox_image: &str) -> Result<Process> {
    let folder = place.state.join("containerd-config");
    let hosts = folder.join("certs.d").join(registry);
    let network = folder.join("cni");
    for needed in [&hosts, &network] {
        fs::create_dir_all(needed).with_context(|| format!("create {}", needed.display()))?;
    }
    let plain_http = format!(
        "server = \"http://{registry}\"\n[host.\"http://{registry}\"]\ncapabilities = [\"pull\", \"resolve\"]\n"
    );
    fs::write(hosts.join("hosts.toml"), plain_http)?;
    fs::write(network.join("10-assayer.conflist"), network_config(place).to_string())?;
    let config = folder.join("config.toml");
    fs::write(&config, containerd_config(place, &folder, sandbox_image)?)?;
    let programs = go::folder_of("containerd")?;
    // It finds its shim by PATH.
    let path = format!(
        "{}:/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
        programs.display()
    );
    let arguments = ["--config".into(), config.display().to_string()];
    let log = place.logs.join("containerd.log");
    Process::start(
        "containerd",
        &go::path("containerd")?,
        arguments,
        &[("PATH", path)],
        &log,
    )
}

/// The socket of its CRI.
pub(super) fn socket(place: &Place) -> PathBuf {
    place.run.join("containerd.sock")
}

fn containerd_config(place: &Place, folder: &Path, sandbox_image: &str) -> Result<String> {
    Ok(format!(
        r#"version = 3
root = "{root}"
state = "{state}"
disabled_plugins = ["io.containerd.nri.v1.nri", "io.containerd.internal.v1.tracing"]

[grpc]
address = "{socket}"

[plugins."io.containerd.cri.v1.images"]
snapshotter = "overlayfs"
pinned_images.sandbox = "{sandbox_image}"
registry.config_path = "{hosts}"

[plugins."io.containerd.cri.v1.runtime"]
# Lowering the score of a sandbox needs CAP_SYS_RESOURCE, which a container or sandbox machine often lacks.
restrict_oom_score_adj = true
netns_mounts_under_state_dir = true
disable_apparmor = {disable_apparmor}

[plugins."io.containerd.cri.v1.runtime".cni]
bin_dirs = ["{CNI_PLUGINS}"]
conf_dir = "{network}"

[plugins."io.containerd.cri.v1.runtime".containerd.runtimes.runc]
runtime_type = "io.containerd.runc.v2"

[plugins."io.containerd.cri.v1.runtime".containerd.runtimes.runc.options]
BinaryName = "{runc}"
Root = "{run}/runc"
SystemdCgroup = false
"#,
        root = place.state.join("containerd").display(),
        state = place.run.join("containerd").display(),
        socket = socket(place).display(),
        hosts = folder.join("certs.d").display(),
        disable_apparmor = !Path::new("/sys/kernel/security/apparmor").exists(),
        network = folder.join("cni").display(),
        runc = go::path("runc")?.display(),
        run = place.run.display(),
    ))
}

fn network_config(place: &Place) -> serde_json::Value {
    json!({
        "cniVersion": "1.0.0",
        "name": "assayer",
        "plugins": [{
            "type": "bridge",
            "bridge": BRIDGE,
            "isGateway": true,
            "hairpinMode": true,
            // One rule of ours masquerades instead of a chain per pod, so that nothing is left behind after a kill.
            "ipMasq": false,
            "ipam": {
                "type": "host-local",
                "dataDir": place.run.join("cni-addresses"),
                "ranges": [[{"subnet": POD_RANGE}]],
                "routes": [{"dst": "0.0.0.0/0"}],
            },
        }],
    })
}
