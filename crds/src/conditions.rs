//! The conditions of every kind and the reasons that they can have.
//!
//! One place, so that documentation, dashboards and tests speak of the same words. Decides names; `operator/src/status.rs` decides values.

/// Follows the table of phases in the documentation: True when what the spec asks has come about, False when it won't.
pub const READY: &str = "Ready";
/// Present and True only while work goes on (kstatus).
pub const RECONCILING: &str = "Reconciling";
/// Present and True only when somebody has to act (kstatus).
pub const STALLED: &str = "Stalled";

/// `ModelOptimization`: the baseline was measured before anything was changed.
pub const BASELINE_RECORDED: &str = "BaselineRecorded";
/// `ModelOptimization`: every candidate was made, or failed for good.
pub const OPTIMIZED: &str = "Optimized";
/// `ModelOptimization`: every made candidate was measured and judged.
pub const VALIDATED: &str = "Validated";
/// `ModelOptimization`: signed evidence of every judged candidate is kept.
pub const EVIDENCE_RECORDED: &str = "EvidenceRecorded";

/// `ModelPromotion`: the evidence was read live, its signature holds and it is about this artifact.
pub const EVIDENCE_VERIFIED: &str = "EvidenceVerified";
/// `ModelPromotion`: every blocking gate passes when judged again from the evidence.
pub const GATES_PASSED: &str = "GatesPassed";
/// `ModelPromotion`: the approvals that the tier needs are there and name this request.
pub const APPROVED: &str = "Approved";
/// `ModelPromotion`: the workload's rollout with this artifact is complete.
pub const ROLLED_OUT: &str = "RolledOut";

/// A reason with what it means, for the documentation.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Reason {
    /// `PascalCase` word.
    pub name: &'static str,
    /// One sentence for people: what happened and what to do.
    pub meaning: &'static str,
}

