//! Each gate with the defect that closes it, and the phase that follows.

use assayer_crds::ModelPromotion;
use assayer_crds::conditions as reasons;
use assayer_crds::names::{REJECT, REJECTED_BY, RERUN};
use assayer_crds::promotion::AttemptStatus;

use super::*;
use crate::promotion::fixtures::{EPOCH, approve, now, observed, revoke};
use crate::promotion::observed::{DECIDING, EvidenceReading, PROGRESSING};

/// Everything in place, and approved.
fn ready() -> Observed {
    let mut observed = observed();
    let digest = Reading::new(&observed, now()).request.unwrap().digest;
    approve(&mut observed.promotion, "security", "bob", &digest);
    observed
}

/// The request is in the status already.
fn asked(observed: &mut Observed) {
    let request = Reading::new(observed, now()).request;
    observed.promotion.status.get_or_insert_default().request = request;
}

fn closed(observed: &Observed) -> Vec<&'static str> {
    let reading = Reading::new(observed, now());
    reading
        .judge()
        .into_iter()
        .filter_map(|(_, judged)| judged.err())
        .map(|problem| problem.reason)
        .collect()
}

fn evidence(observed: &mut Observed) -> &mut assayer_crds::evidence::Statement {
    match &mut observed.evidence {
        EvidenceReading::Verified(verified) => &mut verified.statement,
        _ => panic!("no evidence"),
    }
}

fn at_work(uid: &str, state: &str, started_at: &str) -> ModelPromotion {
    let mut other = crate::promotion::fixtures::promotion();
    other.metadata.uid = Some(uid.to_owned());
    other.metadata.name = Some("magika-canary".to_owned());
    other.status.get_or_insert_default().attempt = Some(AttemptStatus {
        state: state.to_owned(),
        started_at: started_at.to_owned(),
        ..AttemptStatus::default()
    });
    other
}

fn reject(observed: &mut Observed) {
    let digest = Reading::new(observed, now()).request.unwrap().digest;
    let annotations = observed.promotion.metadata.annotations.as_mut().unwrap();
    annotations.insert(format!("{REJECT}security"), digest);
    annotations.insert(format!("{REJECTED_BY}security"), "carl".to_owned());
}

fn rolled_back(observed: &mut Observed) {
    let digest = crate::promotion::fixtures::artifact().to_string();
    observed.promotion.status.get_or_insert_default().rolled_back = vec![RefusedDigest {
        digest,
        ..RefusedDigest::default()
    }];
}

#[test]
fn all_gates_pass_when_everything_is_in_place() {
    assert_eq!(closed(&ready()), Vec::<&str>::new());
    let mut asked_again = ready();
    rolled_back(&mut asked_again);
    asked_again
        .promotion
        .metadata
        .annotations
        .as_mut()
        .unwrap()
        .insert(RERUN.to_owned(), "1".to_owned());
    assert_eq!(closed(&asked_again), Vec::<&str>::new());
}

type Edit = fn(&mut Observed);

fn check(cases: &[(Edit, &str, &str)]) {
    for (index, (edit, reason, expected)) in cases.iter().enumerate() {
        let mut observed = ready();
        edit(&mut observed);
        let found = closed(&observed);
        assert_eq!(found.first(), Some(reason), "case {index}: {found:?}");
        assert_eq!(phase::of_closed_gate(reason), *expected, "case {index}");
        assert!(reasons::REASONS.iter().any(|known| known.name == *reason));
    }
}

fn optimization(observed: &mut Observed) -> &mut assayer_crds::ModelOptimizationStatus {
    observed.optimization.as_mut().unwrap().status.as_mut().unwrap()
}

fn predicate(observed: &mut Observed) -> &mut assayer_crds::evidence::Evidence {
    &mut evidence(observed).predicate
}

fn without_volumes(observed: &mut Observed) {
    let spec = observed.deployment.as_mut().unwrap().spec.as_mut().unwrap();
    spec.template.spec.as_mut().unwrap().volumes = None;
}

