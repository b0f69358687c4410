//! Runs in a simulated world: whole transcripts, each failure, crashes and orders at random.

mod failures;

use assayer_crds::conditions as reasons;
use assayer_crds::contract::FailureClass;
use proptest::prelude::*;
use serde_json::json;

use super::phases;
use crate::optimization::gates;
use crate::optimization::world::{Fate, World, spec};
use crate::status::violations;

/// Reconciles and lets Jobs end, the first one first, until nothing is left to do.
fn settle(world: &mut World) {
    settle_by(world, |_| 0);
}

fn settle_by(world: &mut World, mut pick: impl FnMut(usize) -> usize) {
    for _ in 0..400 {
        let plan = world.reconcile();
        conform(world);
        let running = world.running();
        if plan.changes.is_empty() {
            if phases::terminal(&world.status().phase)
                && world
                    .jobs
                    .values()
                    .all(|job| job.job.spec.as_ref().unwrap().ttl_seconds_after_finished.is_some())
            {
                return;
            }
            if !running.is_empty() {
                world.end(&running[pick(running.len()) % running.len()].clone());
            }
        }
        world.pass(5);
    }
    panic!(
        "no end: {:?}\n{}",
        world.status().conditions,
        world.transcript.join("\n")
    );
}

fn conform(world: &World) {
    if let Some(status) = &world.object.status {
        let problems = violations(&status.conditions, status.observed_generation);
        assert!(problems.is_empty(), "{problems:?}");
    }
}

impl World {
    fn status(&self) -> &assayer_crds::ModelOptimizationStatus {
        self.object.status.as_ref().unwrap()
    }

    fn ready(&self) -> (String, String) {
        let ready = self
            .status()
            .conditions
            .iter()
            .find(|c| c.type_ == reasons::READY)
            .unwrap();
        (ready.reason.clone(), ready.message.clone())
    }

    fn settled(mut self) -> Self {
        settle(&mut self);
        self
    }
}

#[test]
fn a_candidate_measured_on_another_instruction_set_is_a_warning() {
    let warned = |instruction_sets| {
        let mut world = World::new();
        world.instruction_sets = instruction_sets;
        let transcript = world.settled().transcript;
        transcript
            .into_iter()
            .filter(|line| line.contains("Warning InstructionSetDiffers"))
            .collect::<Vec<String>>()
    };
    let lines = warned(("avx2", "avx512_vnni"));
    assert_eq!(lines.len(), 2, "once for each candidate: {lines:?}");
    assert!(
        lines[0].contains("made for avx2 and measured on avx512_vnni in edge"),
        "{lines:?}"
    );
    assert!(warned(("avx2", "avx2")).is_empty());
    assert!(warned(("", "avx2")).is_empty(), "nothing is known of the first");
}

/// The transcript, with names that follow from evidence's bytes left out.
fn transcript(world: &World) -> String {
    let lines = world
        .transcript
        .iter()
        .map(|line| match line.split_once("assayer-evidence-") {
            Some((before, _)) => format!("{before}assayer-evidence-…"),
            None => line.clone(),
        });
    lines.collect::<Vec<_>>().join("\n")
}

