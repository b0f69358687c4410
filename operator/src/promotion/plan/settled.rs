//! A request that was carried out, or failed: what was reached stands as long as nothing new is asked.
//!
//! Pure. Looks whether the model is still where it was put, and says who took it away; never puts it back by itself.

use assayer_crds::ModelPromotion;
use assayer_crds::conditions::{
    APPROVED, APPROVED_BY_PEOPLE, DRIFTED, EVIDENCE_VERIFIED, GATES_HELD, GATES_PASSED, LIVE, NOT_NEEDED,
    REJECTED_BY_PEOPLE, ROLLED_BACK, ROLLED_OUT, ROLLOUT_COMPLETE, ROLLOUT_FAILED, SUPERSEDED, TARGET_NOT_FOUND,
    VERIFIED,
};
use assayer_crds::promotion::{AttemptStatus, Delivery, RequestStatus};
use kube::ResourceExt as _;

use super::draft::{self, Draft};
use super::{Next, QUICK};
use crate::promotion::chain::Reading;
use crate::promotion::observed::{self, COMPLETE, Observed, active, is_active, rerun};
use crate::promotion::request::{self, Basis};
use crate::promotion::{gates, phase};
use crate::status::Truth;
use crate::targets::{deployment, value_of};

/// Where a model is that was delivered before.
enum Place {
    /// Where it was put.
    There,
    /// Another promotion is changing the workload just now.
    InBetween(String),
    /// Another promotion has brought its own model.
    Taken(String),
    /// Something else is there.
    Gone(String),
    /// The workload does not exist.
    NoWorkload,
}

/// Writes what was reached if the last attempt has carried out (or failed at) exactly what is asked now. False when something new is.
pub(super) fn stands(draft: &mut Draft<'_>, reading: &Reading<'_>) -> bool {
    let Some(attempt) = draft.status.attempt.clone().filter(|attempt| !is_active(attempt)) else {
        return false;
    };
    if rerun(&draft.observed.promotion).is_some() || !same_request(draft.observed, reading, &attempt) {
        return false;
    }
    draft.observe_spec();
    draft.status.rejected = reading.rejected();
    restore_request(draft, &attempt);
    describe(draft, reading, &attempt);
    match attempt.state.as_str() {
        COMPLETE => delivered(draft, &attempt),
        observed::ROLLED_BACK => {
            keep_live(draft);
            draft.settle_rollout(Truth::False, phase::ROLLED_BACK, ROLLED_BACK, &attempt.message);
        }
        _ => {
            keep_live(draft);
            let cause = assayer_crds::conditions::REASONS
                .iter()
                .find(|reason| reason.name == attempt.cause);
            let cause = cause.map_or(ROLLOUT_FAILED, |reason| reason.name);
            draft.settle_rollout(Truth::False, phase::FAILED, cause, &attempt.message);
        }
    }
    true
}

/// Whether spec and evidence are those of the attempt. Policies and the guard's epoch may have changed since: they say what a new request
/// needs.
fn same_request(observed: &Observed, reading: &Reading<'_>, attempt: &AttemptStatus) -> bool {
    let promotion = &observed.promotion;
    let asked = attempt.request_digest.as_str();
    // An attempt that was written under an older schema lacks what the request beside it still says.
    let request = promotion.status.as_ref().and_then(|status| status.request.as_ref());
    let recorded = request.filter(|request| request.digest == asked).map(|request| Basis {
        evidence_digest: &request.evidence.digest,
        tier: &request.tier,
        policy_digest: &request.policy_digest,
        guard_epoch: &request.guard_epoch,
    });
    let attempted = Basis {
        evidence_digest: &attempt.evidence.digest,
        tier: &attempt.tier,
        policy_digest: &attempt.policy_digest,
        guard_epoch: &attempt.guard_epoch,
    };
    let said = reading.verified.as_ref().ok().map(|verified| verified.digest.as_str());
    std::iter::once(attempted).chain(recorded).any(|basis| {
        let digest = request::digest(promotion, basis);
        digest.is_some_and(|digest| digest.as_str() == asked) && said.is_none_or(|said| said == basis.evidence_digest)
    })
}

/// The request that was carried out; an edit that was taken back may have replaced it.
fn restore_request(draft: &mut Draft<'_>, attempt: &AttemptStatus) {
    draft.status.approvals.clone_from(&attempt.approvals);
    if draft
        .status
        .request
        .as_ref()
        .is_some_and(|request| request.digest == attempt.request_digest)
    {
        return;
    }
    draft.status.request = Some(RequestStatus {
        digest: attempt.request_digest.clone(),
        candidate: attempt.candidate.clone(),
        artifact: attempt.artifact.clone(),
        evidence: attempt.evidence.clone(),
        tier: attempt.tier.clone(),
        policy_digest: attempt.policy_digest.clone(),
        guard_epoch: attempt.guard_epoch.clone(),
        required: Vec::new(),
        since: attempt.started_at.clone(),
    });
}