#[test]
fn each_defect_of_source_and_evidence_closes_its_gate() {
    use phase::{FAILED, PENDING, REJECTED};
    use reasons::{EVIDENCE_INVALID, EVIDENCE_STALE, GATES_FAILED, GATES_INCONCLUSIVE, NO_CANDIDATE};
    check(&[
        (|o| o.optimization = None, reasons::SOURCE_NOT_FOUND, PENDING),
        (
            |o| optimization(o).phase = "Validating".into(),
            reasons::SOURCE_NOT_READY,
            PENDING,
        ),
        (
            |o| optimization(o).candidates[0].state = "Rejected".into(),
            GATES_FAILED,
            REJECTED,
        ),
        (
            |o| optimization(o).candidates[0].state = "Failed".into(),
            NO_CANDIDATE,
            REJECTED,
        ),
        (|o| o.evidence = EvidenceReading::NotRead, EVIDENCE_INVALID, FAILED),
        (
            |o| o.evidence = EvidenceReading::Invalid("no signature holds".into()),
            EVIDENCE_INVALID,
            FAILED,
        ),
        (
            |o| predicate(o).optimization.uid = "o-2".into(),
            EVIDENCE_INVALID,
            FAILED,
        ),
        (|o| predicate(o).optimization.generation = 1, EVIDENCE_INVALID, FAILED),
        (
            |o| predicate(o).optimization.namespace = "other".into(),
            EVIDENCE_INVALID,
            FAILED,
        ),
        (|o| predicate(o).candidate = "int4".into(), EVIDENCE_INVALID, FAILED),
        (|o| evidence(o).subject.clear(), EVIDENCE_INVALID, FAILED),
        (
            |o| predicate(o).made.uri = "oci://elsewhere".into(),
            EVIDENCE_INVALID,
            FAILED,
        ),
        (
            |o| predicate(o).recorded_at = "2026-11-21T12:00:00Z".into(),
            EVIDENCE_INVALID,
            FAILED,
        ),
        (
            |o| predicate(o).recorded_at = "yesterday".into(),
            EVIDENCE_INVALID,
            FAILED,
        ),
        (
            |o| predicate(o).recorded_at = "2026-10-20T12:00:00Z".into(),
            EVIDENCE_STALE,
            REJECTED,
        ),
        (
            |o| crate::promotion::fixtures::metric(predicate(o), "latencyP99").value = 9.0,
            GATES_FAILED,
            REJECTED,
        ),
        (|o| predicate(o).measured.clear(), GATES_INCONCLUSIVE, REJECTED),
    ]);
}

#[test]
fn each_defect_of_sign_off_and_target_closes_its_gate() {
    use phase::{AWAITING_APPROVAL, FAILED, PENDING, REJECTED, ROLLED_BACK, VERIFYING};
    check(&[
        (|o| o.promotion.spec.suspend = true, reasons::SUSPENDED, PENDING),
        (|o| o.policies.clear(), reasons::NO_POLICY, REJECTED),
        (
            |o| o.unreadable_policies = vec!["odd".into()],
            reasons::NO_POLICY,
            REJECTED,
        ),
        (|o| o.promotion.metadata.uid = None, reasons::INVALID_SPEC, FAILED),
        (|o| o.guard = None, reasons::GUARD_DOWN, VERIFYING),
        (reject, reasons::REJECTED_BY_PEOPLE, REJECTED),
        (rolled_back, reasons::PREVIOUSLY_ROLLED_BACK, ROLLED_BACK),
        (
            |o| revoke(&mut o.promotion, "security"),
            reasons::APPROVAL_MISSING,
            AWAITING_APPROVAL,
        ),
        (|o| o.deployment = None, reasons::TARGET_NOT_FOUND, PENDING),
        (without_volumes, reasons::TARGET_INVALID, FAILED),
        (
            |o| o.others = vec![at_work("p-2", PROGRESSING, "2026-11-20T11:59:00Z")],
            reasons::TARGET_BUSY,
            PENDING,
        ),
        (
            |o| o.others = vec![at_work("p-2", DECIDING, "2026-11-20T11:59:00Z")],
            reasons::TARGET_BUSY,
            PENDING,
        ),
        (
            |o| o.unreadable_promotions = vec!["odd".into()],
            reasons::TARGET_BUSY,
            PENDING,
        ),
    ]);
}

