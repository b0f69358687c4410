//! etcd and a real API server, and the controller manager where it is wanted: about four seconds, without a node,
//! without root, several side by side. Decides how they are started; never what is put into them.

use std::{
    net::{IpAddr, Ipv4Addr},
    path::{Path, PathBuf},
    time::{Duration, Instant},
};

use anyhow::{Context, Result, bail};
use serde_json::Value;

use super::{
    kubeconfig,
    pki::{Authority, Files},
    ports,
};
use crate::{
    process::{self, Process},
    tools::go,
};

/// Services get their addresses from here; the API server's own is the first.
pub const SERVICE_RANGE: &str = "10.96.0.0/16";
/// The API server's address inside the cluster.
pub const SERVICE_ADDRESS: Ipv4Addr = Ipv4Addr::new(10, 96, 0, 1);
/// What service-account tokens name as issuer, and by default as audience.
pub const ISSUER: &str = "https://kubernetes.default.svc";

const READY_WITHIN: Duration = Duration::from_secs(90);
const ATTEMPTS: usize = 3;

/// How to start a [`ControlPlane`].
#[derive(Debug, Clone)]
pub struct ControlPlaneOptions {
    /// Start the controller manager too: service accounts, Jobs, Deployments, garbage collection, namespace deletion.
    pub controller_manager: bool,
    /// Where the API server listens; loopback unless pods must reach it.
    pub address: Ipv4Addr,
    /// Its port; a free one if none is given.
    pub port: Option<u16>,
    /// Further flags for the API server, for example an audit log's.
    pub api_server_flags: Vec<String>,
    /// Where state goes; a temporary folder, removed in the end, if none is given.
    pub folder: Option<PathBuf>,
    /// Where logs go; beside the state if nothing is given.
    pub logs: Option<PathBuf>,
}

impl Default for ControlPlaneOptions {
    fn default() -> Self {
        Self {
            controller_manager: false,
            address: Ipv4Addr::LOCALHOST,
            port: None,
            api_server_flags: Vec::new(),
            folder: None,
            logs: None,
        }
    }
}

/// A running control plane; everything ends when it is dropped or when this process dies.
#[derive(Debug)]
pub struct ControlPlane {
    // Dropped in this order: the clients of a server before the server.
    controller_manager: Option<Process>,
    api_server: Process,
    etcd: Process,
    authority: Authority,
    server: String,
    kubeconfig: PathBuf,
    folder: PathBuf,
    logs: PathBuf,
    _temporary: Option<tempfile::TempDir>,
}

impl ControlPlane {
    /// Starts and waits until the API server says that it is ready and its namespaces exist.
    pub async fn start(options: &ControlPlaneOptions) -> Result<Self> {
        let mut attempt = 1;
        loop {
            match Self::start_once(options).await {
                // Somebody took a port between our finding it and their using it.
                Err(error) if attempt < ATTEMPTS && options.port.is_none() && is_port_taken(&error) => attempt += 1,
                result => return result,
            }
        }
    }

    /// The administrator's kubeconfig.
    pub fn kubeconfig(&self) -> &Path {
        &self.kubeconfig
    }

    /// The API server's URL.
    pub fn server(&self) -> &str {
        &self.server
    }

    /// The folder with logs and keys.
    pub fn folder(&self) -> &Path {
        &self.folder
    }

    /// The authority that the API server trusts.
    pub fn authority(&self) -> &Authority {
        &self.authority
    }

    /// A client for the administrator (group `system:masters`).
    pub async fn client(&self) -> Result<kube::Client> {
        self.client_for("admin", &["system:masters"]).await
    }

    /// A client that is `user` in `groups`, by a certificate of its own.
    pub async fn client_for(&self, user: &str, groups: &[&str]) -> Result<kube::Client> {
        kubeconfig::client(self.kubeconfig_value(user, groups)?).await
    }

    /// Writes a kubeconfig by which its holder is `user` in `groups`.
    pub fn kubeconfig_for(&self, user: &str, groups: &[&str]) -> Result<PathBuf> {
        let path = self
            .folder
            .join(format!("{}.kubeconfig", user.replace([':', '/'], "-")));
        kubeconfig::write(&path, &self.kubeconfig_value(user, groups)?)?;
        Ok(path)
    }

