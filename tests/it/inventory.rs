//! The runtime against a real API server with the chart's own rights: guard, inventory and its HTTP face.

use std::net::SocketAddr;
use std::sync::Arc;

use anyhow::{Context as _, Result, ensure};
use assayer_crds::digest::Digest;
use assayer_crds::evidence::{PREDICATE_TYPE, STATEMENT_TYPE, Statement};
use assayer_crds::{ModelPromotion, names};
use assayer_operator::config::Config;
use assayer_operator::context::Context;
use assayer_operator::evidence::keys::SigningKey;
use assayer_operator::evidence::store;
use assayer_operator::inventory::{self, Caches};
use assayer_operator::leader::fence::Fence;
use assayer_operator::server::{self, Parts};
use assayer_operator::{guard, keygen};
use k8s_openapi::api::admissionregistration::v1::ValidatingAdmissionPolicyBinding;
use k8s_openapi::api::apps::v1::{Deployment, ReplicaSet};
use k8s_openapi::api::core::v1::{Pod, Secret};
use kube::api::{DeleteParams, Patch, PatchParams, PostParams};
use kube::{Api, Client, Resource};
use serde::de::DeserializeOwned;
use serde_json::{Value, json};
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;
use tokio_util::task::AbortOnDropHandle;

use crate::installed::{Installed, SYSTEM, create_namespace, eventually, yaml};

const NAMESPACE: &str = "ml";

fn config() -> Config {
    Config {
        worker_image: format!("r/worker@{}", Digest::of(b"worker")),
        plain_http: Vec::new(),
        namespace: SYSTEM.into(),
        pod_name: "assayer-operator-0".into(),
        watch_namespace: None,
        signing_secret: "assayer-signing".into(),
        leader_elect: false,
        listen: SocketAddr::from(([127, 0, 0, 1], 0)),
        without_guard: false,
    }
}

/// The parts of one operator process that this room owns, running.
struct Runtime {
    installed: Installed,
    ctx: Arc<Context>,
    url: String,
    fence: Fence,
    _tasks: Vec<AbortOnDropHandle<()>>,
}

impl Runtime {
    async fn start() -> Result<Self> {
        let installed = Installed::start(&[]).await?;
        create_namespace(&installed.admin, NAMESPACE).await?;
        let ctx = Context::new(installed.operator().await?, config(), SigningKey::generate()?);
        let caches = Arc::new(Caches::default());
        let fence = Fence::open();
        let listener = TcpListener::bind(ctx.config.listen).await?;
        let url = format!("http://{}", listener.local_addr()?);
        let parts = Parts {
            ctx: Arc::clone(&ctx),
            caches: Arc::clone(&caches),
            fence: fence.clone(),
        };
        let never = CancellationToken::new;
        let tasks = vec![
            AbortOnDropHandle::new(tokio::spawn(async move {
                server::serve(listener, parts, never()).await.expect("the server runs");
            })),
            AbortOnDropHandle::new(tokio::spawn(inventory::watch::run(Arc::clone(&ctx), caches, never()))),
            AbortOnDropHandle::new(tokio::spawn(guard::run(Arc::clone(&ctx), never()))),
        ];
        Ok(Self {
            installed,
            ctx,
            url,
            fence,
            _tasks: tasks,
        })
    }

    async fn get(&self, path: &str) -> Result<(u16, String)> {
        let answer = reqwest::get(format!("{}{path}", self.url)).await?;
        Ok((answer.status().as_u16(), answer.text().await?))
    }

    /// Waits until every word is in the metrics and no other is.
    async fn metrics(&self, present: &[&str], absent: &[&str]) -> Result<String> {
        eventually("the metrics", || async {
            let (_, text) = self.get("/metrics").await?;
            for words in present {
                ensure!(line(&text, words).is_some(), "no line with {words} in\n{text}");
            }
            for words in absent {
                ensure!(line(&text, words).is_none(), "a line with {words} in\n{text}");
            }
            Ok(text)
        })
        .await
    }
}

/// The sample line that has every one of these words, which are divided by spaces.
fn line<'a>(text: &'a str, words: &str) -> Option<&'a str> {
    let samples = text.lines().filter(|line| !line.starts_with('#'));
    samples
        .into_iter()
        .find(|line| words.split(' ').all(|word| line.contains(word)))
}

