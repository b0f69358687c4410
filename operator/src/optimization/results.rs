//! What has become of one attempt.
//!
//! Pure. A result counts only when it comes from the pod that was asked, says what was asked, and holds together; everything else is a
//! failure with a reason, and says whether another attempt is worth it. Never starts or stops anything.

pub mod content;
mod failures;
mod identity;
mod line;

use assayer_crds::conditions as reasons;
use assayer_crds::contract::{FailureClass, Outcome, Report, WorkerPlan};
use assayer_crds::digest::Digest;
use jiff::Timestamp;
use k8s_openapi::api::batch::v1::Job;
use k8s_openapi::api::core::v1::{ContainerStateTerminated, ContainerStatus, Pod};

pub(super) use failures::known;

use super::observed::{Log, ObservedJob, ObservedPod};

/// How long a finished pod's log may stay unreadable before the pod counts as lost.
const LOG_PATIENCE_SECONDS: i64 = 60;
/// How far the API server's clock may be ahead of ours.
const CLOCKS_DIFFER_SECONDS: i64 = 5;

/// How an attempt stands.
#[derive(Clone, Debug, PartialEq)]
pub enum Attempt {
    /// The Job is suspended: its queue has not admitted it.
    Queued,
    /// It runs, or waits for something; then `waits` says for what.
    Running {
        /// Reason and message of what holds it up.
        waits: Option<Problem>,
    },
    /// Its report counts.
    Accepted(Box<Accepted>),
    /// It failed.
    Failed(Problem),
}

/// A report that counts.
#[derive(Clone, Debug, PartialEq)]
pub struct Accepted {
    /// What was reported.
    pub report: Report,
    /// The very line, for keeping.
    pub line: String,
    /// Its digest.
    pub digest: Digest,
}

/// Why an attempt failed or waits.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Problem {
    /// A reason of [`assayer_crds::conditions`].
    pub reason: &'static str,
    /// In words, with the way out.
    pub message: String,
    /// Whether another attempt may end differently.
    pub retry: bool,
}

impl Problem {
    /// A failure that another attempt repeats.
    pub fn lasting(reason: &'static str, message: impl Into<String>) -> Self {
        Self {
            reason,
            message: message.into(),
            retry: false,
        }
    }

    /// A failure that may pass.
    pub fn passing(reason: &'static str, message: impl Into<String>) -> Self {
        Self {
            reason,
            message: message.into(),
            retry: true,
        }
    }
}

/// What an answer must match.
#[derive(Clone, Copy, Debug)]
pub struct Asked<'a> {
    /// The Job as it was built.
    pub job: &'a Job,
    /// What the worker was asked.
    pub plan: &'a WorkerPlan,
}

/// Judges an attempt by its Job, its pods and their Events. `remembered` is what held it up when it was last looked at.
pub fn attempt(asked: Asked<'_>, seen: &ObservedJob, remembered: Option<Problem>, now: Timestamp) -> Attempt {
    let suspended = seen.job.spec.as_ref().and_then(|spec| spec.suspend) == Some(true);
    if suspended && !seen.finished() {
        return Attempt::Queued;
    }
    let Some(pod) = current(&seen.pods) else {
        return without_pod(seen, remembered);
    };
    let Some(end) = ended(&pod.pod) else {
        return not_ended(seen, pod, remembered, now);
    };
    if let Some(lost) = failures::lost(&pod.pod) {
        return Attempt::Failed(lost);
    }
    let job_uid = seen.job.metadata.uid.as_deref().unwrap_or_default();
    let speechless = end.state.exit_code != 0 && end.state.message.as_deref().is_none_or(str::is_empty);
    if let Some((reason, message)) = job_failure(seen).filter(|(reason, _)| speechless && reason == failures::DEADLINE)
    {
        return Attempt::Failed(failures::job_failed(&reason, &message, remembered));
    }
    if let Err(problem) = identity::check(asked.job, job_uid, &pod.pod) {
        return Attempt::Failed(problem);
    }
    if end.state.message.as_deref().is_none_or(str::is_empty) {
        return Attempt::Failed(failures::wordless(&pod.pod, end.name, end.state));
    }
    if let Log::Unreadable(message) = &pod.log {
        return unreadable(&end, message, now);
    }
    match answer(asked, pod, &end) {
        Ok(accepted) => Attempt::Accepted(Box::new(accepted)),
        Err(problem) => Attempt::Failed(problem),
    }
}

