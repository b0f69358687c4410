//! A kubelet without containers: takes the pods that the Job controller makes, ends them as scripted, and gives their logs.
//!
//! Real where the operator looks: pods pass admission, carry the API server's defaults, and their logs come through the API server, which
//! asks this kubelet over TLS.

use std::collections::{BTreeMap, HashMap};
use std::sync::{Arc, Mutex};

use anyhow::{Context, Result};
use assayer_crds::contract::{
    CONTRACT_VERSION, Failure, FailureClass, Made, Measured, Measurement, Measurements, Outcome, Report, Runtime,
    Termination, Work, WorkerPlan, metrics,
};
use assayer_crds::digest::{Digest, ModelFile, model_digest};
use assayer_crds::names;
use k8s_openapi::api::core::v1::{Binding, Node, Pod};
use kube::ResourceExt as _;
use kube::api::{Api, ListParams, Patch, PatchParams, PostParams};
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpListener;
use tokio_rustls::TlsAcceptor;
use xtask::cluster::ControlPlane;

const NODE: &str = "paper";

/// What the worker of a step does.
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum Fate {
    /// Nothing yet.
    Hangs,
    /// Refuses its input in these words.
    Refuses(&'static str, &'static str),
    /// Ends without a word for want of memory.
    RunsOutOfMemory,
}

pub(crate) struct Kubelet {
    admin: kube::Client,
    logs: Arc<Mutex<HashMap<String, String>>>,
    /// By step; steps that are not named succeed.
    pub(crate) fates: BTreeMap<String, Fate>,
}

impl Kubelet {
    /// Registers a node and serves logs for it.
    pub(crate) async fn start(control_plane: &ControlPlane, admin: kube::Client) -> Result<Self> {
        let files = control_plane.authority().server(NODE, &["127.0.0.1".to_owned()])?;
        let certificates = CertificateDer::pem_file_iter(&files.certificate)?.collect::<Result<Vec<_>, _>>()?;
        let key = PrivateKeyDer::from_pem_file(&files.key)?;
        let config = rustls::ServerConfig::builder()
            .with_no_client_auth()
            .with_single_cert(certificates, key)?;
        let listener = TcpListener::bind("127.0.0.1:0").await?;
        let port = listener.local_addr()?.port();
        let logs = Arc::new(Mutex::new(HashMap::new()));
        tokio::spawn(serve(listener, TlsAcceptor::from(Arc::new(config)), Arc::clone(&logs)));
        let nodes = Api::<Node>::all(admin.clone());
        let node = serde_json::from_value(json!({"metadata": {"name": NODE}}))?;
        nodes.create(&PostParams::default(), &node).await?;
        let status = json!({"status": {
            "addresses": [{"type": "InternalIP", "address": "127.0.0.1"}],
            "daemonEndpoints": {"kubeletEndpoint": {"Port": port}},
            "conditions": [{"type": "Ready", "status": "True", "reason": "Paper"}],
        }});
        nodes
            .patch_status(NODE, &PatchParams::default(), &Patch::Merge(&status))
            .await?;
        Ok(Self {
            admin,
            logs,
            fates: BTreeMap::new(),
        })
    }

    /// Takes and ends every worker pod of `namespace` that has not ended.
    pub(crate) async fn tick(&self, namespace: &str) -> Result<()> {
        let pods = Api::<Pod>::namespaced(self.admin.clone(), namespace);
        for pod in pods.list(&ListParams::default().labels(names::WORKER)).await? {
            let phase = pod.status.as_ref().and_then(|status| status.phase.as_deref());
            if phase == Some("Pending") && pod.metadata.deletion_timestamp.is_none() {
                self.end(&pods, &pod).await.with_context(|| pod.name_any())?;
            } else if pod.metadata.deletion_timestamp.is_some() {
                let gone = kube::api::DeleteParams::default().grace_period(0);
                let _already = pods.delete(&pod.name_any(), &gone).await;
            }
        }
        Ok(())
    }

