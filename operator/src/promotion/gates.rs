//! The gates between a candidate and a workload, one pure function each.
//!
//! A gate passes with a sentence or is closed with a reason; whatever it needs and does not find keeps it closed. The order and the
//! conditions that they fill are in `chain`.

use assayer_crds::conditions as reasons;
use assayer_crds::digest::Digest;
use assayer_crds::optimization::CandidateStatus;
use jiff::Timestamp;
use kube::ResourceExt as _;

use super::chain::Reading;
use super::observed::{DECIDING, EvidenceReading, Observed, active, rerun};
use super::{ask, source};
use crate::evidence::dsse::Verified;
use crate::targets::{Problem, deployment, value_of};

/// A gate that passes: its reason and one sentence.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Passed {
    /// A reason of [`assayer_crds::conditions`].
    pub reason: &'static str,
    /// One sentence.
    pub message: String,
}

/// What became of one gate.
pub type Judged = Result<Passed, Problem>;

/// How far a clock may run ahead of ours, in seconds.
const SKEW: f64 = 300.0;

#[expect(clippy::unnecessary_wraps, reason = "each gate ends with it")]
fn pass(reason: &'static str, message: impl Into<String>) -> Judged {
    Ok(Passed {
        reason,
        message: message.into(),
    })
}

pub(super) fn closed(reason: &'static str, message: impl Into<String>) -> Problem {
    Problem {
        reason,
        message: message.into(),
    }
}

fn not_judged(needs: &str) -> Problem {
    closed(reasons::PENDING, format!("not judged yet: it needs {needs}"))
}

/// `spec.suspend` is not set.
pub fn not_suspended(reading: &Reading<'_>) -> Judged {
    if reading.observed.promotion.spec.suspend {
        return Err(closed(
            reasons::SUSPENDED,
            "spec.suspend is true: set it to false to go on",
        ));
    }
    pass(reasons::PROGRESSING, "not suspended")
}

/// The optimization exists.
pub fn source_found(reading: &Reading<'_>) -> Judged {
    let observed = reading.observed;
    let found = source::found(&observed.promotion, observed.optimization.as_ref())?;
    pass(
        reasons::SUCCEEDED,
        format!("ModelOptimization {} is there", found.name_any()),
    )
}

/// The optimization has finished its present spec.
pub fn source_finished(reading: &Reading<'_>) -> Judged {
    let observed = reading.observed;
    let finished = source::finished(&observed.promotion, observed.optimization.as_ref())?;
    pass(
        reasons::SUCCEEDED,
        format!("ModelOptimization {} has finished", finished.name_any()),
    )
}

/// The candidate is known and passed.
pub fn candidate_passed(reading: &Reading<'_>) -> Judged {
    let observed = reading.observed;
    let candidate = source::candidate(&observed.promotion, observed.optimization.as_ref())?;
    pass(reasons::SUCCEEDED, format!("candidate {} passed", candidate.name))
}

/// The evidence was read, its signature holds, and it is about this artifact of this run.
pub fn evidence_verified(reading: &Reading<'_>) -> Judged {
    let verified = about(reading.observed)?;
    pass(
        reasons::VERIFIED,
        format!(
            "evidence {} of {} holds",
            verified.digest, verified.statement.predicate.made.artifact_digest
        ),
    )
}

/// The verified evidence, if it is about the candidate that the promotion names.
///
/// # Errors
/// When there is none, it can't be believed, or it is about something else.
pub fn about(observed: &Observed) -> Result<&Verified, Problem> {
    let invalid = |message: String| closed(reasons::EVIDENCE_INVALID, message);
    let optimization = source::found(&observed.promotion, observed.optimization.as_ref())?;
    let candidate = source::candidate(&observed.promotion, Some(optimization))?;
    let verified = match &observed.evidence {
        EvidenceReading::Verified(verified) => verified,
        EvidenceReading::Invalid(why) => {
            let name = optimization.name_any();
            return Err(invalid(format!(
                "{why}: run ModelOptimization {name} again (annotate assayer.dev/rerun)"
            )));
        }
        EvidenceReading::NotRead => {
            return Err(invalid(format!(
                "candidate {} has no evidence on record",
                candidate.name
            )));
        }
    };
    let said = &verified.statement.predicate.optimization;
    let is = &optimization.metadata;
    for (what, said, is) in [
        ("namespace", said.namespace.as_str(), is.namespace.as_deref()),
        ("optimization", said.name.as_str(), is.name.as_deref()),
        ("uid", said.uid.as_str(), is.uid.as_deref()),
        (
            "generation",
            &said.generation.to_string(),
            is.generation.map(|g| g.to_string()).as_deref(),
        ),
        (
            "candidate",
            &verified.statement.predicate.candidate,
            Some(candidate.name.as_str()),
        ),
    ] {
        if is != Some(said) {
            return Err(invalid(format!(
                "the evidence is about {what} `{said}`, not `{}`",
                is.unwrap_or_default()
            )));
        }
    }
    same_artifact(verified, candidate).map_err(invalid)?;
    Ok(verified)
}