async fn create<K>(client: &Client, namespace: &str, object: Value) -> Result<K>
where
    K: Resource<Scope = k8s_openapi::NamespaceResourceScope>
        + Clone
        + DeserializeOwned
        + serde::Serialize
        + std::fmt::Debug,
    K::DynamicType: Default,
{
    let object: K = serde_json::from_value(object)?;
    let made = Api::<K>::namespaced(client.clone(), namespace)
        .create(&PostParams::default(), &object)
        .await;
    made.with_context(|| format!("create {}", K::kind(&K::DynamicType::default())))
}

fn template(artifact: &Digest) -> Value {
    json!({
        "metadata": {"labels": {"app": "scanner", names::GOVERNED: "true"}},
        "spec": {
            "containers": [{"name": "server", "image": "registry.test/scanner:1", "volumeMounts": [{"name": "model", "mountPath": "/model"}]}],
            "volumes": [{"name": "model", "image": {"reference": format!("r.test/m@{artifact}")}}],
        },
    })
}

/// A Deployment with one replica set and one ready pod, as the controllers and the kubelet would leave them.
async fn deploy(admin: &Client, name: &str, artifact: &Digest) -> Result<()> {
    let selector = json!({"matchLabels": {"app": "scanner"}});
    let template = template(artifact);
    let labels = template["metadata"]["labels"].clone();
    let deployment: Deployment = create(
        admin,
        NAMESPACE,
        json!({
            "metadata": {"name": name}, "spec": {"selector": selector, "template": template},
        }),
    )
    .await?;
    let owner = |kind: &str, name: &str, uid: Option<String>| json!([{"apiVersion": "apps/v1", "kind": kind, "name": name, "uid": uid, "controller": true}]);
    let set: ReplicaSet = create(admin, NAMESPACE, json!({
        "metadata": {"name": format!("{name}-1"), "labels": labels, "ownerReferences": owner("Deployment", name, deployment.metadata.uid)},
        "spec": {"selector": selector, "template": template},
    })).await?;
    let pod = format!("{name}-1-x");
    let owners = owner("ReplicaSet", &format!("{name}-1"), set.metadata.uid);
    let _: Pod = create(
        admin,
        NAMESPACE,
        json!({
            "metadata": {"name": pod, "labels": labels, "ownerReferences": owners}, "spec": template["spec"],
        }),
    )
    .await?;
    let ready = json!({"status": {"phase": "Running", "conditions": [{"type": "Ready", "status": "True"}]}});
    Api::<Pod>::namespaced(admin.clone(), NAMESPACE)
        .patch_status(&pod, &PatchParams::default(), &Patch::Merge(ready))
        .await?;
    Ok(())
}

fn statement(artifact: &Digest) -> Result<Statement> {
    let digest = Digest::of(b"x");
    let made = json!({"uri": "oci://r.test/m", "tag": "t", "artifactDigest": artifact, "modelDigest": digest, "baselineDigest": digest,
        "files": [], "bytes": 1, "opset": [17, 17], "passes": [], "calibrationRows": 1, "seconds": 0.5, "peakMemoryBytes": 1});
    Ok(serde_json::from_value(json!({
        "_type": STATEMENT_TYPE, "predicateType": PREDICATE_TYPE,
        "subject": [{"name": "oci://r.test/m", "digest": {"sha256": artifact.hex()}}],
        "predicate": {
            "recordedAt": "2026-01-01T00:00:00Z", "optimization": {"namespace": NAMESPACE, "name": "o", "uid": "u", "generation": 1},
            "owner": {"group": "file-security", "contact": "c"}, "influences": [], "model": {"name": "magika", "version": "3.3.0"},
            "candidate": "int8", "technique": "static-int8", "planDigest": digest, "spec": {}, "made": made, "madeBy": {"worker": "1"},
            "baseline": [], "measured": [], "verdicts": [], "workerImage": "", "runner": "kubernetes",
        },
    }))?)
}

