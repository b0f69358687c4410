//! A control plane with the chart in it, and the people who use it. Each test that touches cluster-wide policies has its own.

use std::{
    io::Write,
    path::{Path, PathBuf},
    process::{Command, Stdio},
    time::Duration,
};

use anyhow::{Context, Result, bail};
use k8s_openapi::api::{
    authentication::v1::{BoundObjectReference, TokenRequest, TokenRequestSpec},
    core::v1::{Namespace, Pod, ServiceAccount},
};
use kube::{
    Api, Client, Config,
    api::PostParams,
    config::{AuthInfo, KubeConfigOptions, Kubeconfig},
};
use serde_json::{Value, json};
use xtask::{
    cluster::{ControlPlane, ControlPlaneOptions},
    tools::go,
};

use crate::conformance;

/// Where the operator lives.
pub(crate) const SYSTEM: &str = "assayer-system";
/// An image reference that the chart's schema accepts; nothing is ever pulled.
pub(crate) const IMAGE: &str =
    "registry.test/assayer@sha256:1111111111111111111111111111111111111111111111111111111111111111";

/// A control plane in which the chart is installed, without its Deployment's pods.
pub(crate) struct Installed {
    pub(crate) control_plane: ControlPlane,
    pub(crate) admin: Client,
}

impl Installed {
    /// Starts a control plane and applies the chart with these further values.
    pub(crate) async fn start(values: &[&str]) -> Result<Self> {
        Self::start_with(&ControlPlaneOptions::default(), values).await
    }

    /// The same, with a controller manager or other flags.
    pub(crate) async fn start_with(options: &ControlPlaneOptions, values: &[&str]) -> Result<Self> {
        let control_plane = ControlPlane::start(options).await?;
        let admin = control_plane.client().await?;
        create_namespace(&admin, SYSTEM).await?;
        let objects = render(values)?;
        let applied = kubectl(&control_plane, &["apply", "--server-side", "-f", "-"], &objects)?;
        if !applied.refused.is_empty() {
            bail!("the chart was not accepted: {}", applied.refused);
        }
        Ok(Self { control_plane, admin })
    }

    /// A client of the operator: the token of a pod of its service account, as the kubelet would mount it.
    pub(crate) async fn operator(&self) -> Result<Client> {
        let pod = self.operator_pod("assayer-operator-0").await?;
        let bound = BoundObjectReference {
            api_version: Some("v1".into()),
            kind: Some("Pod".into()),
            name: pod.metadata.name,
            uid: pod.metadata.uid,
        };
        self.service_account(SYSTEM, "assayer-operator", Some(bound)).await
    }

    /// A client with a token of the service account, bound to an object or not.
    pub(crate) async fn service_account(
        &self,
        namespace: &str,
        name: &str,
        bound_object_ref: Option<BoundObjectReference>,
    ) -> Result<Client> {
        let request = TokenRequest {
            spec: Some(TokenRequestSpec {
                bound_object_ref,
                ..TokenRequestSpec::default()
            }),
            ..TokenRequest::default()
        };
        let accounts = Api::<ServiceAccount>::namespaced(self.admin.clone(), namespace);
        let made = accounts
            .create_token_request(name, &PostParams::default(), &request)
            .await
            .context("request a token")?;
        let token = made
            .status
            .and_then(|status| status.token)
            .context("no token came back")?;
        let token = AuthInfo {
            token: Some(token.into()),
            ..AuthInfo::default()
        };
        self.client(|user| *user = token.clone()).await
    }

    /// A client that is `user` in `groups`: by a certificate, or by impersonation where that has room for one group only.
    pub(crate) async fn person(&self, user: &str, groups: &[&str]) -> Result<Client> {
        if groups.len() < 2 {
            return self.control_plane.client_for(user, groups).await;
        }
        self.client(|admin| {
            admin.impersonate = Some(user.to_owned());
            admin.impersonate_groups = Some(groups.iter().map(ToString::to_string).collect());
        })
        .await
    }

    async fn client(&self, identify: impl Fn(&mut AuthInfo)) -> Result<Client> {
        let mut kubeconfig = Kubeconfig::read_from(self.control_plane.kubeconfig())?;
        for user in &mut kubeconfig.auth_infos {
            identify(user.auth_info.get_or_insert_default());
        }
        let config = Config::from_custom_kubeconfig(kubeconfig, &KubeConfigOptions::default()).await?;
        Ok(Client::try_from(config)?)
    }

