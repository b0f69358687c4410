//! Where the scenes of bad input play: namespaces in which promotions need no approval, so that nothing but evidence and gates keeps
//! a model out, and a server in each that must never be written. Decides how each scene's objects are made and watched.

use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail, ensure};
use assayer_crds::{ModelOptimization, ModelPromotion, ModelPromotionStatus, PromotionPolicy, names};
use k8s_openapi::api::apps::v1::Deployment;
use k8s_openapi::api::core::v1::{Namespace, ResourceQuota};
use k8s_openapi::api::events::v1::Event;
use kube::api::{Api, ListParams, PostParams};
use kube::{Client, ResourceExt as _};
use serde_json::{Value, json};
use xtask::demo::World;

/// Most scenes.
pub(super) const NAMESPACE: &str = "trials";
/// The one in which no pod is allowed.
pub(super) const FULL: &str = "trials-full";
/// The Deployment that every promotion wants and none gets.
pub(super) const SERVER: &str = "server";
/// Longest wait for the end of anything.
const PATIENCE: Duration = Duration::from_mins(4);
/// Where the demo's own objects are.
const DEMO: &str = "ml";

/// Namespaces, a policy and servers; and the demo's optimization, of which each scene makes one that is wrong.
pub(super) struct Stage<'a> {
    pub(super) world: &'a World,
    spec: Value,
    /// The demo server's image.
    image: String,
}

impl<'a> Stage<'a> {
    pub(super) async fn set(world: &'a World) -> Result<Self> {
        let good: ModelOptimization = Api::namespaced(world.client.clone(), DEMO).get("magika-int8").await?;
        let server: Deployment = Api::namespaced(world.client.clone(), DEMO).get("scanner").await?;
        let image = server.spec.and_then(|spec| spec.template.spec);
        let image = image.and_then(|pod| pod.containers.into_iter().next()?.image);
        let mut stage = Self {
            world,
            spec: json!(good.spec),
            image: image.context("the demo's server has no image")?,
        };
        stage.spec["candidates"]
            .as_array_mut()
            .context("candidates")?
            .retain(|one| one["name"] == "static-int8");
        // Scenes share the processor: nothing is asked of latencies.
        stage.spec["gates"]
            .as_array_mut()
            .context("gates")?
            .retain(|one| one["metric"] != "latencyP99");
        stage.spec["environments"] = json!([{"name": "cpu", "executionProvider": "CPU", "pod": {"resources": {
            "requests": {"cpu": "50m", "memory": "64Mi"}, "limits": {"cpu": "1", "memory": "512Mi"},
        }}}]);
        stage.spec["run"] = json!({"deadline": "3m", "retries": 0});
        let client = world.client.clone();
        let policy = json!({"metadata": {"name": "trials"}, "spec": {
            "namespaceSelector": {"matchLabels": {"trials": "true"}}, "tiers": [{"name": "any"}],
        }});
        create::<PromotionPolicy>(&Api::all(client.clone()), policy).await?;
        for namespace in [NAMESPACE, FULL] {
            let labels = json!({"trials": "true", "pod-security.kubernetes.io/enforce": "restricted"});
            let made = json!({"metadata": {"name": namespace, "labels": labels}});
            create::<Namespace>(&Api::all(client.clone()), made).await?;
            stage.serve(namespace, SERVER).await?;
        }
        let quota = json!({"metadata": {"name": "no-pods"}, "spec": {"hard": {"pods": "0"}}});
        create::<ResourceQuota>(&Api::namespaced(client, FULL), quota).await?;
        Ok(stage)
    }

