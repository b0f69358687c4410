//! Gates in tables: what passes, what does not, and in which words.

use assayer_crds::contract::{Measurement, Measurements};
use assayer_crds::digest::Digest;
use proptest::prelude::*;
use serde_json::json;

use super::*;
use crate::optimization::world::{measurements, spec};

fn made(bytes: u64) -> Made {
    serde_json::from_value(json!({
        "uri": "oci://r/m@x", "tag": "t", "artifactDigest": Digest::of(b"a"), "modelDigest": Digest::of(b"m"),
        "baselineDigest": Digest::of(b"b"), "files": [], "bytes": bytes, "opset": [15, 17], "passes": [],
        "calibrationRows": 0, "seconds": 1.0, "peakMemoryBytes": 1
    }))
    .unwrap()
}

fn measured(environment: &str, accuracy: f64, ratio: f64) -> Measured {
    Measured {
        environment: environment.into(),
        execution_provider: "CPU".into(),
        baseline_digest: Digest::of(b"b"),
        candidate_digest: Some(Digest::of(b"m")),
        rows: 512,
        baseline: measurements(0.9251, 0.004, 1_000.0),
        candidate: Some(measurements(accuracy, 0.004 * ratio, 250.0)),
        self_reported: Vec::new(),
        run_seconds: 1.0,
    }
}

fn with_gate(gate: &serde_json::Value) -> ModelOptimizationSpec {
    let mut value = serde_json::to_value(spec()).unwrap();
    value["gates"] = json!([gate]);
    serde_json::from_value(value).unwrap()
}

fn verdict_of(spec: &ModelOptimizationSpec, measured: &Measured) -> GateVerdict {
    let made = made(250);
    let findings = Findings {
        made: Some(&made),
        baseline: vec![measured],
        measured: vec![measured],
        failures: BTreeMap::new(),
    };
    judge(spec, &findings).remove(0)
}

#[test]
fn bounds_hold_or_not_in_words() {
    let cases = [
        (
            json!({"name": "g", "metric": "latencyP99", "maxRatio": "0.80"}),
            FAILED,
            "latencyP99 4.71 times the baseline (28.3 ms against 6.00 ms), at most 0.80",
        ),
        (
            json!({"name": "g", "metric": "latencyP50", "max": "5ms"}),
            FAILED,
            "latencyP50 18.8 ms, at most 5.00 ms",
        ),
        (
            json!({"name": "g", "metric": "latencyP50", "max": "20ms"}),
            PASSED,
            "latencyP50 18.8 ms, at most 20.0 ms",
        ),
        (
            json!({"name": "g", "metric": "artifactSize", "maxRatio": "0.25"}),
            PASSED,
            "artifactSize 0.25 times the baseline (250 B against 1000 B), at most 0.25",
        ),
        (
            json!({"name": "g", "metric": "peakMemory", "max": "1Mi"}),
            FAILED,
            "peakMemory 23.8 MiB, at most 1.00 MiB",
        ),
        (
            json!({"name": "g", "metric": "accuracy", "maxDrop": "0.003"}),
            FAILED,
            "accuracy 0.9215 is 0.0036 below the baseline (0.9251), at most 0.003",
        ),
        (
            json!({"name": "g", "metric": "accuracy", "maxDrop": "0.0036"}),
            PASSED,
            "accuracy 0.9215 is 0.0036 below the baseline (0.9251), at most 0.0036",
        ),
    ];
    for (gate, verdict, message) in cases {
        let found = verdict_of(&with_gate(&gate), &measured("edge", 0.9215, 4.71));
        assert_eq!((found.verdict.as_str(), found.message.as_str()), (verdict, message));
    }
}

/// Something that spoils a measurement.
type Damage = fn(&mut Measured);

#[test]
fn what_can_not_be_judged_never_passes() {
    let spec = with_gate(&json!({"name": "g", "metric": "latencyP99", "maxRatio": "9", "minSamples": 100}));
    let damages: [(&str, Damage); 9] = [
        ("the candidate has no latencyP99", |m| {
            m.candidate = Some(Measurements::new());
        }),
        ("the candidate has no latencyP99", |m| m.candidate = None),
        ("the baseline has no latencyP99", |m| m.baseline = Measurements::new()),
        ("99 samples, at least 100", |m| set(m, 0.1, 99)),
        ("not a usable number", |m| set(m, f64::NAN, 200)),
        ("not a usable number", |m| set(m, -1.0, 200)),
        ("the baseline is 0", |m| {
            m.baseline.get_mut("latencyP99").unwrap().value = 0.0;
        }),
        ("another candidate was measured", |m| {
            m.candidate_digest = Some(Digest::of(b"other"));
        }),
        ("it was not measured", |m| m.environment = "elsewhere".into()),
    ];
    for (why, damage) in damages {
        let mut measured = measured("edge", 0.9, 0.5);
        damage(&mut measured);
        let verdict = verdict_of(&spec, &measured);
        assert_eq!(verdict.verdict, INCONCLUSIVE, "{why}");
        assert!(verdict.message.contains(why), "{}", verdict.message);
    }
}

