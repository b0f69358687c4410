//! All gates in their order, and what they say together.
//!
//! Pure. Every gate is judged at every reading and every one is reported; the first closed one names the phase. A roll-out starts only
//! when all of them pass at one and the same reading.

use assayer_crds::conditions::{APPROVED, EVIDENCE_VERIFIED, GATES_PASSED, PENDING, ROLLED_OUT};
use assayer_crds::promotion::{RefusedDigest, RequestStatus};
use jiff::Timestamp;

use super::approvals::{Tally, tally};
use super::gates::{self, Judged};
use super::observed::Observed;
use super::policy::{self, Demand};
use super::request::{self, Basis};
use super::{phase, source};
use crate::evidence::dsse::Verified;
use crate::status::{Conditions, Standing, Truth};
use crate::targets::Problem;

/// What the gates look at: the observation and what follows from it.
pub struct Reading<'a> {
    /// What was read.
    pub observed: &'a Observed,
    /// When.
    pub now: Timestamp,
    /// The evidence, if it is about the candidate.
    pub verified: Result<&'a Verified, Problem>,
    /// What the policies ask, once the evidence says what the model influences.
    pub demand: Option<Result<Demand, String>>,
    /// The request that approvals must name.
    pub request: Option<RequestStatus>,
    /// Who said what about it.
    pub tally: Tally,
}

