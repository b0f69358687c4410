//! Writes what a plan says: changes, then the status, then Events.
//!
//! Never decides. When a change fails, the status that is written is the former one with the failure in its conditions: it never says
//! what has not happened.

use std::collections::BTreeMap;

use assayer_crds::conditions::WRITE_FAILED;
use assayer_crds::{ModelOptimization, ModelOptimizationStatus, names};
use k8s_openapi::api::batch::v1::Job;
use k8s_openapi::api::core::v1::ConfigMap;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{ObjectMeta, OwnerReference};
use kube::api::{Api, DeleteParams, Patch, PatchParams, PostParams, Preconditions, TypeMeta};
use kube::{Resource as _, ResourceExt as _};
use serde::Serialize;

use super::job;
use super::observed::Observed;
use super::plan::{Change, Plan, phases};
use crate::client::limited;
use crate::context::Context;
use crate::error::{Class, Error};
use crate::events;
use crate::evidence::store;
use crate::status::{Conditions, Standing};

/// Carries `plan` out.
pub(super) async fn apply(ctx: &Context, observed: &Observed, plan: &Plan) -> Result<(), Error> {
    let writer = Writer {
        ctx,
        observed,
        namespace: observed.object.namespace().unwrap_or_default(),
    };
    let name = observed.object.name_any();
    for change in &plan.changes {
        tracing::info!(
            namespace = writer.namespace,
            name,
            why = change.why(),
            "{}",
            verb(change)
        );
        if let Err(error) = writer.change(change).await {
            writer.tell(&error).await;
            return Err(error);
        }
    }
    if observed.object.status.as_ref() != Some(&plan.status) {
        writer.status(&plan.status).await?;
    }
    events::publish(&ctx.recorder, &observed.object.object_ref(&()), &plan.notes).await;
    Ok(())
}

fn verb(change: &Change) -> &'static str {
    match change {
        Change::CreateJob { .. } => "create job",
        Change::DeleteJob { .. } => "delete job",
        Change::ExpireJob { .. } => "expire job",
        Change::KeepReport { .. } => "keep report",
        Change::RecordEvidence { .. } => "record evidence",
    }
}

struct Writer<'a> {
    ctx: &'a Context,
    observed: &'a Observed,
    namespace: String,
}

#[derive(Debug, Serialize)]
struct StatusPatch<'a> {
    #[serde(flatten)]
    types: TypeMeta,
    metadata: ObjectMeta,
    status: &'a ModelOptimizationStatus,
}

/// The one field of a Job that the operator changes later. A whole `JobSpec` can't be applied: its template is immutable.
#[derive(Debug, Serialize)]
struct ExpiryPatch {
    #[serde(flatten)]
    types: TypeMeta,
    metadata: ObjectMeta,
    spec: Expiry,
}

#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct Expiry {
    ttl_seconds_after_finished: i32,
}

fn post() -> PostParams {
    PostParams {
        field_manager: Some(names::FIELD_MANAGER.to_owned()),
        ..PostParams::default()
    }
}

fn gone_or_replaced(error: &kube::Error) -> bool {
    matches!(error, kube::Error::Api(status) if status.is_not_found() || status.is_conflict())
}