/// The pod whose word is taken: with backoff limit 0 there is one. Should a replacement exist, the youngest.
fn current(pods: &[ObservedPod]) -> Option<&ObservedPod> {
    pods.iter().max_by_key(|pod| {
        let created = pod.pod.metadata.creation_timestamp.as_ref().map(|time| time.0);
        (created, pod.pod.metadata.name.clone())
    })
}

/// How the container that reports ended: the first one that failed, or the last one.
struct End<'a> {
    name: &'a str,
    state: &'a ContainerStateTerminated,
}

fn terminated(status: &ContainerStatus) -> Option<End<'_>> {
    let state = status.state.as_ref()?.terminated.as_ref()?;
    Some(End {
        name: &status.name,
        state,
    })
}

fn ended(pod: &Pod) -> Option<End<'_>> {
    let status = pod.status.as_ref()?;
    let inits = status.init_container_statuses.as_deref().unwrap_or_default();
    let mains = status.container_statuses.as_deref().unwrap_or_default();
    let failed = inits
        .iter()
        .chain(mains)
        .filter_map(terminated)
        .find(|end| end.state.exit_code != 0);
    failed.or_else(|| mains.last().and_then(terminated))
}

/// Name of the container whose log holds the report, once the pod has ended.
pub fn reporting_container(pod: &Pod) -> Option<&str> {
    ended(pod).map(|end| end.name)
}

/// Why the Job failed, or is about to once its pods have stopped.
fn job_failure(seen: &ObservedJob) -> Option<(String, String)> {
    seen.condition("Failed").or_else(|| seen.condition("FailureTarget"))
}

fn without_pod(seen: &ObservedJob, remembered: Option<Problem>) -> Attempt {
    if let Some((reason, message)) = job_failure(seen) {
        return Attempt::Failed(failures::job_failed(&reason, &message, remembered));
    }
    if seen.condition("Complete").is_some() {
        return Attempt::Failed(Problem::passing(
            reasons::POD_LOST,
            "the Job is complete and its pod is gone before its report was taken",
        ));
    }
    if seen.job.metadata.deletion_timestamp.is_some() {
        return Attempt::Failed(Problem::passing(reasons::POD_LOST, "the Job is being deleted"));
    }
    Attempt::Running {
        waits: failures::refused(&seen.events),
    }
}

fn not_ended(seen: &ObservedJob, pod: &ObservedPod, remembered: Option<Problem>, now: Timestamp) -> Attempt {
    if let Some(lost) = failures::lost(&pod.pod) {
        return Attempt::Failed(lost);
    }
    let phase = pod.pod.status.as_ref().and_then(|status| status.phase.as_deref());
    match job_failure(seen) {
        // A pod that failed without a terminated container: the node refused it or lost count of it.
        Some((reason, _)) if phase == Some("Failed") && reason != failures::DEADLINE => {
            Attempt::Failed(failures::pod_failed(&pod.pod))
        }
        Some((reason, message)) => Attempt::Failed(failures::job_failed(&reason, &message, remembered)),
        None if matches!(phase, Some("Failed" | "Succeeded")) => Attempt::Failed(failures::pod_failed(&pod.pod)),
        // The Job controller deletes the pod first, then says that the deadline passed.
        None if pod.pod.metadata.deletion_timestamp.is_some() && overdue(&seen.job, now) => {
            Attempt::Running { waits: remembered }
        }
        None if pod.pod.metadata.deletion_timestamp.is_some() => Attempt::Failed(Problem::passing(
            reasons::POD_LOST,
            "the pod is being deleted before its report was taken",
        )),
        None => Attempt::Running {
            waits: failures::waiting(pod),
        },
    }
}

