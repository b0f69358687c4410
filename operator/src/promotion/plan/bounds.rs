//! How much a status may say: cut so that the largest one still fits into the API server (and etcd, which takes 1.5 MiB with the spec and
//! the managed fields).
//!
//! Pure. Shortens free text only; how many approvals and policies there may be is decided in `policy`.

use assayer_crds::ModelPromotionStatus;
use assayer_crds::promotion::{ApprovalStatus, AttemptStatus, RefusedDigest};

use crate::status::cut;

/// Of a user's name.
const USER: usize = 256;
/// Of a reason in people's words.
const REASON: usize = 512;
/// The same, of attempts in the history.
const FORMER_REASON: usize = 128;
/// Of what became of an attempt.
const MESSAGE: usize = 1_024;

/// Cuts what is too long.
pub(super) fn fit(status: &mut ModelPromotionStatus) {
    status.approvals.iter_mut().for_each(approval);
    if let Some(of) = &mut status.attempt {
        attempt(of);
    }
    if let Some(live) = &mut status.live {
        live.approvals.iter_mut().for_each(approval);
    }
    for former in &mut status.history {
        attempt(former);
        for approval in &mut former.approvals {
            cut(&mut approval.reason, FORMER_REASON);
        }
    }
    status
        .rejected
        .iter_mut()
        .chain(&mut status.rolled_back)
        .for_each(refused);
}

/// Cuts what is too long in one approval.
pub(super) fn approval(approval: &mut ApprovalStatus) {
    cut(&mut approval.user, USER);
    cut(&mut approval.reason, REASON);
}

fn attempt(attempt: &mut AttemptStatus) {
    attempt.approvals.iter_mut().for_each(approval);
    cut(&mut attempt.message, MESSAGE);
}

fn refused(refused: &mut RefusedDigest) {
    cut(&mut refused.by, USER + 64);
    cut(&mut refused.reason, REASON);
}

#[cfg(test)]
mod tests {
    use assayer_crds::common::{ArtifactStatus, EvidenceReference};
    use assayer_crds::policy::RequiredApproval;
    use assayer_crds::promotion::{Delivery, EnvDelivery, LiveStatus, PromotionSummary, RequestStatus};

    use super::*;
    use crate::promotion::policy::{MAX_APPROVALS, MAX_POLICIES};
    use crate::status::{Conditions, Truth};

    /// Every character that JSON has to escape takes twice its room.
    fn text(length: usize) -> String {
        "\"".repeat(length)
    }

    fn digest() -> String {
        format!("sha256:{}", "a".repeat(64))
    }

    fn artifact() -> ArtifactStatus {
        ArtifactStatus {
            uri: format!("oci://{}@{}", "r".repeat(400), digest()),
            artifact_digest: digest(),
            model_digest: digest(),
            bytes: i64::MAX,
        }
    }

    fn evidence() -> EvidenceReference {
        EvidenceReference {
            config_map: "x".repeat(63),
            digest: digest(),
        }
    }

    fn approvals() -> Vec<ApprovalStatus> {
        let approval = ApprovalStatus {
            role: "r".repeat(50),
            user: text(5_000),
            reason: text(5_000),
            at: "2026-11-24T00:00:00.123456789Z".into(),
        };
        vec![approval; MAX_APPROVALS as usize]
    }

    fn tier() -> String {
        vec!["t".repeat(63); MAX_POLICIES].join("+")
    }

    fn one_attempt() -> AttemptStatus {
        AttemptStatus {
            request_digest: digest(),
            artifact: artifact(),
            state: "RollingBack".into(),
            started_at: "2026-11-24T00:00:00.123456789Z".into(),
            finished_at: Some("2026-11-24T00:00:00.123456789Z".into()),
            former_value: Some(text(2_048)),
            former_approved: false,
            workload_generation: Some(i64::MAX),
            approvals: approvals(),
            delivery: Some(Delivery {
                image_volume: None,
                env: Some(EnvDelivery {
                    name: "n".repeat(128),
                    container: "c".repeat(63),
                }),
            }),
            model: "m".repeat(63),
            version: "v".repeat(63),
            candidate: "c".repeat(40),
            technique: text(300),
            evidence: evidence(),
            tier: tier(),
            owner: "\u{10ffff}".repeat(128),
            policy_digest: digest(),
            guard_epoch: "a".repeat(64),
            ticket: "t".repeat(63),
            reason: "\u{10ffff}".repeat(512),
            cause: "PreviouslyRolledBack".into(),
            message: text(50_000),
        }
    }

    #[test]
    fn the_largest_status_fits() {
        let mut conditions = Conditions::new(&[], i64::MAX, jiff::Timestamp::MAX);
        for type_ in [
            "Ready",
            "Reconciling",
            "EvidenceVerified",
            "GatesPassed",
            "Approved",
            "RolledOut",
        ] {
            conditions.set(
                type_,
                Truth::Unknown,
                "PreviouslyRolledBack",
                "\u{10ffff}".repeat(50_000),
            );
        }
        let refused = RefusedDigest {
            digest: digest(),
            by: text(5_000),
            reason: text(5_000),
            at: "2026-11-24T00:00:00.123456789Z".into(),
        };
        let attempt = one_attempt();
        let mut status = ModelPromotionStatus {
            observed_generation: Some(i64::MAX),
            phase: "AwaitingApproval".into(),
            rerun: Some("r".repeat(4_096)),
            summary: PromotionSummary::default(),
            conditions: conditions.into_list(),
            request: Some(RequestStatus {
                digest: digest(),
                candidate: "c".repeat(40),
                artifact: artifact(),
                evidence: evidence(),
                tier: tier(),
                policy_digest: digest(),
                guard_epoch: "a".repeat(64),
                required: vec![
                    RequiredApproval {
                        role: "r".repeat(50),
                        count: 1
                    };
                    MAX_APPROVALS as usize
                ],
                since: "2026-11-24T00:00:00.123456789Z".into(),
            }),
            approvals: approvals(),
            live: Some(LiveStatus {
                artifact: artifact(),
                evidence: evidence(),
                approvals: approvals(),
                tier: tier(),
                owner: attempt.owner.clone(),
                reason: attempt.reason.clone(),
                ..LiveStatus::default()
            }),
            rejected: vec![refused.clone(); 32],
            rolled_back: vec![refused; 32],
            history: vec![attempt.clone(); 10],
            attempt: Some(attempt),
        };
        fit(&mut status);
        assert_eq!(status.history[9].approvals.len(), MAX_APPROVALS as usize);
        let bytes = serde_json::to_vec(&status).unwrap().len();
        assert!(bytes < 1 << 20, "{bytes} bytes");
        let once = status.clone();
        fit(&mut status);
        assert_eq!(status, once, "what fits is left alone");
    }
}