impl Writer<'_> {
    async fn change(&self, change: &Change) -> Result<(), Error> {
        match change {
            Change::CreateJob { job, .. } => self.create(job).await,
            Change::DeleteJob { name, uid, .. } => self.delete(name, uid).await,
            Change::ExpireJob { name, uid, .. } => self.expire(name, uid).await,
            Change::KeepReport {
                name,
                job,
                job_uid,
                line,
                ..
            } => self.keep(name, job, job_uid, line).await,
            Change::RecordEvidence { statement, .. } => {
                store::write(&self.ctx.client, &self.namespace, statement, &self.ctx.key).await
            }
        }
    }

    fn jobs(&self) -> Api<Job> {
        Api::namespaced(self.ctx.client.clone(), &self.namespace)
    }

    async fn create(&self, wanted: &Job) -> Result<(), Error> {
        let name = wanted.name_any();
        let what = format!("job {name}");
        match limited(&what, self.jobs().create(&post(), wanted)).await? {
            Ok(_) => Ok(()),
            Err(kube::Error::Api(status)) if status.is_already_exists() => {
                let there = limited(&what, self.jobs().get(&name))
                    .await?
                    .map_err(Error::read(&what))?;
                if job::same(&there, wanted) {
                    return Ok(());
                }
                Err(Error::Malformed {
                    what,
                    problem: "a Job of this name exists and is not ours: delete it".to_owned(),
                })
            }
            Err(error) => Err(Error::write(what)(error)),
        }
    }

    async fn delete(&self, name: &str, uid: &str) -> Result<(), Error> {
        let params = DeleteParams::background().preconditions(Preconditions {
            uid: Some(uid.to_owned()),
            resource_version: None,
        });
        let what = format!("job {name}");
        match limited(&what, self.jobs().delete(name, &params)).await? {
            Ok(_) => Ok(()),
            Err(error) if gone_or_replaced(&error) => Ok(()),
            Err(error) => Err(Error::write(what)(error)),
        }
    }

    async fn expire(&self, name: &str, uid: &str) -> Result<(), Error> {
        let patch = ExpiryPatch {
            types: TypeMeta::resource::<Job>(),
            metadata: ObjectMeta {
                name: Some(name.to_owned()),
                uid: Some(uid.to_owned()),
                ..ObjectMeta::default()
            },
            spec: Expiry {
                ttl_seconds_after_finished: job::TTL_SECONDS,
            },
        };
        let what = format!("job {name}");
        let params = PatchParams::apply(names::FIELD_MANAGER).force();
        match limited(&what, self.jobs().patch(name, &params, &Patch::Apply(&patch))).await? {
            Ok(_) => Ok(()),
            Err(error) if gone_or_replaced(&error) => Ok(()),
            Err(error) => Err(Error::write(what)(error)),
        }
    }

    async fn keep(&self, name: &str, job: &str, job_uid: &str, line: &str) -> Result<(), Error> {
        let map = kept(&self.namespace, &self.observed.object, name, (job, job_uid), line);
        let api: Api<ConfigMap> = Api::namespaced(self.ctx.client.clone(), &self.namespace);
        let what = format!("config map {name}");
        match limited(&what, api.create(&post(), &map)).await? {
            Ok(_) => Ok(()),
            Err(kube::Error::Api(status)) if status.is_already_exists() => {
                let there = limited(&what, api.get(name)).await?.map_err(Error::read(&what))?;
                if there.data == map.data {
                    return Ok(());
                }
                Err(Error::Malformed {
                    what,
                    problem: "a config map of this name exists and holds something else: delete it".to_owned(),
                })
            }
            Err(error) => Err(Error::write(what)(error)),
        }
    }

    async fn status(&self, status: &ModelOptimizationStatus) -> Result<(), Error> {
        let name = self.observed.object.name_any();
        let api: Api<ModelOptimization> = Api::namespaced(self.ctx.client.clone(), &self.namespace);
        let patch = StatusPatch {
            types: TypeMeta::resource::<ModelOptimization>(),
            metadata: ObjectMeta {
                name: Some(name.clone()),
                uid: self.observed.object.uid(),
                // What was decided on an older object is not written over a newer one.
                resource_version: self.observed.object.resource_version(),
                ..ObjectMeta::default()
            },
            status,
        };
        let what = format!("status of modeloptimization {name}");
        let params = PatchParams::apply(names::FIELD_MANAGER).force();
        let written = limited(&what, api.patch_status(&name, &params, &Patch::Apply(&patch))).await?;
        match written {
            Ok(_) => Ok(()),
            Err(kube::Error::Api(status)) if status.is_not_found() => Ok(()),
            Err(error) => Err(Error::write(what)(error)),
        }
    }

    /// Puts the failure of a change where people look for it. Should that fail, too, the first error is the one that counts.
    async fn tell(&self, error: &Error) {
        let object = &self.observed.object;
        let Some(mut status) = object.status.clone() else {
            return;
        };
        if error.class() == Class::Conflict || phases::terminal(&status.phase) {
            return;
        }
        let generation = status.observed_generation.unwrap_or_default();
        let mut conditions = Conditions::new(&status.conditions, generation, self.ctx.clock.now());
        conditions.settle(Standing::InProgress, WRITE_FAILED, error.message());
        status.conditions = conditions.into_list();
        if object.status.as_ref() == Some(&status) {
            return;
        }
        if let Err(second) = self.status(&status).await {
            tracing::warn!(error = second.message(), "could not tell of a failed write");
        }
    }
}

/// The config map that keeps a report: owned by its Job, so that it goes when the Job expires.
fn kept(namespace: &str, object: &ModelOptimization, name: &str, job: (&str, &str), line: &str) -> ConfigMap {
    ConfigMap {
        metadata: ObjectMeta {
            name: Some(name.to_owned()),
            namespace: Some(namespace.to_owned()),
            labels: Some(BTreeMap::from([(
                names::OPTIMIZATION_UID.to_owned(),
                object.uid().unwrap_or_default(),
            )])),
            owner_references: Some(vec![OwnerReference {
                api_version: Job::api_version(&()).into_owned(),
                kind: Job::kind(&()).into_owned(),
                name: job.0.to_owned(),
                uid: job.1.to_owned(),
                controller: Some(true),
                block_owner_deletion: None,
            }]),
            ..ObjectMeta::default()
        },
        immutable: Some(true),
        data: Some(BTreeMap::from([(names::REPORT_KEY.to_owned(), line.to_owned())])),
        binary_data: None,
    }
}