    async fn end(&self, pods: &Api<Pod>, pod: &Pod) -> Result<()> {
        let step = pod.annotations().get(names::STEP).context("a worker pod has no step")?;
        let fate = self.fates.get(step);
        if pod.spec.as_ref().is_some_and(|spec| spec.node_name.is_none()) {
            let binding: Binding = serde_json::from_value(json!({
                "metadata": {"name": pod.name_any()},
                "target": {"apiVersion": "v1", "kind": "Node", "name": NODE},
            }))?;
            let _status: Value = pods
                .create_subresource("binding", &pod.name_any(), &PostParams::default(), &binding)
                .await?;
        }
        let (last, code, reason, message) = match fate {
            Some(Fate::Hangs) => return Ok(()),
            Some(Fate::RunsOutOfMemory) => (1, 137, "OOMKilled", String::new()),
            Some(Fate::Refuses(why, words)) => {
                let failure = Failure {
                    class: FailureClass::Refused,
                    reason: (*why).to_owned(),
                    message: (*words).to_owned(),
                };
                (0, 2, "Error", self.report(pod, Outcome::Failed(failure))?)
            }
            None => (2, 0, "Completed", self.report(pod, outcome(&plan_of(pod)?))?),
        };
        let status = status(pod, last, code, reason, &message);
        pods.patch_status(&pod.name_any(), &PatchParams::default(), &Patch::Merge(&status))
            .await?;
        Ok(())
    }

    /// Leaves the report in the log and returns the termination message.
    fn report(&self, pod: &Pod, outcome: Outcome) -> Result<String> {
        let plan = plan_of(pod)?;
        let made = match &outcome {
            Outcome::Made(made) => Some(made.clone()),
            _ => None,
        };
        let report = Report {
            v: CONTRACT_VERSION,
            nonce: plan.nonce.clone(),
            plan_sha256: Digest::of(pod.annotations()[names::PLAN].as_bytes()),
            runtime: Runtime::default(),
            outcome,
        };
        let line = serde_json::to_string(&report)?;
        let termination = Termination {
            v: CONTRACT_VERSION,
            nonce: plan.nonce,
            report_sha256: Digest::of(line.as_bytes()),
            report_bytes: line.len() as u64,
            artifact_digest: made.as_ref().map(|made| made.artifact_digest.clone()),
            model_digest: made.map(|made| made.model_digest),
        };
        let mut logs = self.logs.lock().expect("nobody panics here");
        logs.insert(pod.name_any(), format!("a word on stderr\n{line}\n"));
        Ok(serde_json::to_string(&termination)?)
    }
}

fn plan_of(pod: &Pod) -> Result<WorkerPlan> {
    Ok(serde_json::from_str(&pod.annotations()[names::PLAN])?)
}

fn status(pod: &Pod, last: usize, code: i32, reason: &str, message: &str) -> Value {
    let spec = pod.spec.as_ref().expect("a pod has a spec");
    let created = pod.metadata.creation_timestamp.as_ref().expect("a pod was created").0;
    let finished = created + jiff::SignedDuration::from_secs(10);
    let inits = spec.init_containers.iter().flatten().count();
    let all = spec.init_containers.iter().flatten().chain(&spec.containers);
    let mut statuses: Vec<Value> = all
        .enumerate()
        .map(|(at, container)| {
            let state = match at.cmp(&last) {
                std::cmp::Ordering::Less => {
                    json!({"terminated": {"exitCode": 0, "startedAt": created, "finishedAt": finished}})
                }
                std::cmp::Ordering::Equal => json!({"terminated": {
                    "exitCode": code, "reason": reason, "message": message, "startedAt": created, "finishedAt": finished
                }}),
                std::cmp::Ordering::Greater => json!({"waiting": {"reason": "PodInitializing"}}),
            };
            let ran = if at <= last {
                container.image.clone().unwrap_or_default()
            } else {
                String::new()
            };
            json!({
                "name": container.name, "image": container.image, "imageID": ran, "ready": false, "restartCount": 0,
                "state": state,
            })
        })
        .collect();
    let mains = statuses.split_off(inits);
    let phase = if code == 0 { "Succeeded" } else { "Failed" };
    json!({"status": {"phase": phase, "initContainerStatuses": statuses, "containerStatuses": mains}})
}

