//! Reads everything that a promotion's plan may know, live.
//!
//! Never decides, never writes, and never takes anything from a cache: approvals, evidence and the guard are read anew right before each
//! step.

use assayer_crds::digest::Digest;
use assayer_crds::{ModelOptimization, ModelPromotion, PromotionPolicy};
use k8s_openapi::api::apps::v1::Deployment;
use k8s_openapi::api::core::v1::{Namespace, Pod};
use kube::ResourceExt as _;
use kube::api::{Api, ListParams};
use kube::core::{DeserializeGuard, Selector};

use super::observed::{EvidenceReading, Observed, active};
use super::source;
use crate::client::limited;
use crate::context::Context;
use crate::error::Error;
use crate::evidence::store;
use crate::guard;

/// Most pods that are looked at; trouble shows in the first ones.
const PODS: u32 = 100;

/// Reads what belongs to `promotion`.
pub(super) async fn observe(ctx: &Context, promotion: ModelPromotion) -> Result<Observed, Error> {
    let namespace = promotion.namespace().unwrap_or_default();
    let reader = Reader { ctx, namespace };
    let source = &promotion.spec.source.model_optimization.name;
    let workload = &promotion.spec.target.workload.name;
    let (labels, policies, optimization, deployment, others) = tokio::try_join!(
        reader.namespace_labels(),
        reader.policies(),
        reader.get::<ModelOptimization>("modeloptimization", source),
        reader.get::<Deployment>("deployment", workload),
        reader.others(&promotion),
    )?;
    let (evidence, pods) = tokio::try_join!(
        reader.evidence(&promotion, optimization.as_ref()),
        reader.pods(&promotion, deployment.as_ref()),
    )?;
    Ok(Observed {
        promotion,
        namespace_labels: labels,
        policies: policies.0,
        unreadable_policies: policies.1,
        optimization,
        evidence,
        deployment,
        pods,
        others: others.0,
        unreadable_promotions: others.1,
        // Last of all, so that a guard that fell meanwhile closes the gates.
        guard: reader.guard().await?,
    })
}

struct Reader<'a> {
    ctx: &'a Context,
    namespace: String,
}

/// Objects that could be read, and the names of those that could not.
type Listed<K> = (Vec<K>, Vec<String>);

impl Reader<'_> {
    async fn get<K>(&self, kind: &str, name: &str) -> Result<Option<K>, Error>
    where
        K: kube::Resource<DynamicType = (), Scope = kube::core::NamespaceResourceScope>
            + Clone
            + std::fmt::Debug
            + serde::de::DeserializeOwned,
    {
        let api: Api<K> = Api::namespaced(self.ctx.client.clone(), &self.namespace);
        let what = format!("{kind} {}/{name}", self.namespace);
        limited(&what, api.get_opt(name)).await?.map_err(Error::read(&what))
    }

    async fn namespace_labels(&self) -> Result<std::collections::BTreeMap<String, String>, Error> {
        let api: Api<Namespace> = Api::all(self.ctx.client.clone());
        let what = format!("namespace {}", self.namespace);
        let found = limited(&what, api.get_metadata_opt(&self.namespace))
            .await?
            .map_err(Error::read(&what))?;
        Ok(found.and_then(|found| found.metadata.labels).unwrap_or_default())
    }

    async fn policies(&self) -> Result<Listed<PromotionPolicy>, Error> {
        let api: Api<DeserializeGuard<PromotionPolicy>> = Api::all(self.ctx.client.clone());
        let what = "promotionpolicies";
        let found = limited(what, api.list(&ListParams::default()))
            .await?
            .map_err(Error::read(what))?;
        Ok(sorted(found.items))
    }

    /// The guard's epoch, if the policy that is there now is the very one that was seen to refuse.
    async fn guard(&self) -> Result<Option<String>, Error> {
        let guard = &self.ctx.guard;
        if guard.not_needed() {
            return Ok(Some(String::new()));
        }
        let present = guard::edition(&self.ctx.client).await?;
        let present = present.filter(|present| guard.vouches_for(present));
        Ok(present.map(|present| present.epoch(&self.ctx.key)))
    }

    /// Other promotions with the same workload.
    async fn others(&self, promotion: &ModelPromotion) -> Result<Listed<ModelPromotion>, Error> {
        let api: Api<DeserializeGuard<ModelPromotion>> = Api::namespaced(self.ctx.client.clone(), &self.namespace);
        let what = format!("modelpromotions of {}", self.namespace);
        let found = limited(&what, api.list(&ListParams::default()))
            .await?
            .map_err(Error::read(&what))?;
        let (mut others, unreadable) = sorted(found.items);
        let workload = &promotion.spec.target.workload;
        others.retain(|other| other.uid() != promotion.uid() && other.spec.target.workload == *workload);
        Ok((others, unreadable))
    }

    async fn evidence(
        &self,
        promotion: &ModelPromotion,
        optimization: Option<&ModelOptimization>,
    ) -> Result<EvidenceReading, Error> {
        let candidate = source::candidate(promotion, optimization).ok();
        let Some(recorded) = candidate.and_then(|candidate| candidate.evidence.as_ref()) else {
            return Ok(EvidenceReading::NotRead);
        };
        let digest: Digest = match recorded.digest.parse() {
            Ok(digest) => digest,
            Err(error) => {
                let why = format!("the optimization names evidence that is none: {error}");
                return Ok(EvidenceReading::Invalid(why));
            }
        };
        let key = self.ctx.key.public();
        let read = store::read(&self.ctx.client, &self.namespace, &recorded.config_map, &digest, key).await?;
        Ok(match read {
            Ok(verified) => EvidenceReading::Verified(Box::new(verified)),
            Err(error) => EvidenceReading::Invalid(format!("evidence {}: {error}", recorded.config_map)),
        })
    }

    /// Pods of the workload while an attempt is under way: they say what keeps it from completing.
    async fn pods(&self, promotion: &ModelPromotion, deployment: Option<&Deployment>) -> Result<Vec<Pod>, Error> {
        let selector = deployment
            .and_then(|deployment| deployment.spec.as_ref())
            .map(|spec| spec.selector.clone());
        let (Some(_), Some(selector)) = (active(promotion), selector) else {
            return Ok(Vec::new());
        };
        let what = format!("pods of deployment {}", promotion.spec.target.workload.name);
        let selector = Selector::try_from(selector).map_err(|error| Error::Malformed {
            what: what.clone(),
            problem: error.to_string(),
        })?;
        let api: Api<Pod> = Api::namespaced(self.ctx.client.clone(), &self.namespace);
        let params = ListParams::default().labels_from(&selector).limit(PODS);
        let found = limited(&what, api.list(&params)).await?.map_err(Error::read(&what))?;
        Ok(found.items)
    }
}

fn sorted<K: kube::Resource>(items: Vec<DeserializeGuard<K>>) -> Listed<K> {
    let mut listed: Listed<K> = (Vec::new(), Vec::new());
    for item in items {
        match item.0 {
            Ok(object) => listed.0.push(object),
            Err(invalid) => listed.1.push(invalid.metadata.name.unwrap_or_default()),
        }
    }
    listed
}