/// The artifact in the status, the one that was made, and the subjects of the statement are the same.
fn same_artifact(verified: &Verified, candidate: &CandidateStatus) -> Result<(), String> {
    let made = &verified.statement.predicate.made;
    let recorded = candidate.evidence.clone().unwrap_or_default();
    if recorded.digest != verified.digest.as_str() {
        return Err(format!(
            "the evidence has digest {}, not {}",
            verified.digest, recorded.digest
        ));
    }
    let artifact = candidate.artifact.clone().unwrap_or_default();
    for (what, said, is) in [
        (
            "artifact digest",
            made.artifact_digest.as_str(),
            &artifact.artifact_digest,
        ),
        ("model digest", made.model_digest.as_str(), &artifact.model_digest),
        ("address", &made.uri, &artifact.uri),
    ] {
        if said != is {
            return Err(format!("the evidence names {what} {said}, the optimization {is}"));
        }
    }
    let named = |digest: &Digest| {
        let mut subjects = verified.statement.subject.iter();
        subjects.any(|subject| subject.digest.get("sha256").map(String::as_str) == Some(digest.hex()))
    };
    for digest in [&made.artifact_digest, &made.model_digest] {
        if !named(digest) {
            return Err(format!("{digest} is no subject of the evidence"));
        }
    }
    if made.uri.rsplit_once('@').map(|(_, digest)| digest) != Some(made.artifact_digest.as_str()) {
        return Err(format!(
            "the address {} does not name {}",
            made.uri, made.artifact_digest
        ));
    }
    Ok(())
}

/// Every blocking gate passes when judged again.
pub fn gates_hold(reading: &Reading<'_>) -> Judged {
    let verified = reading.verified.as_ref().map_err(|_| not_judged("verified evidence"))?;
    pass(
        reasons::GATES_HELD,
        super::rejudge::rejudge(&verified.statement.predicate)?,
    )
}

/// A policy says what the change needs.
pub fn policy_found(reading: &Reading<'_>) -> Judged {
    match &reading.demand {
        None => Err(not_judged("verified evidence")),
        Some(Err(why)) => Err(closed(reasons::NO_POLICY, why.clone())),
        Some(Ok(demand)) if reading.request.is_none() && reading.observed.epoch().is_some() => Err(closed(
            reasons::INVALID_SPEC,
            format!("the request of tier {} can't be digested", demand.tier),
        )),
        Some(Ok(demand)) => pass(
            reasons::POLICY_ACCEPTED,
            format!("tier {} by PromotionPolicy {}", demand.tier, demand.policies.join(", ")),
        ),
    }
}

/// The evidence is not older than the tier allows, and not from the future.
pub fn evidence_fresh(reading: &Reading<'_>) -> Judged {
    let (Ok(verified), Some(Ok(demand))) = (&reading.verified, &reading.demand) else {
        return Err(not_judged("evidence and a policy"));
    };
    let recorded = &verified.statement.predicate.recorded_at;
    let at: Timestamp = recorded.parse().map_err(|_| {
        closed(
            reasons::EVIDENCE_INVALID,
            format!("the evidence's time `{recorded}` can't be read"),
        )
    })?;
    let age = reading.now.duration_since(at).as_secs_f64();
    if age < -SKEW {
        return Err(closed(
            reasons::EVIDENCE_INVALID,
            format!("the evidence is of {recorded}, which is in the future"),
        ));
    }
    if age > demand.max_age {
        let name = &verified.statement.predicate.optimization.name;
        return Err(closed(
            reasons::EVIDENCE_STALE,
            format!(
                "the evidence is of {recorded}, tier {} allows {}: kubectl annotate mopt {name} assayer.dev/rerun=$(date +%s) --overwrite",
                demand.tier, demand.max_age_text
            ),
        ));
    }
    pass(
        reasons::VERIFIED,
        format!("evidence {} of {recorded} holds", verified.digest),
    )
}

/// Forged approvals are known to be refused.
pub fn guard_up(reading: &Reading<'_>) -> Judged {
    if reading.observed.guard.is_some() {
        return pass(reasons::GUARD_UP, "the admission policies are in force");
    }
    Err(closed(
        reasons::GUARD_DOWN,
        "the admission policies of Assayer were not seen in force, so no approval can be trusted: install them with the chart",
    ))
}

