//! Jobs that are of no use any more: those of other runs, of attempts that were given up, and finished ones.
//!
//! Decides what is deleted or let expire, never what is created. A finished Job owns the kept report, so it expires only when the run
//! is over, or at once when its attempt brought nothing.

use assayer_crds::names;
use k8s_openapi::api::batch::v1::Job;
use kube::ResourceExt as _;

use super::draft::{Draft, states};
use super::{Change, phases};
use crate::optimization::observed::ObservedJob;
use crate::optimization::steps::{Step, baselines, makes, measures};

enum Fate {
    Keep,
    Expire(&'static str),
    Delete(&'static str),
}

/// Deletes and expires what is of no use.
pub(super) fn sweep(draft: &mut Draft<'_>) {
    for seen in &draft.observed.jobs {
        match fate(draft, seen) {
            Fate::Keep => {}
            Fate::Expire(why) => draft.changes.push(Change::ExpireJob {
                name: seen.job.name_any(),
                uid: seen.job.uid().unwrap_or_default(),
                why: why.to_owned(),
            }),
            Fate::Delete(why) => delete(draft, seen, why),
        }
    }
}

/// Deletes every Job that still runs, and those of other runs.
pub(super) fn stop_all(draft: &mut Draft<'_>, why: &str) {
    for seen in &draft.observed.jobs {
        if seen.job.metadata.deletion_timestamp.is_none() {
            delete(draft, seen, why);
        }
    }
}

fn delete(draft: &mut Draft<'_>, seen: &ObservedJob, why: &str) {
    let name = seen.job.name_any();
    let already = draft
        .changes
        .iter()
        .any(|change| matches!(change, Change::DeleteJob { name: other, .. } if *other == name));
    if !already {
        draft.changes.push(Change::DeleteJob {
            name,
            uid: seen.job.uid().unwrap_or_default(),
            why: why.to_owned(),
        });
    }
}

/// The step and attempt of a Job of this run; none when it is of another one.
fn place(draft: &Draft<'_>, job: &Job) -> Option<(String, i32)> {
    let step = job.annotations().get(names::STEP)?.clone();
    let attempt: i32 = job.annotations().get(names::ATTEMPT)?.parse().ok()?;
    let known = all_steps(draft).find(|known| known.to_string() == step)?;
    (draft.run.job_name(draft.object(), &known, attempt) == job.name_any()).then_some((step, attempt))
}

fn all_steps<'a>(draft: &Draft<'a>) -> impl Iterator<Item = Step> + use<'a> {
    let spec = draft.spec();
    let measured = spec
        .candidates
        .iter()
        .flat_map(|candidate| measures(spec, &candidate.name));
    baselines(spec).chain(makes(spec)).chain(measured)
}

fn fate(draft: &Draft<'_>, seen: &ObservedJob) -> Fate {
    if seen.job.metadata.deletion_timestamp.is_some() {
        return Fate::Keep;
    }
    let Some((step, attempt)) = place(draft, &seen.job) else {
        // A finished run stands whatever image the workers have now; its last Jobs just expire.
        if phases::terminal(&draft.status.phase) && seen.finished() && this_generation(draft, &seen.job) {
            return expire(seen, "the run is over");
        }
        return Fate::Delete("the Job is of another run");
    };
    let Some(work) = draft.work(&step) else {
        return Fate::Keep;
    };
    let given_up = attempt < work.attempt || work.state == states::FAILED;
    if !seen.finished() {
        return if given_up {
            Fate::Delete("the attempt was given up")
        } else {
            Fate::Keep
        };
    }
    // Only what the API server already has in the status may make a Job's own words dispensable.
    let persisted = draft.persisted();
    let settled = persisted.is_some_and(|status| {
        let over = phases::terminal(&status.phase) && status.observed_generation == Some(draft.run.generation);
        let known = status.work.iter().find(|known| known.step == step);
        over || known.is_some_and(|known| attempt < known.attempt || known.state == states::FAILED)
    });
    if settled {
        expire(seen, "its result is in the status")
    } else {
        Fate::Keep
    }
}

fn expire(seen: &ObservedJob, why: &'static str) -> Fate {
    let expires = seen
        .job
        .spec
        .as_ref()
        .and_then(|spec| spec.ttl_seconds_after_finished)
        .is_some();
    if expires { Fate::Keep } else { Fate::Expire(why) }
}

fn this_generation(draft: &Draft<'_>, job: &Job) -> bool {
    job.annotations().get(names::GENERATION).map(String::as_str) == Some(draft.run.generation.to_string().as_str())
}