/// Whether the Job's time is up, or is just about to be: clocks differ.
fn overdue(job: &Job, now: Timestamp) -> bool {
    let started = job.status.as_ref().and_then(|status| status.start_time.as_ref());
    let limit = job.spec.as_ref().and_then(|spec| spec.active_deadline_seconds);
    let (Some(started), Some(limit)) = (started, limit) else {
        return false;
    };
    now.duration_since(started.0).as_secs() >= limit - CLOCKS_DIFFER_SECONDS
}

fn unreadable(end: &End<'_>, message: &str, now: Timestamp) -> Attempt {
    let finished = end.state.finished_at.as_ref().map_or(now, |time| time.0);
    let waited = now.duration_since(finished).as_secs();
    let text = format!("the log of container {} can't be read: {message}", end.name);
    if waited < LOG_PATIENCE_SECONDS {
        return Attempt::Running {
            waits: Some(Problem::passing(reasons::POD_LOST, text)),
        };
    }
    Attempt::Failed(Problem::passing(reasons::POD_LOST, text))
}

fn answer(asked: Asked<'_>, pod: &ObservedPod, end: &End<'_>) -> Result<Accepted, Problem> {
    let message = end.state.message.as_deref().unwrap_or_default();
    let Log::Read(log) = &pod.log else {
        return Err(Problem::passing(reasons::POD_LOST, "the log was not read"));
    };
    let (line, termination) = line::find(asked, message, log).map_err(|why| {
        // A container that was killed or broke off has no valid words; its end says more than their form.
        failures::by_end(&pod.pod, end.name, end.state)
            .unwrap_or_else(|| Problem::lasting(reasons::REPORT_INVALID, format!("container {}: {why}", end.name)))
    })?;
    let report = line::parse(asked, &line)
        .map_err(|why| Problem::lasting(reasons::REPORT_INVALID, format!("container {}: {why}", end.name)))?;
    if let Outcome::Failed(failure) = &report.outcome {
        return Err(failures::reported(&pod.pod, end.name, failure));
    }
    if end.state.exit_code != 0 {
        let why = format!(
            "container {} reports success and exited with {}",
            end.name, end.state.exit_code
        );
        return Err(Problem::lasting(reasons::REPORT_INVALID, why));
    }
    content::check(asked.plan, &report, Some(&termination))?;
    content::fits(&report, &pod.pod)?;
    let digest = Digest::of(line.as_bytes());
    Ok(Accepted { report, line, digest })
}

/// Whether a failure of `class` may pass by itself.
fn passes(class: FailureClass) -> bool {
    match class {
        FailureClass::Storage => true,
        FailureClass::Bug | FailureClass::Refused | FailureClass::Resources => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_pod_that_its_deadline_takes_away_is_not_lost() {
        let job: Job = serde_json::from_value(serde_json::json!({
            "metadata": {"name": "assayer-a"}, "spec": {"activeDeadlineSeconds": 46, "template": {}},
            "status": {"startTime": "2026-01-01T00:00:00Z"},
        }))
        .unwrap();
        let pod: Pod = serde_json::from_value(serde_json::json!({
            "metadata": {"name": "assayer-a-x", "deletionTimestamp": "2026-01-01T00:00:30Z"}, "status": {"phase": "Pending"},
        }))
        .unwrap();
        let pod = ObservedPod {
            pod,
            log: Log::NotRead,
            events: Vec::new(),
        };
        let seen = ObservedJob {
            job,
            pods: Vec::new(),
            events: Vec::new(),
        };
        let held = Problem::lasting(reasons::UNSCHEDULABLE, "0/1 nodes are available");
        let at = |time: &str| not_ended(&seen, &pod, Some(held.clone()), time.parse().unwrap());
        let early = at("2026-01-01T00:00:20Z");
        assert!(matches!(early, Attempt::Failed(lost) if lost.reason == reasons::POD_LOST));
        for late in ["2026-01-01T00:00:44Z", "2026-01-01T00:01:00Z"] {
            assert_eq!(
                at(late),
                Attempt::Running {
                    waits: Some(held.clone())
                }
            );
        }
    }
}
