//! A request that was not carried out yet: every gate is asked, and when all of them pass the decision is recorded.
//!
//! Pure. Never writes a workload: that needs another reading.

use assayer_crds::conditions::{APPROVAL_REFUSED, APPROVED, ROLLED_OUT, ROLLOUT_STARTED};
use assayer_crds::promotion::{ApprovalStatus, AttemptStatus, RefusedDigest, RequestStatus};

use super::draft::Draft;
use super::{Next, QUICK, bounds, settled};
use crate::events::Note;
use crate::promotion::chain::{Reading, fill, first_closed};
use crate::promotion::observed::{COMPLETE, DECIDING, Observed, rerun};
use crate::promotion::phase;
use crate::status::Truth;
use crate::targets::{deployment, field_of};
use assayer_crds::conditions::{GUARD_DOWN, TARGET_BUSY};

/// Asks every gate; records the decision when all of them pass.
pub(super) fn ask(draft: &mut Draft<'_>, reading: &Reading<'_>) {
    draft.observe_spec();
    settled::keep_live(draft);
    draft.status.request.clone_from(&reading.request);
    draft.status.approvals = counted(draft, reading);
    draft.status.rejected = reading.rejected();
    let judged = reading.judge();
    let refused_before = message_of(draft, APPROVED);
    fill(&mut draft.conditions, &judged);
    note_refused(draft, reading, &refused_before);
    match (first_closed(&judged), &reading.request) {
        (Some(problem), _) => {
            if [TARGET_BUSY, GUARD_DOWN].contains(&problem.reason) {
                draft.next = Next::After(QUICK);
            }
            draft.settle(phase::of_closed_gate(problem.reason), problem.reason, problem.message);
        }
        (None, Some(request)) => decide(draft, reading, request),
        (None, None) => {}
    }
}

fn message_of(draft: &Draft<'_>, type_: &str) -> String {
    let status = draft.observed.promotion.status.as_ref();
    let mut conditions = status.iter().flat_map(|status| &status.conditions);
    conditions
        .find(|condition| condition.type_ == type_)
        .map(|condition| condition.message.clone())
        .unwrap_or_default()
}

/// Approvals that count, each with the time at which it was first seen.
fn counted(draft: &Draft<'_>, reading: &Reading<'_>) -> Vec<ApprovalStatus> {
    let same = reading.request.as_ref().map(|request| &request.digest)
        == draft
            .observed
            .promotion
            .status
            .as_ref()
            .and_then(|status| status.request.as_ref())
            .map(|r| &r.digest);
    let former = draft.observed.promotion.status.clone().unwrap_or_default().approvals;
    let seen = |user: &str, role: &str| {
        let known = former.iter().find(|known| known.user == user && known.role == role);
        known
            .filter(|known| same && !known.at.is_empty())
            .map(|known| known.at.clone())
    };
    reading
        .tally
        .counted
        .iter()
        .map(|approval| {
            let mut told = ApprovalStatus {
                role: approval.role.clone(),
                user: approval.user.clone(),
                reason: approval.reason.clone(),
                at: String::new(),
            };
            bounds::approval(&mut told);
            told.at = seen(&told.user, &told.role).unwrap_or_else(|| draft.now.to_string());
            told
        })
        .collect()
}

/// An event for each approval that does not count, when that is new.
fn note_refused(draft: &mut Draft<'_>, reading: &Reading<'_>, before: &str) {
    let new = reading
        .tally
        .refused
        .iter()
        .filter(|why| !before.contains(why.as_str()));
    let notes: Vec<_> = new
        .take(3)
        .map(|why| Note::warning(APPROVAL_REFUSED, "IgnoreApproval", why))
        .collect();
    let after = reading.tally.refused.join("; ");
    if !before.ends_with(&after) {
        draft.notes.extend(notes);
    }
}

/// Writes down what is about to be done, before it is done.
fn decide(draft: &mut Draft<'_>, reading: &Reading<'_>, request: &RequestStatus) {
    let promotion = &draft.observed.promotion;
    let Ok(verified) = &reading.verified else { return };
    let evidence = &verified.statement.predicate;
    let delivery = promotion.spec.target.delivery.clone();
    let former = draft
        .observed
        .deployment
        .as_ref()
        .and_then(|held| deployment::value(held, &delivery));
    let attempt = AttemptStatus {
        request_digest: request.digest.clone(),
        artifact: request.artifact.clone(),
        state: DECIDING.to_owned(),
        started_at: draft.now.to_string(),
        former_approved: former.as_ref().is_some_and(|former| on_record(draft.observed, former)),
        former_value: former,
        approvals: draft.status.approvals.clone(),
        delivery: Some(delivery.clone()),
        model: evidence.model.name.clone(),
        version: evidence.model.version.clone(),
        candidate: request.candidate.clone(),
        technique: evidence.technique.clone(),
        evidence: request.evidence.clone(),
        tier: request.tier.clone(),
        policy_digest: request.policy_digest.clone(),
        guard_epoch: request.guard_epoch.clone(),
        owner: promotion.spec.owner.group.clone(),
        ticket: promotion.spec.change.ticket.clone(),
        reason: promotion.spec.change.reason.clone(),
        ..AttemptStatus::default()
    };
    let people: Vec<_> = attempt
        .approvals
        .iter()
        .map(|approval| format!("{} ({})", approval.user, approval.role))
        .collect();
    let by = if people.is_empty() {
        String::new()
    } else {
        format!("; approved by {}", people.join(", "))
    };
    let message = format!(
        "candidate {} ({}) goes into Deployment {}, {}{by}",
        attempt.candidate,
        attempt.artifact.artifact_digest,
        promotion.spec.target.workload.name,
        field_of(&delivery)
    );
    if let Some(token) = rerun(promotion) {
        draft.status.rerun = Some(token.to_owned());
        let digest = &attempt.artifact.artifact_digest;
        draft
            .status
            .rolled_back
            .retain(|refused: &RefusedDigest| refused.digest != *digest);
    }
    draft.archive();
    draft.status.attempt = Some(attempt);
    draft
        .conditions
        .set(ROLLED_OUT, Truth::Unknown, ROLLOUT_STARTED, &message);
    draft.settle(phase::PROGRESSING, ROLLOUT_STARTED, message);
    draft.next = Next::Now;
}

/// Whether a promotion of this workload brought the value there with the approvals that it needed.
fn on_record(observed: &Observed, value: &str) -> bool {
    let names = |digest: &str| !digest.is_empty() && value.ends_with(&format!("@{digest}"));
    std::iter::once(&observed.promotion)
        .chain(&observed.others)
        .any(|promotion| {
            let Some(status) = &promotion.status else { return false };
            let mut attempts = status.attempt.iter().chain(&status.history);
            status
                .live
                .as_ref()
                .is_some_and(|live| names(&live.artifact.artifact_digest))
                || attempts.any(|attempt| attempt.state == COMPLETE && names(&attempt.artifact.artifact_digest))
        })
}
