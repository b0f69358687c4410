//! The steps, one after another: creates Jobs, takes results, tries again, gives up.
//!
//! Decides which step may run now and what each attempt's outcome means. Never judges a number.

use std::time::Duration;

use assayer_crds::conditions as reasons;
use assayer_crds::contract::{ModelSource, Work};
use assayer_crds::digest::Digest;
use assayer_crds::names;
use assayer_crds::optimization::WorkStatus;
use jiff::{SignedDuration, Timestamp};
use kube::ResourceExt as _;

use super::draft::{Draft, Standing, states};
use super::{Change, words};
use crate::events::Note;
use crate::optimization::job::{self, Request};
use crate::optimization::observed::ObservedJob;
use crate::optimization::results::{self, Asked, Attempt, Problem};
use crate::optimization::steps::{self, Step};

/// Candidates that are made at once.
const MAKES_AT_ONCE: usize = 4;
/// Delay of the second attempt; it doubles with each further one.
const FIRST_DELAY: Duration = Duration::from_secs(10);
const LONGEST_DELAY: Duration = Duration::from_mins(5);

/// Moves every step that may move.
pub(super) fn advance(draft: &mut Draft<'_>) {
    let spec = draft.spec();
    for step in steps::baselines(spec) {
        if draft.open(&step) {
            return advance_step(draft, &step, None);
        }
    }
    let Some(baseline) = baseline_digest(draft) else {
        return;
    };
    let mut open = 0;
    for step in steps::makes(spec) {
        if draft.open(&step) && open < MAKES_AT_ONCE {
            advance_step(draft, &step, Some(&baseline));
        }
        open += usize::from(draft.open(&step));
    }
    if open > 0 {
        return;
    }
    for candidate in &spec.candidates {
        let make = Step::Make {
            candidate: candidate.name.clone(),
        };
        if !matches!(draft.standing(&make), Standing::Done) {
            continue;
        }
        for step in steps::measures(spec, &candidate.name) {
            if draft.open(&step) && !inherit_failure(draft, &step) {
                return advance_step(draft, &step, Some(&baseline));
            }
        }
    }
}

/// The model digest that the recorded baseline had, where it was recorded anywhere.
pub(super) fn baseline_digest(draft: &Draft<'_>) -> Option<Digest> {
    let measured = steps::baselines(draft.spec()).find_map(|step| draft.done(&step)?.measured());
    measured.map(|measured| measured.baseline_digest.clone())
}

/// Where the baseline could not be measured, a candidate can't be either.
fn inherit_failure(draft: &mut Draft<'_>, step: &Step) -> bool {
    let baseline = Step::Baseline {
        environment: step.environment().unwrap_or_default().to_owned(),
    };
    let Standing::Failed(failed) = draft.standing(&baseline) else {
        return false;
    };
    let work = WorkStatus {
        step: step.to_string(),
        state: states::FAILED.to_owned(),
        reason: failed.reason.clone(),
        message: format!("the baseline could not be measured there: {}", failed.message),
        at: draft.now.to_string(),
        ..WorkStatus::default()
    };
    draft.set_work(work);
    true
}

/// What a worker is asked in `step`.
fn work_of(draft: &Draft<'_>, step: &Step, baseline: Option<&Digest>) -> Option<Work> {
    let spec = draft.spec();
    let environment = |name: &str| spec.environments.iter().find(|environment| environment.name == name);
    match step {
        Step::Baseline { environment: name } => {
            // The first one fixes what the baseline is; the others must find the same.
            let known = baseline_digest(draft);
            let plan = steps::measure_plan(spec, environment(name)?, known.as_ref(), None);
            Some(Work::Measure(plan))
        }
        Step::Make { candidate } => {
            let named = spec.candidates.iter().find(|named| named.name == *candidate)?;
            Some(Work::Make(steps::make_plan(spec, named, baseline)))
        }
        Step::Measure {
            candidate,
            environment: name,
        } => {
            let make = Step::Make {
                candidate: candidate.clone(),
            };
            let artifact = draft.done(&make)?.made()?;
            let source = ModelSource {
                uri: artifact.uri.clone(),
                model_digest: Some(artifact.model_digest.clone()),
            };
            Some(Work::Measure(steps::measure_plan(
                spec,
                environment(name)?,
                baseline,
                Some(source),
            )))
        }
    }
}

fn advance_step(draft: &mut Draft<'_>, step: &Step, baseline: Option<&Digest>) {
    let name = step.to_string();
    let work = draft.work(&name).cloned().unwrap_or_default();
    if work.state == states::DONE {
        if !draft.fresh.contains(&name) {
            let lost = Problem::passing(reasons::REPORT_INVALID, "the kept report is gone or was altered");
            fail(draft, step, &work, None, &lost);
        }
        return;
    }
    if work.state == states::RETRYING
        && let Ok(at) = work.at.parse::<Timestamp>()
        && draft.now < at
    {
        return draft.wake_at(at);
    }
    let Some(asked) = work_of(draft, step, baseline) else {
        return;
    };
    let attempt = work.attempt.max(1);
    let plan = steps::worker_plan(draft.spec(), &draft.observed.settings, &draft.run, step, attempt, asked);
    let namespace = draft.observed.object.metadata.namespace.as_deref().unwrap_or_default();
    let request = Request {
        namespace,
        object: draft.object(),
        spec: draft.spec(),
        run: &draft.run.clone(),
        step,
        attempt,
        plan,
    };
    let expected = job::build(&request);
    let job_name = expected.name_any();
    match draft.observed.job(&job_name) {
        Some(seen) if !job::same(&seen.job, &expected) => {
            let other = Problem::passing(
                reasons::WORKER_IDENTITY_MISMATCH,
                format!("Job {job_name} is for another plan than is asked now"),
            );
            fail(draft, step, &work, Some(seen), &other);
        }
        Some(seen) => {
            let asked = Asked {
                job: &expected,
                plan: &request.plan,
            };
            let outcome = results::attempt(asked, seen, remembered(&work), draft.now);
            take(draft, step, attempt, seen, outcome);
        }
        None if matches!(work.state.as_str(), states::RUNNING | states::QUEUED) => {
            let gone = Problem::passing(
                reasons::POD_LOST,
                format!("Job {job_name} was deleted by somebody else"),
            );
            fail(draft, step, &work, None, &gone);
        }
        None => create(draft, step, attempt, expected),
    }
}

