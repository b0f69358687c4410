//! `PromotionPolicy`: says in its status whether it can be applied, and its digest.
//!
//! What a policy asks is decided at each promotion, from a live read; this only tells its author early that it can't be read.

use std::sync::Arc;

use assayer_crds::conditions::{INVALID_SPEC, POLICY_ACCEPTED};
use assayer_crds::digest::Digest;
use assayer_crds::{PromotionPolicy, PromotionPolicyStatus, names, units};
use futures::StreamExt as _;
use jiff::Timestamp;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use kube::ResourceExt as _;
use kube::api::{Api, Patch, PatchParams, TypeMeta};
use kube::core::DeserializeGuard;
use kube::runtime::controller::{Action, Config, Controller};
use kube::runtime::reflector::ObjectRef;
use kube::runtime::{WatchStreamExt as _, reflector, watcher};
use serde::Serialize;

use super::policy;
use crate::client::limited;
use crate::context::Context;
use crate::error::Error;
use crate::status::{Conditions, Standing};
use crate::unreadable;

type Guarded = DeserializeGuard<PromotionPolicy>;

#[derive(Debug, Serialize)]
struct StatusPatch<'a> {
    #[serde(flatten)]
    types: TypeMeta,
    metadata: ObjectMeta,
    status: &'a PromotionPolicyStatus,
}

/// Runs the controller until `shutdown` is done.
pub(super) async fn run(ctx: Arc<Context>, shutdown: impl Future<Output = ()> + Send + Sync + 'static) {
    let objects: Api<Guarded> = Api::all(ctx.client.clone());
    let (reader, writer) = reflector::store();
    let stream = watcher(objects, watcher::Config::default())
        .default_backoff()
        .reflect(writer)
        .applied_objects();
    let watching = Arc::clone(&ctx);
    Controller::for_stream(stream, reader)
        .with_config(Config::default().concurrency(1))
        .graceful_shutdown_on(shutdown)
        .run(
            reconcile,
            |object, error, ctx| ctx.after(&ObjectRef::from_obj(&*object), error),
            ctx,
        )
        .for_each(|outcome| {
            watching.heard(&outcome);
            std::future::ready(())
        })
        .await;
}

/// What the status of `policy` says.
fn judged(policy: &PromotionPolicy, now: Timestamp) -> PromotionPolicyStatus {
    let former = policy.status.clone().unwrap_or_default();
    let generation = policy.metadata.generation.unwrap_or_default();
    let mut conditions = Conditions::new(&former.conditions, generation, now);
    match problem(policy) {
        None => {
            let tiers: Vec<_> = policy.spec.tiers.iter().map(|tier| tier.name.as_str()).collect();
            conditions.settle(Standing::Done, POLICY_ACCEPTED, format!("tiers {}", tiers.join(", ")));
        }
        Some(problem) => conditions.settle(Standing::Stalled, INVALID_SPEC, problem),
    }
    PromotionPolicyStatus {
        observed_generation: Some(generation),
        digest: Digest::of_canonical(&policy.spec)
            .map(|digest| digest.to_string())
            .unwrap_or_default(),
        conditions: conditions.into_list(),
    }
}

fn problem(policy: &PromotionPolicy) -> Option<String> {
    if let Err(problem) = policy::selector(&policy.spec.namespace_selector) {
        return Some(format!("spec.{problem}; while it stands, every promotion is refused"));
    }
    policy.spec.tiers.iter().find_map(|tier| {
        let problem = units::seconds(&tier.max_evidence_age).err()?;
        Some(format!("spec.tiers[{}].maxEvidenceAge: {problem}", tier.name))
    })
}

async fn reconcile(object: Arc<Guarded>, ctx: Arc<Context>) -> Result<Action, Error> {
    let reference = ObjectRef::from_obj(&*object);
    ctx.timed(&reference, one(&ctx, &reference.name)).await?;
    Ok(Action::await_change())
}

async fn one(ctx: &Context, name: &str) -> Result<(), Error> {
    let what = format!("promotionpolicy {name}");
    let Some(policy) = unreadable::read::<PromotionPolicy>(ctx, None, name).await? else {
        return Ok(());
    };
    let status = judged(&policy, ctx.clock.now());
    if policy.status.as_ref() == Some(&status) {
        return Ok(());
    }
    let patch = StatusPatch {
        types: TypeMeta::resource::<PromotionPolicy>(),
        metadata: ObjectMeta {
            name: Some(name.to_owned()),
            uid: policy.uid(),
            resource_version: policy.resource_version(),
            ..ObjectMeta::default()
        },
        status: &status,
    };
    let policies: Api<PromotionPolicy> = Api::all(ctx.client.clone());
    let params = PatchParams::apply(names::FIELD_MANAGER).force();
    match limited(&what, policies.patch_status(name, &params, &Patch::Apply(&patch))).await? {
        Ok(_) => Ok(()),
        Err(kube::Error::Api(status)) if status.is_not_found() => Ok(()),
        Err(error) => Err(Error::write(format!("status of {what}"))(error)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::promotion::fixtures;
    use crate::status::violations;
    use assayer_crds::conditions::READY;

    #[test]
    fn a_policy_that_cannot_be_applied_says_so() {
        let now = fixtures::now();
        let ready = |policy: &PromotionPolicy| {
            let status = judged(policy, now);
            assert_eq!(
                violations(&status.conditions, status.observed_generation),
                Vec::<String>::new()
            );
            assert!(status.digest.starts_with("sha256:"));
            let ready = status.conditions.iter().find(|c| c.type_ == READY).unwrap().clone();
            (ready.status, ready.reason, ready.message)
        };
        let mut policy = fixtures::policy();
        policy.metadata.generation = Some(1);
        assert_eq!(ready(&policy).1, POLICY_ACCEPTED);
        let mut odd = policy.clone();
        odd.spec.tiers[1].max_evidence_age = "soon".into();
        assert_eq!(ready(&odd).1, INVALID_SPEC);
        assert!(ready(&odd).2.contains("spec.tiers[high].maxEvidenceAge"));
        policy.spec.namespace_selector = serde_json::from_value(serde_json::json!({
            "matchExpressions": [{"key": "a", "operator": "In"}]
        }))
        .unwrap();
        assert_eq!(ready(&policy).0, "False");
    }

    #[test]
    fn an_unchanged_policy_is_an_unchanged_status() {
        let mut policy = fixtures::policy();
        policy.status = Some(judged(&policy, fixtures::now()));
        let later = fixtures::now() + jiff::SignedDuration::from_hours(1);
        assert_eq!(policy.status, Some(judged(&policy, later)));
    }
}
