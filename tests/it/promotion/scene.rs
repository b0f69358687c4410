//! A control plane with the chart in it, an operator with its own rights, and people: Rita asks, Bob approves. The Deployment's
//! controller is played by hand.

use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail, ensure};
use assayer_crds::digest::Digest;
use assayer_crds::evidence::Statement;
use assayer_crds::{ModelOptimization, ModelPromotion, ModelPromotionStatus, PromotionPolicy, names};
use assayer_operator::config::Config;
use assayer_operator::evidence::{keys::SigningKey, store};
use assayer_operator::status::violations;
use assayer_operator::{Context, guard, promotion};
use k8s_openapi::api::apps::v1::Deployment;
use kube::api::{Api, Patch, PatchParams, PostParams};
use kube::{Client, ResourceExt as _};
use serde_json::{Value, json};
use tokio_util::sync::CancellationToken;

use crate::conformance;
use crate::installed::{IMAGE, Installed, SYSTEM, create_namespace, kubectl, yaml};

pub(super) const NAMESPACE: &str = "ml";
pub(super) const WORKLOAD: &str = "scanner";
/// Longest wait for anything: the guard looks every 30 s, and the machine may be busy.
const PATIENCE: Duration = Duration::from_mins(3);

pub(super) struct Scene {
    pub(super) installed: Installed,
    pub(super) admin: Client,
    rita: Client,
    bob: Client,
    key: SigningKey,
    stop: CancellationToken,
    tasks: Vec<tokio::task::JoinHandle<()>>,
}

impl Scene {
    pub(super) async fn open() -> Result<Self> {
        // Another test of this process may have been first: the provider is the same.
        let _same = rustls::crypto::ring::default_provider().install_default();
        let installed = Installed::start(&["rbac.approverRoles={security}"]).await?;
        create_namespace(&installed.admin, NAMESPACE).await?;
        bind(&installed)?;
        let key = SigningKey::generate()?;
        let config = Config {
            worker_image: IMAGE.to_owned(),
            plain_http: Vec::new(),
            namespace: SYSTEM.to_owned(),
            pod_name: "assayer-operator-0".to_owned(),
            watch_namespace: None,
            signing_secret: "assayer-signing-key".to_owned(),
            leader_elect: false,
            listen: "127.0.0.1:0".parse()?,
            without_guard: false,
        };
        let ctx = Context::new(installed.operator().await?, config, key.clone());
        let stop = CancellationToken::new();
        let tasks = vec![
            tokio::spawn(guard::run(Arc::clone(&ctx), stop.clone())),
            tokio::spawn(promotion::run(Arc::clone(&ctx), stop.clone().cancelled_owned())),
        ];
        Ok(Self {
            admin: installed.admin.clone(),
            rita: installed.person("rita", &["ml"]).await?,
            bob: installed.person("bob", &["security"]).await?,
            installed,
            key,
            stop,
            tasks,
        })
    }

    pub(super) async fn close(self) -> Result<()> {
        self.stop.cancel();
        for task in self.tasks {
            task.await?;
        }
        let written = conformance::check(&self.admin).await?;
        ensure!(written > 0, "the operator has written no status");
        Ok(())
    }

    pub(super) async fn policy(&self) -> Result<()> {
        let policy: PromotionPolicy = serde_json::from_value(json!({
            "apiVersion": "assayer.dev/v1alpha1", "kind": "PromotionPolicy", "metadata": {"name": "default"},
            "spec": {"namespaceSelector": {}, "tiers": [
                {"name": "low"},
                {"name": "high", "influences": ["Security"], "approvals": [{"role": "security"}]}
            ]}
        }))?;
        let api: Api<PromotionPolicy> = Api::all(self.admin.clone());
        api.create(&PostParams::default(), &policy).await?;
        wait("the policy is accepted", || async {
            let status = api.get("default").await?.status.unwrap_or_default();
            ensure!(
                status
                    .conditions
                    .iter()
                    .any(|c| c.type_ == "Ready" && c.status == "True")
            );
            Ok(())
        })
        .await
    }