    /// An error with the end of the log of whichever part has ended.
    pub fn check(&mut self) -> Result<()> {
        self.etcd.check()?;
        self.api_server.check()?;
        self.controller_manager.as_mut().map_or(Ok(()), Process::check)
    }

    fn kubeconfig_value(&self, user: &str, groups: &[&str]) -> Result<Value> {
        let identity = self.authority.client(user, groups)?;
        Ok(kubeconfig::build(&self.server, self.authority.certificate(), &identity))
    }

    async fn start_once(options: &ControlPlaneOptions) -> Result<Self> {
        let (folder, temporary) = if let Some(folder) = &options.folder {
            (folder.clone(), None)
        } else {
            let temporary = tempfile::Builder::new().prefix("assayer-").tempdir()?;
            (temporary.path().to_owned(), Some(temporary))
        };
        let logs = options.logs.clone().unwrap_or_else(|| folder.clone());
        let authority = Authority::create(&folder.join("pki"))?;
        let [client_port, peer_port] = ports::free(IpAddr::V4(Ipv4Addr::LOCALHOST))?;
        let [found] = ports::free(IpAddr::V4(options.address))?;
        let port = options.port.unwrap_or(found);
        let etcd = start_etcd(&folder, &logs, client_port, peer_port)?;
        let keys = authority.token_keys()?;
        let api_server = start_api_server(options, &authority, &logs, port, client_port, &keys)?;
        let mut control_plane = Self {
            controller_manager: None,
            api_server,
            etcd,
            server: format!("https://{}:{port}", options.address),
            kubeconfig: PathBuf::new(),
            authority,
            folder,
            logs,
            _temporary: temporary,
        };
        control_plane.kubeconfig = control_plane.kubeconfig_for("admin", &["system:masters"])?;
        control_plane
            .wait_for(&["/readyz", "/api/v1/namespaces/default"])
            .await?;
        if options.controller_manager {
            // It gives up at once where there is no API server yet.
            control_plane.controller_manager = Some(control_plane.start_controller_manager(&keys)?);
            control_plane
                .wait_for(&["/api/v1/namespaces/default/serviceaccounts/default"])
                .await?;
        }
        Ok(control_plane)
    }

    fn start_controller_manager(&self, keys: &Files) -> Result<Process> {
        let certificates = self.folder.join("controller-manager");
        let mut arguments = self.component("system:kube-controller-manager", &certificates)?;
        arguments.extend([
            "--use-service-account-credentials".into(),
            format!("--service-account-private-key-file={}", keys.key.display()),
            format!("--root-ca-file={}", self.authority.certificate_file().display()),
            format!("--service-cluster-ip-range={SERVICE_RANGE}"),
            "--kube-api-qps=200".into(),
            "--kube-api-burst=400".into(),
        ]);
        let log = self.logs.join("kube-controller-manager.log");
        Process::start(
            "kube-controller-manager",
            &go::path("kube-controller-manager")?,
            arguments,
            &[],
            &log,
        )
    }

    /// What scheduler and controller manager are told alike: who they are, and that they are alone.
    pub(super) fn component(&self, user: &str, certificates: &Path) -> Result<Vec<String>> {
        let kubeconfig = self.kubeconfig_for(user, &[])?.display().to_string();
        let [port] = ports::free(IpAddr::V4(Ipv4Addr::LOCALHOST))?;
        Ok(vec![
            format!("--kubeconfig={kubeconfig}"),
            format!("--authentication-kubeconfig={kubeconfig}"),
            format!("--authorization-kubeconfig={kubeconfig}"),
            "--bind-address=127.0.0.1".into(),
            format!("--secure-port={port}"),
            format!("--cert-dir={}", certificates.display()),
            "--leader-elect=false".into(),
        ])
    }

