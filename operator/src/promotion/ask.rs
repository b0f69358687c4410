//! What is said to people who wait: whose approval is missing, and the exact command that gives it.
//!
//! Pure; words only.

use assayer_crds::ModelPromotion;
use assayer_crds::names::{APPROVE, APPROVE_REASON};
use assayer_crds::promotion::RequestStatus;
use kube::ResourceExt as _;

use super::approvals::Tally;

/// Whose approval is missing for `request`, with the command for the first of them.
pub fn for_approval(promotion: &ModelPromotion, request: &RequestStatus, tally: &Tally) -> String {
    let (name, namespace) = (promotion.name_any(), promotion.namespace().unwrap_or_default());
    let missing: Vec<_> = tally
        .missing
        .iter()
        .map(|place| format!("{} of role {}", place.count, place.role))
        .collect();
    let Some(first) = tally.missing.first() else {
        return "every approval is there".to_owned();
    };
    let seat = free_seat(&first.role, tally);
    let overwrite = if promotion.annotations().contains_key(&format!("{APPROVE}{seat}")) {
        " --overwrite"
    } else {
        ""
    };
    format!(
        "candidate {} (tier {}) waits for approval: {}. Run: kubectl annotate mpromo {name} -n {namespace} {APPROVE}{seat}={} {APPROVE_REASON}{seat}='…'{overwrite}, \
         or: kubectl assayer approve {name} -n {namespace} --role {seat} --reason '…'",
        request.candidate,
        request.tier,
        missing.join(", "),
        request.digest
    )
}

/// The first seat of `role` that no counting approval holds.
fn free_seat(role: &str, tally: &Tally) -> String {
    let taken = |seat: &str| tally.counted.iter().any(|approval| approval.seat == seat);
    if !taken(role) {
        return role.to_owned();
    }
    (2..=99)
        .map(|seat| format!("{role}.{seat}"))
        .find(|seat| !taken(seat))
        .unwrap_or_else(|| role.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::promotion::{approvals, fixtures};
    use assayer_crds::policy::RequiredApproval;

    #[test]
    fn the_command_is_exact() {
        let required = [RequiredApproval {
            role: "security".into(),
            count: 2,
        }];
        let request = RequestStatus {
            digest: "sha256:r".into(),
            candidate: "int8".into(),
            tier: "high".into(),
            ..RequestStatus::default()
        };
        let mut promotion = fixtures::promotion();
        let said = for_approval(
            &promotion,
            &request,
            &approvals::tally(&promotion, "sha256:r", &required),
        );
        assert!(said.contains("2 of role security"), "{said}");
        assert!(said.contains(
            "kubectl annotate mpromo magika-prod -n ml approve.assayer.dev/security=sha256:r approve-reason.assayer.dev/security='…',"
        ));
        fixtures::approve(&mut promotion, "security", "bob", "sha256:r");
        let said = for_approval(
            &promotion,
            &request,
            &approvals::tally(&promotion, "sha256:r", &required),
        );
        assert!(
            said.contains("1 of role security") && said.contains("approve.assayer.dev/security.2=sha256:r"),
            "{said}"
        );
        assert!(
            said.contains("kubectl assayer approve magika-prod -n ml --role security.2"),
            "{said}"
        );
        // An approval of an older request holds the seat and has to be overwritten.
        fixtures::approve(&mut promotion, "security", "bob", "sha256:old");
        let said = for_approval(
            &promotion,
            &request,
            &approvals::tally(&promotion, "sha256:r", &required),
        );
        assert!(
            said.contains("approve-reason.assayer.dev/security='…' --overwrite"),
            "{said}"
        );
    }
}
