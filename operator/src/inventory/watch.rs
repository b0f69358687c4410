//! Keeps the inventory's facts current by watching. Reads only; a list or watch that fails is tried again with a growing delay.

use std::sync::Arc;

use assayer_crds::conditions::ROLLED_OUT;
use assayer_crds::names::{EVIDENCE, GOVERNED};
use assayer_crds::{ModelOptimization, ModelPromotion};
use futures::{Stream, StreamExt as _};
use k8s_openapi::api::apps::v1::{Deployment, ReplicaSet};
use k8s_openapi::api::core::v1::{ConfigMap, Pod};
use kube::Resource;
use kube::core::{DeserializeGuard, PartialObjectMeta};
use kube::runtime::WatchStreamExt as _;
use kube::runtime::watcher::{self, Event, watcher};
use tokio_util::sync::CancellationToken;

use super::facts::{self, EvidenceFact, Facts, OptimizationFact, PodFact, PromotionFact, WorkloadFact};
use super::rows;
use super::shape::Inventory;
use super::table::Table;
use crate::client::scoped;
use crate::context::Context;
use crate::metrics::Metrics;

/// Evidence maps are large and kept only in a few words: few of them are fetched at a time.
const EVIDENCE_PAGE: u32 = 10;

/// The facts of every kind.
#[derive(Debug, Default)]
pub struct Caches {
    promotions: Table<PromotionFact>,
    optimizations: Table<OptimizationFact>,
    workloads: Table<WorkloadFact>,
    replica_sets: Table<String>,
    pods: Table<PodFact>,
    evidence: Table<EvidenceFact>,
}

impl Caches {
    /// Kinds whose first list has not arrived yet.
    pub fn missing(&self) -> Vec<&'static str> {
        let all = [
            ("ModelPromotion", self.promotions.synced()),
            ("ModelOptimization", self.optimizations.synced()),
            ("Deployment", self.workloads.synced()),
            ("ReplicaSet", self.replica_sets.synced()),
            ("Pod", self.pods.synced()),
            ("ConfigMap", self.evidence.synced()),
        ];
        all.into_iter()
            .filter(|(_, synced)| !synced)
            .map(|(kind, _)| kind)
            .collect()
    }

    /// The inventory as of now. None while a first list is missing: half of the facts would accuse the innocent.
    pub fn inventory(&self) -> Option<Inventory> {
        self.missing().is_empty().then(|| {
            rows::project(&Facts {
                promotions: self.promotions.rows(),
                optimizations: self.optimizations.rows(),
                workloads: self.workloads.rows(),
                replica_sets: self.replica_sets.rows(),
                pods: self.pods.rows(),
                evidence: self.evidence.rows(),
            })
        })
    }
}

/// Watches until `stop`.
pub async fn run(ctx: Arc<Context>, caches: Arc<Caches>, stop: CancellationToken) {
    let all = watcher::Config::default;
    let governed = || all().labels(&format!("{GOVERNED}=true"));
    let metrics = &ctx.metrics;
    let scope = ctx.config.watch_namespace.as_deref();
    let key = ctx.key.public().clone();
    let promotions = follow(
        "ModelPromotion",
        metrics,
        watcher(scoped::<DeserializeGuard<ModelPromotion>>(&ctx.client, scope), all()),
        |event| {
            if let Some((before, after)) = caches.promotions.absorb_readable(event, facts::of_promotion) {
                count_rollback(metrics, &before, &after);
            }
        },
    );
    let optimizations = follow(
        "ModelOptimization",
        metrics,
        watcher(scoped::<DeserializeGuard<ModelOptimization>>(&ctx.client, scope), all()),
        |event| {
            caches.optimizations.absorb_readable(event, facts::of_optimization);
        },
    );
    let workloads = follow(
        "Deployment",
        metrics,
        watcher(scoped::<Deployment>(&ctx.client, scope), all()),
        |event| {
            caches.workloads.absorb(event, facts::of_deployment);
        },
    );
    // A Deployment's replica sets carry the labels of its template, so the selector finds those of governed pods.
    let replica_sets = watcher(scoped::<PartialObjectMeta<ReplicaSet>>(&ctx.client, scope), governed());
    let replica_sets = follow("ReplicaSet", metrics, replica_sets, |event| {
        caches.replica_sets.absorb(event, facts::of_replica_set);
    });
    let pods = follow(
        "Pod",
        metrics,
        watcher(scoped::<Pod>(&ctx.client, scope), governed()),
        |event| {
            caches.pods.absorb(event, facts::of_pod);
        },
    );
    let labelled = all().labels(&format!("{EVIDENCE}=true")).page_size(EVIDENCE_PAGE);
    let evidence = follow(
        "ConfigMap",
        metrics,
        watcher(scoped::<ConfigMap>(&ctx.client, scope), labelled),
        |event| {
            caches
                .evidence
                .absorb(event, |map: &ConfigMap| facts::of_evidence(map, &key));
        },
    );
    tokio::select! {
        () = stop.cancelled() => {}
        _ = async { tokio::join!(promotions, optimizations, workloads, replica_sets, pods, evidence) } => {}
    }
}

async fn follow<K: Resource + Clone + 'static>(
    kind: &'static str,
    metrics: &Metrics,
    stream: impl Stream<Item = watcher::Result<Event<K>>>,
    mut absorb: impl FnMut(Event<K>),
) {
    let mut stream = std::pin::pin!(stream.default_backoff());
    while let Some(event) = stream.next().await {
        match event {
            Ok(event) => absorb(event),
            Err(error) => {
                metrics.watch_failed(kind);
                tracing::warn!(kind, %error, "a watch of the inventory failed and is tried again");
            }
        }
    }
}

/// Counts a promotion that has just become rolled back, by the reason in its condition.
fn count_rollback(metrics: &Metrics, before: &PromotionFact, after: &PromotionFact) {
    let state = |fact: &PromotionFact| {
        fact.status
            .attempt
            .as_ref()
            .map(|attempt| (attempt.started_at.clone(), attempt.state.clone()))
    };
    let (was, is) = (state(before), state(after));
    if was == is || is.is_none_or(|(_, state)| state != "RolledBack") {
        return;
    }
    let conditions = &after.status.conditions;
    let reason = conditions.iter().find(|condition| condition.type_ == ROLLED_OUT);
    metrics.rolled_back(reason.map_or("", |condition| &condition.reason));
}