    /// Waits until the API server answers all `paths` with success.
    async fn wait_for(&mut self, paths: &[&str]) -> Result<()> {
        let client = self.client().await?;
        let until = Instant::now() + READY_WITHIN;
        let mut last = String::new();
        while Instant::now() < until {
            self.check()?;
            match probe(&client, paths).await {
                Ok(()) => return Ok(()),
                Err(error) => last = format!("{error:#}"),
            }
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
        let log = self.controller_manager.as_ref().unwrap_or(&self.api_server).log();
        let end = process::tail(log);
        bail!(
            "not ready within {} s: {last}; the end of {}:\n{end}",
            READY_WITHIN.as_secs(),
            log.display()
        )
    }
}

async fn probe(client: &kube::Client, paths: &[&str]) -> Result<()> {
    for path in paths {
        let request = http::Request::get(*path).body(Vec::new())?;
        client
            .request_text(request)
            .await
            .with_context(|| format!("GET {path}"))?;
    }
    Ok(())
}

fn start_etcd(folder: &Path, logs: &Path, client_port: u16, peer_port: u16) -> Result<Process> {
    let client = format!("http://127.0.0.1:{client_port}");
    let peer = format!("http://127.0.0.1:{peer_port}");
    let arguments = [
        format!("--data-dir={}", folder.join("etcd").display()),
        format!("--listen-client-urls={client}"),
        format!("--advertise-client-urls={client}"),
        format!("--listen-peer-urls={peer}"),
        format!("--initial-advertise-peer-urls={peer}"),
        format!("--initial-cluster=default={peer}"),
        // Nothing here outlives the process, so nothing need reach the disk.
        "--unsafe-no-fsync".into(),
        "--log-level=warn".into(),
    ];
    Process::start("etcd", &go::path("etcd")?, arguments, &[], &logs.join("etcd.log"))
}

fn start_api_server(
    options: &ControlPlaneOptions,
    authority: &Authority,
    logs: &Path,
    port: u16,
    etcd_port: u16,
    keys: &Files,
) -> Result<Process> {
    let address = options.address;
    let names = [
        "localhost",
        "kubernetes",
        "kubernetes.default",
        "kubernetes.default.svc",
        "127.0.0.1",
    ];
    let mut names: Vec<String> = names.map(str::to_owned).to_vec();
    names.extend([SERVICE_ADDRESS.to_string(), address.to_string()]);
    let serving = authority.server("kube-apiserver", &names)?;
    let to_kubelet = authority.client("kube-apiserver-kubelet-client", &["system:masters"])?;
    let to_kubelet = authority.write("kube-apiserver-kubelet-client", &to_kubelet)?;
    let mut arguments = vec![
        format!("--etcd-servers=http://127.0.0.1:{etcd_port}"),
        format!("--bind-address={address}"),
        format!("--secure-port={port}"),
        format!("--tls-cert-file={}", serving.certificate.display()),
        format!("--tls-private-key-file={}", serving.key.display()),
        format!("--client-ca-file={}", authority.certificate_file().display()),
        format!("--kubelet-client-certificate={}", to_kubelet.certificate.display()),
        format!("--kubelet-client-key={}", to_kubelet.key.display()),
        format!(
            "--kubelet-certificate-authority={}",
            authority.certificate_file().display()
        ),
        // Or `kubectl logs` tries to look up the node's name.
        "--kubelet-preferred-address-types=InternalIP".into(),
        "--authorization-mode=Node,RBAC".into(),
        "--enable-admission-plugins=NodeRestriction".into(),
        "--allow-privileged=true".into(),
        format!("--service-account-issuer={ISSUER}"),
        format!("--service-account-key-file={}", keys.certificate.display()),
        format!("--service-account-signing-key-file={}", keys.key.display()),
        format!("--service-cluster-ip-range={SERVICE_RANGE}"),
    ];
    if address.is_loopback() {
        // Nothing can reach it through the service, and an endpoint may not be loopback.
        arguments.push("--endpoint-reconciler-type=none".into());
    } else {
        arguments.push(format!("--advertise-address={address}"));
    }
    arguments.extend(options.api_server_flags.iter().cloned());
    let log = logs.join("kube-apiserver.log");
    Process::start("kube-apiserver", &go::path("kube-apiserver")?, arguments, &[], &log)
}

fn is_port_taken(error: &anyhow::Error) -> bool {
    format!("{error:#}").contains("address already in use")
}
