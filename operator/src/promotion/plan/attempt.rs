//! A roll-out under way: from the recorded decision to the end, forward or back.
//!
//! Pure. The first write needs every gate to pass at this very reading. Going back needs none, but never overwrites what somebody
//! else has put there meanwhile.

use assayer_crds::conditions::{
    APPROVED, DRIFTED, LIVE, NOTHING_TO_RESTORE, REJECTED_BY_PEOPLE, ROLLED_BACK, ROLLED_OUT, ROLLOUT_COMPLETE,
    ROLLOUT_FAILED, ROLLOUT_STARTED, SUPERSEDED, TARGET_BUSY, TARGET_NOT_FOUND,
};
use assayer_crds::promotion::{AttemptStatus, Delivery, RefusedDigest};
use k8s_openapi::api::apps::v1::Deployment;
use kube::ResourceExt as _;

use super::draft::{self, Draft};
use super::{Change, Next, QUICK};
use crate::promotion::chain::{Reading, first_closed};
use crate::promotion::observed::{self, COMPLETE, DECIDING, FAILED, PROGRESSING, ROLLING_BACK};
use crate::promotion::phase;
use crate::status::Truth;
use crate::targets::{Problem, Rollout, deployment, pods, value_of};

/// The attempt with what it needs at hand.
struct Course<'a> {
    attempt: AttemptStatus,
    delivery: Delivery,
    workload: &'a Deployment,
    /// What the field shall hold.
    wanted: String,
    /// What it holds.
    current: Option<String>,
}

/// Goes on with the attempt under way. False when it was given up before its first write, so that the request is looked at anew.
pub(super) fn go_on(draft: &mut Draft<'_>, reading: &Reading<'_>) -> bool {
    let Some(attempt) = draft.status.attempt.clone() else {
        return false;
    };
    let target = &draft.observed.promotion.spec.target;
    let delivery = attempt.delivery.clone().unwrap_or_else(|| target.delivery.clone());
    let wanted = match value_of(&delivery, &attempt.artifact.uri) {
        Ok(wanted) => wanted,
        Err(problem) => return end(draft, attempt, FAILED, problem.reason, &problem.message),
    };
    let Some(workload) = draft.observed.deployment.as_ref() else {
        if attempt.state == DECIDING {
            return give_up(draft, attempt, TARGET_NOT_FOUND, "the workload is gone");
        }
        let message = format!("Deployment {} was deleted during the roll-out", target.workload.name);
        return end(draft, attempt, FAILED, TARGET_NOT_FOUND, &message);
    };
    let course = Course {
        current: deployment::value(workload, &delivery),
        attempt,
        delivery,
        workload,
        wanted,
    };
    draft.next = Next::After(QUICK);
    match course.attempt.state.as_str() {
        DECIDING => decided(draft, reading, course),
        PROGRESSING => progressing(draft, reading, course),
        _ => rolling_back(draft, course),
    }
}

/// The decision is recorded. Everything was read again since; only if it still holds is the workload written.
fn decided(draft: &mut Draft<'_>, reading: &Reading<'_>, course: Course<'_>) -> bool {
    let attempt = &course.attempt;
    let former = attempt.former_value.clone();
    let holds = course.current.as_ref() == Some(&course.wanted);
    if holds && former != course.current && deployment::written_by_us(course.workload, &course.delivery) {
        // Written, and stopped before that could be recorded.
        let generation = course.workload.metadata.generation;
        return watch(draft, course.attempt, PROGRESSING, generation);
    }
    let judged = reading.judge();
    let digest = reading.request.as_ref().map(|request| request.digest.as_str());
    if let Some(problem) = first_closed(&judged) {
        let only_busy = judged
            .iter()
            .filter_map(|(_, judged)| judged.as_ref().err())
            .all(|problem| problem.reason == TARGET_BUSY);
        if only_busy && digest == Some(attempt.request_digest.as_str()) {
            draft.settle(phase::PENDING, problem.reason, problem.message);
            return true;
        }
        return give_up(draft, course.attempt, problem.reason, &problem.message);
    }
    if digest != Some(attempt.request_digest.as_str()) {
        return give_up(draft, course.attempt, SUPERSEDED, "another request has taken its place");
    }
    if course.current != former {
        return give_up(
            draft,
            course.attempt,
            DRIFTED,
            "somebody else changed the workload meanwhile",
        );
    }
    let value = course.wanted.clone();
    let why = format!("every gate passes for request {}", attempt.request_digest);
    write(draft, course, PROGRESSING, value, why)
}

/// Plans the write and the state that follows it.
fn write(draft: &mut Draft<'_>, course: Course<'_>, state: &str, value: String, why: String) -> bool {
    let Some(patch) = deployment::patch(course.workload, &course.delivery, &value) else {
        let message = format!(
            "Deployment {} has no place for the model any more",
            course.workload.name_any()
        );
        return end(draft, course.attempt, FAILED, DRIFTED, &message);
    };
    draft.changes.push(Change::Deliver {
        patch: Box::new(patch),
        workload: course.workload.name_any(),
        value,
        why,
    });
    watch(draft, course.attempt, state, None)
}

