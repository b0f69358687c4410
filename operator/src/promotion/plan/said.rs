//! What people say and do while a promotion is on its way: no, not now, not with these policies, and to no pods at all.

use assayer_crds::conditions as reasons;
use assayer_crds::names::RERUN;

use super::{FORMER, World, status};
use crate::promotion::{fixtures, phase};

#[test]
fn a_rejection_during_the_rollout_stops_it_and_goes_back() {
    let mut world = World::new();
    world.set_reference(Some(FORMER), false);
    world.settle();
    world.approve();
    world.settle();
    assert_eq!(world.phase(), phase::PROGRESSING);
    let digest = world.request();
    let says_no = |world: &mut World| {
        world.annotate("reject.assayer.dev/legal", &digest);
        world.annotate("rejected-by.assayer.dev/legal", "carl");
        world.annotate("approve-reason.assayer.dev/legal", "not this week");
    };
    // Nobody is believed while the guard is down: a forged no would be a way to take models away.
    world.observed.guard = None;
    says_no(&mut world);
    world.settle();
    assert_eq!(world.writes, [fixtures::reference()]);
    world.observed.guard = Some(fixtures::EPOCH.into());
    world.settle();
    assert_eq!(world.writes, [fixtures::reference(), FORMER.to_owned()]);
    assert_eq!(
        (world.phase(), world.reason("Ready"), world.reason("Approved")),
        (
            phase::PROGRESSING,
            reasons::REJECTED_BY_PEOPLE,
            reasons::REJECTED_BY_PEOPLE
        )
    );
    world.rollout_completes();
    world.settle();
    assert_eq!(
        (world.phase(), world.reason("Ready"), world.reason("Approved")),
        (phase::ROLLED_BACK, reasons::ROLLED_BACK, reasons::REJECTED_BY_PEOPLE)
    );
    let attempt = status(&world).attempt.clone().unwrap();
    assert!(
        attempt.message.contains("carl (legal) rejected the request") && attempt.message.contains("not this week"),
        "{}",
        attempt.message
    );
    // Terminal for this request, even when it is asked for again; the artifact itself is not to blame.
    world.annotate(RERUN, "again");
    world.settle();
    assert_eq!((world.phase(), world.writes.len()), (phase::REJECTED, 2));
    world.edit("CHG-2");
    world.settle();
    world.approve();
    world.settle();
    assert_eq!(world.writes.len(), 3);
}

#[test]
fn a_rejection_once_it_is_live_takes_nothing_away() {
    let mut world = World::live();
    let digest = world.request();
    world.annotate("reject.assayer.dev/security", &digest);
    world.annotate("rejected-by.assayer.dev/security", "carl");
    world.settle();
    assert_eq!((world.phase(), world.writes.len()), (phase::LIVE, 1));
    assert_eq!(status(&world).rejected.len(), 1);
}

#[test]
fn what_was_approved_before_a_gap_is_approved_again_and_what_is_live_stays() {
    let mut world = World::new();
    world.settle();
    world.approve();
    world.observed.guard = Some("epoch-2".into());
    world.settle();
    assert_eq!(
        (world.phase(), status(&world).summary.approvals.as_str()),
        (phase::AWAITING_APPROVAL, "0/1")
    );
    world.approve();
    world.settle();
    world.rollout_completes();
    world.settle();
    assert_eq!(world.phase(), phase::LIVE);
    world.observed.guard = Some("epoch-3".into());
    world.settle();
    assert_eq!((world.phase(), world.writes.len()), (phase::LIVE, 1));
}

#[test]
fn suspension_keeps_approvals_and_does_not_unsettle_what_is_live() {
    let mut world = World::new();
    world.settle();
    world.observed.promotion.spec.suspend = true;
    world.settle();
    world.approve();
    world.settle();
    assert_eq!(
        (world.phase(), world.reason("Ready")),
        (phase::PENDING, reasons::SUSPENDED)
    );
    world.observed.promotion.spec.suspend = false;
    world.settle();
    assert_eq!((world.phase(), world.writes.len()), (phase::PROGRESSING, 1));
    world.rollout_completes();
    world.settle();
    world.observed.promotion.spec.suspend = true;
    world.settle();
    assert_eq!(world.phase(), phase::LIVE);
}

#[test]
fn without_a_pod_nothing_is_live_and_what_is_live_says_that_no_pod_is_left() {
    let mut world = World::new();
    world.settle();
    world.approve();
    world.settle();
    world.scale(0);
    world.settle();
    assert_eq!(
        (world.phase(), world.writes.len(), status(&world).live.is_none()),
        (phase::PROGRESSING, 1, true)
    );
    let said = |world: &World| {
        let mut conditions = status(world).conditions.iter();
        conditions.find(|c| c.type_ == "RolledOut").unwrap().message.clone()
    };
    assert!(said(&world).contains("is scaled to 0"), "{}", said(&world));
    world.scale(2);
    world.rollout_completes();
    world.settle();
    assert_eq!(world.phase(), phase::LIVE);
    world.scale(0);
    world.settle();
    assert_eq!(world.phase(), phase::LIVE);
    assert!(said(&world).contains("no pod runs it now"), "{}", said(&world));
}
