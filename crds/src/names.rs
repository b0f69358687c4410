//! Every label, annotation and well-known name of the group, once.
//!
//! These strings are public interface: policies, dashboards and people's scripts depend on them. Nothing here decides.

/// The API group.
pub const GROUP: &str = "assayer.dev";
/// The API version of every kind.
pub const VERSION: &str = "v1alpha1";
/// Field manager of everything that the operator applies.
pub const FIELD_MANAGER: &str = "assayer-operator";

/// Annotation `assayer.dev/rerun: <token>`: run again; acknowledged in `status.rerun`.
pub const RERUN: &str = "assayer.dev/rerun";
/// Annotation with the authenticated user who created the promotion or last changed its spec; stamped by the cluster.
pub const REQUESTED_BY: &str = "assayer.dev/requested-by";
/// Prefix of approvals: `approve.assayer.dev/<role>: <request digest>`.
pub const APPROVE: &str = "approve.assayer.dev/";
/// Prefix of rejections: `reject.assayer.dev/<role>: <request digest>`; terminal for that digest.
pub const REJECT: &str = "reject.assayer.dev/";
/// Prefix of the free-text reason that goes with an approval or a rejection.
pub const APPROVE_REASON: &str = "approve-reason.assayer.dev/";
/// Prefix of the stamp with the approver's (or rejecter's) user name.
pub const APPROVED_BY: &str = "approved-by.assayer.dev/";
/// Prefix of the stamp with the approver's groups, joined with commas.
pub const APPROVER_GROUPS: &str = "approver-groups.assayer.dev/";
/// Prefix of the stamp with the rejecter's user name.
pub const REJECTED_BY: &str = "rejected-by.assayer.dev/";
/// The virtual resource whose verb `approve` a person needs, by role name.
pub const APPROVAL_ROLES: &str = "approvalroles";
/// The verb on [`APPROVAL_ROLES`].
pub const APPROVE_VERB: &str = "approve";

/// Label on pods that serve a governed model: with it, an unrecorded digest counts as unapproved.
pub const GOVERNED: &str = "assayer.dev/governed";
/// Label on every worker Job and pod: `true`.
pub const WORKER: &str = "assayer.dev/worker";
/// Label on worker Jobs: uid of the `ModelOptimization`.
pub const OPTIMIZATION_UID: &str = "assayer.dev/optimization-uid";
/// Annotation on worker Jobs: the generation that they work for.
pub const GENERATION: &str = "assayer.dev/generation";
/// Annotation on worker Jobs: the step (`baseline/edge-cpu`, `make/int8`, `measure/int8/edge-cpu`).
pub const STEP: &str = "assayer.dev/step";
/// Annotation on worker Jobs and pods: the attempt, from 1.
pub const ATTEMPT: &str = "assayer.dev/attempt";
/// Annotation on worker pods: the canonical JSON of the [`WorkerPlan`](crate::contract::WorkerPlan), mounted into the containers.
pub const PLAN: &str = "assayer.dev/plan";
/// Annotation on worker Jobs and pods: sha256 of the plan annotation's bytes.
pub const PLAN_DIGEST: &str = "assayer.dev/plan-sha256";
/// Label on evidence config maps: `true`.
pub const EVIDENCE: &str = "assayer.dev/evidence";
/// Annotation on evidence config maps and governed pods' templates: evidence digest.
pub const EVIDENCE_DIGEST: &str = "assayer.dev/evidence-digest";
/// Annotation on evidence config maps: artifact digest.
pub const ARTIFACT_DIGEST: &str = "assayer.dev/artifact-digest";
/// Label that Kueue reads the queue from.
pub const KUEUE_QUEUE: &str = "kueue.x-k8s.io/queue-name";

/// Prefix of the config maps that keep accepted reports while a run goes on; the hash of the Job's name follows.
pub const REPORT_PREFIX: &str = "assayer-report-";
/// Key of the report's line in such a config map.
pub const REPORT_KEY: &str = "report.json";
/// Key of the DSSE envelope in an evidence config map.
pub const EVIDENCE_KEY: &str = "evidence.dsse.json";
/// Annotation on the manifest of a published candidate: its recipe, as JSON.
pub const RECIPE: &str = "dev.assayer.recipe";
/// File with the recipe of a candidate that was made on one machine; it lies beside the model and is no part of it.
pub const RECIPE_FILE: &str = "recipe.yaml";
/// Prefix of evidence config maps' names; 32 hex digits of the evidence digest follow.
pub const EVIDENCE_PREFIX: &str = "assayer-evidence-";

/// The role of an approval annotation's suffix: `security.2` is the second seat of `security`.
///
/// Returns `None` unless the role is `[a-z0-9-]{1,50}` and the seat, where there is one, is a number from 2 to 99.
pub fn role_of(suffix: &str) -> Option<&str> {
    let (role, seat) = match suffix.split_once('.') {
        Some((role, seat)) => (role, Some(seat)),
        None => (suffix, None),
    };
    let role_holds = (1..=50).contains(&role.len())
        && role
            .bytes()
            .all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-');
    let seat_holds = seat.is_none_or(|seat| {
        !seat.starts_with('0') && seat.parse::<u8>().is_ok_and(|n| (2..=99).contains(&n)) && seat.len() <= 2
    });
    (role_holds && seat_holds).then_some(role)
}

#[cfg(test)]
mod tests {
    use super::role_of;

    #[test]
    fn seats_are_stripped_and_odd_suffixes_refused() {
        assert_eq!(role_of("security"), Some("security"));
        assert_eq!(role_of("security.2"), Some("security"));
        for odd in [
            "",
            "Security",
            "security.1",
            "security.02",
            "security.",
            "security.2.3",
            "a b",
            "security.100",
        ] {
            assert_eq!(role_of(odd), None, "{odd}");
        }
    }
}