/// Nobody rejected this very request.
pub fn not_rejected(reading: &Reading<'_>) -> Judged {
    let request = reading.request.as_ref().ok_or_else(|| not_judged("a request"))?;
    let remembered = reading
        .rejected()
        .into_iter()
        .find(|refused| refused.digest == request.digest);
    match remembered {
        Some(refused) => Err(closed(
            reasons::REJECTED_BY_PEOPLE,
            format!(
                "{} rejected this request{}: change the spec or the evidence to ask anew",
                refused.by,
                if refused.reason.is_empty() {
                    String::new()
                } else {
                    format!(" ({})", refused.reason)
                }
            ),
        )),
        None => pass(reasons::PROGRESSING, "nobody rejected it"),
    }
}

/// The artifact was not rolled back before, or somebody asks to try it all the same.
pub fn not_rolled_back(reading: &Reading<'_>) -> Judged {
    let request = reading.request.as_ref().ok_or_else(|| not_judged("a request"))?;
    let promotion = &reading.observed.promotion;
    let status = promotion.status.clone().unwrap_or_default();
    let digest = &request.artifact.artifact_digest;
    let refused = status.rolled_back.into_iter().find(|refused| refused.digest == *digest);
    match refused {
        Some(refused) if rerun(promotion).is_none() => Err(closed(
            reasons::PREVIOUSLY_ROLLED_BACK,
            format!(
                "{digest} was rolled back at {} ({}): kubectl annotate mpromo {} -n {} assayer.dev/rerun=$(date +%s) --overwrite tries it again",
                refused.at,
                refused.reason,
                promotion.name_any(),
                promotion.namespace().unwrap_or_default()
            ),
        )),
        _ => pass(reasons::PROGRESSING, "it was not rolled back before"),
    }
}

/// Everybody whom the tier asks for has said yes to this very request.
pub fn approved(reading: &Reading<'_>) -> Judged {
    let request = reading.request.as_ref().ok_or_else(|| not_judged("a request"))?;
    let refused = match reading.tally.refused.len() {
        0 => String::new(),
        _ => format!("; does not count: {}", reading.tally.refused.join("; ")),
    };
    if !reading.tally.complete() {
        let asked = ask::for_approval(&reading.observed.promotion, request, &reading.tally);
        return Err(closed(reasons::APPROVAL_MISSING, format!("{asked}{refused}")));
    }
    if reading.tally.counted.is_empty() {
        return pass(reasons::NOT_NEEDED, format!("tier {} needs no approval", request.tier));
    }
    let people: Vec<_> = reading
        .tally
        .counted
        .iter()
        .map(|approval| format!("{} ({})", approval.user, approval.role))
        .collect();
    pass(
        reasons::APPROVED_BY_PEOPLE,
        format!(
            "approved by {} for request {}{refused}",
            people.join(", "),
            request.digest
        ),
    )
}

/// The workload is there and can take the model.
pub fn target_ready(reading: &Reading<'_>) -> Judged {
    let spec = &reading.observed.promotion.spec.target;
    let name = &spec.workload.name;
    let Some(workload) = &reading.observed.deployment else {
        return Err(closed(
            reasons::TARGET_NOT_FOUND,
            format!("Deployment {name} does not exist in this namespace: create it"),
        ));
    };
    let former = deployment::preflight(workload, &spec.delivery)?;
    if let Some(request) = &reading.request {
        value_of(&spec.delivery, &request.artifact.uri)?;
    }
    let holds = former.unwrap_or_else(|| "no model".to_owned());
    pass(
        reasons::PROGRESSING,
        format!("Deployment {name} can take it; it has {holds}"),
    )
}

/// No other promotion changes the workload now, or this one began first.
pub fn target_free(reading: &Reading<'_>) -> Judged {
    let name = &reading.observed.promotion.spec.target.workload.name;
    if let Some(unreadable) = reading.observed.unreadable_promotions.first() {
        return Err(closed(
            reasons::TARGET_BUSY,
            format!(
                "ModelPromotion {unreadable} can't be read by this version, so nobody knows what it works on: correct or delete it"
            ),
        ));
    }
    let mine = order(&reading.observed.promotion);
    let first = reading.observed.others.iter().find(|other| {
        let Some(attempt) = active(other) else { return false };
        match (&mine, order(other)) {
            // Both have only decided: the older decision goes first. One that writes already is never overtaken.
            (Some(mine), Some(theirs)) if attempt.state == DECIDING => theirs < *mine,
            _ => true,
        }
    });
    match first {
        Some(other) => Err(closed(
            reasons::TARGET_BUSY,
            format!(
                "ModelPromotion {} works on Deployment {name}; this one waits for it",
                other.name_any()
            ),
        )),
        None => pass(
            reasons::PROGRESSING,
            format!("no other promotion works on Deployment {name}"),
        ),
    }
}

/// When the promotion decided, and its uid; what can't be read comes first.
fn order(promotion: &assayer_crds::ModelPromotion) -> Option<(Timestamp, String)> {
    let attempt = active(promotion)?;
    let at = attempt.started_at.parse().unwrap_or(Timestamp::MIN);
    Some((at, promotion.uid().unwrap_or_default()))
}
