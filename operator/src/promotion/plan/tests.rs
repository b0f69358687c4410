//! Promotions from beginning to end in a world without a cluster.

#[path = "world.rs"]
mod world;

#[path = "properties.rs"]
mod properties;

#[path = "said.rs"]
mod said;

use assayer_crds::conditions as reasons;
use assayer_crds::names::RERUN;
use assayer_crds::promotion::LiveStatus;

use super::{Next, Plan};
use crate::promotion::observed::EvidenceReading;
use crate::promotion::{fixtures, phase};
use world::World;

fn status(world: &World) -> &assayer_crds::ModelPromotionStatus {
    world.observed.promotion.status.as_ref().unwrap()
}

/// A former model of which nobody knows who approved it.
const FORMER: &str = "10.0.0.5:5000/models/magika@sha256:former";

#[test]
fn from_request_to_live() {
    let mut world = World::new();
    world.settle();
    assert_eq!(world.phase(), phase::AWAITING_APPROVAL);
    assert_eq!(status(&world).summary.approvals, "0/1");
    assert!(world.writes.is_empty());
    world.approve();
    let decided = world.step();
    assert!(
        decided.changes.is_empty() && decided.next == Next::Now,
        "the decision is recorded first, and then at once acted upon"
    );
    assert_eq!(status(&world).attempt.as_ref().unwrap().state, "Deciding");
    world.settle();
    assert_eq!(world.writes, [fixtures::reference()]);
    assert_eq!(world.phase(), phase::PROGRESSING);
    world.rollout_completes();
    world.settle();
    assert_eq!(world.phase(), phase::LIVE);
    let live = status(&world).live.clone().unwrap();
    assert_eq!(
        (
            live.approvals[0].user.as_str(),
            live.ticket.as_str(),
            live.tier.as_str()
        ),
        ("bob", "CHG-4711", "high")
    );
    assert_eq!(live.artifact.artifact_digest, fixtures::artifact().to_string());
    assert_eq!(world.writes.len(), 1);
    insta::assert_snapshot!(world.transcript);
}

#[test]
fn a_rollout_that_sticks_goes_back_to_the_former_model() {
    let mut world = World::new();
    world.set_reference(Some(FORMER), false);
    world.settle();
    world.approve();
    world.settle();
    world.rollout_sticks();
    world.settle();
    assert_eq!(world.writes, [fixtures::reference(), FORMER.to_owned()]);
    world.rollout_completes();
    world.settle();
    assert_eq!(
        (world.phase(), world.reason("Ready")),
        (phase::ROLLED_BACK, reasons::ROLLED_BACK)
    );
    let attempt = status(&world).attempt.clone().unwrap();
    assert!(attempt.message.contains("no approval on record"), "{}", attempt.message);
    assert_eq!(status(&world).rolled_back[0].digest, fixtures::artifact().to_string());
    insta::assert_snapshot!(world.transcript);

    // The approvals still stand, and a new spec asks for the same artifact: it is not tried again by itself.
    world.edit("CHG-5000");
    world.settle();
    world.approve();
    world.settle();
    assert_eq!(
        (world.phase(), world.reason("Ready")),
        (phase::ROLLED_BACK, reasons::PREVIOUSLY_ROLLED_BACK)
    );
    assert_eq!(world.writes.len(), 2);

    // Unless somebody asks.
    world.annotate(RERUN, "again");
    world.settle();
    assert_eq!(status(&world).rerun.as_deref(), Some("again"));
    assert_eq!(world.writes.len(), 3);
    assert!(status(&world).rolled_back.is_empty());
}

#[test]
fn with_no_former_model_it_stops_and_reports() {
    let mut world = World::new();
    world.settle();
    world.approve();
    world.settle();
    world.rollout_sticks();
    world.settle();
    assert_eq!(
        (world.phase(), world.reason("Ready")),
        (phase::FAILED, reasons::NOTHING_TO_RESTORE)
    );
    assert_eq!(world.writes.len(), 1);
    assert!(status(&world).live.is_none());
}

#[test]
fn a_rollback_that_sticks_too_is_a_failure() {
    let mut world = World::new();
    world.set_reference(Some(FORMER), false);
    world.settle();
    world.approve();
    world.settle();
    world.rollout_sticks();
    world.settle();
    world.rollout_sticks();
    world.settle();
    assert_eq!(
        (world.phase(), world.reason("Ready")),
        (phase::FAILED, reasons::ROLLOUT_FAILED)
    );
}