    async fn operator_pod(&self, name: &str) -> Result<Pod> {
        let pods = Api::<Pod>::namespaced(self.admin.clone(), SYSTEM);
        if let Some(pod) = pods.get_opt(name).await? {
            return Ok(pod);
        }
        let pod = json!({
            "apiVersion": "v1", "kind": "Pod",
            "metadata": {"name": name},
            "spec": {"serviceAccountName": "assayer-operator", "containers": [{"name": "operator", "image": IMAGE}]},
        });
        let pod = serde_json::from_value(pod)?;
        Ok(pods.create(&PostParams::default(), &pod).await?)
    }
}

impl Drop for Installed {
    /// Whatever the test was about: what it leaves behind conforms to kstatus.
    fn drop(&mut self) {
        if std::thread::panicking() {
            return;
        }
        if let Err(error) = conformance::check_blocking(self.control_plane.kubeconfig()) {
            panic!("{error:#}");
        }
    }
}

/// Makes a namespace and the service account that pods in it need where no controller manager makes it.
pub(crate) async fn create_namespace(admin: &Client, name: &str) -> Result<()> {
    let namespace = serde_json::from_value(json!({"metadata": {"name": name}}))?;
    Api::<Namespace>::all(admin.clone())
        .create(&PostParams::default(), &namespace)
        .await?;
    let account = serde_json::from_value(json!({"metadata": {"name": "default"}}))?;
    let made = Api::<ServiceAccount>::namespaced(admin.clone(), name)
        .create(&PostParams::default(), &account)
        .await;
    match made {
        Err(kube::Error::Api(status)) if status.is_already_exists() => Ok(()),
        other => Ok(other.map(drop)?),
    }
}

/// The folder of the chart.
pub(crate) fn chart() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../charts/assayer")
}

/// The chart as `helm template` renders it for an API server that serves mutating policies.
pub(crate) fn render(values: &[&str]) -> Result<String> {
    let mut helm = Command::new(go::path("helm")?);
    helm.args(["template", "assayer"]).arg(chart());
    helm.args(["--namespace", SYSTEM, "--kube-version", "1.36.0"]);
    helm.args([
        "--api-versions",
        "admissionregistration.k8s.io/v1/MutatingAdmissionPolicy",
    ]);
    for value in values.iter().copied().chain([
        format!("image={IMAGE}").as_str(),
        format!("workerImage={IMAGE}").as_str(),
    ]) {
        helm.args(["--set", value]);
    }
    let output = helm.output().context("run helm")?;
    if !output.status.success() {
        bail!("{}", String::from_utf8_lossy(&output.stderr));
    }
    Ok(String::from_utf8(output.stdout)?)
}

/// What kubectl said.
pub(crate) struct Answer {
    pub(crate) said: String,
    /// Empty when it succeeded.
    pub(crate) refused: String,
}

/// Runs kubectl as administrator, with `input` on its standard input.
pub(crate) fn kubectl(control_plane: &ControlPlane, arguments: &[&str], input: &str) -> Result<Answer> {
    let mut child = Command::new(go::path("kubectl")?)
        .arg("--kubeconfig")
        .arg(control_plane.kubeconfig())
        .args(arguments)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()?;
    let mut stdin = child.stdin.take().context("no standard input")?;
    let input = input.to_owned();
    let writer = std::thread::spawn(move || stdin.write_all(input.as_bytes()));
    let output = child.wait_with_output()?;
    writer.join().map_err(|_| anyhow::anyhow!("the writer panicked"))??;
    let refused = if output.status.success() {
        Vec::new()
    } else {
        output.stderr.clone()
    };
    Ok(Answer {
        said: format!(
            "{}{}",
            String::from_utf8_lossy(&output.stdout),
            String::from_utf8_lossy(&output.stderr)
        ),
        refused: String::from_utf8_lossy(&refused).into_owned(),
    })
}

/// Repeats `attempt` until it succeeds: new policies take a moment until the API server enforces them.
pub(crate) async fn eventually<T, F: Future<Output = Result<T>>>(
    what: &str,
    mut attempt: impl FnMut() -> F,
) -> Result<T> {
    let mut last = None;
    for _ in 0..450 {
        match attempt().await {
            Ok(value) => return Ok(value),
            Err(error) => last = Some(error),
        }
        tokio::time::sleep(Duration::from_millis(200)).await;
    }
    Err(last.unwrap_or_else(|| anyhow::anyhow!("never tried")))
        .with_context(|| format!("{what} did not come about in 90 s"))
}

/// The message with which the API server refused, or an error that says what it did instead.
pub(crate) fn refusal<T: std::fmt::Debug>(result: kube::Result<T>) -> Result<String> {
    match result {
        Err(kube::Error::Api(status)) => Ok(status.message.clone()),
        Err(other) => Err(other.into()),
        Ok(value) => bail!("it was accepted: {value:?}"),
    }
}

/// A value from YAML text.
pub(crate) fn yaml(text: &str) -> Value {
    serde_saphyr::from_str(text).expect("the text is YAML")
}