/// A promotion that the operator says is live.
async fn promote(runtime: &Runtime, workload: &str, artifact: &Digest, evidence: &Digest) -> Result<()> {
    let mut manifest = yaml(include_str!("../../crds/tests/rules/modelpromotion.yaml"));
    manifest["metadata"] = json!({"name": "magika-prod", "namespace": NAMESPACE});
    manifest["spec"]["target"] = json!({
        "workload": {"apiVersion": "apps/v1", "kind": "Deployment", "name": workload}, "delivery": {"imageVolume": {"volume": "model"}},
    });
    eventually("the promotion's creation", || async {
        let _: ModelPromotion = create(&runtime.installed.admin, NAMESPACE, manifest.clone()).await?;
        Ok(())
    })
    .await?;
    let artifact = json!({"uri": "oci://r.test/m", "artifactDigest": artifact, "modelDigest": "", "bytes": 1});
    let status = json!({"status": {"observedGeneration": 1, "phase": "Live", "live": {
        "model": "magika", "version": "3.3.0", "candidate": "int8", "technique": "static-int8", "artifact": artifact,
        "evidence": {"configMap": store::name_of(evidence), "digest": evidence}, "requestDigest": "", "tier": "grave",
        "owner": "file-security", "ticket": "CHG-4711", "reason": "Halves \"p99\" <b>", "since": "2026-01-01T00:00:00Z",
        "approvals": [{"role": "security", "user": "bob"}],
    }}});
    Api::<ModelPromotion>::namespaced(runtime.ctx.client.clone(), NAMESPACE)
        .patch_status("magika-prod", &PatchParams::default(), &Patch::Merge(status))
        .await?;
    Ok(())
}

#[tokio::test]
async fn the_inventory_follows_the_cluster() -> Result<()> {
    let runtime = Runtime::start().await?;
    let admin = runtime.installed.admin.clone();
    eventually("readiness", || async {
        let (code, text) = runtime.get("/readyz").await?;
        ensure!(code == 200, "{text}");
        Ok(())
    })
    .await?;
    let (a, b) = (Digest::of(b"a"), Digest::of(b"b"));

    // A governed workload that nobody promoted.
    deploy(&admin, "scanner", &a).await?;
    let unapproved = format!("assayer_model_unapproved{{ workload=\"scanner\" {a}");
    runtime.metrics(&[&unapproved], &["assayer_model_live_info{"]).await?;

    // Evidence names the model; only a promotion's record approves it.
    let evidence = statement(&a)?;
    store::write(&runtime.ctx.client, NAMESPACE, &evidence, &runtime.ctx.key).await?;
    runtime
        .metrics(
            &[&unapproved, "assayer_model_live_info{ model=\"magika\" approver=\"\""],
            &[],
        )
        .await?;
    promote(&runtime, "scanner", &a, &store::digest_of(&evidence)?).await?;
    let text = runtime
        .metrics(
            &[
                "assayer_model_live_info{ namespace=\"ml\" workload_kind=\"Deployment\" workload=\"scanner\" model=\"magika\" approver=\"bob\" ticket=\"CHG-4711\" promotion=\"magika-prod\"",
                "assayer_model_live_replicas{ workload=\"scanner\" 1",
                "assayer_model_live_since_seconds{ 1767225600",
                "assayer_model_blast_radius{ scope=\"pods\" 1",
                "assayer_objects{ kind=\"ModelPromotion\" phase=\"Live\" 1",
                "assayer_leader 1",
            ],
            &["assayer_model_unapproved{", "assayer_model_drifted{"],
        )
        .await?;
    check_exposition(&text)?;
    let (_, body) = runtime.get("/inventory").await?;
    let body: Value = serde_json::from_str(&body)?;
    ensure!(
        body["models"][0]["reason"] == "Halves \"p99\" <b>" && body["models"][0]["approved"] == true,
        "{body}"
    );
    let (_, page) = runtime.get("/").await?;
    ensure!(
        page.contains("Halves &quot;p99&quot; &lt;b&gt;") && !page.contains("<b>"),
        "{page}"
    );

    // Somebody changes the workload by hand.
    let volumes = json!({"spec": {"template": {"spec": {"volumes": [{"name": "model", "image": {"reference": format!("r.test/m@{b}")}}]}}}});
    Api::<Deployment>::namespaced(admin.clone(), NAMESPACE)
        .patch("scanner", &PatchParams::default(), &Patch::Strategic(volumes))
        .await?;
    let drifted = format!("assayer_model_drifted{{ artifact_digest=\"{a}\" found=\"{b}\"");
    runtime
        .metrics(&[&drifted, &format!("assayer_model_unapproved{{ {b}")], &[])
        .await?;

    // A standby shows no series about models, and answers people all the same.
    runtime.fence.open_until(None);
    runtime
        .metrics(&["assayer_leader 0"], &["assayer_model_live_info{"])
        .await?;
    ensure!(runtime.get("/inventory").await?.0 == 200);
    runtime
        .fence
        .open_until(Some(std::time::Instant::now() + std::time::Duration::from_mins(10)));

    // Every series goes with its object.
    Api::<ModelPromotion>::namespaced(admin.clone(), NAMESPACE)
        .delete("magika-prod", &DeleteParams::default())
        .await?;
    Api::<Deployment>::namespaced(admin.clone(), NAMESPACE)
        .delete("scanner", &DeleteParams::default())
        .await?;
    let at_once = DeleteParams::default().grace_period(0);
    Api::<Pod>::namespaced(admin, NAMESPACE)
        .delete("scanner-1-x", &at_once)
        .await?;
    runtime
        .metrics(
            &["assayer_leader 1"],
            &[
                "assayer_model_live_info{",
                "assayer_model_unapproved{",
                "assayer_model_drifted{",
            ],
        )
        .await?;
    Ok(())
}