#[test]
fn a_failed_attempt_leaves_the_live_model_in_the_status() {
    let mut world = World::live();
    let first = status(&world).live.clone().unwrap();
    other_artifact(&mut world);
    world.settle();
    assert_eq!(world.phase(), phase::AWAITING_APPROVAL);
    assert_eq!(status(&world).live.as_ref(), Some(&first));
    world.approve();
    world.settle();
    world.rollout_sticks();
    world.settle();
    assert_eq!(status(&world).live.as_ref(), Some(&first));
    assert!(status(&world).attempt.as_ref().unwrap().former_approved);
    world.rollout_completes();
    world.settle();
    assert_eq!(world.phase(), phase::ROLLED_BACK);
    assert_eq!(status(&world).live.as_ref(), Some(&first));
    assert_eq!(status(&world).history.len(), 1);
}

/// The optimization has finished again and selects an artifact of another digest.
fn other_artifact(world: &mut World) {
    let other = assayer_crds::digest::Digest::of(b"another artifact");
    let EvidenceReading::Verified(verified) = &mut world.observed.evidence else {
        panic!("no evidence")
    };
    let made = &mut verified.statement.predicate.made;
    made.uri = made.uri.replace(made.artifact_digest.as_str(), other.as_str());
    made.artifact_digest = other.clone();
    verified.statement.subject[1]
        .digest
        .insert("sha256".into(), other.hex().to_owned());
    verified.digest = assayer_crds::digest::Digest::of_canonical(&verified.statement).unwrap();
    let optimization = world.observed.optimization.as_mut().unwrap();
    let candidate = &mut optimization.status.as_mut().unwrap().candidates[0];
    candidate.evidence.as_mut().unwrap().digest = verified.digest.to_string();
    let artifact = candidate.artifact.as_mut().unwrap();
    artifact.uri = verified.statement.predicate.made.uri.clone();
    artifact.artifact_digest = other.to_string();
}

/// The decision is recorded; then `edit`, and another look.
fn after_decision(edit: impl FnOnce(&mut World)) -> (World, Plan) {
    let mut world = World::new();
    world.settle();
    world.approve();
    world.step();
    edit(&mut world);
    let plan = world.step();
    (world, plan)
}

#[test]
fn whatever_closes_between_decision_and_write_prevents_the_write() {
    type Edit = fn(&mut World);
    let cases: [(Edit, &str); 10] = [
        (
            |w| fixtures::revoke(&mut w.observed.promotion, "security"),
            reasons::APPROVAL_MISSING,
        ),
        (|w| w.observed.guard = None, reasons::GUARD_DOWN),
        (|w| w.observed.guard = Some("epoch-2".into()), reasons::APPROVAL_MISSING),
        (
            |w| w.observed.evidence = EvidenceReading::Invalid("gone".into()),
            reasons::EVIDENCE_INVALID,
        ),
        (|w| w.observed.policies.clear(), reasons::NO_POLICY),
        (|w| w.edit("CHG-2"), reasons::APPROVAL_MISSING),
        (|w| w.observed.promotion.spec.suspend = true, reasons::SUSPENDED),
        (|w| w.observed.deployment = None, reasons::TARGET_NOT_FOUND),
        (|w| w.observed.optimization = None, reasons::SOURCE_NOT_FOUND),
        (other_artifact, reasons::APPROVAL_MISSING),
    ];
    for (index, (edit, reason)) in cases.into_iter().enumerate() {
        let (world, plan) = after_decision(edit);
        assert!(plan.changes.is_empty() && world.writes.is_empty(), "case {index}");
        assert_eq!(world.reason("Ready"), reason, "case {index}");
        assert!(status(&world).attempt.is_none(), "case {index}");
        assert!(
            status(&world).history[0].message.contains("before the first write"),
            "case {index}"
        );
    }
}

#[test]
fn a_workload_that_changed_since_the_decision_is_decided_anew() {
    let (world, plan) = after_decision(|world| {
        world.set_reference(Some(FORMER), false);
    });
    assert!(plan.changes.is_empty());
    let attempt = status(&world).attempt.as_ref().unwrap();
    assert_eq!(
        (attempt.state.as_str(), attempt.former_value.as_deref()),
        ("Deciding", Some(FORMER))
    );
}

