//! Writes what a plan says: changes, then the status, then Events.
//!
//! Never decides. When a change fails, the status that is written is the former one with the failure in its conditions: it never says
//! what has not happened. A status is written only over the very object that was read, so that an approval taken back in between wins.

use assayer_crds::conditions::WRITE_FAILED;
use assayer_crds::{ModelPromotion, ModelPromotionStatus, names};
use k8s_openapi::api::apps::v1::Deployment;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use kube::api::{Api, Patch, PatchParams, TypeMeta};
use kube::{Resource as _, ResourceExt as _};
use serde::Serialize;

use super::observed::Observed;
use super::phase;
use super::plan::{Change, Plan};
use crate::client::limited;
use crate::context::Context;
use crate::error::{Class, Error};
use crate::events;
use crate::status::{Conditions, Standing};

#[derive(Debug, Serialize)]
struct StatusPatch<'a> {
    #[serde(flatten)]
    types: TypeMeta,
    metadata: ObjectMeta,
    status: &'a ModelPromotionStatus,
}

/// Carries `plan` out.
pub(super) async fn apply(ctx: &Context, observed: &Observed, plan: Plan) -> Result<(), Error> {
    let Plan {
        changes,
        mut status,
        notes,
        ..
    } = plan;
    for change in &changes {
        match deliver(ctx, observed, change).await {
            Ok(generation) => {
                if let Some(attempt) = &mut status.attempt {
                    attempt.workload_generation = Some(generation);
                }
            }
            Err(error) => {
                tell(ctx, observed, &error).await;
                return Err(error);
            }
        }
    }
    if observed.promotion.status.as_ref() != Some(&status) {
        write_status(ctx, observed, &status).await?;
    }
    events::publish(&ctx.recorder, &observed.promotion.object_ref(&()), &notes).await;
    Ok(())
}

/// Writes the workload; returns the generation that it has then.
async fn deliver(ctx: &Context, observed: &Observed, change: &Change) -> Result<i64, Error> {
    let Change::Deliver {
        patch,
        workload,
        value,
        why,
    } = change;
    let namespace = observed.promotion.namespace().unwrap_or_default();
    let promotion = observed.promotion.name_any();
    tracing::info!(namespace, promotion, workload, value, why, "deliver");
    let api: Api<Deployment> = Api::namespaced(ctx.client.clone(), &namespace);
    let what = format!("deployment {namespace}/{workload}");
    let params = PatchParams::apply(names::FIELD_MANAGER).force();
    let written = limited(&what, api.patch(workload, &params, &Patch::Apply(patch)))
        .await?
        .map_err(Error::write(&what))?;
    Ok(written.metadata.generation.unwrap_or_default())
}

async fn write_status(ctx: &Context, observed: &Observed, status: &ModelPromotionStatus) -> Result<(), Error> {
    let promotion = &observed.promotion;
    let name = promotion.name_any();
    let namespace = promotion.namespace().unwrap_or_default();
    let api: Api<ModelPromotion> = Api::namespaced(ctx.client.clone(), &namespace);
    let patch = StatusPatch {
        types: TypeMeta::resource::<ModelPromotion>(),
        metadata: ObjectMeta {
            name: Some(name.clone()),
            uid: promotion.uid(),
            resource_version: promotion.resource_version(),
            ..ObjectMeta::default()
        },
        status,
    };
    let what = format!("status of modelpromotion {namespace}/{name}");
    let params = PatchParams::apply(names::FIELD_MANAGER).force();
    match limited(&what, api.patch_status(&name, &params, &Patch::Apply(&patch))).await? {
        Ok(_) => Ok(()),
        Err(kube::Error::Api(status)) if status.is_not_found() => Ok(()),
        Err(error) => Err(Error::write(what)(error)),
    }
}

/// Puts the failure of a change where people look for it. Should that fail, too, the first error is the one that counts.
async fn tell(ctx: &Context, observed: &Observed, error: &Error) {
    let Some(mut status) = observed.promotion.status.clone() else {
        return;
    };
    if error.class() == Class::Conflict || phase::standing(&status.phase) != Standing::InProgress {
        return;
    }
    let generation = status.observed_generation.unwrap_or_default();
    let mut conditions = Conditions::new(&status.conditions, generation, ctx.clock.now());
    conditions.settle(Standing::InProgress, WRITE_FAILED, error.message());
    status.conditions = conditions.into_list();
    if observed.promotion.status.as_ref() == Some(&status) {
        return;
    }
    if let Err(second) = write_status(ctx, observed, &status).await {
        tracing::warn!(error = second.message(), "could not tell of a failed write");
    }
}