/// Has Prometheus' own tool read the exposition.
fn check_exposition(text: &str) -> Result<()> {
    let mut child = std::process::Command::new(xtask::cluster::promtool(&xtask::progress::Progress::silent())?)
        .args(["check", "metrics"])
        .stdin(std::process::Stdio::piped())
        .stdout(std::process::Stdio::piped())
        .stderr(std::process::Stdio::piped())
        .spawn()?;
    std::io::Write::write_all(&mut child.stdin.take().context("no standard input")?, text.as_bytes())?;
    let output = child.wait_with_output()?;
    let said = format!(
        "{}{}",
        String::from_utf8_lossy(&output.stdout),
        String::from_utf8_lossy(&output.stderr)
    );
    // 3 says that a name could be better; 1 that it can't be read.
    ensure!(output.status.success(), "{said}");
    Ok(())
}

#[tokio::test]
async fn the_guard_opens_with_the_policy_and_closes_when_its_binding_is_gone() -> Result<()> {
    let runtime = Runtime::start().await?;
    eventually("the guard to see the policy", || async {
        ensure!(runtime.ctx.guard.in_force(), "it does not");
        Ok(())
    })
    .await?;
    runtime
        .metrics(&["assayer_guard_in_force{required=\"true\"} 1"], &[])
        .await?;

    let bindings = Api::<ValidatingAdmissionPolicyBinding>::all(runtime.installed.admin.clone());
    bindings.delete("assayer-approvals", &DeleteParams::default()).await?;
    // A guard that starts now asks at once; the one that runs asks within thirty seconds.
    let other = Context::new(runtime.ctx.client.clone(), config(), SigningKey::generate()?);
    let _probing = AbortOnDropHandle::new(tokio::spawn(guard::run(Arc::clone(&other), CancellationToken::new())));
    eventually("the guard to see the forgery pass", || async {
        let text = other.metrics.text()?;
        ensure!(
            line(&text, "assayer_guard_probes_total{result=\"accepted\"}").is_some(),
            "{text}"
        );
        Ok(())
    })
    .await?;
    ensure!(!other.guard.in_force());
    eventually("the running guard to close", || async {
        ensure!(!runtime.ctx.guard.in_force(), "it is still open");
        Ok(())
    })
    .await?;
    let promotions = Api::<ModelPromotion>::namespaced(runtime.installed.admin.clone(), SYSTEM);
    ensure!(
        promotions
            .list(&kube::api::ListParams::default())
            .await?
            .items
            .is_empty(),
        "a probe leaves nothing behind"
    );
    Ok(())
}

#[tokio::test]
async fn the_signing_key_is_made_once_and_kept() -> Result<()> {
    let installed = Installed::start(&[]).await?;
    let client = installed.admin.clone();
    let missing = keygen::read(&client, SYSTEM, "key")
        .await
        .err()
        .context("there is none yet")?;
    ensure!(missing.to_string().contains("keygen --secret key"), "{missing}");
    ensure!(keygen::ensure(&client, SYSTEM, "key").await? == keygen::Made::Created);
    let first = keygen::read(&client, SYSTEM, "key").await?;
    ensure!(keygen::ensure(&client, SYSTEM, "key").await? == keygen::Made::Kept);
    ensure!(keygen::read(&client, SYSTEM, "key").await?.public() == first.public());

    // What can't be used is told and left alone.
    let _: Secret = create(
        &client,
        SYSTEM,
        json!({"metadata": {"name": "odd"}, "stringData": {"signing.key": "none"}}),
    )
    .await?;
    ensure!(keygen::ensure(&client, SYSTEM, "odd").await.is_err());
    let odd = Api::<Secret>::namespaced(client, SYSTEM).get("odd").await?;
    ensure!(odd.data.is_some_and(|data| data["signing.key"].0 == b"none"));
    Ok(())
}