#[test]
fn a_crash_after_any_write_changes_nothing() {
    // The workload was written and the status was not.
    let mut world = World::new();
    world.settle();
    world.approve();
    world.step();
    world.set_reference(Some(&fixtures::reference()), true);
    fixtures::revoke(&mut world.observed.promotion, "security");
    world.settle();
    assert_eq!((world.phase(), world.writes.len()), (phase::PROGRESSING, 0));
    world.rollout_sticks();
    world.step();
    assert_eq!(status(&world).attempt.as_ref().unwrap().state, "Failed");
    // The former value was restored and the status was not written.
    let mut world = World::new();
    world.set_reference(Some(FORMER), false);
    world.settle();
    world.approve();
    world.settle();
    world.rollout_sticks();
    world.step();
    world.set_reference(Some(FORMER), true);
    world.settle();
    world.rollout_completes();
    world.settle();
    assert_eq!((world.phase(), world.writes.len()), (phase::ROLLED_BACK, 1));
}

#[test]
fn a_spec_edited_during_the_rollout_waits_for_its_end() {
    let mut world = World::new();
    world.settle();
    world.approve();
    world.settle();
    world.edit("CHG-2");
    world.settle();
    assert_eq!(
        (world.phase(), status(&world).observed_generation),
        (phase::PROGRESSING, Some(1))
    );
    world.rollout_completes();
    world.settle();
    assert_eq!(
        (world.phase(), status(&world).observed_generation),
        (phase::AWAITING_APPROVAL, Some(2))
    );
    assert_eq!(status(&world).live.as_ref().unwrap().ticket, "CHG-4711");
    // Taken back: what was approved stands again.
    world.edit("CHG-4711");
    world.settle();
    assert_eq!((world.phase(), world.writes.len()), (phase::LIVE, 1));
    assert_eq!(world.reason("Approved"), reasons::APPROVED_BY_PEOPLE);
}

#[test]
fn a_changed_policy_or_lost_evidence_does_not_unsettle_what_is_live() {
    let mut world = World::live();
    world.observed.policies[0].spec.tiers[1].approvals[0].count = 2;
    world.settle();
    assert_eq!(world.phase(), phase::LIVE);
    world.observed.evidence = EvidenceReading::Invalid("gone".into());
    world.settle();
    assert_eq!(
        (world.phase(), world.reason("EvidenceVerified")),
        (phase::LIVE, reasons::EVIDENCE_INVALID)
    );
    world.observed.optimization = None;
    world.settle();
    assert_eq!(world.phase(), phase::LIVE);
}

#[test]
fn drift_is_reported_and_only_put_right_when_asked() {
    let mut world = World::live();
    world.set_reference(Some(FORMER), false);
    world.settle();
    assert_eq!(
        (world.phase(), world.reason("Ready")),
        (phase::FAILED, reasons::DRIFTED)
    );
    assert!(status(&world).live.is_none());
    assert_eq!(world.writes.len(), 1);
    world.annotate(RERUN, "1");
    world.settle();
    world.rollout_completes();
    world.settle();
    assert_eq!((world.phase(), world.writes.len()), (phase::LIVE, 2));
    // Put back by hand: it is live again.
    world.set_reference(None, false);
    world.settle();
    assert_eq!(world.reason("Ready"), reasons::DRIFTED);
    world.set_reference(Some(&fixtures::reference()), false);
    world.settle();
    assert_eq!((world.phase(), world.writes.len()), (phase::LIVE, 2));
}

#[test]
fn drift_during_a_rollout_is_never_overwritten() {
    for rolling_back in [false, true] {
        let mut world = World::new();
        world.set_reference(Some(FORMER), false);
        world.settle();
        world.approve();
        world.settle();
        if rolling_back {
            world.rollout_sticks();
            world.settle();
        }
        let writes = world.writes.len();
        world.set_reference(Some("by-hand@sha256:1"), false);
        world.settle();
        assert_eq!(
            (world.phase(), world.reason("Ready")),
            (phase::FAILED, reasons::DRIFTED)
        );
        assert_eq!(world.writes.len(), writes);
    }
}