#[test]
fn what_was_not_made_or_measured_twice_is_told_as_that() {
    let spec = with_gate(&json!({"name": "g", "metric": "latencyP99", "maxRatio": "9"}));
    let edge = measured("edge", 0.9, 0.5);
    let made = made(250);
    for (made, measured, why) in [
        (None, vec![], "no candidate was made"),
        (Some(&made), vec![], "it was not measured"),
        (Some(&made), vec![&edge, &edge], "measured more than once"),
    ] {
        let findings = Findings {
            made,
            baseline: vec![&edge],
            measured,
            failures: BTreeMap::new(),
        };
        let verdict = judge(&spec, &findings).remove(0);
        assert_eq!(verdict.verdict, INCONCLUSIVE, "{why}");
        assert!(verdict.message.contains(why), "{}", verdict.message);
    }
}

fn set(measured: &mut Measured, value: f64, samples: u64) {
    let candidate = measured.candidate.as_mut().unwrap();
    candidate.insert("latencyP99".into(), Measurement { value, samples });
}

#[test]
fn the_worst_environment_decides_and_a_failed_one_is_an_error() {
    let mut spec = with_gate(&json!({"name": "g", "metric": "latencyP99", "maxRatio": "0.80"}));
    spec.environments.push(spec.environments[0].clone());
    spec.environments[1].name = "cloud".into();
    let (edge, cloud, made) = (measured("edge", 0.9, 0.9), measured("cloud", 0.9, 2.0), made(250));
    let mut findings = Findings {
        made: Some(&made),
        baseline: vec![&edge, &cloud],
        measured: vec![&edge, &cloud],
        failures: BTreeMap::new(),
    };
    let verdict = judge(&spec, &findings).remove(0);
    assert_eq!(
        (verdict.environment.as_str(), verdict.verdict.as_str()),
        ("cloud", FAILED)
    );
    assert!(verdict.message.ends_with("in cloud"), "{}", verdict.message);
    let edge = measured("edge", 0.9, 0.5);
    findings.measured = vec![&edge];
    findings.failures = BTreeMap::from([("cloud".to_owned(), "ProviderUnavailable: no device".to_owned())]);
    let verdict = judge(&spec, &findings).remove(0);
    assert_eq!(verdict.verdict, ERROR);
    assert!(verdict.message.contains("no device"));
    spec.gates[0].environment = Some("edge".into());
    let verdicts = judge(&spec, &findings);
    assert_eq!(verdicts[0].verdict, PASSED);
    assert!(
        !passes(&spec, &verdicts, &findings),
        "an environment that was not measured lets nothing through"
    );
}

#[test]
fn warnings_let_through_and_borrowed_verdicts_do_not() {
    let mut spec = with_gate(&json!({"name": "g", "metric": "latencyP99", "maxRatio": "0.80", "severity": "Warn"}));
    let (slow, made) = (measured("edge", 0.9, 2.0), made(250));
    let findings = Findings {
        made: Some(&made),
        baseline: vec![&slow],
        measured: vec![&slow],
        failures: BTreeMap::new(),
    };
    let verdicts = judge(&spec, &findings);
    assert_eq!(verdicts[0].verdict, FAILED);
    assert!(passes(&spec, &verdicts, &findings));
    assert_eq!(blocking(&verdicts).count(), 0);
    spec.gates[0].severity = Severity::Block;
    assert!(!passes(&spec, &verdicts, &findings));
    assert!(!passes(&spec, &[], &findings), "a gate without a verdict did not pass");
}

fn contender(name: &str, passed: bool, speed: f64, accuracy: f64, bytes: u64) -> Contender {
    Contender {
        name: name.into(),
        passed,
        speed: Some(speed),
        accuracy: Some(accuracy),
        bytes,
    }
}

#[test]
fn the_fastest_that_passed_is_selected_and_a_tie_goes_to_the_smaller() {
    let all = [
        contender("fast-but-failed", false, 0.2, 0.9, 100),
        contender("large", true, 0.500, 0.9, 300),
        contender("small", true, 0.510, 0.9, 200),
        contender("slow", true, 0.9, 0.95, 50),
    ];
    assert_eq!(select(&all).unwrap().name, "small");
    assert_eq!(select(&all[..1]), None);
    assert_eq!(pareto(&all), ["fast-but-failed", "slow"]);
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

    /// Whatever the numbers are: what passes is within its bound.
    #[test]
    fn passed_means_within_the_bound(value in any::<f64>(), baseline in any::<f64>(), samples in 0..3_u64) {
        let spec = with_gate(&json!({"name": "g", "metric": "latencyP99", "maxRatio": "0.80", "minSamples": 2}));
        let mut measured = measured("edge", 0.9, 1.0);
        set(&mut measured, value, samples);
        measured.baseline.insert("latencyP99".into(), Measurement { value: baseline, samples: 2 });
        let verdict = verdict_of(&spec, &measured);
        if verdict.verdict == PASSED {
            prop_assert!(samples >= 2 && value >= 0.0 && baseline > 0.0 && value / baseline <= 0.8);
        }
    }

    /// Whoever is selected passed.
    #[test]
    fn selected_means_passed(all in proptest::collection::vec((any::<bool>(), 0.01..5.0_f64, 0..1_000_u64), 0..8)) {
        let all: Vec<Contender> = all.into_iter().enumerate()
            .map(|(at, (passed, speed, bytes))| contender(&at.to_string(), passed, speed, 0.9, bytes)).collect();
        let selected = select(&all);
        prop_assert_eq!(selected.is_some(), all.iter().any(|contender| contender.passed));
        prop_assert!(selected.is_none_or(|contender| contender.passed));
    }
}
