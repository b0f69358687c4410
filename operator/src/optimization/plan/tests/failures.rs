//! Each way in which a worker can fail, and the words that people read then.

use assayer_crds::conditions as reasons;
use assayer_crds::contract::FailureClass;
use serde_json::json;

use super::{conform, settle};
use crate::optimization::gates;
use crate::optimization::plan::phases;
use crate::optimization::world::{Fate, World, spec};

/// Each failure of a step ends in its reason: on the condition, or, where it may pass, only after all attempts.
#[test]
fn every_failure_has_its_reason() {
    let cases: [(Fate, &str, &str); 14] = [
        (Fate::RunsOutOfMemory, reasons::OUT_OF_MEMORY, "resources.limits.memory"),
        (Fate::TooLate, reasons::DEADLINE_EXCEEDED, "spec.run.deadline"),
        (Fate::Wordless(2), reasons::REPORT_INVALID, "left no report"),
        (Fate::Wordless(1), reasons::INTERNAL, "exited with 1"),
        (Fate::Wordless(139), reasons::RUNTIME_FAILED, "signal 11"),
        (
            Fate::ExtraContainer,
            reasons::WORKER_IDENTITY_MISMATCH,
            "unknown container mesh",
        ),
        (
            Fate::WithoutLabel,
            reasons::WORKER_IDENTITY_MISMATCH,
            "lacks the label assayer.dev/worker",
        ),
        (Fate::OtherImage, reasons::WORKER_IDENTITY_MISMATCH, "ran image"),
        (Fate::Tampered, reasons::REPORT_INVALID, "no line of the log"),
        (
            Fate::Implausible,
            reasons::REPORT_IMPLAUSIBLE,
            "the container ran at most",
        ),
        (
            Fate::Reports(FailureClass::Refused, "ColumnMissing", "column features is not there"),
            reasons::COLUMN_MISSING,
            "column features is not there",
        ),
        (
            Fate::Reports(FailureClass::Resources, "ProviderUnavailable", "CUDA: no device"),
            reasons::PROVIDER_UNAVAILABLE,
            "CUDA: no device",
        ),
        (
            Fate::Reports(FailureClass::Refused, "Nonsense", "x"),
            reasons::REPORT_INVALID,
            "Nonsense",
        ),
        (
            Fate::Evicted("Usage of EmptyDir volume \"out\" exceeds the limit \"16Gi\""),
            reasons::OUT_OF_RESOURCES,
            "exceeds the limit",
        ),
    ];
    for (fate, reason, message) in cases {
        let world = World::new().every("baseline/edge", &fate).settled();
        assert_eq!(world.status().phase, phases::FAILED, "{fate:?}");
        let (ready, told) = world.ready();
        assert_eq!(ready, reason, "{fate:?}: {told}");
        assert!(told.contains(message), "{fate:?}: {told}");
        assert_eq!(world.status().work[0].attempt, 1, "{fate:?} is not tried again");
        assert!(world.evidence.is_empty() && world.status().selected.is_none());
        for candidate in &world.status().candidates {
            assert!(candidate.verdicts.iter().all(|verdict| verdict.verdict == gates::ERROR));
        }
    }
}

#[test]
fn what_may_pass_is_tried_again_and_given_up_in_the_end() {
    let away = Fate::Reports(FailureClass::Storage, "StorageUnavailable", "r:5000 does not answer");
    for fate in [
        away,
        Fate::Vanishes,
        Fate::Wordless(4),
        Fate::NoLog,
        Fate::Evicted("low on memory"),
    ] {
        let once = World::new().fate("baseline/edge", 1, fate.clone()).settled();
        assert_eq!(once.status().phase, phases::SUCCEEDED, "{fate:?}");
        let always = World::new()
            .every("make/static", &fate)
            .every("make/dynamic", &fate)
            .settled();
        assert_eq!(always.status().phase, phases::FAILED, "{fate:?}");
        assert_eq!(always.ready().0, reasons::RETRIES_EXHAUSTED, "{fate:?}");
        let make = always
            .status()
            .work
            .iter()
            .find(|work| work.step == "make/static")
            .unwrap();
        assert_eq!(make.attempt, 3);
        assert!(
            make.message.contains("given up after 3 of 3 attempts"),
            "{}",
            make.message
        );
    }
}