/// Records that the workload was written; the generation, where it is not known, is filled in by the write.
fn watch(draft: &mut Draft<'_>, mut attempt: AttemptStatus, state: &str, generation: Option<i64>) -> bool {
    state.clone_into(&mut attempt.state);
    attempt.workload_generation = generation;
    let message = format!(
        "Deployment {} is given {}",
        draft.observed.promotion.spec.target.workload.name, attempt.artifact.artifact_digest
    );
    if state == PROGRESSING {
        draft
            .conditions
            .set(ROLLED_OUT, Truth::Unknown, ROLLOUT_STARTED, &message);
        draft.settle(phase::PROGRESSING, ROLLOUT_STARTED, message);
    }
    draft.status.attempt = Some(attempt);
    true
}

fn progressing(draft: &mut Draft<'_>, reading: &Reading<'_>, course: Course<'_>) -> bool {
    let name = course.workload.name_any();
    if course.current.as_ref() != Some(&course.wanted) {
        let message = format!(
            "somebody changed Deployment {name} to {} during the roll-out; annotate assayer.dev/rerun to try again",
            course.current.as_deref().unwrap_or("no model")
        );
        return end(draft, course.attempt, FAILED, DRIFTED, &message);
    }
    let rejected = reading.rejected_of(&course.attempt.request_digest);
    if let Some(no) = rejected
        .iter()
        .find(|no| no.digest == course.attempt.request_digest)
        .cloned()
    {
        draft.status.rejected = rejected;
        let message = format!("{} rejected request {}", no.by, no.digest);
        draft
            .conditions
            .set(APPROVED, Truth::False, REJECTED_BY_PEOPLE, message);
        return go_back(draft, course, &said_no(&no));
    }
    let problems = pods::problems(&draft.observed.pods, &course.wanted);
    let trouble = problems.first();
    match deployment::rollout(course.workload, course.attempt.workload_generation.unwrap_or_default()) {
        Rollout::Complete { message } => complete(draft, course.attempt, &message),
        Rollout::Idle { message } | Rollout::Progressing { message } => {
            let (reason, message) = match trouble {
                Some(trouble) => (ROLLOUT_STARTED, format!("{message}; {}", trouble.message)),
                None => (ROLLOUT_STARTED, message),
            };
            draft.conditions.set(
                ROLLED_OUT,
                Truth::Unknown,
                trouble.map_or(reason, |t| t.reason),
                &message,
            );
            draft.settle(phase::PROGRESSING, reason, message);
            true
        }
        Rollout::Stuck { message } => {
            let words = trouble.map_or_else(|| message.clone(), |trouble| format!("{message}; {}", trouble.message));
            let reason = trouble.map_or(ROLLOUT_FAILED, |trouble| trouble.reason);
            stuck(draft, course, &Problem { reason, message: words })
        }
    }
}

fn complete(draft: &mut Draft<'_>, mut attempt: AttemptStatus, message: &str) -> bool {
    COMPLETE.clone_into(&mut attempt.state);
    attempt.finished_at = Some(draft.now.to_string());
    ROLLOUT_COMPLETE.clone_into(&mut attempt.cause);
    message.clone_into(&mut attempt.message);
    draft.status.live = Some(draft::live(&attempt, draft.now));
    draft.conditions.set(ROLLED_OUT, Truth::True, ROLLOUT_COMPLETE, message);
    let words = format!(
        "{} is live in Deployment {}: {message}",
        attempt.candidate, draft.observed.promotion.spec.target.workload.name
    );
    draft.settle(phase::LIVE, LIVE, words);
    draft.status.attempt = Some(attempt);
    // A spec that was edited meanwhile is looked at next.
    if draft.status.observed_generation != draft.observed.promotion.metadata.generation {
        draft.next = Next::Now;
    }
    true
}

/// Somebody rejected the request while it was being carried out.
fn said_no(no: &RefusedDigest) -> Problem {
    let why = if no.reason.is_empty() {
        String::new()
    } else {
        format!(" ({})", no.reason)
    };
    Problem {
        reason: REJECTED_BY_PEOPLE,
        message: format!("{} rejected the request during the roll-out{why}", no.by),
    }
}

/// The rollout does not complete: the artifact's digest is remembered, and the former value is restored where there is one.
fn stuck(draft: &mut Draft<'_>, course: Course<'_>, problem: &Problem) -> bool {
    let digest = course.attempt.artifact.artifact_digest.clone();
    draft.status.rolled_back.retain(|refused| refused.digest != digest);
    draft.status.rolled_back.insert(
        0,
        RefusedDigest {
            digest,
            by: format!("rollout of Deployment {}", course.workload.name_any()),
            reason: problem.message.chars().take(400).collect(),
            at: draft.now.to_string(),
        },
    );
    draft.status.rolled_back.truncate(32);
    go_back(draft, course, problem)
}