/// A gate and the condition that it fills.
pub struct Gate {
    /// Name, for logs and tests.
    pub name: &'static str,
    /// Condition that it fills; none when it only decides.
    pub condition: Option<&'static str>,
    /// The function.
    pub judge: fn(&Reading<'_>) -> Judged,
}

const fn gate(name: &'static str, condition: Option<&'static str>, judge: fn(&Reading<'_>) -> Judged) -> Gate {
    Gate { name, condition, judge }
}

/// The order in which gates are asked.
pub static CHAIN: [Gate; 14] = [
    gate("suspend", None, gates::not_suspended),
    gate("source", None, gates::source_found),
    gate("finished", None, gates::source_finished),
    gate("candidate", Some(GATES_PASSED), gates::candidate_passed),
    gate("evidence", Some(EVIDENCE_VERIFIED), gates::evidence_verified),
    gate("gates", Some(GATES_PASSED), gates::gates_hold),
    gate("policy", Some(APPROVED), gates::policy_found),
    gate("age", Some(EVIDENCE_VERIFIED), gates::evidence_fresh),
    gate("guard", Some(APPROVED), gates::guard_up),
    gate("rejected", Some(APPROVED), gates::not_rejected),
    gate("rolled back", Some(ROLLED_OUT), gates::not_rolled_back),
    gate("approvals", Some(APPROVED), gates::approved),
    gate("target", Some(ROLLED_OUT), gates::target_ready),
    gate("busy", Some(ROLLED_OUT), gates::target_free),
];

impl<'a> Reading<'a> {
    /// Draws the conclusions that gates share.
    pub fn new(observed: &'a Observed, now: Timestamp) -> Self {
        let verified = gates::about(observed);
        let demand = verified.as_ref().ok().map(|verified| {
            if let Some(name) = observed.unreadable_policies.first() {
                return Err(format!(
                    "PromotionPolicy {name} can't be read by this version: correct it first"
                ));
            }
            let influences = &verified.statement.predicate.influences;
            policy::demand(&observed.policies, &observed.namespace_labels, influences)
        });
        let request = match (&verified, &demand) {
            (Ok(verified), Some(Ok(demand))) => requested(observed, verified, demand, now),
            _ => None,
        };
        let tally = request
            .as_ref()
            .map(|request| tally(&observed.promotion, &request.digest, &request.required))
            .unwrap_or_default();
        Self {
            observed,
            now,
            verified,
            demand,
            request,
            tally,
        }
    }

    /// Asks every gate.
    pub fn judge(&self) -> Vec<(&'static Gate, Judged)> {
        CHAIN.iter().map(|gate| (gate, (gate.judge)(self))).collect()
    }

    /// Rejections on record, and those of the present request that are new. While the guard is down nothing new is believed.
    pub fn rejected(&self) -> Vec<RefusedDigest> {
        match &self.request {
            Some(request) => self.rejected_of(&request.digest),
            None => self.observed.promotion.status.clone().unwrap_or_default().rejected,
        }
    }

    /// The same, with those of request `digest`.
    pub fn rejected_of(&self, digest: &str) -> Vec<RefusedDigest> {
        let mut all = self.observed.promotion.status.clone().unwrap_or_default().rejected;
        if self.observed.guard.is_none() {
            return all;
        }
        if let Some(rejection) = tally(&self.observed.promotion, digest, &[]).rejections.first()
            && !all.iter().any(|refused| refused.digest == digest)
        {
            let refused = RefusedDigest {
                digest: digest.to_owned(),
                by: format!("{} ({})", rejection.user, rejection.role),
                reason: rejection.reason.clone(),
                at: self.now.to_string(),
            };
            all.insert(0, refused);
            all.truncate(32);
        }
        all
    }
}

/// The request as it stands now; it keeps its age while its digest stays.
fn requested(observed: &Observed, verified: &Verified, demand: &Demand, now: Timestamp) -> Option<RequestStatus> {
    let promotion = &observed.promotion;
    let candidate = source::candidate(promotion, observed.optimization.as_ref()).ok()?;
    let policy_digest = demand.digest.to_string();
    let guard_epoch = observed.epoch()?;
    let basis = Basis {
        evidence_digest: verified.digest.as_str(),
        tier: &demand.tier,
        policy_digest: &policy_digest,
        guard_epoch,
    };
    let digest = request::digest(promotion, basis)?.to_string();
    let former = promotion.status.as_ref().and_then(|status| status.request.as_ref());
    let since = former
        .filter(|former| former.digest == digest && !former.since.is_empty())
        .map_or_else(|| now.to_string(), |former| former.since.clone());
    Some(RequestStatus {
        digest,
        candidate: candidate.name.clone(),
        artifact: candidate.artifact.clone()?,
        evidence: candidate.evidence.clone()?,
        tier: demand.tier.clone(),
        guard_epoch: guard_epoch.to_owned(),
        policy_digest,
        required: demand.required.clone(),
        since,
    })
}

/// The first gate that is closed, with what the later ones have to say besides.
pub fn first_closed(judged: &[(&'static Gate, Judged)]) -> Option<Problem> {
    let mut closed = judged.iter().filter_map(|(_, judged)| judged.as_ref().err());
    let first = closed.next()?;
    let mut said = vec![first.message.as_str()];
    for other in closed.filter(|other| other.reason != PENDING) {
        if !said.contains(&other.message.as_str()) {
            said.push(&other.message);
        }
    }
    let message = said.join("; also: ");
    Some(Problem {
        reason: first.reason,
        message,
    })
}

/// Writes the conditions that the gates fill: the first closed gate of each decides, else the last one that passes.
pub fn fill(conditions: &mut Conditions, judged: &[(&'static Gate, Judged)]) {
    for type_ in [EVIDENCE_VERIFIED, GATES_PASSED, APPROVED, ROLLED_OUT] {
        let of_type = || judged.iter().filter(|(gate, _)| gate.condition == Some(type_));
        let closed = of_type().find_map(|(_, judged)| judged.as_ref().err());
        let passed = of_type().filter_map(|(_, judged)| judged.as_ref().ok()).next_back();
        match (closed, passed) {
            (Some(problem), _) => conditions.set(type_, truth(problem.reason), problem.reason, &problem.message),
            // Nothing was rolled out because the gates are open: the attempt says when it is.
            (None, Some(passed)) if type_ == ROLLED_OUT => {
                conditions.set(type_, Truth::Unknown, PENDING, &passed.message);
            }
            (None, Some(passed)) => conditions.set(type_, Truth::True, passed.reason, &passed.message),
            (None, None) => {}
        }
    }
}

/// A closed gate is Unknown while it may open by itself, and False when somebody has to act.
fn truth(reason: &str) -> Truth {
    use assayer_crds::conditions::{APPROVAL_MISSING, GUARD_DOWN};
    let stalled = phase::standing(phase::of_closed_gate(reason)) == Standing::Stalled;
    if stalled || [APPROVAL_MISSING, GUARD_DOWN].contains(&reason) {
        Truth::False
    } else {
        Truth::Unknown
    }
}

#[cfg(test)]
#[path = "chain_tests.rs"]
mod tests;