    /// Makes a server that waits for its model in an image volume.
    pub(super) async fn serve(&self, namespace: &str, name: &str) -> Result<()> {
        let server = json!({
            "metadata": {"name": name},
            "spec": {"replicas": 1, "progressDeadlineSeconds": 15, "selector": {"matchLabels": {"app": name}}, "template": {
                "metadata": {"labels": {"app": name}},
                "spec": {
                    "automountServiceAccountToken": false,
                    "securityContext": {"runAsNonRoot": true, "runAsUser": 65532, "seccompProfile": {"type": "RuntimeDefault"}},
                    "containers": [{
                        "name": "server", "image": self.image,
                        "volumeMounts": [{"name": "model", "mountPath": "/models", "readOnly": true}],
                        "resources": {"requests": {"cpu": "10m"}},
                        "securityContext": {"allowPrivilegeEscalation": false, "capabilities": {"drop": ["ALL"]}},
                    }],
                    "volumes": [{"name": "model", "image": {}}],
                },
            }},
        });
        create::<Deployment>(&Api::namespaced(self.client(), namespace), server).await
    }

    pub(super) fn client(&self) -> Client {
        self.world.client.clone()
    }

    /// Host and port of the registry.
    pub(super) fn registry(&self) -> &str {
        &self.world.registry.prefix
    }

    pub(super) fn optimizations(&self, namespace: &str) -> Api<ModelOptimization> {
        Api::namespaced(self.client(), namespace)
    }

    /// Asks for the demo's optimization, changed by `edit`.
    pub(super) async fn optimize(&self, namespace: &str, name: &str, edit: impl FnOnce(&mut Value)) -> Result<()> {
        let mut spec = self.spec.clone();
        spec["output"] = json!({"uri": format!("oci://{}/trials/{name}", self.registry())});
        edit(&mut spec);
        let made = json!({
            "apiVersion": "assayer.dev/v1alpha1", "kind": "ModelOptimization", "metadata": {"name": name}, "spec": spec,
        });
        let made: ModelOptimization = serde_json::from_value(made)?;
        self.optimizations(namespace)
            .create(&PostParams::default(), &made)
            .await?;
        Ok(())
    }

    /// Asks for its only candidate to be promoted to the Deployment `server`.
    pub(super) async fn promote(&self, namespace: &str, name: &str, server: &str) -> Result<()> {
        let promotion: ModelPromotion = serde_json::from_value(json!({
            "apiVersion": "assayer.dev/v1alpha1", "kind": "ModelPromotion", "metadata": {"name": name},
            "spec": {
                "owner": {"group": "file-security", "contact": "x@example.com"},
                "change": {"ticket": "CHG-1", "reason": "to see it refused"},
                "source": {"modelOptimization": {"name": name, "candidate": "static-int8"}},
                "target": {
                    "workload": {"apiVersion": "apps/v1", "kind": "Deployment", "name": server},
                    "delivery": {"imageVolume": {"volume": "model"}},
                },
            },
        }))?;
        let api: Api<ModelPromotion> = Api::namespaced(self.client(), namespace);
        api.create(&PostParams::default(), &promotion).await?;
        Ok(())
    }

    /// Waits until the optimization is as wanted.
    pub(super) async fn until(
        &self,
        namespace: &str,
        name: &str,
        what: &str,
        wanted: impl Fn(&ModelOptimization) -> bool,
    ) -> Result<ModelOptimization> {
        let until = Instant::now() + PATIENCE;
        loop {
            let found = self.optimizations(namespace).get(name).await?;
            if wanted(&found) {
                return Ok(found);
            }
            if Instant::now() > until {
                bail!("{what} did not come about: {:#?}", found.status);
            }
            tokio::time::sleep(Duration::from_millis(200)).await;
        }
    }

    /// Waits until its promotion, which came at the same time, is settled as far as it can be.
    pub(super) async fn promotion(
        &self,
        namespace: &str,
        name: &str,
        wanted: impl Fn(&ModelPromotionStatus) -> bool,
    ) -> Result<ModelPromotionStatus> {
        let api: Api<ModelPromotion> = Api::namespaced(self.client(), namespace);
        let until = Instant::now() + PATIENCE;
        loop {
            let found = api.get(name).await?.status.unwrap_or_default();
            if wanted(&found) {
                return Ok(found);
            }
            if Instant::now() > until {
                bail!("the promotion did not come so far: {found:#?}");
            }
            tokio::time::sleep(Duration::from_millis(200)).await;
        }
    }