fn outcome(plan: &WorkerPlan) -> Outcome {
    match &plan.work {
        Work::Make(asked) => {
            let artifact = Digest::of(asked.candidate.as_bytes());
            let files = vec![ModelFile {
                path: "model.onnx".into(),
                size: 250,
                sha256: Digest::of(format!("model {}", asked.candidate).as_bytes()),
            }];
            Outcome::Made(Made {
                uri: format!("{}@{artifact}", asked.output),
                tag: format!("assayer-{}-{}", asked.candidate, artifact.short(12)),
                model_digest: model_digest(&files),
                artifact_digest: artifact,
                baseline_digest: Digest::of(b"baseline"),
                files,
                bytes: 250,
                opset: [15, 17],
                passes: Vec::new(),
                calibration_rows: 0,
                seconds: 2.0,
                peak_memory_bytes: 1 << 27,
                recipe: None,
            })
        }
        Work::Measure(asked) => {
            let slow = asked
                .candidate
                .as_ref()
                .is_some_and(|source| source.uri.ends_with(Digest::of(b"dynamic").as_str()));
            let ratio = if slow { 4.71 } else { 0.45 };
            Outcome::Measured(Measured {
                environment: asked.environment.clone(),
                execution_provider: asked.execution_provider.clone(),
                baseline_digest: Digest::of(b"baseline"),
                candidate_digest: asked.candidate.as_ref().and_then(|source| source.model_digest.clone()),
                rows: 512,
                baseline: measurements(0.004, 1_000.0),
                candidate: asked.candidate.as_ref().map(|_| measurements(0.004 * ratio, 250.0)),
                self_reported: vec![metrics::LATENCY_P50.into(), metrics::LATENCY_P99.into()],
                run_seconds: 9.0,
            })
        }
    }
}

fn measurements(p50: f64, bytes: f64) -> Measurements {
    let of = |value, samples| Measurement { value, samples };
    BTreeMap::from([
        (metrics::ACCURACY.into(), of(0.9257, 512)),
        (metrics::LATENCY_P50.into(), of(p50, 200)),
        (metrics::LATENCY_P99.into(), of(p50 * 1.5, 200)),
        (metrics::ARTIFACT_SIZE.into(), of(bytes, 1)),
    ])
}

/// Answers `GET /containerLogs/<namespace>/<pod>/<container>`, one request a connection.
async fn serve(listener: TcpListener, acceptor: TlsAcceptor, logs: Arc<Mutex<HashMap<String, String>>>) {
    while let Ok((socket, _)) = listener.accept().await {
        let (acceptor, logs) = (acceptor.clone(), Arc::clone(&logs));
        tokio::spawn(async move {
            let mut socket = acceptor.accept(socket).await?;
            let mut request = Vec::new();
            while !request.ends_with(b"\r\n\r\n") {
                request.push(socket.read_u8().await?);
            }
            let request = String::from_utf8_lossy(&request).into_owned();
            let pod = request.split('/').nth(3).unwrap_or_default();
            let log = logs.lock().ok().and_then(|logs| logs.get(pod).cloned());
            let (code, body) = log.map_or(("404 Not Found", "no such pod".to_owned()), |log| ("200 OK", log));
            let head = format!(
                "HTTP/1.1 {code}\r\nContent-Length: {}\r\nConnection: close\r\n\r\n",
                body.len()
            );
            socket.write_all(head.as_bytes()).await?;
            socket.write_all(body.as_bytes()).await?;
            socket.shutdown().await
        });
    }
}
