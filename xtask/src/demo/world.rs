//! Where the journey happens: a cluster, a registry, the people who act, and the programs that they use.
//!
//! Decides who is who. Own cluster: everybody has a certificate. Somebody else's cluster: everybody is impersonated.

use std::{
    collections::BTreeMap,
    fs,
    path::{Path, PathBuf},
    process::{Command, Output, Stdio},
    time::{Duration, Instant},
};

use anyhow::{Context, Result, bail, ensure};
use kube::config::{KubeConfigOptions, Kubeconfig};
use serde_json::Value;
use tempfile::TempDir;

use super::Options;
use super::install::{self, RELEASE};
use crate::{
    cluster::{Cluster, Prometheus},
    images::Registry,
    process,
    progress::Progress,
    tools::go,
};

/// Namespace of the example.
pub(super) const NAMESPACE: &str = "ml";
/// Namespace of the operator.
pub(super) const SYSTEM: &str = "assayer-system";

/// Somebody who acts on the cluster.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Person {
    /// Installs; owns the cluster.
    Admin,
    /// Edits the example's objects and requests the promotion.
    Erin,
    /// May edit, and holds no role of approval.
    Mallory,
    /// Approves as `security`.
    Sam,
}

impl Person {
    const ALL: [Self; 3] = [Self::Erin, Self::Mallory, Self::Sam];

    pub(super) fn name(self) -> &'static str {
        match self {
            Self::Admin => "admin",
            Self::Erin => "erin@example.com",
            Self::Mallory => "mallory@example.com",
            Self::Sam => "sam@example.com",
        }
    }

    fn groups(self) -> &'static [&'static str] {
        match self {
            Self::Admin => &[],
            Self::Erin => &["file-security"],
            Self::Mallory => &["interns"],
            Self::Sam => &["security-review"],
        }
    }
}

/// A cluster and what is needed to act on it.
pub struct World {
    // Before the cluster, so that forwards end first.
    folder: TempDir,
    kubeconfig: PathBuf,
    people: BTreeMap<Person, Vec<String>>,
    /// Where images and models go.
    pub registry: Registry,
    /// Client with the administrator's rights.
    pub client: kube::Client,
    cluster: Option<Cluster>,
}

impl World {
    /// Starts a cluster, or checks the one that was given.
    pub(super) async fn open(options: &Options, progress: &Progress) -> Result<Self> {
        Prometheus::ensure(progress)?;
        go::ensure(&["kubectl", "helm"], progress)?;
        let folder = tempfile::Builder::new().prefix("assayer-demo-").tempdir()?;
        let world = match (&options.kubeconfig, &options.registry) {
            (Some(kubeconfig), Some(registry)) => {
                let registry = Registry {
                    prefix: registry.clone(),
                    plain_http: options.plain_http,
                };
                Self::of_somebody(folder, kubeconfig, registry).await?
            }
            _ => Self::own(folder, Cluster::start(progress).await?).await?,
        };
        world.check_version(progress)?;
        Ok(world)
    }

    async fn own(folder: TempDir, cluster: Cluster) -> Result<Self> {
        let mut people = BTreeMap::from([(Person::Admin, Vec::new())]);
        for person in Person::ALL {
            let file = cluster.control_plane().kubeconfig_for(person.name(), person.groups())?;
            people.insert(person, vec!["--kubeconfig".into(), file.display().to_string()]);
        }
        Ok(Self {
            folder,
            kubeconfig: cluster.kubeconfig().to_owned(),
            people,
            registry: Registry {
                prefix: cluster.registry(),
                plain_http: true,
            },
            client: cluster.control_plane().client().await?,
            cluster: Some(cluster),
        })
    }

    async fn of_somebody(folder: TempDir, kubeconfig: &Path, registry: Registry) -> Result<Self> {
        let mut people = BTreeMap::from([(Person::Admin, Vec::new())]);
        for person in Person::ALL {
            let mut arguments = vec!["--as".to_owned(), person.name().to_owned()];
            for group in person.groups().iter().chain(&["system:authenticated"]) {
                arguments.extend(["--as-group".to_owned(), (*group).to_owned()]);
            }
            people.insert(person, arguments);
        }
        let read = Kubeconfig::read_from(kubeconfig).with_context(|| format!("read {}", kubeconfig.display()))?;
        drop(rustls::crypto::ring::default_provider().install_default());
        let config = kube::Config::from_custom_kubeconfig(read, &KubeConfigOptions::default()).await?;
        let client = kube::Client::try_from(config)?;
        Ok(Self {
            folder,
            kubeconfig: kubeconfig.to_owned(),
            people,
            registry,
            client,
            cluster: None,
        })
    }

    fn check_version(&self, progress: &Progress) -> Result<()> {
        let step = progress.step("check the cluster's version");
        let version: Value = serde_json::from_str(&self.kubectl(Person::Admin, &["version", "-o", "json"])?)?;
        let minor = version["serverVersion"]["minor"]
            .as_str()
            .unwrap_or_default()
            .trim_end_matches('+');
        let found = version["serverVersion"]["gitVersion"]
            .as_str()
            .unwrap_or("unknown")
            .to_owned();
        let new_enough = minor.parse::<u32>().is_ok_and(|minor| minor >= 35);
        ensure!(
            new_enough,
            "the cluster is {found}: models are mounted as image volumes, which need Kubernetes 1.35 or newer"
        );
        step.done(found);
        Ok(())
    }