#[test]
fn the_whole_run() {
    let world = World::new().settled();
    insta::assert_snapshot!(transcript(&world), @r"
    phase Baselining
      Normal WorkerStarted: measuring the baseline in edge, attempt 1: Job assayer-magika-int8-2d0951dff6a5
    phase Optimizing
      Normal WorkerStarted: making dynamic, attempt 1: Job assayer-magika-int8-198ef190baad
      Normal WorkerStarted: making static, attempt 1: Job assayer-magika-int8-987198596bd8
      Normal BaselineMeasured: measured in edge
    phase Validating
      Normal WorkerStarted: measuring dynamic against the baseline in edge, attempt 1: Job assayer-magika-int8-dce87e905e90
      Normal CandidatesMade: 2 of 2 candidates made
      Normal WorkerStarted: measuring static against the baseline in edge, attempt 1: Job assayer-magika-int8-13853a7ee4e7
      Normal EvidenceStored: evidence of dynamic is in config map assayer-evidence-…
      Warning CandidateRejected: dynamic: latencyP99 4.71 times the baseline (28.3 ms against 6.00 ms), at most 0.80
    phase Succeeded
      Normal EvidenceStored: evidence of static is in config map assayer-evidence-…
      Normal CandidatesJudged: static passed every blocking gate
      Normal CandidateSelected: static passed every blocking gate and is selected (sha256:2053dbbf6ec7); dynamic: latencyP99 4.71 times the baseline (28.3 ms against 6.00 ms), at most 0.80
    ");
    let status = world.status();
    assert_eq!(status.selected.as_deref(), Some("static"));
    assert_eq!(status.summary.candidates, "2/2");
    assert_eq!(status.summary.digest.len(), 12);
    assert_eq!(status.pareto, ["static"]);
    assert_eq!(world.evidence.len(), 2, "rejected candidates have evidence, too");
    assert!(status.conditions.iter().all(|condition| condition.status == "True"));
    for entry in &status.candidates {
        let reference = entry.evidence.as_ref().unwrap();
        let statement = &world.evidence[&reference.config_map];
        assert_eq!(statement.predicate.candidate, entry.name);
        // Judged again from the evidence, the verdicts are the same.
        let spec = serde_json::from_value(statement.predicate.spec.clone()).unwrap();
        let again = gates::judge(&spec, &gates::Findings::of(&statement.predicate));
        assert_eq!(again, statement.predicate.verdicts);
    }
}

#[test]
fn a_settled_run_stays_as_it_is() {
    let mut world = World::new().settled();
    world.pass(100_000);
    world.settings.worker_image = world.settings.worker_image.replace("aaaa", "cccc");
    let before = world.object.status.clone();
    let plan = world.reconcile();
    assert!(plan.changes.is_empty() && plan.notes.is_empty(), "{:?}", plan.changes);
    assert_eq!(before, world.object.status);
}

#[test]
fn a_candidate_that_fails_leaves_the_others_alone() {
    let world = World::new()
        .every(
            "make/dynamic",
            &Fate::Reports(FailureClass::Refused, "OperatorUnknown", "Foo"),
        )
        .settled();
    assert_eq!(world.status().phase, phases::SUCCEEDED);
    assert_eq!(world.status().candidates[0].state, "Failed");
    assert_eq!(world.status().candidates[0].message, "OperatorUnknown: Foo");
    assert_eq!(world.evidence.len(), 1);
    let none = World::new()
        .every(
            "make/dynamic",
            &Fate::Reports(FailureClass::Refused, "OperatorUnknown", "Foo"),
        )
        .every(
            "make/static",
            &Fate::Reports(FailureClass::Refused, "NoEffect", "nothing to do"),
        )
        .settled();
    assert_eq!(
        (none.status().phase.as_str(), none.ready().0.as_str()),
        (phases::FAILED, reasons::NO_CANDIDATE)
    );
}

#[test]
fn missed_gates_reject_with_numbers() {
    let mut world = World::new();
    world.numbers.insert("static".into(), (0.9, 0.90));
    let world = world.settled();
    assert_eq!(world.status().phase, phases::REJECTED);
    let (reason, message) = world.ready();
    assert_eq!(reason, reasons::GATES_FAILED);
    assert!(
        message.contains("0.0251 below the baseline (0.9251), at most 0.01"),
        "{message}"
    );
    assert!(message.contains("latencyP99 0.90 times the baseline (5.40 ms against 6.00 ms), at most 0.80"));
    assert_eq!(world.evidence.len(), 2);
}

#[test]
fn too_few_samples_are_inconclusive() {
    let mut spec = spec();
    spec.gates[1].min_samples = Some(1_000);
    let world = World::with(spec).settled();
    assert_eq!(world.status().phase, phases::REJECTED);
    assert_eq!(world.ready().0, reasons::GATES_INCONCLUSIVE);
    assert!(
        world.ready().1.contains("200 samples, at least 1000"),
        "{}",
        world.ready().1
    );
}

#[test]
fn a_change_supersedes_and_a_rerun_runs_again() {
    let mut world = World::new();
    world.reconcile();
    let job = world.running().remove(0);
    world.end(&job);
    world.reconcile();
    world.reconcile();
    world.object.metadata.generation = Some(2);
    world.object.spec.gates[1].max_ratio = Some("0.10".into());
    let plan = world.reconcile();
    assert!(!world.jobs.contains_key(&job), "Jobs of another generation are deleted");
    assert!(plan.notes.iter().any(|note| note.reason == reasons::SUPERSEDED));
    assert_eq!(world.status().history[0].phase, "Superseded");
    settle(&mut world);
    assert_eq!(world.status().phase, phases::REJECTED);
    let evidence = world.evidence.len();
    world.object.metadata.annotations = Some([("assayer.dev/rerun".to_owned(), "again".to_owned())].into());
    world.reconcile();
    assert_eq!(world.status().rerun.as_deref(), Some("again"));
    assert_eq!(world.status().history[0].phase, phases::REJECTED);
    settle(&mut world);
    assert_eq!(world.evidence.len(), evidence + 2, "evidence of the former run stays");
    world.object.metadata.annotations = None;
    let plan = world.reconcile();
    assert!(plan.changes.is_empty(), "taking the token away asks for nothing");
    assert_eq!(world.status().history.len(), 2);
}

#[test]
fn a_running_worker_is_waited_for_and_a_deleted_object_left_alone() {
    let mut world = World::new().every("baseline/edge", &Fate::Hangs);
    world.reconcile();
    let job = world.running().remove(0);
    world.end(&job);
    world.reconcile();
    let plan = world.reconcile();
    assert!(plan.changes.is_empty() && plan.notes.is_empty());
    assert_eq!(plan.next, super::Next::After(super::POLL));
    assert!(world.ready().1.contains(&job), "{}", world.ready().1);
    world.object.metadata.deletion_timestamp = Some(k8s_openapi::apimachinery::pkg::apis::meta::v1::Time(world.now));
    world.object.metadata.generation = Some(2);
    let plan = world.reconcile();
    assert!(
        matches!(&plan.changes[..], [super::Change::DeleteJob { name, .. }] if *name == job),
        "{:?}",
        plan.changes
    );
    assert_eq!(plan.next, super::Next::AwaitChange);
}

#[test]
fn other_workers_in_the_middle_begin_anew() {
    let mut world = World::new();
    world.reconcile();
    let job = world.running().remove(0);
    world.end(&job);
    world.reconcile();
    world.settings.worker_image = world.settings.worker_image.replace("aaaa", "cccc");
    world.reconcile();
    assert!(!world.jobs.contains_key(&job));
    assert_eq!(world.status().history.len(), 1);
}

#[test]
fn suspending_stops_what_runs() {
    let mut world = World::new();
    world.reconcile();
    assert_eq!(world.running().len(), 1);
    world.object.spec.suspend = true;
    world.object.metadata.generation = Some(2);
    world.reconcile();
    conform(&world);
    assert!(world.jobs.is_empty());
    assert_eq!(
        (world.status().phase.as_str(), world.ready().0.as_str()),
        (phases::PENDING, reasons::SUSPENDED)
    );
    assert!(world.reconcile().changes.is_empty());
    world.object.spec.suspend = false;
    world.object.metadata.generation = Some(3);
    settle(&mut world);
    assert_eq!(world.status().phase, phases::SUCCEEDED);
}

#[test]
fn a_deleted_job_and_a_lost_report_are_tried_again() {
    let mut world = World::new();
    world.reconcile();
    world.jobs.clear();
    world.reconcile();
    assert_eq!(world.status().work[0].state, "Retrying");
    world.pass(60);
    world.reconcile();
    let job = world.running().remove(0);
    world.end(&job);
    world.reconcile();
    assert_eq!(world.status().work[0].state, "Done");
    world.kept.clear();
    world.reconcile();
    assert_eq!(
        (world.status().work[0].state.as_str(), world.status().work[0].attempt),
        ("Retrying", 3)
    );
    settle(&mut world);
    assert_eq!(world.status().phase, phases::SUCCEEDED);
}

#[test]
fn specs_that_the_schema_let_through_are_refused() {
    let cases: [(serde_json::Value, &str, &str); 10] = [
        (json!([]), "/environments", "spec.environments is empty"),
        (json!("0s"), "/run/deadline", "spec.run.deadline is 0s"),
        (json!("soon"), "/run/deadline", "spec.run.deadline `soon`"),
        (json!("cloud"), "/gates/0/environment", "names environment `cloud`"),
        (json!("p99"), "/gates/0/name", "names `p99` twice"),
        (json!(null), "/data/calibration", "spec.data.calibration is missing"),
        (json!("1e3"), "/gates/1/maxRatio", "maxRatio `1e3`"),
        (json!([]), "/candidates/0/stages", "has no stages"),
        (json!([{}]), "/candidates/0/stages", "names no technique, or two"),
        (
            json!([{"recover": {"method": "GPTQ"}}, {"quantize": {"mode": "Dynamic"}}]),
            "/candidates/0/stages",
            "recover with method: GPTQ does not follow",
        ),
    ];
    for (value, path, message) in cases {
        let mut spec = serde_json::to_value(spec()).unwrap();
        let (parent, field) = path.rsplit_once('/').unwrap();
        spec.pointer_mut(parent).unwrap()[field] = value;
        let mut world = World::with(serde_json::from_value(spec).unwrap());
        world.reconcile();
        conform(&world);
        assert_eq!(
            (world.status().phase.as_str(), world.ready().0.as_str()),
            (phases::FAILED, reasons::INVALID_SPEC)
        );
        assert!(world.ready().1.contains(message), "{}", world.ready().1);
        assert!(world.jobs.is_empty());
        assert!(world.reconcile().notes.is_empty());
    }
}

/// What must never be, whatever happened.
fn sound(world: &World) {
    let Some(status) = &world.object.status else {
        return;
    };
    if let Some(selected) = &status.selected {
        let entry = status.candidates.iter().find(|entry| entry.name == *selected).unwrap();
        assert_eq!(entry.state, "Passed");
        let blocking: Vec<_> = entry
            .verdicts
            .iter()
            .filter(|verdict| verdict.severity == "Block")
            .collect();
        assert!(!blocking.is_empty() && blocking.iter().all(|verdict| verdict.verdict == gates::PASSED));
        let evidence = entry.evidence.as_ref().unwrap();
        assert!(
            world.evidence.contains_key(&evidence.config_map),
            "what is selected has evidence"
        );
    }
    let measuring = world.running().into_iter().filter(|name| {
        let step = &world.jobs[name].job.metadata.annotations.as_ref().unwrap()["assayer.dev/step"];
        !step.starts_with("make/")
    });
    assert!(measuring.count() <= 1, "measurements disturb each other");
}

fn fates() -> impl Strategy<Value = Fate> {
    prop_oneof![
        6 => Just(Fate::Succeeds),
        1 => Just(Fate::Reports(FailureClass::Storage, "StorageUnavailable", "away")),
        1 => Just(Fate::Reports(FailureClass::Refused, "ModelInvalid", "bad")),
        1 => Just(Fate::Vanishes),
        1 => Just(Fate::RunsOutOfMemory),
        1 => Just(Fate::Evicted("low on memory")),
        1 => Just(Fate::Tampered),
        1 => Just(Fate::ExtraContainer),
        1 => Just(Fate::NoLog),
        1 => Just(Fate::TooLate),
    ]
}

const STEPS: [&str; 5] = [
    "baseline/edge",
    "make/dynamic",
    "make/static",
    "measure/dynamic/edge",
    "measure/static/edge",
];

proptest! {
    #![proptest_config(ProptestConfig { cases: 24, failure_persistence: None, ..ProptestConfig::default() })]

    /// Any order, any failures, any crash: the run ends, soundly, and then nothing moves any more.
    #[test]
    fn every_history_ends_soundly(
        given in proptest::collection::vec((0..5_usize, 1..4_i32, fates()), 0..8),
        order in proptest::collection::vec(any::<usize>(), 64),
        crash in proptest::option::of(0..24_usize),
        ratio in 0.1..2.0_f64,
        accuracy in 0.85..0.95_f64,
    ) {
        let mut world = World::new();
        world.crash_after = crash;
        world.numbers.insert("static".into(), (ratio, accuracy));
        for (step, attempt, fate) in given {
            world.fates.insert((STEPS[step].to_owned(), attempt), fate);
        }
        let mut at = 0;
        settle_by(&mut world, |_| { at += 1; order[at % order.len()] });
        sound(&world);
        let passes = ratio <= 0.8 && 0.9251 - accuracy <= 0.01;
        prop_assert!(passes || world.status().selected.is_none());
        prop_assert!(phases::terminal(&world.status().phase));
        let before = world.object.status.clone();
        world.pass(10_000);
        let plan = world.reconcile();
        prop_assert!(plan.changes.is_empty() && plan.notes.is_empty());
        prop_assert_eq!(before, world.object.status);
    }

    /// The order in which Jobs end changes nothing in the outcome.
    #[test]
    fn order_does_not_matter(order in proptest::collection::vec(any::<usize>(), 64)) {
        let straight = World::new().settled();
        let mut world = World::new();
        let mut at = 0;
        settle_by(&mut world, |_| { at += 1; order[at % order.len()] });
        prop_assert_eq!(&straight.status().selected, &world.status().selected);
        prop_assert_eq!(&straight.status().phase, &world.status().phase);
        let verdicts = |world: &World| world.status().candidates.iter().map(|c| c.verdicts.clone()).collect::<Vec<_>>();
        prop_assert_eq!(verdicts(&straight), verdicts(&world));
    }
}

/// A crash after any single write ends in the same place as no crash.
#[test]
fn a_crash_after_any_write_changes_nothing() {
    let straight = World::new().settled();
    for writes in 0..40 {
        let mut world = World::new();
        world.crash_after = Some(writes);
        settle(&mut world);
        assert_eq!(
            world.status().selected,
            straight.status().selected,
            "crash after {writes}"
        );
        let attempts = world.status().work.iter().map(|work| work.attempt).max();
        assert_eq!(attempts, Some(1), "crash after {writes} costs no attempt");
        assert_eq!(world.evidence.len(), 2, "crash after {writes}");
    }
}
