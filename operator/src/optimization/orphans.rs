//! Deletes the Jobs of an optimization that is gone, at once.
//!
//! They are owned, so that the garbage collector deletes them in any case; but it looks for kinds that are new to it every 30 s only, and a
//! worker must not run on meanwhile. What is missed here (the operator was away, a Job was created just then) is left to it. Decides
//! nothing: whatever belongs to the uid goes.

use std::time::Duration;

use assayer_crds::{ModelOptimization, names};
use futures::StreamExt as _;
use futures::channel::mpsc;
use k8s_openapi::api::batch::v1::Job;
use kube::ResourceExt as _;
use kube::api::{Api, DeleteParams, ListParams, Preconditions};
use kube::core::DeserializeGuard;
use kube::runtime::watcher::Event;

use super::observe::controlled_by;
use crate::client::limited;
use crate::context::Context;
use crate::error::Error;

/// When to look: at once, and again for what a reconcile under way may have created since.
const LOOKS: [Duration; 2] = [Duration::ZERO, Duration::from_secs(5)];
/// Optimizations that are cleaned up after at once.
const CONCURRENCY: usize = 8;

/// An optimization that is gone.
pub(super) struct Gone {
    namespace: String,
    name: String,
    uid: String,
}

/// Passes on that an optimization was deleted.
pub(super) fn notice(event: &Event<DeserializeGuard<ModelOptimization>>, to: &mpsc::UnboundedSender<Gone>) {
    let Event::Delete(object) = event else { return };
    let gone = Gone {
        namespace: object.namespace().unwrap_or_default(),
        name: object.name_any(),
        uid: object.uid().unwrap_or_default(),
    };
    // The receiver ends only with the process.
    let _ended = to.unbounded_send(gone);
}

/// Deletes what the optimizations in `gone` have left, until no more can come.
pub(super) async fn clean(ctx: &Context, gone: mpsc::UnboundedReceiver<Gone>) {
    gone.for_each_concurrent(CONCURRENCY, |gone| async move {
        for wait in LOOKS {
            tokio::time::sleep(wait).await;
            if let Err(error) = delete_jobs(ctx, &gone).await {
                tracing::warn!(
                    namespace = gone.namespace,
                    name = gone.name,
                    error = error.message(),
                    "Jobs of a deleted ModelOptimization are left to the garbage collector"
                );
            }
        }
    })
    .await;
}

async fn delete_jobs(ctx: &Context, gone: &Gone) -> Result<(), Error> {
    let jobs: Api<Job> = Api::namespaced(ctx.client.clone(), &gone.namespace);
    let selector = ListParams::default().labels(&format!("{}={}", names::OPTIMIZATION_UID, gone.uid));
    let what = format!("jobs in {}", gone.namespace);
    let found = limited(&what, jobs.list(&selector))
        .await?
        .map_err(Error::read(&what))?;
    let owned = found
        .items
        .into_iter()
        .filter(|job| controlled_by(&job.metadata.owner_references, &gone.uid));
    for job in owned {
        let name = job.name_any();
        let params = DeleteParams::background().preconditions(Preconditions {
            uid: job.uid(),
            resource_version: None,
        });
        tracing::info!(
            namespace = gone.namespace,
            job = name,
            why = format!("ModelOptimization {} is gone", gone.name),
            "delete job"
        );
        match limited(&what, jobs.delete(&name, &params)).await? {
            Ok(_) => {}
            Err(kube::Error::Api(status)) if status.is_not_found() || status.is_conflict() => {}
            Err(error) => return Err(Error::write(format!("job {name}"))(error)),
        }
    }
    Ok(())
}
