//! A plan while it is written: status, conditions, and the notes that follow from what changed.
//!
//! Pure. Decides how a phase shows; never which phase it is.

use assayer_crds::conditions::{
    APPROVED, EVIDENCE_VERIFIED, GATES_PASSED, PENDING, READY, REJECTED_BY_PEOPLE, ROLLED_OUT, ROLLOUT_FAILED,
};
use assayer_crds::digest::Digest;
use assayer_crds::promotion::{AttemptStatus, LiveStatus, ModelPromotionStatus, PromotionSummary};
use jiff::Timestamp;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Condition;

use super::{Change, Next, Plan, SLOW, bounds};
use crate::events::Note;
use crate::promotion::observed::Observed;
use crate::promotion::phase;
use crate::status::{Conditions, Standing, Truth};

/// Attempts that are kept.
const HISTORY: usize = 10;

/// The plan so far.
pub(super) struct Draft<'a> {
    pub(super) observed: &'a Observed,
    pub(super) now: Timestamp,
    pub(super) status: ModelPromotionStatus,
    pub(super) conditions: Conditions,
    pub(super) changes: Vec<Change>,
    pub(super) notes: Vec<Note>,
    pub(super) next: Next,
}

impl<'a> Draft<'a> {
    /// Starts from the status as it is. While an attempt is under way the generation that it was decided for stays the observed one, so
    /// that nobody can approve a newer spec before it was looked at.
    pub(super) fn new(observed: &'a Observed, now: Timestamp) -> Self {
        let status = observed.promotion.status.clone().unwrap_or_default();
        let generation = status.observed_generation.unwrap_or_default();
        let conditions = Conditions::new(&status.conditions, generation, now);
        Self {
            observed,
            now,
            status,
            conditions,
            changes: Vec::new(),
            notes: Vec::new(),
            next: Next::After(SLOW),
        }
    }

    /// From here on the status speaks of the present spec.
    pub(super) fn observe_spec(&mut self) {
        let generation = self.observed.promotion.metadata.generation.unwrap_or_default();
        self.status.observed_generation = Some(generation);
        let list = std::mem::replace(&mut self.conditions, Conditions::new(&[], generation, self.now)).into_list();
        self.conditions = Conditions::new(&list, generation, self.now);
        self.conditions
            .introduce(&[EVIDENCE_VERIFIED, GATES_PASSED, APPROVED, ROLLED_OUT], PENDING);
    }

    /// Sets phase, Ready, Reconciling and Stalled.
    pub(super) fn settle(&mut self, phase: &str, reason: &str, message: impl Into<String>) {
        phase.clone_into(&mut self.status.phase);
        self.conditions.settle(phase::standing(phase), reason, message);
    }

    /// Sets `RolledOut` and the phase with the same words.
    pub(super) fn settle_rollout(&mut self, truth: Truth, phase: &str, reason: &str, message: &str) {
        self.conditions.set(ROLLED_OUT, truth, reason, message);
        self.settle(phase, reason, message);
    }

    /// Moves the last attempt, if any, into the history.
    pub(super) fn archive(&mut self) {
        if let Some(attempt) = self.status.attempt.take() {
            self.status.history.insert(0, attempt);
            self.status.history.truncate(HISTORY);
        }
    }

    /// Fills the summary, writes down the transitions and gives the plan.
    pub(super) fn finish(mut self) -> Plan {
        let status = &mut self.status;
        let request = status.request.as_ref();
        let needed: u32 = request
            .iter()
            .flat_map(|request| &request.required)
            .map(|place| place.count)
            .sum();
        status.summary = PromotionSummary {
            approvals: request
                .map(|_| format!("{}/{needed}", status.approvals.len()))
                .unwrap_or_default(),
            digest: request
                .map(|request| short(&request.artifact.artifact_digest))
                .unwrap_or_default(),
            live: status
                .live
                .as_ref()
                .map(|live| short(&live.artifact.artifact_digest))
                .unwrap_or_default(),
        };
        status.conditions = self.conditions.into_list();
        bounds::fit(status);
        let before = self.observed.promotion.status.clone().unwrap_or_default();
        let mut notes = transitions(&before, status);
        notes.extend(self.notes);
        Plan {
            changes: self.changes,
            status: self.status,
            notes,
            next: self.next,
        }
    }
}

fn short(digest: &str) -> String {
    digest
        .parse::<Digest>()
        .map(|digest| digest.short(12).to_owned())
        .unwrap_or_default()
}

fn find<'a>(conditions: &'a [Condition], type_: &str) -> Option<&'a Condition> {
    conditions.iter().find(|condition| condition.type_ == type_)
}

/// An event whenever phase or reason of Ready changed.
fn transitions(before: &ModelPromotionStatus, after: &ModelPromotionStatus) -> Vec<Note> {
    let Some(ready) = find(&after.conditions, READY) else {
        return Vec::new();
    };
    let same = before.phase == after.phase
        && find(&before.conditions, READY).is_some_and(|former| former.reason == ready.reason);
    let Some(reason) = assayer_crds::conditions::REASONS
        .iter()
        .map(|known| known.name)
        .find(|name| *name == ready.reason)
        .filter(|_| !same)
    else {
        return Vec::new();
    };
    let warning =
        phase::standing(&after.phase) == Standing::Stalled || [ROLLOUT_FAILED, REJECTED_BY_PEOPLE].contains(&reason);
    let note = if warning { Note::warning } else { Note::normal };
    vec![note(reason, action(&after.phase), ready.message.clone())]
}

/// What the operator does in a phase, imperative.
fn action(phase: &str) -> &'static str {
    match phase {
        phase::AWAITING_APPROVAL => "WaitForApproval",
        phase::PROGRESSING => "RollOut",
        phase::LIVE => "Deliver",
        phase::ROLLED_BACK => "RollBack",
        phase::SUPERSEDED => "StandBack",
        phase::REJECTED | phase::FAILED => "Stop",
        _ => "Wait",
    }
}

/// What is live once `attempt` is complete.
pub(super) fn live(attempt: &AttemptStatus, since: Timestamp) -> LiveStatus {
    LiveStatus {
        model: attempt.model.clone(),
        version: attempt.version.clone(),
        candidate: attempt.candidate.clone(),
        technique: attempt.technique.clone(),
        artifact: attempt.artifact.clone(),
        evidence: attempt.evidence.clone(),
        request_digest: attempt.request_digest.clone(),
        tier: attempt.tier.clone(),
        owner: attempt.owner.clone(),
        ticket: attempt.ticket.clone(),
        reason: attempt.reason.clone(),
        approvals: attempt.approvals.clone(),
        since: since.to_string(),
    }
}
