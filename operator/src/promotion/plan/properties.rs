//! Whatever happens in whatever order: nothing is written unless everything holds at that very reading.

use assayer_crds::names::{APPROVE, APPROVED_BY, RERUN};
use proptest::prelude::*;

use super::World;
use crate::promotion::observed::EvidenceReading;
use crate::promotion::{fixtures, phase};

/// What may happen between two looks.
#[derive(Clone, Debug)]
enum Happening {
    Look,
    Approve,
    Revoke,
    ApproveOwn,
    Edit(u8),
    Guard(Option<u8>),
    Evidence(bool),
    Policy(bool),
    Suspend(bool),
    Complete,
    Stick,
    ByHand(u8),
    Rerun(u8),
    LoseStatus,
}

fn happening() -> impl Strategy<Value = Happening> {
    use Happening::*;
    prop_oneof![
        8 => Just(Look),
        4 => Just(Approve),
        1 => Just(Revoke),
        1 => Just(ApproveOwn),
        1 => (0u8..3).prop_map(Edit),
        1 => proptest::option::of(0u8..3).prop_map(Guard),
        1 => any::<bool>().prop_map(Evidence),
        1 => any::<bool>().prop_map(Policy),
        1 => any::<bool>().prop_map(Suspend),
        3 => Just(Complete),
        1 => Just(Stick),
        1 => (0u8..3).prop_map(ByHand),
        1 => (0u8..9).prop_map(Rerun),
        2 => Just(LoseStatus),
    ]
}

/// Told without any of the code under test: may the workload be written forward now?
fn may_write(world: &World) -> bool {
    let promotion = &world.observed.promotion;
    let annotations = promotion.metadata.annotations.as_ref().unwrap();
    let digest = promotion
        .status
        .as_ref()
        .and_then(|status| status.request.as_ref())
        .map(|request| &request.digest);
    world.observed.guard.is_some()
        && matches!(world.observed.evidence, EvidenceReading::Verified(_))
        && !world.observed.policies.is_empty()
        && !promotion.spec.suspend
        && annotations.get(&format!("{APPROVE}security")) == digest
        && annotations
            .get(&format!("{APPROVED_BY}security"))
            .is_some_and(|user| user == "bob")
        && promotion
            .status
            .as_ref()
            .and_then(|s| s.attempt.as_ref())
            .is_some_and(|a| {
                a.state == "Deciding"
                    && a.ticket == promotion.spec.change.ticket
                    && Some(&a.guard_epoch) == world.observed.guard.as_ref()
            })
}

fn happen(world: &mut World, happening: &Happening) {
    match happening {
        Happening::Look => {
            let going_back = world
                .observed
                .promotion
                .status
                .as_ref()
                .and_then(|s| s.attempt.as_ref())
                .is_some_and(|a| a.state == "RollingBack");
            let may = may_write(world);
            let plan = world.plan();
            assert!(
                plan.changes.is_empty() || may || going_back,
                "written although it may not:\n{}",
                world.transcript
            );
            world.carry_out(&plan);
        }
        Happening::LoseStatus => {
            // A crash between the write on the workload and the status: the status stays as it was.
            let before = world.observed.promotion.status.clone();
            let may = may_write(world);
            let going_back = before
                .as_ref()
                .and_then(|s| s.attempt.as_ref())
                .is_some_and(|a| a.state == "RollingBack");
            let plan = world.plan();
            assert!(
                plan.changes.is_empty() || may || going_back,
                "written although it may not:\n{}",
                world.transcript
            );
            world.carry_out(&plan);
            world.observed.promotion.status = before;
        }
        Happening::Approve => world.approve(),
        Happening::Revoke => fixtures::revoke(&mut world.observed.promotion, "security"),
        Happening::ApproveOwn => {
            let digest = world.request();
            fixtures::approve(&mut world.observed.promotion, "security", "alice", &digest);
        }
        Happening::Edit(ticket) => world.edit(&format!("CHG-{ticket}")),
        Happening::Guard(epoch) => world.observed.guard = epoch.map(|epoch| format!("epoch-{epoch}")),
        Happening::Evidence(good) => {
            world.observed.evidence = if *good {
                EvidenceReading::Verified(Box::new(fixtures::verified()))
            } else {
                EvidenceReading::Invalid("no signature holds".into())
            };
        }
        Happening::Policy(there) => {
            world.observed.policies = if *there { vec![fixtures::policy()] } else { Vec::new() }
        }
        Happening::Suspend(on) => {
            let promotion = &mut world.observed.promotion;
            if promotion.spec.suspend != *on {
                promotion.spec.suspend = *on;
                promotion.metadata.generation = promotion.metadata.generation.map(|generation| generation + 1);
            }
        }
        Happening::Complete => world.rollout_completes(),
        Happening::Stick => world.rollout_sticks(),
        Happening::ByHand(which) => {
            let value = ["by-hand@sha256:0", "by-hand@sha256:1"]
                .get(usize::from(*which))
                .copied();
            world.set_reference(value, false);
        }
        Happening::Rerun(token) => world.annotate(RERUN, &token.to_string()),
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 200, failure_persistence: None, ..ProptestConfig::default() })]

    /// Safety: a write needs everything at that very reading. Liveness: once everything is in place and stays so, the model goes live.
    #[test]
    fn writes_need_everything_and_everything_leads_to_live(happenings in proptest::collection::vec(happening(), 1..60)) {
        let mut world = World::new();
        for happening in &happenings {
            happen(&mut world, happening);
        }
        for good in [Happening::Guard(Some(0)), Happening::Evidence(true), Happening::Policy(true), Happening::Suspend(false)] {
            happen(&mut world, &good);
        }
        for round in 0..4 {
            world.settle();
            world.rollout_completes();
            world.settle();
            if world.phase() == phase::LIVE {
                break;
            }
            world.approve();
            world.annotate(RERUN, &format!("end-{round}"));
        }
        prop_assert_eq!(world.phase(), phase::LIVE, "{}", world.transcript);
        let live = world.observed.promotion.status.as_ref().and_then(|status| status.live.as_ref());
        prop_assert_eq!(live.map(|live| live.artifact.artifact_digest.clone()), Some(fixtures::artifact().to_string()));
    }
}