    /// The promotion of what failed is refused for that very reason, and nothing was tried.
    pub(super) async fn is_refused(&self, namespace: &str, name: &str) -> Result<()> {
        let told = |status: &ModelPromotionStatus| {
            status
                .conditions
                .iter()
                .any(|one| one.type_ == "Ready" && one.message.contains(&format!("ModelOptimization {name} failed")))
        };
        let status = self.promotion(namespace, name, told).await?;
        ensure!(
            status.phase == "Pending" && status.live.is_none() && status.attempt.is_none() && status.request.is_none(),
            "something of it can be promoted: {status:#?}"
        );
        Ok(())
    }

    /// An Event about the optimization with this reason and these words.
    pub(super) async fn event(&self, namespace: &str, name: &str, reason: &str, words: &[String]) -> Result<()> {
        let api: Api<Event> = Api::namespaced(self.client(), namespace);
        let until = Instant::now() + Duration::from_secs(20);
        loop {
            let all = api.list(&ListParams::default()).await?.items;
            let about = all
                .into_iter()
                .filter(|event| event.regarding.as_ref().and_then(|object| object.name.as_deref()) == Some(name));
            let notes: Vec<(String, String)> = about
                .map(|event| (event.reason.unwrap_or_default(), event.note.unwrap_or_default()))
                .collect();
            let is_it = |(of, note): &(String, String)| of == reason && words.iter().all(|word| note.contains(word));
            if notes.iter().any(is_it) {
                return Ok(());
            }
            // Events are sent after the status.
            ensure!(
                Instant::now() < until,
                "no Event {reason} with {words:?} among {notes:#?}"
            );
            tokio::time::sleep(Duration::from_millis(200)).await;
        }
    }

    /// No server was ever written.
    pub(super) async fn is_untouched(&self) -> Result<()> {
        for namespace in [NAMESPACE, FULL] {
            let api: Api<Deployment> = Api::namespaced(self.client(), namespace);
            let server = api.get(SERVER).await?;
            let managers: Vec<_> = server
                .managed_fields()
                .iter()
                .filter_map(|entry| entry.manager.as_deref())
                .collect();
            ensure!(
                !managers.contains(&names::FIELD_MANAGER),
                "{namespace}/{SERVER} was written by {managers:?}"
            );
        }
        Ok(())
    }
}

async fn create<K>(api: &Api<K>, object: Value) -> Result<()>
where
    K: Clone + std::fmt::Debug + serde::Serialize + serde::de::DeserializeOwned,
{
    api.create(&PostParams::default(), &serde_json::from_value(object)?)
        .await?;
    Ok(())
}

/// Reason and message of Ready.
pub(super) fn ready(object: &ModelOptimization) -> (&str, &str) {
    let mut conditions = object.status.iter().flat_map(|status| &status.conditions);
    let ready = conditions.rfind(|condition| condition.type_ == "Ready");
    ready.map_or(("", ""), |ready| (ready.reason.as_str(), ready.message.as_str()))
}

/// The phase, once it is of the present spec.
pub(super) fn phase(object: &ModelOptimization) -> &str {
    let current = object
        .status
        .as_ref()
        .filter(|status| status.observed_generation == object.metadata.generation);
    current.map_or("", |status| status.phase.as_str())
}

/// Whether nothing more happens.
pub(super) fn over(object: &ModelOptimization) -> bool {
    ["Succeeded", "Rejected", "Failed"].contains(&phase(object))
}

/// Whether a text has all of these words; an error has the text.
pub(super) fn says(text: &str, words: &[String]) -> Result<()> {
    for word in words {
        ensure!(text.contains(word), "`{word}` is not in: {text}");
    }
    Ok(())
}

pub(super) fn words(words: &[&str]) -> Vec<String> {
    words.iter().map(|word| (*word).to_owned()).collect()
}