/// The conditions that led to the attempt, as they were; except that its evidence may be gone since.
fn describe(draft: &mut Draft<'_>, reading: &Reading<'_>, attempt: &AttemptStatus) {
    match gates::evidence_verified(reading) {
        Err(problem) if problem.reason == assayer_crds::conditions::EVIDENCE_INVALID => {
            draft
                .conditions
                .set(EVIDENCE_VERIFIED, Truth::False, problem.reason, problem.message);
        }
        _ => {
            let message = format!("evidence {} held when the decision was made", attempt.evidence.digest);
            draft.conditions.set(EVIDENCE_VERIFIED, Truth::True, VERIFIED, message);
        }
    }
    let message = format!("the gates held for evidence {}", attempt.evidence.digest);
    draft.conditions.set(GATES_PASSED, Truth::True, GATES_HELD, message);
    let rejected = draft
        .status
        .rejected
        .iter()
        .find(|no| no.digest == attempt.request_digest);
    if let Some(no) = rejected.filter(|_| attempt.state != COMPLETE) {
        let message = format!("{} rejected request {}", no.by, attempt.request_digest);
        draft
            .conditions
            .set(APPROVED, Truth::False, REJECTED_BY_PEOPLE, message);
        return;
    }
    let people: Vec<_> = attempt
        .approvals
        .iter()
        .map(|approval| format!("{} ({})", approval.user, approval.role))
        .collect();
    let (reason, message) = if people.is_empty() {
        (NOT_NEEDED, format!("tier {} needs no approval", attempt.tier))
    } else {
        let people = people.join(", ");
        (
            APPROVED_BY_PEOPLE,
            format!("approved by {people} for request {}", attempt.request_digest),
        )
    };
    draft.conditions.set(APPROVED, Truth::True, reason, message);
}

/// The attempt was complete: is the model still there?
fn delivered(draft: &mut Draft<'_>, attempt: &AttemptStatus) {
    let name = draft.observed.promotion.spec.target.workload.name.clone();
    let delivery = attempt
        .delivery
        .as_ref()
        .unwrap_or(&draft.observed.promotion.spec.target.delivery);
    match place(draft.observed, delivery, &attempt.artifact.uri) {
        Place::There => {
            if draft
                .status
                .live
                .as_ref()
                .is_none_or(|live| live.request_digest != attempt.request_digest)
            {
                draft.status.live = Some(draft::live(attempt, draft.now));
            }
            let idle = draft.observed.deployment.as_ref().is_some_and(deployment::idle);
            let words = if idle {
                format!("{}; scaled to 0 since, so no pod runs it now", attempt.message)
            } else {
                attempt.message.clone()
            };
            let message = format!("{} is live in Deployment {name}: {words}", attempt.candidate);
            draft.conditions.set(ROLLED_OUT, Truth::True, ROLLOUT_COMPLETE, words);
            draft.settle(phase::LIVE, LIVE, message);
        }
        Place::InBetween(other) => {
            let message = format!(
                "{} was live in Deployment {name}; ModelPromotion {other} is changing it now",
                attempt.candidate
            );
            draft.settle(phase::LIVE, LIVE, message);
            draft.next = Next::After(QUICK);
        }
        Place::Taken(other) => {
            draft.status.live = None;
            let message = format!("ModelPromotion {other} has brought another model into Deployment {name}");
            draft.settle_rollout(Truth::False, phase::SUPERSEDED, SUPERSEDED, &message);
        }
        Place::Gone(value) => {
            draft.status.live = None;
            let message = format!(
                "Deployment {name} has {value} and no longer {}; annotate assayer.dev/rerun to promote it again",
                attempt.artifact.artifact_digest
            );
            draft.settle_rollout(Truth::False, phase::FAILED, DRIFTED, &message);
        }
        Place::NoWorkload => {
            draft.status.live = None;
            let message = format!("Deployment {name} does not exist any more");
            draft.settle_rollout(Truth::Unknown, phase::PENDING, TARGET_NOT_FOUND, &message);
        }
    }
}

/// Forgets the live model when it is no longer in the workload. The phase speaks of something else meanwhile.
pub(super) fn keep_live(draft: &mut Draft<'_>) {
    let Some(live) = &draft.status.live else { return };
    let mut attempts = draft.status.attempt.iter().chain(&draft.status.history);
    let brought = attempts.find(|attempt| attempt.state == COMPLETE && attempt.request_digest == live.request_digest);
    let delivery = brought.and_then(|attempt| attempt.delivery.as_ref());
    let delivery = delivery.unwrap_or(&draft.observed.promotion.spec.target.delivery);
    let place = place(draft.observed, delivery, &live.artifact.uri);
    if matches!(place, Place::Taken(_) | Place::Gone(_) | Place::NoWorkload) {
        draft.status.live = None;
    }
}

/// Where the artifact at `uri` is that was put into the workload by `delivery`.
fn place(observed: &Observed, delivery: &Delivery, uri: &str) -> Place {
    let Some(workload) = &observed.deployment else {
        return Place::NoWorkload;
    };
    let current = deployment::value(workload, delivery);
    if value_of(delivery, uri).ok() == current && current.is_some() {
        return Place::There;
    }
    if let Some(other) = observed.others.iter().find(|other| active(other).is_some()) {
        return Place::InBetween(other.name_any());
    }
    if let Some(other) = observed
        .others
        .iter()
        .find(|other| brought(other, delivery, current.as_deref()))
    {
        return Place::Taken(other.name_any());
    }
    Place::Gone(current.unwrap_or_else(|| "no model".to_owned()))
}

/// Whether the live model of `other` is what the field holds.
fn brought(other: &ModelPromotion, delivery: &Delivery, current: Option<&str>) -> bool {
    let live = other.status.as_ref().and_then(|status| status.live.as_ref());
    let value = live.and_then(|live| value_of(delivery, &live.artifact.uri).ok());
    value.is_some() && value.as_deref() == current
}