    /// A finished optimization with one candidate, whose evidence the operator has signed and stored.
    pub(super) async fn optimization(&self, name: &str, candidate: &str) -> Result<Digest> {
        let mut manifest = yaml(include_str!("../../../crds/tests/rules/modeloptimization.yaml"));
        manifest["metadata"] = json!({"name": name, "namespace": NAMESPACE});
        manifest["spec"]["influences"] = json!(["Security"]);
        manifest["spec"]["environments"] = json!([{"name": "edge-cpu", "executionProvider": "CPU"}]);
        manifest["spec"]["gates"] = json!([{"name": "accuracy", "metric": "accuracy", "maxDrop": "0.01"}]);
        let api: Api<ModelOptimization> = Api::namespaced(self.admin.clone(), NAMESPACE);
        let made: ModelOptimization = serde_json::from_value(manifest)?;
        let made = api.create(&PostParams::default(), &made).await?;
        let statement = statement(&made, candidate)?;
        let operator = self.installed.operator().await?;
        store::write(&operator, NAMESPACE, &statement, &self.key).await?;
        let digest = store::digest_of(&statement)?;
        let artifact = &statement.predicate.made;
        let status = json!({"status": {
            "observedGeneration": made.metadata.generation, "phase": "Succeeded", "selected": candidate,
            "candidates": [{
                "name": candidate, "state": "Passed",
                "artifact": {"uri": artifact.uri, "artifactDigest": artifact.artifact_digest, "modelDigest": artifact.model_digest, "bytes": 1000},
                "evidence": {"configMap": store::name_of(&digest), "digest": digest}
            }]
        }});
        let api: Api<ModelOptimization> = Api::namespaced(operator, NAMESPACE);
        api.patch_status(name, &PatchParams::default(), &Patch::Merge(status))
            .await?;
        Ok(artifact.artifact_digest.clone())
    }

    /// The manifest of the workload as git has it, applied as GitOps tools do.
    pub(super) async fn apply_from_git(&self) -> Result<Deployment> {
        let manifest = json!({
            "apiVersion": "apps/v1", "kind": "Deployment", "metadata": {"name": WORKLOAD},
            "spec": {"replicas": 2, "selector": {"matchLabels": {"app": WORKLOAD}}, "template": {
                "metadata": {"labels": {"app": WORKLOAD}},
                "spec": {
                    "containers": [{"name": "server", "image": IMAGE, "volumeMounts": [{"name": "model", "mountPath": "/models"}]}],
                    "volumes": [{"name": "model", "image": {}}]
                }
            }}
        });
        let params = PatchParams::apply("gitops").force();
        Ok(self
            .deployments()
            .patch(WORKLOAD, &params, &Patch::Apply(manifest))
            .await?)
    }

    pub(super) fn deployments(&self) -> Api<Deployment> {
        Api::namespaced(self.admin.clone(), NAMESPACE)
    }

    /// Says what the Deployment's controller would say of the present generation.
    pub(super) async fn rollout(&self, status: Value) -> Result<()> {
        let generation = self.deployments().get(WORKLOAD).await?.metadata.generation;
        let mut status = json!({ "status": status });
        status["status"]["observedGeneration"] = json!(generation);
        self.deployments()
            .patch_status(WORKLOAD, &PatchParams::default(), &Patch::Merge(status))
            .await?;
        Ok(())
    }

    pub(super) async fn rollout_completes(&self) -> Result<()> {
        self.rollout(
            json!({"replicas": 2, "updatedReplicas": 2, "availableReplicas": 2, "readyReplicas": 2, "conditions": []}),
        )
        .await
    }

    pub(super) async fn rollout_sticks(&self) -> Result<()> {
        let condition = json!({"type": "Progressing", "status": "False", "reason": "ProgressDeadlineExceeded", "message": "has timed out progressing"});
        self.rollout(json!({"replicas": 3, "updatedReplicas": 1, "availableReplicas": 2, "readyReplicas": 2, "conditions": [condition]})).await
    }

    pub(super) async fn reference(&self) -> Result<Option<String>> {
        let deployment = self.deployments().get(WORKLOAD).await?;
        let pod = deployment
            .spec
            .and_then(|spec| spec.template.spec)
            .context("no pod template")?;
        let volume = pod.volumes.into_iter().flatten().find(|volume| volume.name == "model");
        Ok(volume.and_then(|volume| volume.image).and_then(|image| image.reference))
    }

    pub(super) fn promotions(&self) -> Api<ModelPromotion> {
        Api::namespaced(self.rita.clone(), NAMESPACE)
    }