macro_rules! reasons {
    ($($(#[doc = $doc:literal])+ $constant:ident = $name:literal;)+) => {
        $($(#[doc = $doc])+ pub const $constant: &str = $name;)+
        /// Every reason that a condition or an Event of Assayer can have, with its meaning.
        pub const REASONS: &[Reason] = &[$(Reason { name: $name, meaning: concat!($($doc),+) }),+];
    };
}

reasons! {
    /// The object was seen and nothing is known yet.
    PENDING = "Pending";
    /// Work goes on.
    PROGRESSING = "Progressing";
    /// `spec.suspend` is true: no new work is started.
    SUSPENDED = "Suspended";
    /// The Job waits in its queue until it is admitted.
    QUEUED = "Queued";
    /// Everything that was asked for has come about.
    SUCCEEDED = "Succeeded";
    /// Every candidate failed a blocking gate; the message has the number and the limit.
    GATES_FAILED = "GatesFailed";
    /// A gate could not be judged: a number is missing, too few samples, or not a number.
    GATES_INCONCLUSIVE = "GatesInconclusive";
    /// No candidate could be made.
    NO_CANDIDATE = "NoCandidate";
    /// The spec can't be carried out; the message names the field.
    INVALID_SPEC = "InvalidSpec";
    /// The machinery gave up after its retries; the message has the last failure.
    RETRIES_EXHAUSTED = "RetriesExhausted";
    /// A worker failed and will be tried again.
    RETRYING = "Retrying";
    /// The pod was refused by pod security, a quota or another admission rule.
    POD_REFUSED = "PodRefused";
    /// The image of a worker can't be pulled.
    IMAGE_UNAVAILABLE = "ImageUnavailable";
    /// No node can take the pod; the message is the scheduler's.
    UNSCHEDULABLE = "Unschedulable";
    /// A container of the pod can't start: a Secret is missing, a volume can't be mounted, or the runtime refused it.
    POD_NOT_STARTED = "PodNotStarted";
    /// A container, or the process with the model in it, ran out of memory; the message has the limit.
    OUT_OF_MEMORY = "OutOfMemory";
    /// The pod vanished before its result was taken: evicted, deleted, or its node was lost.
    POD_LOST = "PodLost";
    /// A result came from a pod that is not the one that was asked for.
    WORKER_IDENTITY_MISMATCH = "WorkerIdentityMismatch";
    /// A report that can't be read, or whose length, digest, plan or nonce is not what was asked for.
    REPORT_INVALID = "ReportInvalid";
    /// A self-reported time does not fit into the time that the container ran.
    REPORT_IMPLAUSIBLE = "ReportImplausible";
    /// The baseline was measured.
    BASELINE_MEASURED = "BaselineMeasured";
    /// Candidates were made and published.
    CANDIDATES_MADE = "CandidatesMade";
    /// Candidates were measured and judged.
    CANDIDATES_JUDGED = "CandidatesJudged";
    /// A candidate was selected.
    CANDIDATE_SELECTED = "CandidateSelected";
    /// A candidate failed a gate.
    CANDIDATE_REJECTED = "CandidateRejected";
    /// A candidate was made on a machine with another instruction set than one that it was measured on: its weights were chosen for the first,
    /// and may be slower, less accurate or overflow on others. Make it on such a node, or set `quantize.weights`.
    INSTRUCTION_SET_DIFFERS = "InstructionSetDiffers";
    /// Signed evidence was stored.
    EVIDENCE_STORED = "EvidenceStored";
    /// A worker Job was created.
    WORKER_STARTED = "WorkerStarted";
    /// A run was superseded by a change of the spec or a rerun.
    SUPERSEDED = "Superseded";

    /// The optimization, candidate or evidence that the promotion names does not exist yet.
    SOURCE_NOT_FOUND = "SourceNotFound";
    /// The optimization has not finished.
    SOURCE_NOT_READY = "SourceNotReady";
    /// The evidence config map is gone, its digest differs, or its signature does not hold.
    EVIDENCE_INVALID = "EvidenceInvalid";
    /// The evidence is older than the tier allows: annotate the optimization with assayer.dev/rerun.
    EVIDENCE_STALE = "EvidenceStale";
    /// The evidence was verified.
    VERIFIED = "Verified";
    /// Every blocking gate passed when judged again.
    GATES_HELD = "GatesHeld";
    /// No `PromotionPolicy` selects the namespace: promotion is refused until one does.
    NO_POLICY = "NoPolicy";
    /// Approvals are missing; the message says whose and prints the command.
    APPROVAL_MISSING = "ApprovalMissing";
    /// The approvals are complete.
    APPROVED_BY_PEOPLE = "ApprovedByPeople";
    /// The tier needs no approval.
    NOT_NEEDED = "NotNeeded";
    /// An approval does not count; the message says why.
    APPROVAL_REFUSED = "ApprovalRefused";
    /// Somebody rejected this very request: terminal until the spec or the evidence changes.
    REJECTED_BY_PEOPLE = "RejectedByPeople";
    /// The admission guard is not in force, so that approvals can't be trusted: all gates are closed.
    GUARD_DOWN = "GuardDown";
    /// The admission guard is in force again.
    GUARD_UP = "GuardUp";
    /// The workload does not exist.
    TARGET_NOT_FOUND = "TargetNotFound";
    /// The workload can't take the model as delivered; the message names the container, volume or field.
    TARGET_INVALID = "TargetInvalid";
    /// Another promotion works on the same workload; the message says which.
    TARGET_BUSY = "TargetBusy";
    /// The artifact can't be mounted as an image volume.
    ARTIFACT_NOT_MOUNTABLE = "ArtifactNotMountable";
    /// The decision was recorded and the workload is being changed.
    ROLLOUT_STARTED = "RolloutStarted";
    /// The workload's rollout is complete.
    ROLLOUT_COMPLETE = "RolloutComplete";
    /// The rollout did not complete and the former value was restored.
    ROLLED_BACK = "RolledBack";
    /// The rollout did not complete.
    ROLLOUT_FAILED = "RolloutFailed";
    /// The rollout did not complete and there is no former value to restore: somebody has to act.
    NOTHING_TO_RESTORE = "NothingToRestore";
    /// This artifact was rolled back before and is not promoted again; annotate assayer.dev/rerun to try anyway.
    PREVIOUSLY_ROLLED_BACK = "PreviouslyRolledBack";
    /// The model is live.
    LIVE = "Live";
    /// The workload no longer carries the model that was promoted; somebody changed it by hand.
    DRIFTED = "Drifted";
    /// A policy is well formed and in force.
    POLICY_ACCEPTED = "PolicyAccepted";
    /// The API server refused a write or could not be reached; it is tried again.
    WRITE_FAILED = "WriteFailed";

    /// A fetched artifact has another digest than was asked for.
    DIGEST_MISMATCH = "DigestMismatch";
    /// The artifact is not image-shaped, or holds no usable file.
    ARTIFACT_REFUSED = "ArtifactRefused";
    /// The model file is not a model that Assayer can read.
    MODEL_INVALID = "ModelInvalid";
    /// The model needs an operator, domain or opset that is not supported.
    OPERATOR_UNKNOWN = "OperatorUnknown";
    /// The model is beyond a limit of size, count or nesting.
    MODEL_TOO_LARGE = "ModelTooLarge";
    /// A column, input or output that was named does not exist or has another type or shape.
    COLUMN_MISSING = "ColumnMissing";
    /// The data set can't be read or has a type that can't feed the model.
    DATA_INVALID = "DataInvalid";
    /// The data set has no rows.
    DATA_EMPTY = "DataEmpty";
    /// Calibration and evaluation data share rows.
    DATA_SHARED = "DataShared";
    /// A stage changed nothing.
    NO_EFFECT = "NoEffect";
    /// The candidate does not load or run in ONNX Runtime, or its outputs are not finite.
    CANDIDATE_BROKEN = "CandidateBroken";
    /// The execution provider can't be used on the node; ONNX Runtime's own words follow.
    PROVIDER_UNAVAILABLE = "ProviderUnavailable";
    /// ONNX Runtime failed on a model that it should have run.
    RUNTIME_FAILED = "RuntimeFailed";
    /// Disk or a quota ran out.
    OUT_OF_RESOURCES = "OutOfResources";
    /// The deadline of a worker passed.
    DEADLINE_EXCEEDED = "DeadlineExceeded";
    /// A registry did not answer, or answered with a server error.
    STORAGE_UNAVAILABLE = "StorageUnavailable";
    /// A registry refused the credentials.
    STORAGE_FORBIDDEN = "StorageForbidden";
    /// The artifact or file does not exist.
    NOT_FOUND = "NotFound";
    /// The worker could not read its plan: operator and worker are of different versions.
    PLAN_INVALID = "PlanInvalid";
    /// A bug of Assayer.
    INTERNAL = "Internal";
}

#[cfg(test)]
mod tests {
    use super::REASONS;
    use crate::contract::reasons;

    #[test]
    fn reasons_are_unique_documented_and_cover_the_workers() {
        let mut names: Vec<_> = REASONS.iter().map(|reason| reason.name).collect();
        names.sort_unstable();
        let all = names.len();
        names.dedup();
        assert_eq!(names.len(), all);
        for reason in reasons::ALL {
            assert!(names.contains(reason), "{reason} is not documented");
        }
    }
}
