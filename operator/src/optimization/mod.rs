//! `ModelOptimization`: observe, plan, apply.
//!
//! `observe` reads live and never decides, `plan` decides and never reads, `apply` writes and never decides. Here they are put together
//! and woken: by the object (its annotations count: a rerun moves no generation), by its Jobs and by its workers' pods.

mod apply;
pub mod gates;
pub mod job;
mod observe;
pub mod observed;
mod orphans;
pub mod plan;
pub mod results;
pub mod steps;
#[cfg(test)]
mod world;

use std::sync::Arc;

use assayer_crds::{ModelOptimization, names};
use futures::channel::mpsc;
use futures::{StreamExt as _, TryStreamExt as _};
use k8s_openapi::api::batch::v1::Job;
use k8s_openapi::api::core::v1::Pod;
use kube::ResourceExt as _;
use kube::api::{Api, PartialObjectMeta};
use kube::core::DeserializeGuard;
use kube::runtime::controller::{Action, Config, Controller};
use kube::runtime::reflector::ObjectRef;
use kube::runtime::{Predicate as _, PredicateConfig, WatchStreamExt as _, predicates, reflector, watcher};

use crate::client::scoped;
use crate::context::Context;
use crate::error::Error;
use crate::unreadable;

/// Optimizations that are reconciled at once.
const CONCURRENCY: u16 = 8;

type Guarded = DeserializeGuard<ModelOptimization>;

/// Runs the controller until `shutdown` is done; reconciles under way are ended in order.
pub async fn run(ctx: Arc<Context>, shutdown: impl Future<Output = ()> + Send + Sync + 'static) {
    let client = ctx.client.clone();
    let scope = ctx.config.watch_namespace.clone();
    let objects: Api<Guarded> = scoped(&client, scope.as_deref());
    let jobs: Api<PartialObjectMeta<Job>> = scoped(&client, scope.as_deref());
    let pods: Api<PartialObjectMeta<Pod>> = scoped(&client, scope.as_deref());
    let (reader, writer) = reflector::store();
    let seen = predicates::generation
        .combine(predicates::annotations)
        .combine(predicates::finalizers);
    let (went, gone) = mpsc::unbounded();
    let stream = watcher(objects, watcher::Config::default())
        .default_backoff()
        .inspect_ok(move |event| orphans::notice(event, &went))
        .reflect(writer)
        .applied_objects()
        .predicate_filter(seen, PredicateConfig::default());
    let workers = watcher::Config::default().labels(names::WORKER);
    let touched_jobs = watcher(jobs, workers.clone()).default_backoff().touched_objects();
    let touched_pods = watcher(pods, workers).default_backoff().touched_objects();
    let known = reader.clone();
    let (watching, cleaning) = (Arc::clone(&ctx), Arc::clone(&ctx));
    let controller = Controller::for_stream(stream, reader)
        .owns_stream(touched_jobs)
        .watches_stream(touched_pods, move |pod| owner_of(&pod, &known))
        .with_config(Config::default().concurrency(CONCURRENCY))
        .graceful_shutdown_on(shutdown)
        .run(
            reconcile,
            |object, error, ctx| ctx.after(&ObjectRef::from_obj(&*object), error),
            ctx,
        )
        .for_each(|outcome| {
            watching.heard(&outcome);
            std::future::ready(())
        });
    tokio::join!(controller, orphans::clean(&cleaning, gone));
}

/// The optimization that a worker pod belongs to: pods carry its uid.
fn owner_of(pod: &PartialObjectMeta<Pod>, known: &reflector::Store<Guarded>) -> Option<ObjectRef<Guarded>> {
    let uid = pod.labels().get(names::OPTIMIZATION_UID)?;
    let found = known.find(|object| {
        let meta = kube::Resource::meta(object);
        meta.uid.as_ref() == Some(uid) && meta.namespace == pod.metadata.namespace
    })?;
    Some(ObjectRef::from_obj(&*found))
}

async fn reconcile(object: Arc<Guarded>, ctx: Arc<Context>) -> Result<Action, Error> {
    let reference = ObjectRef::from_obj(&*object);
    let namespace = reference.namespace.clone().unwrap_or_default();
    let work = reconcile_live(&ctx, &namespace, &reference.name);
    ctx.timed(&reference, Box::pin(work)).await
}

/// The cache only says which object; what is decided on is read live.
async fn reconcile_live(ctx: &Context, namespace: &str, name: &str) -> Result<Action, Error> {
    let Some(object) = unreadable::read::<ModelOptimization>(ctx, Some(namespace), name).await? else {
        return Ok(Action::await_change());
    };
    let observed = Box::pin(observe::observe(ctx, object)).await?;
    let plan = plan::plan(&observed, ctx.clock.now());
    apply::apply(ctx, &observed, &plan).await?;
    Ok(match plan.next {
        plan::Next::AwaitChange => Action::await_change(),
        plan::Next::After(delay) => Action::requeue(delay),
    })
}