/// Stops and restores the former value where there is one.
fn go_back(draft: &mut Draft<'_>, course: Course<'_>, problem: &Problem) -> bool {
    let mut attempt = course.attempt;
    let Some(former) = attempt.former_value.clone().filter(|former| *former != course.wanted) else {
        let message = format!(
            "{}; there is no former model to go back to, so the workload stays as it is: somebody has to act",
            problem.message
        );
        return end(draft, attempt, FAILED, NOTHING_TO_RESTORE, &message);
    };
    ROLLING_BACK.clone_into(&mut attempt.state);
    attempt.workload_generation = None;
    problem.message.clone_into(&mut attempt.message);
    let message = format!("going back to {former}{}: {}", unapproved(&attempt), problem.message);
    draft.conditions.set(ROLLED_OUT, Truth::False, problem.reason, &message);
    draft.settle(phase::PROGRESSING, going_back_because(problem.reason), message);
    draft.status.attempt = Some(attempt);
    draft.next = Next::Now;
    true
}

/// Ready says why a roll-out is taken back: a person, or the rollout itself.
fn going_back_because(reason: &'static str) -> &'static str {
    if reason == REJECTED_BY_PEOPLE {
        REJECTED_BY_PEOPLE
    } else {
        ROLLOUT_FAILED
    }
}

fn unapproved(attempt: &AttemptStatus) -> &'static str {
    if attempt.former_approved {
        ""
    } else {
        " (which has no approval on record)"
    }
}

fn rolling_back(draft: &mut Draft<'_>, course: Course<'_>) -> bool {
    let name = course.workload.name_any();
    let Some(former) = course.attempt.former_value.clone() else {
        let message = "there is no former model to go back to".to_owned();
        return end(draft, course.attempt, FAILED, NOTHING_TO_RESTORE, &message);
    };
    let restored = course.current.as_ref() == Some(&former);
    match (course.attempt.workload_generation, restored) {
        (None, true) => {
            let generation = course.workload.metadata.generation;
            return watch(draft, course.attempt, ROLLING_BACK, generation);
        }
        (None, false) if course.current.as_ref() == Some(&course.wanted) => {
            let why = format!("going back: {}", course.attempt.message);
            return write(draft, course, ROLLING_BACK, former, why);
        }
        (_, true) => {}
        (_, false) => {
            let message = format!(
                "somebody changed Deployment {name} to {} while the former model was being restored",
                course.current.as_deref().unwrap_or("no model")
            );
            return end(draft, course.attempt, FAILED, DRIFTED, &message);
        }
    }
    let cause = course.attempt.message.clone();
    match deployment::rollout(course.workload, course.attempt.workload_generation.unwrap_or_default()) {
        Rollout::Complete { .. } | Rollout::Idle { .. } => {
            let message = format!("went back to {former}{}: {cause}", unapproved(&course.attempt));
            end(draft, course.attempt, observed::ROLLED_BACK, ROLLED_BACK, &message)
        }
        Rollout::Progressing { message } => {
            let words = format!(
                "going back to {former}{}: {message}; because {cause}",
                unapproved(&course.attempt)
            );
            let rejected = draft
                .status
                .rejected
                .iter()
                .any(|no| no.digest == course.attempt.request_digest);
            let reason = if rejected { REJECTED_BY_PEOPLE } else { ROLLOUT_FAILED };
            draft.settle(phase::PROGRESSING, reason, words);
            true
        }
        Rollout::Stuck { message } => {
            let words = format!(
                "the former value {former} was restored, and that rollout does not complete either: {message}; before: {cause}"
            );
            end(draft, course.attempt, FAILED, ROLLOUT_FAILED, &words)
        }
    }
}

/// Ends the attempt; what it leaves behind stays until something new is asked.
fn end(draft: &mut Draft<'_>, mut attempt: AttemptStatus, state: &str, cause: &'static str, message: &str) -> bool {
    state.clone_into(&mut attempt.state);
    attempt.finished_at = Some(draft.now.to_string());
    cause.clone_into(&mut attempt.cause);
    message.clone_into(&mut attempt.message);
    let phase = if state == observed::ROLLED_BACK {
        phase::ROLLED_BACK
    } else {
        phase::FAILED
    };
    draft.settle_rollout(Truth::False, phase, cause, message);
    draft.status.attempt = Some(attempt);
    draft.next = Next::Now;
    true
}

/// Gives the attempt up before its first write.
fn give_up(draft: &mut Draft<'_>, mut attempt: AttemptStatus, cause: &str, message: &str) -> bool {
    FAILED.clone_into(&mut attempt.state);
    attempt.finished_at = Some(draft.now.to_string());
    cause.clone_into(&mut attempt.cause);
    attempt.message = format!("given up before the first write: {message}");
    draft.status.attempt = Some(attempt);
    draft.archive();
    false
}