    /// Rita asks for the selected candidate of an optimization.
    pub(super) async fn promote(&self, name: &str, optimization: &str) -> Result<()> {
        let delivery = json!({"imageVolume": {"volume": "model"}});
        self.promote_into(name, optimization, WORKLOAD, delivery).await
    }

    /// The same, into a workload of that name.
    pub(super) async fn promote_into(
        &self,
        name: &str,
        optimization: &str,
        workload: &str,
        delivery: Value,
    ) -> Result<()> {
        let promotion: ModelPromotion = serde_json::from_value(json!({
            "apiVersion": "assayer.dev/v1alpha1", "kind": "ModelPromotion", "metadata": {"name": name},
            "spec": {
                "owner": {"group": "file-security", "contact": "x@example.com"},
                "change": {"ticket": "CHG-1", "reason": "faster"},
                "source": {"modelOptimization": {"name": optimization}},
                "target": {"workload": {"apiVersion": "apps/v1", "kind": "Deployment", "name": workload}, "delivery": delivery}
            }
        }))?;
        self.promotions().create(&PostParams::default(), &promotion).await?;
        Ok(())
    }

    /// Rita changes the spec.
    pub(super) async fn edit(&self, name: &str, spec: Value) -> Result<()> {
        let patch = json!({ "spec": spec });
        self.promotions()
            .patch(name, &PatchParams::default(), &Patch::Merge(patch))
            .await?;
        Ok(())
    }

    pub(super) async fn annotate(&self, name: &str, key: &str, value: &str) -> Result<()> {
        let patch = json!({"metadata": {"annotations": {key: value}}});
        self.promotions()
            .patch(name, &PatchParams::default(), &Patch::Merge(patch))
            .await?;
        Ok(())
    }

