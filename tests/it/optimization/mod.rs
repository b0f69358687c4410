//! The optimization's controller against a real API server and Job controller, with the chart's policies in force and the operator's own
//! rights; only the kubelet is of paper.

mod kubelet;

use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context as _, Result, bail, ensure};
use assayer_crds::{ModelOptimization, names};
use assayer_operator::Context;
use assayer_operator::config::Config;
use assayer_operator::evidence::{keys::SigningKey, store};
use assayer_operator::status::violations;
use k8s_openapi::api::batch::v1::Job;
use k8s_openapi::api::core::v1::{ConfigMap, Event, Pod, ResourceQuota};
use kube::ResourceExt as _;
use kube::api::{Api, DeleteParams, ListParams, Patch, PatchParams, PostParams};
use serde_json::json;
use tokio::sync::oneshot;
use xtask::cluster::ControlPlaneOptions;

use crate::conformance;
use crate::installed::{IMAGE, Installed, SYSTEM, create_namespace};
use kubelet::{Fate, Kubelet};

const SHA: &str = "sha256:bbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbb";
/// Longest wait for anything.
const PATIENCE: Duration = Duration::from_mins(1);
/// Longest wait for the garbage collector, which looks for new kinds every 30 s.
const COLLECTED: Duration = Duration::from_mins(3);

struct Scene {
    installed: Installed,
    kubelet: Kubelet,
    key: SigningKey,
    ctx: Arc<Context>,
    stop: Option<oneshot::Sender<()>>,
    controller: tokio::task::JoinHandle<()>,
}

impl Scene {
    async fn start() -> Result<Self> {
        Self::start_with(true).await
    }

    /// The same, with or without whoever runs Jobs and collects garbage.
    async fn start_with(controller_manager: bool) -> Result<Self> {
        // Another test of this process may have been first: the provider is the same.
        let _same = rustls::crypto::ring::default_provider().install_default();
        let options = ControlPlaneOptions {
            controller_manager,
            ..ControlPlaneOptions::default()
        };
        let installed = Installed::start_with(&options, &[]).await?;
        let kubelet = Kubelet::start(&installed.control_plane, installed.admin.clone()).await?;
        let key = SigningKey::generate()?;
        let config = Config {
            worker_image: IMAGE.to_owned(),
            plain_http: vec!["r:5000".to_owned()],
            namespace: SYSTEM.to_owned(),
            pod_name: "assayer-operator-0".to_owned(),
            watch_namespace: None,
            signing_secret: "assayer-signing-key".to_owned(),
            leader_elect: false,
            listen: "127.0.0.1:0".parse()?,
            without_guard: true,
        };
        let ctx = Context::new(installed.operator().await?, config, key.clone());
        let (stop, stopped) = oneshot::channel();
        let controller = tokio::spawn(assayer_operator::optimization::run(Arc::clone(&ctx), async {
            let _dropped = stopped.await;
        }));
        Ok(Self {
            installed,
            kubelet,
            key,
            ctx,
            stop: Some(stop),
            controller,
        })
    }

    async fn namespace(&self, name: &str) -> Result<Api<ModelOptimization>> {
        create_namespace(&self.installed.admin, name).await?;
        Ok(Api::namespaced(self.installed.admin.clone(), name))
    }

    fn api<K>(&self, namespace: &str) -> Api<K>
    where
        K: kube::Resource<Scope = kube::core::NamespaceResourceScope, DynamicType = ()>,
    {
        Api::namespaced(self.installed.admin.clone(), namespace)
    }