#[test]
fn every_closed_gate_is_reported() {
    let mut observed = observed();
    observed.deployment = None;
    asked(&mut observed);
    observed.guard = None;
    let reading = Reading::new(&observed, now());
    let problem = first_closed(&reading.judge()).unwrap();
    assert_eq!(problem.reason, reasons::GUARD_DOWN);
    for words in [
        "install them with the chart",
        "also: ",
        "kubectl annotate mpromo",
        "Deployment scanner does not exist",
    ] {
        assert!(
            problem.message.contains(words),
            "{} should say {words}",
            problem.message
        );
    }
    let mut conditions = Conditions::new(&[], 1, now());
    fill(&mut conditions, &reading.judge());
    let list = conditions.into_list();
    let status = |type_: &str| {
        list.iter()
            .find(|c| c.type_ == type_)
            .map(|c| (c.status.as_str(), c.reason.as_str()))
    };
    assert_eq!(status(EVIDENCE_VERIFIED), Some(("True", reasons::VERIFIED)));
    assert_eq!(status(GATES_PASSED), Some(("True", reasons::GATES_HELD)));
    assert_eq!(status(APPROVED), Some(("False", reasons::GUARD_DOWN)));
    assert_eq!(status(ROLLED_OUT), Some(("Unknown", reasons::TARGET_NOT_FOUND)));
}

#[test]
fn the_older_decision_goes_first_and_a_writer_is_never_overtaken() {
    let mut mine = ready();
    mine.promotion = ModelPromotion {
        status: at_work("p-1", DECIDING, "2026-11-20T11:58:00Z").status,
        ..mine.promotion
    };
    for (state, at, blocked) in [
        (DECIDING, "2026-11-20T11:59:00Z", false),
        (DECIDING, "2026-11-20T11:57:59.5Z", true),
        (DECIDING, "unknown", true),
        (PROGRESSING, "2026-11-20T11:59:00Z", true),
        ("RollingBack", "2026-11-20T11:59:00Z", true),
        ("Complete", "2026-11-20T11:50:00Z", false),
    ] {
        mine.others = vec![at_work("p-2", state, at)];
        let reading = Reading::new(&mine, now());
        assert_eq!(gates::target_free(&reading).is_err(), blocked, "{state} since {at}");
    }
}

#[test]
fn a_rejection_is_not_believed_while_the_guard_is_down_and_is_remembered_after() {
    let mut observed = ready();
    reject(&mut observed);
    asked(&mut observed);
    observed.guard = None;
    assert!(Reading::new(&observed, now()).rejected().is_empty());
    observed.guard = Some(EPOCH.to_owned());
    let remembered = Reading::new(&observed, now()).rejected();
    assert_eq!(remembered[0].by, "carl (security)");
    // The annotation may go: the digest stays refused.
    revoke(&mut observed.promotion, "security");
    observed.promotion.status.get_or_insert_default().rejected = remembered;
    assert!(closed(&observed).contains(&reasons::REJECTED_BY_PEOPLE));
}

#[test]
fn what_was_said_in_another_epoch_does_not_count() {
    let mut observed = ready();
    assert_eq!(closed(&observed), [""; 0]);
    reject(&mut observed);
    asked(&mut observed);
    // The policies are away: what is asked stays the same question, and nobody is believed.
    observed.guard = None;
    let before = Reading::new(&observed, now());
    assert_eq!(before.request, observed.promotion.status.as_ref().unwrap().request);
    assert!(closed(&observed).contains(&reasons::GUARD_DOWN));
    // They are back: neither the yes nor the no of before counts, and the approver is told.
    observed.guard = Some("epoch-2".to_owned());
    let after = Reading::new(&observed, now());
    assert_ne!(
        after.request.as_ref().map(|r| &r.digest),
        observed
            .promotion
            .status
            .as_ref()
            .unwrap()
            .request
            .as_ref()
            .map(|r| &r.digest)
    );
    assert!(after.rejected().is_empty());
    let problem = first_closed(&after.judge()).unwrap();
    assert_eq!(problem.reason, reasons::APPROVAL_MISSING);
    assert!(
        problem.message.contains("the admission policies have changed since")
            && problem.message.contains("approve again"),
        "{}",
        problem.message
    );
}

#[test]
fn without_an_epoch_there_is_nothing_to_approve() {
    let mut observed = observed();
    observed.guard = None;
    let reading = Reading::new(&observed, now());
    assert_eq!(reading.request, None);
    assert_eq!(first_closed(&reading.judge()).unwrap().reason, reasons::GUARD_DOWN);
}