    /// Bob approves what the status asks for; returns how long it took until the workload was written.
    pub(super) async fn approve(&self, name: &str) -> Result<Duration> {
        let before = self.deployments().get(WORKLOAD).await?.metadata.generation;
        self.vote(name, names::APPROVE).await?;
        let approved = Instant::now();
        while self.deployments().get(WORKLOAD).await?.metadata.generation == before {
            ensure!(
                approved.elapsed() < PATIENCE,
                "the workload was not written: {:?}",
                self.status(name).await?.conditions
            );
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        Ok(approved.elapsed())
    }

    /// Bob says yes or no to what the status asks for.
    pub(super) async fn vote(&self, name: &str, prefix: &str) -> Result<()> {
        let digest = self.status(name).await?.request.context("no request")?.digest;
        let role = "security";
        let patch = json!({"metadata": {"annotations": {
            format!("{prefix}{role}"): digest,
            format!("{}{role}", names::APPROVE_REASON): "read the numbers",
        }}});
        let promotions: Api<ModelPromotion> = Api::namespaced(self.bob.clone(), NAMESPACE);
        promotions
            .patch(name, &PatchParams::default(), &Patch::Merge(patch))
            .await?;
        Ok(())
    }

    pub(super) async fn status(&self, name: &str) -> Result<ModelPromotionStatus> {
        Ok(self.promotions().get(name).await?.status.unwrap_or_default())
    }

    /// Waits until the promotion is in `phase` because of `reason`, for its present generation.
    pub(super) async fn reach(&self, name: &str, phase: &str, reason: &str) -> Result<ModelPromotionStatus> {
        let until = Instant::now() + PATIENCE;
        loop {
            let found = self.promotions().get(name).await?;
            let status = found.status.clone().unwrap_or_default();
            let ready = status.conditions.iter().find(|condition| condition.type_ == "Ready");
            let current = status.observed_generation == found.metadata.generation;
            if current && status.phase == phase && ready.is_some_and(|ready| ready.reason == reason) {
                let problems = violations(&status.conditions, status.observed_generation);
                ensure!(problems.is_empty(), "{name}: {problems:?}");
                return Ok(status);
            }
            if Instant::now() > until {
                bail!(
                    "{name}: expected {phase} ({reason}), but it is {}: {:#?}",
                    status.phase,
                    status.conditions
                );
            }
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    }

    /// Events about a promotion.
    pub(super) async fn events(&self, name: &str) -> Result<Vec<String>> {
        let api: Api<k8s_openapi::api::events::v1::Event> = Api::namespaced(self.admin.clone(), NAMESPACE);
        let all = api.list(&kube::api::ListParams::default()).await?;
        let about = all
            .items
            .into_iter()
            .filter(|event| event.regarding.as_ref().and_then(|r| r.name.as_deref()) == Some(name));
        Ok(about.filter_map(|event| event.reason).collect())
    }
}

/// Repeats `attempt` until it succeeds.
pub(super) async fn wait<T, F: Future<Output = Result<T>>>(what: &str, mut attempt: impl FnMut() -> F) -> Result<T> {
    let until = Instant::now() + PATIENCE;
    loop {
        match attempt().await {
            Ok(value) => return Ok(value),
            Err(error) if Instant::now() > until => return Err(error).with_context(|| format!("not in time: {what}")),
            Err(_) => tokio::time::sleep(Duration::from_millis(50)).await,
        }
    }
}

fn bind(installed: &Installed) -> Result<()> {
    let bound = |user: &str, role: &str| {
        json!({
            "apiVersion": "rbac.authorization.k8s.io/v1", "kind": "RoleBinding",
            "metadata": {"name": format!("{user}-{role}"), "namespace": NAMESPACE},
            "roleRef": {"apiGroup": "rbac.authorization.k8s.io", "kind": "ClusterRole", "name": role},
            "subjects": [{"apiGroup": "rbac.authorization.k8s.io", "kind": "User", "name": user}],
        })
    };
    let deployer = json!({
        "apiVersion": "rbac.authorization.k8s.io/v1", "kind": "ClusterRole", "metadata": {"name": "deployer"},
        "rules": [{"apiGroups": ["apps"], "resources": ["deployments"], "verbs": ["create", "patch", "update"]}],
    });
    let objects = [
        deployer,
        bound("rita", "deployer"),
        bound("rita", "assayer-edit"),
        bound("bob", "assayer-approver-security"),
    ];
    let list = json!({"apiVersion": "v1", "kind": "List", "items": objects}).to_string();
    let answer = kubectl(&installed.control_plane, &["apply", "--server-side", "-f", "-"], &list)?;
    ensure!(answer.refused.is_empty(), "{}", answer.refused);
    Ok(())
}

/// What the operator would have found out about `candidate`.
fn statement(optimization: &ModelOptimization, candidate: &str) -> Result<Statement> {
    let digest = |what: &str| Digest::of(format!("{what} {candidate}").as_bytes());
    let (model, artifact, baseline) = (digest("model"), digest("artifact"), Digest::of(b"baseline"));
    let uri = format!("oci://r.test/models/magika@{artifact}");
    let accuracy = json!({"accuracy": {"value": 0.92, "samples": 512}});
    let runtime = json!({"worker": "0.1.0"});
    let measured = json!({"environment": "edge-cpu", "executionProvider": "CPU", "baselineDigest": baseline, "rows": 512,
        "baseline": accuracy, "selfReported": [], "runSeconds": 9.0});
    let mut both = measured.clone();
    both["candidate"] = accuracy;
    both["candidateDigest"] = json!(model);
    let spec = &optimization.spec;
    Ok(serde_json::from_value(json!({
        "_type": "https://in-toto.io/Statement/v1", "predicateType": "https://assayer.dev/evidence/v1",
        "subject": [{"name": "model", "digest": {"sha256": model.hex()}}, {"name": uri, "digest": {"sha256": artifact.hex()}}],
        "predicate": {
            "recordedAt": optimization.creation_timestamp().context("no creation time")?.0.to_string(),
            "optimization": {"namespace": NAMESPACE, "name": optimization.name_any(), "uid": optimization.uid(), "generation": optimization.metadata.generation},
            "owner": {"group": spec.owner.group, "contact": spec.owner.contact}, "influences": ["Security"],
            "model": {"name": spec.model.name, "version": spec.model.version}, "candidate": candidate, "technique": "static-int8",
            "planDigest": digest("plan"), "spec": spec,
            "made": {"uri": uri, "tag": "t", "artifactDigest": artifact, "modelDigest": model, "baselineDigest": baseline,
                "files": [], "bytes": 1000, "opset": [17, 17], "passes": [], "calibrationRows": 0, "seconds": 1.0, "peakMemoryBytes": 1},
            "madeBy": runtime, "baseline": [measured], "measured": [{"measured": both, "runtime": runtime}],
            "verdicts": [], "workerImage": IMAGE, "runner": "kubernetes"
        }
    }))?)
}