    /// Lets the kubelet work until `done` says so.
    async fn until(
        &self,
        objects: &Api<ModelOptimization>,
        namespace: &str,
        done: impl Fn(&ModelOptimization) -> bool,
    ) -> Result<ModelOptimization> {
        let deadline = tokio::time::Instant::now() + PATIENCE;
        loop {
            self.kubelet.tick(namespace).await?;
            let object = objects.get("magika").await?;
            if let Some(status) = &object.status {
                let problems = violations(&status.conditions, status.observed_generation);
                ensure!(problems.is_empty(), "{problems:?}");
            }
            if done(&object) {
                return Ok(object);
            }
            if tokio::time::Instant::now() > deadline {
                bail!("it did not come about: {:#?}", object.status);
            }
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
    }

    async fn end(mut self) -> Result<()> {
        drop(self.stop.take());
        tokio::time::timeout(PATIENCE, self.controller)
            .await
            .context("the controller does not end")??;
        Ok(())
    }
}

fn optimization() -> Result<ModelOptimization> {
    Ok(serde_json::from_value(json!({
        "apiVersion": "assayer.dev/v1alpha1", "kind": "ModelOptimization",
        "metadata": {"name": "magika"},
        "spec": {
            "owner": {"group": "file-security", "contact": "fs@example.com"},
            "influences": ["Security"],
            "model": {"name": "magika", "version": "3.3.0", "uri": format!("oci://r:5000/models/magika@{SHA}")},
            "data": {
                "calibration": {"uri": format!("oci://r:5000/data/cal@{SHA}")},
                "evaluation": {"uri": format!("oci://r:5000/data/eval@{SHA}")},
                "inputs": [{"name": "bytes", "column": "features"}],
                "label": "file_type"
            },
            "task": {"kind": "Classification", "output": "target_label"},
            "environments": [{"name": "edge", "executionProvider": "CPU"}],
            "candidates": [
                {"name": "dynamic", "stages": [{"quantize": {"mode": "Dynamic"}}]},
                {"name": "static", "stages": [{"quantize": {"mode": "Static"}}]}
            ],
            "gates": [
                {"name": "accuracy", "metric": "accuracy", "maxDrop": "0.01"},
                {"name": "p99", "metric": "latencyP99", "maxRatio": "0.80"}
            ],
            "output": {"uri": "oci://r:5000/models/magika", "pushSecret": "push"},
            "run": {"pullSecret": "pull", "deadline": "10m", "retries": 1}
        }
    }))?)
}

fn phase(object: &ModelOptimization) -> &str {
    object
        .status
        .as_ref()
        .map(|status| status.phase.as_str())
        .unwrap_or_default()
}

fn ready(object: &ModelOptimization) -> (String, String) {
    let mut conditions = object.status.iter().flat_map(|status| &status.conditions);
    let ready = conditions.rfind(|condition| condition.type_ == "Ready");
    ready.map(|c| (c.reason.clone(), c.message.clone())).unwrap_or_default()
}

#[tokio::test(flavor = "multi_thread")]
async fn runs_to_the_end_again_and_leaves_nothing_behind() -> Result<()> {
    let scene = Scene::start().await?;
    let objects = scene.namespace("ml").await?;
    objects.create(&PostParams::default(), &optimization()?).await?;
    let object = scene
        .until(&objects, "ml", |object| phase(object) == "Succeeded")
        .await?;
    let status = object.status.clone().context("a status")?;
    ensure!(status.selected.as_deref() == Some("static"), "{status:#?}");
    ensure!(status.candidates[0].state == "Rejected", "{:#?}", status.candidates[0]);
    ensure!(
        status.candidates[0].message.contains("4.71 times the baseline"),
        "{}",
        status.candidates[0].message
    );

    // Evidence of both candidates: signed, immutable, without an owner, and about the artifact.
    for candidate in &status.candidates {
        let reference = candidate.evidence.as_ref().context("evidence")?;
        let map = scene.api::<ConfigMap>("ml").get(&reference.config_map).await?;
        ensure!(map.immutable == Some(true) && map.owner_references().is_empty());
        let digest = reference.digest.parse()?;
        let read = store::read(
            &scene.ctx.client,
            "ml",
            &reference.config_map,
            &digest,
            scene.key.public(),
        )
        .await?;
        let artifact = candidate
            .artifact
            .as_ref()
            .context("an artifact")?
            .artifact_digest
            .parse()?;
        ensure!(store::is_about(&read?.statement, &artifact));
    }

    // Events tell the story, and every finished Job will be collected.
    let events = scene.api::<Event>("ml").list(&ListParams::default()).await?;
    for reason in [
        "WorkerStarted",
        "BaselineMeasured",
        "CandidateRejected",
        "EvidenceStored",
        "CandidateSelected",
    ] {
        ensure!(
            events.iter().any(|event| event.reason.as_deref() == Some(reason)),
            "no Event {reason}"
        );
    }
    let jobs = scene.api::<Job>("ml");
    let expiring = |job: &Job| {
        job.spec
            .as_ref()
            .is_some_and(|spec| spec.ttl_seconds_after_finished.is_some())
    };
    eventually_all(&jobs, expiring).await?;

    // A rerun begins anew; deleting the object half way leaves no Job, no pod and no kept report, but the evidence.
    let token = json!({"metadata": {"annotations": {names::RERUN: "again"}}});
    objects
        .patch("magika", &PatchParams::default(), &Patch::Merge(&token))
        .await?;
    let again = |object: &ModelOptimization| {
        let status = object.status.as_ref();
        status.is_some_and(|status| status.rerun.as_deref() == Some("again") && status.phase == "Optimizing")
    };
    scene.until(&objects, "ml", again).await?;
    objects.delete("magika", &DeleteParams::default()).await?;
    let deadline = tokio::time::Instant::now() + COLLECTED;
    loop {
        scene.kubelet.tick("ml").await?;
        let workers = ListParams::default().labels(names::WORKER);
        let left = jobs.list(&workers).await?.items.len() + scene.api::<Pod>("ml").list(&workers).await?.items.len();
        let maps = scene
            .api::<ConfigMap>("ml")
            .list(&ListParams::default().labels(names::OPTIMIZATION_UID))
            .await?;
        if left + maps.items.len() == 0 {
            break;
        }
        ensure!(tokio::time::Instant::now() < deadline, "{left} Jobs and pods are left");
        tokio::time::sleep(Duration::from_millis(200)).await;
    }
    let evidence = scene
        .api::<ConfigMap>("ml")
        .list(&ListParams::default().labels(names::EVIDENCE))
        .await?;
    ensure!(evidence.items.len() >= 2);
    scene.end().await
}

/// Nobody collects garbage here: what goes, the operator deletes.
#[tokio::test(flavor = "multi_thread")]
async fn jobs_of_what_is_deleted_go_at_once() -> Result<()> {
    let scene = Scene::start_with(false).await?;
    for (namespace, how) in [
        ("gone", DeleteParams::background()),
        ("going", DeleteParams::foreground()),
    ] {
        let objects = scene.namespace(namespace).await?;
        objects.create(&PostParams::default(), &optimization()?).await?;
        let jobs = scene.api::<Job>(namespace);
        eventually_all(&jobs, |_| true).await?;
        objects.delete("magika", &how).await?;
        let deadline = tokio::time::Instant::now() + PATIENCE;
        while !jobs.list(&ListParams::default()).await?.items.is_empty() {
            ensure!(tokio::time::Instant::now() < deadline, "{namespace}: a Job stays");
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
    }
    scene.end().await
}

async fn eventually_all(jobs: &Api<Job>, holds: impl Fn(&Job) -> bool) -> Result<()> {
    let deadline = tokio::time::Instant::now() + PATIENCE;
    loop {
        let list = jobs.list(&ListParams::default()).await?;
        if !list.items.is_empty() && list.iter().all(&holds) {
            return Ok(());
        }
        ensure!(
            tokio::time::Instant::now() < deadline,
            "a Job stays: {:?}",
            list.items.iter().map(kube::ResourceExt::name_any).collect::<Vec<_>>()
        );
        tokio::time::sleep(Duration::from_millis(200)).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn failures_are_told_in_the_words_of_whoever_refused() -> Result<()> {
    let mut scene = Scene::start().await?;

    // A worker's own words.
    scene.kubelet.fates = [(
        "baseline/edge".to_owned(),
        Fate::Refuses("ColumnMissing", "column `features` is not there"),
    )]
    .into();
    let objects = scene.namespace("refused").await?;
    objects.create(&PostParams::default(), &optimization()?).await?;
    let object = scene
        .until(&objects, "refused", |object| phase(object) == "Failed")
        .await?;
    ensure!(
        ready(&object).0 == "ColumnMissing" && ready(&object).1.contains("column `features`"),
        "{:?}",
        ready(&object)
    );

    // A container that is killed says nothing; its end does.
    scene.kubelet.fates = [("baseline/edge".to_owned(), Fate::RunsOutOfMemory)].into();
    let objects = scene.namespace("small").await?;
    objects.create(&PostParams::default(), &optimization()?).await?;
    let object = scene
        .until(&objects, "small", |object| phase(object) == "Failed")
        .await?;
    ensure!(ready(&object).0 == "OutOfMemory", "{:?}", ready(&object));

    // A quota refuses the pod: shown nowhere in the Job, read from its Events.
    let objects = scene.namespace("full").await?;
    let quota: ResourceQuota =
        serde_json::from_value(json!({"metadata": {"name": "none"}, "spec": {"hard": {"pods": "0"}}}))?;
    scene
        .api::<ResourceQuota>("full")
        .create(&PostParams::default(), &quota)
        .await?;
    objects.create(&PostParams::default(), &optimization()?).await?;
    let object = scene
        .until(&objects, "full", |object| ready(object).0 == "PodRefused")
        .await?;
    ensure!(ready(&object).1.contains("quota"), "{:?}", ready(&object));

    // Suspending stops what runs.
    scene.kubelet.fates = [("baseline/edge".to_owned(), Fate::Hangs)].into();
    let objects = scene.namespace("halted").await?;
    objects.create(&PostParams::default(), &optimization()?).await?;
    scene
        .until(&objects, "halted", |object| phase(object) == "Baselining")
        .await?;
    let suspend = json!({"spec": {"suspend": true}});
    objects
        .patch("magika", &PatchParams::default(), &Patch::Merge(&suspend))
        .await?;
    scene
        .until(&objects, "halted", |object| ready(object).0 == "Suspended")
        .await?;
    let jobs = scene.api::<Job>("halted").list(&ListParams::default()).await?;
    ensure!(
        jobs.iter().all(|job| job.metadata.deletion_timestamp.is_some()),
        "a Job still runs"
    );

    // A queue holds the Job back.
    let objects = scene.namespace("queued").await?;
    let mut object = serde_json::to_value(optimization()?)?;
    object["spec"]["environments"][0]["pod"] = json!({"queueName": "gpus"});
    objects
        .create(&PostParams::default(), &serde_json::from_value(object)?)
        .await?;
    scene
        .until(&objects, "queued", |object| phase(object) == "Queued")
        .await?;
    let written = conformance::check(&scene.installed.admin).await?;
    ensure!(written == 5, "{written} statuses of 5 optimizations");
    scene.end().await
}