    /// A folder for files of this run.
    pub(super) fn folder(&self) -> &Path {
        self.folder.path()
    }

    /// The cluster, where it is our own.
    pub fn cluster(&self) -> Option<&Cluster> {
        self.cluster.as_ref()
    }

    /// Has the operator run another image of the workers from here on.
    pub fn use_workers(&self, image: &str) -> Result<()> {
        install::upgrade(self, &["--reuse-values"], &[format!("workerImage={image}")])
    }

    /// Whether the cluster ends with this process.
    pub(super) fn owns_cluster(&self) -> bool {
        self.cluster.is_some()
    }

    /// `kubectl` as `person`; its output, or an error with its words.
    pub fn kubectl(&self, person: Person, arguments: &[&str]) -> Result<String> {
        process::read(&mut self.kubectl_command(person, arguments)?)
    }

    /// `kubectl` as `person` where being refused is expected: the exit status with its words.
    pub(super) fn kubectl_output(&self, person: Person, arguments: &[&str]) -> Result<Output> {
        Ok(self.kubectl_command(person, arguments)?.output()?)
    }

    /// `kubectl apply -f -` of `manifest` as `person`.
    pub fn apply(&self, person: Person, manifest: &str) -> Result<String> {
        use std::io::Write as _;
        let mut command = self.kubectl_command(person, &["apply", "-f", "-"])?;
        let mut child = command
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()?;
        child
            .stdin
            .take()
            .context("kubectl has no stdin")?
            .write_all(manifest.as_bytes())?;
        let output = child.wait_with_output()?;
        if !output.status.success() {
            bail!(
                "kubectl apply as {}: {}",
                person.name(),
                String::from_utf8_lossy(&output.stderr).trim()
            );
        }
        Ok(String::from_utf8_lossy(&output.stdout).into_owned())
    }

    /// A `kubectl` command in the example's namespace.
    pub(super) fn kubectl_command(&self, person: Person, arguments: &[&str]) -> Result<Command> {
        let mut command = Command::new(go::path("kubectl")?);
        command
            .arg("--namespace")
            .arg(NAMESPACE)
            .args(&self.people[&person])
            .args(arguments);
        command.env("KUBECONFIG", &self.kubeconfig).stdin(Stdio::null());
        Ok(command)
    }

    /// A `helm` command.
    pub(super) fn helm(&self, arguments: &[&str]) -> Result<String> {
        let mut command = Command::new(go::path("helm")?);
        let home = self.folder().join("helm");
        fs::create_dir_all(&home)?;
        command
            .args(["--namespace", SYSTEM])
            .args(arguments)
            .env("KUBECONFIG", &self.kubeconfig)
            .stdin(Stdio::null());
        for variable in ["HELM_CACHE_HOME", "HELM_CONFIG_HOME", "HELM_DATA_HOME"] {
            command.env(variable, &home);
        }
        process::read(&mut command)
    }

    /// Forwards a free local port to `port` of `resource` in `namespace`; gives the base URL. Ends with the returned process.
    pub(super) async fn forward(&self, namespace: &str, resource: &str, port: u16) -> Result<Forward> {
        let local = std::net::TcpListener::bind(("127.0.0.1", 0))?.local_addr()?.port();
        let log = self
            .folder()
            .join(format!("forward-{}.log", resource.replace('/', "-")));
        let arguments = [
            "--kubeconfig".to_owned(),
            self.kubeconfig.display().to_string(),
            "--namespace".to_owned(),
            namespace.to_owned(),
            "port-forward".to_owned(),
            resource.to_owned(),
            format!("{local}:{port}"),
        ];
        let mut process = process::Process::start("port-forward", &go::path("kubectl")?, arguments, &[], &log)?;
        let until = Instant::now() + Duration::from_secs(20);
        while std::net::TcpStream::connect(("127.0.0.1", local)).is_err() {
            process.check()?;
            ensure!(
                Instant::now() < until,
                "no connection to {resource}: {}",
                process::tail(&log)
            );
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
        Ok(Forward {
            address: format!("127.0.0.1:{local}"),
            _process: process,
        })
    }

    /// What a person can do with the cluster that was kept.
    pub(super) fn say_how_to_use(&self, progress: &Progress) {
        progress.say(&format!("export KUBECONFIG={}", self.kubeconfig.display()));
        progress.say(&format!("kubectl --namespace {NAMESPACE} get mopt,mpromo,ppolicy"));
        progress.say(&format!(
            "kubectl --namespace {SYSTEM} port-forward service/{RELEASE}-operator 8080   # http://127.0.0.1:8080"
        ));
        for person in [Person::Erin, Person::Sam] {
            progress.say(&format!(
                "{} is: kubectl {}",
                person.name(),
                self.people[&person].join(" ")
            ));
        }
        if self.owns_cluster() {
            progress.say("Ctrl-C stops it and removes everything");
        }
    }

    /// Removes what the journey made. An own cluster ends with it.
    pub fn clean_up(self) -> Result<()> {
        if self.cluster.is_none() {
            self.kubectl(Person::Admin, &["delete", "namespace", NAMESPACE, "--ignore-not-found"])?;
            self.kubectl(
                Person::Admin,
                &["delete", "promotionpolicy", "ml", "--ignore-not-found"],
            )?;
            self.helm(&["uninstall", RELEASE])?;
        }
        Ok(())
    }
}

/// A forwarded port.
pub(super) struct Forward {
    /// `127.0.0.1:<port>`.
    pub(super) address: String,
    _process: process::Process,
}
