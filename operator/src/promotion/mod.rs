//! `ModelPromotion`: observe, plan, apply.
//!
//! `observe` reads live and never decides, `plan` decides and never reads, `apply` writes and never decides. Here they are put together
//! and woken: by the promotion itself (approvals are annotations, which move no generation), by its workload, its optimization and the
//! policies. Nothing that a gate looks at is older than a minute.

mod apply;
pub mod approvals;
pub mod ask;
pub mod chain;
pub mod gates;
mod observe;
pub mod observed;
pub mod phase;
pub mod plan;
mod policies;
pub mod policy;
pub mod rejudge;
pub mod request;
pub mod source;
mod turns;

#[cfg(test)]
pub(crate) mod fixtures;

use std::sync::Arc;
use std::time::Duration;

use assayer_crds::{ModelOptimization, ModelPromotion, ModelPromotionSpec, PromotionPolicy};
use futures::{FutureExt as _, StreamExt as _};
use k8s_openapi::api::apps::v1::Deployment;
use kube::ResourceExt as _;
use kube::api::{Api, PartialObjectMeta};
use kube::core::DeserializeGuard;
use kube::runtime::controller::{Action, Config, Controller};
use kube::runtime::reflector::ObjectRef;
use kube::runtime::{WatchStreamExt as _, reflector, watcher};

use crate::client::scoped;
use crate::context::Context;
use crate::error::Error;
use crate::unreadable;
use turns::Turns;

/// Promotions that are reconciled at once.
const CONCURRENCY: u16 = 8;

type Guarded = DeserializeGuard<ModelPromotion>;
type Known = reflector::Store<Guarded>;

/// What each reconcile has at hand.
struct Shared {
    ctx: Arc<Context>,
    turns: Turns,
}

/// Runs the controllers of promotions and of policies until `shutdown` is done; reconciles under way are ended in order.
pub async fn run(ctx: Arc<Context>, shutdown: impl Future<Output = ()> + Send + Sync + 'static) {
    let shutdown = shutdown.shared();
    tokio::join!(
        promotions(Arc::clone(&ctx), shutdown.clone()),
        policies::run(ctx, shutdown)
    );
}

async fn promotions(ctx: Arc<Context>, shutdown: impl Future<Output = ()> + Send + Sync + 'static) {
    let client = ctx.client.clone();
    let scope = ctx.config.watch_namespace.clone();
    let objects: Api<Guarded> = scoped(&client, scope.as_deref());
    let workloads: Api<PartialObjectMeta<Deployment>> = scoped(&client, scope.as_deref());
    let sources: Api<PartialObjectMeta<ModelOptimization>> = scoped(&client, scope.as_deref());
    let policies: Api<PartialObjectMeta<PromotionPolicy>> = Api::all(client);
    let all = watcher::Config::default;
    let (reader, writer) = reflector::store();
    let stream = watcher(objects, all())
        .default_backoff()
        .reflect(writer)
        .applied_objects();
    let (by_workload, by_source, by_policy) = (reader.clone(), reader.clone(), reader.clone());
    let watching = Arc::clone(&ctx);
    let shared = Arc::new(Shared {
        ctx,
        turns: Turns::default(),
    });
    Controller::for_stream(stream, reader)
        .watches_stream(
            watcher(workloads, all()).default_backoff().touched_objects(),
            move |workload| {
                let (namespace, name) = (workload.namespace(), workload.name_any());
                matching(&by_workload, namespace.as_deref(), |spec| {
                    spec.target.workload.name == name
                })
            },
        )
        .watches_stream(
            watcher(sources, all()).default_backoff().touched_objects(),
            move |source| {
                let (namespace, name) = (source.namespace(), source.name_any());
                matching(&by_source, namespace.as_deref(), |spec| {
                    spec.source.model_optimization.name == name
                })
            },
        )
        .watches_stream(
            watcher(policies, all()).default_backoff().touched_objects(),
            move |_| matching(&by_policy, None, |_| true),
        )
        .with_config(Config::default().concurrency(CONCURRENCY))
        .graceful_shutdown_on(shutdown)
        .run(
            reconcile,
            |object, error, shared| shared.ctx.after(&ObjectRef::from_obj(&*object), error),
            shared,
        )
        .for_each(|outcome| {
            watching.heard(&outcome);
            std::future::ready(())
        })
        .await;
}

/// Promotions of `namespace` (or of all) whose spec `concerns` it.
fn matching(
    known: &Known,
    namespace: Option<&str>,
    concerns: impl Fn(&ModelPromotionSpec) -> bool,
) -> Vec<ObjectRef<Guarded>> {
    let objects = known.state();
    let here = objects
        .iter()
        .filter(|object| namespace.is_none() || object.namespace().as_deref() == namespace);
    here.filter(|object| object.0.as_ref().is_ok_and(|promotion| concerns(&promotion.spec)))
        .map(|object| ObjectRef::from_obj(&**object))
        .collect()
}

async fn reconcile(object: Arc<Guarded>, shared: Arc<Shared>) -> Result<Action, Error> {
    let reference = ObjectRef::from_obj(&*object);
    let namespace = reference.namespace.clone().unwrap_or_default();
    let work = Box::pin(one(&shared, &namespace, &reference.name));
    let next = shared.ctx.timed(&reference, work).await?;
    Ok(match next {
        plan::Next::AwaitChange => Action::await_change(),
        plan::Next::Now => Action::requeue(Duration::ZERO),
        plan::Next::After(delay) => Action::requeue(delay),
    })
}

/// The cache only says which object; what is decided on is read live.
async fn one(shared: &Shared, namespace: &str, name: &str) -> Result<plan::Next, Error> {
    let ctx = &shared.ctx;
    let Some(named) = unreadable::read::<ModelPromotion>(ctx, Some(namespace), name).await? else {
        return Ok(plan::Next::AwaitChange);
    };
    // The workload of a promotion never changes, so that its turn can be taken before it is read for good.
    let workload = format!("{namespace}/{}", named.spec.target.workload.name);
    let _turn = shared.turns.take(&workload).await;
    let Some(promotion) = unreadable::read::<ModelPromotion>(ctx, Some(namespace), name).await? else {
        return Ok(plan::Next::AwaitChange);
    };
    let observed = Box::pin(observe::observe(ctx, promotion)).await?;
    let plan = plan::plan(&observed, ctx.clock.now());
    let next = plan.next;
    apply::apply(ctx, &observed, plan).await?;
    Ok(next)
}