#[test]
fn a_deployment_that_goes_during_the_rollout_ends_it() {
    let mut world = World::new();
    world.settle();
    world.approve();
    world.settle();
    world.observed.deployment = None;
    world.settle();
    assert_eq!(
        (world.phase(), world.reason("Ready")),
        (phase::FAILED, reasons::TARGET_NOT_FOUND)
    );
}

#[test]
fn another_promotion_supersedes_this_one() {
    let mut world = World::live();
    let mut other = fixtures::promotion();
    other.metadata.uid = Some("p-2".into());
    other.metadata.name = Some("magika-next".into());
    let mut attempt = status(&world).attempt.clone().unwrap();
    attempt.state = "Progressing".into();
    other.status.get_or_insert_default().attempt = Some(attempt);
    world.observed.others = vec![other];
    world.set_reference(Some(FORMER), true);
    world.settle();
    assert_eq!(
        world.phase(),
        phase::LIVE,
        "while the other one is at it, nobody knows how it ends"
    );
    let status_of_other = world.observed.others[0].status.as_mut().unwrap();
    status_of_other.attempt.as_mut().unwrap().state = "Complete".into();
    let mut live = LiveStatus::default();
    live.artifact.uri = format!("oci://{FORMER}");
    status_of_other.live = Some(live);
    world.settle();
    assert_eq!(
        (world.phase(), world.reason("Ready")),
        (phase::SUPERSEDED, reasons::SUPERSEDED)
    );
    assert!(status(&world).live.is_none());
    assert_eq!(world.writes.len(), 1);
}

#[test]
fn a_rejection_is_terminal_for_its_digest_only() {
    let mut world = World::new();
    world.settle();
    let digest = world.request();
    world.annotate("reject.assayer.dev/security", &digest);
    world.annotate("rejected-by.assayer.dev/security", "carl");
    world.settle();
    assert_eq!(
        (world.phase(), world.reason("Ready")),
        (phase::REJECTED, reasons::REJECTED_BY_PEOPLE)
    );
    fixtures::revoke(&mut world.observed.promotion, "security");
    world.approve();
    world.settle();
    assert_eq!(world.phase(), phase::REJECTED);
    world.edit("CHG-2");
    world.settle();
    assert_eq!(world.phase(), phase::AWAITING_APPROVAL);
    assert!(world.writes.is_empty());
}

#[test]
fn a_refused_approval_is_told_once() {
    let mut world = World::new();
    world.settle();
    let digest = world.request();
    fixtures::approve(&mut world.observed.promotion, "security", "alice", &digest);
    let told = world.step();
    assert!(
        told.notes.iter().any(|note| note.reason == reasons::APPROVAL_REFUSED),
        "{:?}",
        told.notes
    );
    assert!(world.step().notes.is_empty());
}

#[test]
fn suspension_and_deletion_start_nothing() {
    let mut world = World::new();
    world.observed.promotion.spec.suspend = true;
    world.settle();
    world.approve();
    world.settle();
    assert_eq!(
        (world.phase(), world.reason("Ready")),
        (phase::PENDING, reasons::SUSPENDED)
    );
    let mut world = World::new();
    world.settle();
    world.approve();
    world.step();
    world.observed.promotion.metadata.deletion_timestamp =
        Some(k8s_openapi::apimachinery::pkg::apis::meta::v1::Time(world.now));
    world.settle();
    assert!(world.writes.is_empty());
}

#[test]
fn the_history_is_a_ring_of_ten() {
    let mut world = World::live();
    for round in 0..12 {
        world.annotate(RERUN, &format!("{round}"));
        world.settle();
        world.rollout_completes();
        world.settle();
    }
    assert_eq!(status(&world).history.len(), 10);
    assert_eq!(world.phase(), phase::LIVE);
}

#[test]
fn an_attempt_that_lost_fields_to_an_older_schema_is_not_repeated() {
    let mut world = World::live();
    let attempt = world
        .observed
        .promotion
        .status
        .as_mut()
        .unwrap()
        .attempt
        .as_mut()
        .unwrap();
    attempt.policy_digest = String::new();
    attempt.evidence = assayer_crds::common::EvidenceReference::default();
    world.settle();
    assert_eq!((world.phase(), world.writes.len()), (phase::LIVE, 1));
}