#[test]
fn what_holds_a_worker_up_is_told_and_is_the_reason_at_the_deadline() {
    for (fate, reason) in [
        (Fate::Unschedulable, reasons::UNSCHEDULABLE),
        (Fate::NoImage, reasons::IMAGE_UNAVAILABLE),
        (Fate::NoSecret, reasons::POD_NOT_STARTED),
        (Fate::RefusedPod, reasons::POD_REFUSED),
    ] {
        let mut world = World::new().every("baseline/edge", &fate);
        world.reconcile();
        let job = world.running().remove(0);
        world.end(&job);
        world.reconcile();
        conform(&world);
        assert_eq!(world.ready().0, reason);
        assert_eq!(world.status().phase, phases::BASELINING);
        assert!(
            world.transcript.iter().any(|line| line.contains(reason)),
            "an Event tells of it"
        );
        let told = world.transcript.len();
        world.reconcile();
        assert_eq!(world.transcript.len(), told, "an Event is not repeated");
        world.fates.clear();
        let mut world = world.every("baseline/edge", &Fate::TooLate);
        world.jobs.get_mut(&job).unwrap().pods.clear();
        world.end(&job);
        settle(&mut world);
        assert_eq!(world.ready().0, reason, "{:?}", world.ready());
    }
}

fn with_gpu() -> assayer_crds::ModelOptimizationSpec {
    let mut value = serde_json::to_value(spec()).unwrap();
    value["environments"] = json!([
        {"name": "edge", "executionProvider": "CPU"},
        {"name": "gpu", "executionProvider": "CUDA", "pod": {"queueName": "gpus"}}
    ]);
    value["gates"][1]["environment"] = json!("edge");
    serde_json::from_value(value).unwrap()
}

#[test]
fn an_environment_that_only_pretends_promotes_nothing() {
    let mut world = World::with(with_gpu());
    let fate = Fate::Reports(
        FailureClass::Resources,
        "ProviderUnavailable",
        "CUDA: no CUDA-capable device",
    );
    world = world.every("baseline/gpu", &fate);
    for _ in 0..200 {
        world.reconcile();
        conform(&world);
        if let Some(job) = world.running().first().cloned() {
            world.end(&job);
        } else if world.status().phase == phases::QUEUED {
            assert_eq!(world.ready().0, reasons::QUEUED);
            for seen in world.jobs.values_mut() {
                seen.job.spec.as_mut().unwrap().suspend = Some(false);
            }
        }
        world.pass(5);
    }
    assert!(world.transcript.iter().any(|line| line == "phase Queued"));
    assert_eq!(
        world.status().phase,
        phases::REJECTED,
        "dynamic misses its gate on the processor"
    );
    let fixed = &world.status().candidates[1];
    assert_eq!(fixed.state, "Failed");
    assert!(fixed.message.contains("no CUDA-capable device"), "{}", fixed.message);
    let accuracy = fixed
        .verdicts
        .iter()
        .find(|verdict| verdict.gate == "accuracy")
        .unwrap();
    assert_eq!(accuracy.verdict, gates::ERROR);
    assert!(accuracy.message.contains("no CUDA-capable device"));
    let p99 = fixed.verdicts.iter().find(|verdict| verdict.gate == "p99").unwrap();
    assert_eq!(
        p99.verdict,
        gates::PASSED,
        "a gate on the processor alone is judged there"
    );
    assert!(world.status().selected.is_none());
    let baseline = world
        .status()
        .conditions
        .iter()
        .find(|c| c.type_ == reasons::BASELINE_RECORDED)
        .unwrap();
    assert_eq!(
        (baseline.status.as_str(), baseline.reason.as_str()),
        ("False", reasons::PROVIDER_UNAVAILABLE)
    );
}
