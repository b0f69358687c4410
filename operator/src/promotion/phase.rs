//! Phases of a promotion, and which one a closed gate puts it into.
//!
//! Pure. One table, so that phase, Ready, Reconciling and Stalled never contradict each other.

use assayer_crds::conditions as reasons;

use crate::status::Standing;

/// Something that it rests on is not there yet, or it may not start.
pub const PENDING: &str = "Pending";
/// Evidence and gates are being verified, or can't be trusted now.
pub const VERIFYING: &str = "Verifying";
/// People have to say yes.
pub const AWAITING_APPROVAL: &str = "AwaitingApproval";
/// The decision is recorded, and the workload is being changed.
pub const PROGRESSING: &str = "Progressing";
/// The model is live.
pub const LIVE: &str = "Live";
/// The former model was restored.
pub const ROLLED_BACK: &str = "RolledBack";
/// A gate or a person said no.
pub const REJECTED: &str = "Rejected";
/// Another promotion has brought another model.
pub const SUPERSEDED: &str = "Superseded";
/// It can't go on without a change.
pub const FAILED: &str = "Failed";

/// The phase of a promotion whose first closed gate gave `reason`.
pub fn of_closed_gate(reason: &str) -> &'static str {
    match reason {
        reasons::SUSPENDED
        | reasons::SOURCE_NOT_FOUND
        | reasons::SOURCE_NOT_READY
        | reasons::TARGET_NOT_FOUND
        | reasons::TARGET_BUSY => PENDING,
        reasons::PENDING | reasons::GUARD_DOWN => VERIFYING,
        reasons::APPROVAL_MISSING => AWAITING_APPROVAL,
        reasons::PREVIOUSLY_ROLLED_BACK => ROLLED_BACK,
        reasons::GATES_FAILED
        | reasons::GATES_INCONCLUSIVE
        | reasons::NO_CANDIDATE
        | reasons::EVIDENCE_STALE
        | reasons::NO_POLICY
        | reasons::REJECTED_BY_PEOPLE => REJECTED,
        _ => FAILED,
    }
}

/// How an object in `phase` stands as a whole.
pub fn standing(phase: &str) -> Standing {
    match phase {
        LIVE | SUPERSEDED => Standing::Done,
        ROLLED_BACK | REJECTED | FAILED => Standing::Stalled,
        _ => Standing::InProgress,
    }
}