fn remembered(work: &WorkStatus) -> Option<Problem> {
    let reason = results::known(&work.reason)?;
    Some(Problem::lasting(reason, work.message.clone()))
}

fn create(draft: &mut Draft<'_>, step: &Step, attempt: i32, job: k8s_openapi::api::batch::v1::Job) {
    let name = job.name_any();
    let queued = job.spec.as_ref().and_then(|spec| spec.suspend) == Some(true);
    let why = format!("{}, attempt {attempt}", words::doing(step));
    draft.notes.push(Note::normal(
        reasons::WORKER_STARTED,
        "StartWorker",
        format!("{why}: Job {name}"),
    ));
    draft.set_work(WorkStatus {
        step: step.to_string(),
        state: if queued { states::QUEUED } else { states::RUNNING }.to_owned(),
        job: name,
        attempt,
        at: draft.now.to_string(),
        ..WorkStatus::default()
    });
    draft.changes.push(Change::CreateJob {
        job: Box::new(job),
        why,
    });
}

fn take(draft: &mut Draft<'_>, step: &Step, attempt: i32, seen: &ObservedJob, outcome: Attempt) {
    let old = draft.work(&step.to_string()).cloned().unwrap_or_default();
    let mut work = WorkStatus {
        step: step.to_string(),
        job: seen.job.name_any(),
        attempt,
        at: if old.at.is_empty() {
            draft.now.to_string()
        } else {
            old.at.clone()
        },
        ..WorkStatus::default()
    };
    match outcome {
        Attempt::Queued => {
            states::QUEUED.clone_into(&mut work.state);
            reasons::QUEUED.clone_into(&mut work.reason);
            "the Job is suspended until its queue admits it".clone_into(&mut work.message);
            draft.set_work(work);
        }
        Attempt::Running { waits } => {
            states::RUNNING.clone_into(&mut work.state);
            if let Some(problem) = waits {
                if old.reason != problem.reason {
                    let message = format!("{step}: {}", problem.message);
                    draft.notes.push(Note::warning(problem.reason, "AwaitWorker", message));
                }
                problem.reason.clone_into(&mut work.reason);
                work.message = problem.message;
            }
            draft.set_work(work);
        }
        Attempt::Accepted(accepted) => {
            draft.changes.push(Change::KeepReport {
                name: format!("{}{}", names::REPORT_PREFIX, draft.run.short(step, attempt)),
                job: seen.job.name_any(),
                job_uid: seen.job.uid().unwrap_or_default(),
                line: accepted.line,
                digest: accepted.digest.clone(),
                why: format!("{step} reported"),
            });
            states::DONE.clone_into(&mut work.state);
            work.report = accepted.digest.to_string();
            draft.fresh.insert(work.step.clone());
            draft.set_work(work);
        }
        Attempt::Failed(problem) => fail(draft, step, &work, Some(seen), &problem),
    }
}

/// Tries again later, or gives the step up.
fn fail(draft: &mut Draft<'_>, step: &Step, work: &WorkStatus, seen: Option<&ObservedJob>, problem: &Problem) {
    let attempt = work.attempt.max(1);
    let retries = i32::try_from(draft.spec().run.retries).unwrap_or(0);
    if let Some(seen) = seen.filter(|seen| !seen.finished()) {
        draft.changes.push(Change::DeleteJob {
            name: seen.job.name_any(),
            uid: seen.job.uid().unwrap_or_default(),
            why: format!("{step}: {}", problem.message),
        });
    }
    let mut next = WorkStatus {
        step: step.to_string(),
        job: work.job.clone(),
        reason: problem.reason.to_owned(),
        ..WorkStatus::default()
    };
    if problem.retry && attempt <= retries {
        let delay = delay_before(attempt + 1);
        let at = draft.now + SignedDuration::try_from(delay).unwrap_or(SignedDuration::ZERO);
        states::RETRYING.clone_into(&mut next.state);
        next.attempt = attempt + 1;
        next.at = at.to_string();
        next.message.clone_from(&problem.message);
        let message = format!(
            "{step}: {}: {}; attempt {} of {} in {} s",
            problem.reason,
            problem.message,
            attempt + 1,
            retries + 1,
            delay.as_secs()
        );
        draft
            .notes
            .push(Note::warning(reasons::RETRYING, "RetryWorker", message));
        draft.wake_in(delay);
    } else {
        let gave_up = if problem.retry {
            format!(" (given up after {attempt} of {} attempts)", retries + 1)
        } else {
            String::new()
        };
        states::FAILED.clone_into(&mut next.state);
        next.attempt = attempt;
        next.at = draft.now.to_string();
        next.message = format!("{}{gave_up}", problem.message);
        let message = format!("{step}: {}", next.message);
        draft.notes.push(Note::warning(problem.reason, "GiveUpWorker", message));
    }
    draft.set_work(next);
}

fn delay_before(attempt: i32) -> Duration {
    let doublings = u32::try_from(attempt - 2).unwrap_or(0).min(10);
    FIRST_DELAY.saturating_mul(1 << doublings).min(LONGEST_DELAY)
}
