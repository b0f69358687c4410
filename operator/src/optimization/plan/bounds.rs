//! How much a status may say: cut so that the largest one that the schema allows still fits into the API server (and etcd, which takes
//! 1.5 MiB with the spec and the managed fields). The whole of it is in the evidence.
//!
//! Pure. Shortens free text only; never leaves out a step, a candidate, a verdict or a known metric.

use assayer_crds::ModelOptimizationStatus;
use assayer_crds::contract::metrics;
use assayer_crds::optimization::MeasuredStatus;

use crate::status::cut;

/// Of a step: why it waits or failed.
const STEP: usize = 512;
/// Of a candidate: why it was rejected or failed.
const CANDIDATE: usize = 512;
/// Of a verdict: number against limit.
const VERDICT: usize = 256;
/// Of a value with its unit.
const VALUE: usize = 32;
/// What is shown; a worker may report more.
const SHOWN: [&str; 7] = [
    metrics::ACCURACY,
    metrics::AGREEMENT,
    metrics::ARTIFACT_SIZE,
    metrics::LATENCY_P50,
    metrics::LATENCY_P99,
    metrics::PEAK_MEMORY,
    metrics::UTILISATION,
];

/// Cuts what is too long.
pub(super) fn fit(status: &mut ModelOptimizationStatus) {
    for work in &mut status.work {
        cut(&mut work.message, STEP);
    }
    status.baseline.iter_mut().for_each(measured);
    for candidate in &mut status.candidates {
        cut(&mut candidate.message, CANDIDATE);
        candidate.measured.iter_mut().for_each(measured);
        for verdict in &mut candidate.verdicts {
            cut(&mut verdict.message, VERDICT);
        }
    }
}

fn measured(measured: &mut MeasuredStatus) {
    measured.metrics.retain(|metric| SHOWN.contains(&metric.name.as_str()));
    for metric in &mut measured.metrics {
        cut(&mut metric.value, VALUE);
        if let Some(baseline) = &mut metric.baseline {
            cut(baseline, VALUE);
        }
    }
}

#[cfg(test)]
mod tests {
    use assayer_crds::common::{ArtifactStatus, EvidenceReference};
    use assayer_crds::optimization::{
        CandidateStatus, MetricStatus, OptimizationRun, OptimizationSummary, VerdictStatus, WorkStatus,
    };

    use super::super::begin::{MAX_MEASURED, MAX_VERDICTS};
    use super::*;
    use crate::status::{Conditions, Truth};

    /// Every character that JSON has to escape takes twice its room.
    fn text(length: usize) -> String {
        "\"".repeat(length)
    }

    fn name(prefix: &str, index: usize, length: usize) -> String {
        format!("{prefix}{index:0width$}", width = length - prefix.len())
    }

    fn digest() -> String {
        format!("sha256:{}", "a".repeat(64))
    }

    fn measured_in(environment: usize) -> MeasuredStatus {
        let metric = |name: &str| MetricStatus {
            name: name.to_owned(),
            value: text(400),
            baseline: Some(text(400)),
            samples: i64::MAX,
        };
        let invented: Vec<String> = (0..500).map(|index| name("m", index, 63)).collect();
        MeasuredStatus {
            environment: name("e", environment, 63),
            metrics: SHOWN
                .into_iter()
                .chain(invented.iter().map(String::as_str))
                .map(metric)
                .collect(),
        }
    }

    fn candidate(index: usize, environments: usize, gates: usize) -> CandidateStatus {
        let verdict = |gate| VerdictStatus {
            gate: name("g", gate, 63),
            verdict: "Inconclusive".into(),
            severity: "DryRun".into(),
            message: text(5_000),
        };
        CandidateStatus {
            name: name("c", index, 40),
            state: "Rejected".into(),
            key: digest(),
            technique: text(300),
            artifact: Some(ArtifactStatus {
                uri: format!("oci://{}@{}", "r".repeat(400), digest()),
                artifact_digest: digest(),
                model_digest: digest(),
                bytes: i64::MAX,
            }),
            measured: (0..environments).map(measured_in).collect(),
            verdicts: (0..gates).map(verdict).collect(),
            evidence: Some(EvidenceReference {
                config_map: "x".repeat(63),
                digest: digest(),
            }),
            message: text(50_000),
        }
    }

    /// The largest status for so many candidates, environments and gates.
    fn largest(candidates: usize, environments: usize, gates: usize) -> ModelOptimizationStatus {
        let mut conditions = Conditions::new(&[], i64::MAX, jiff::Timestamp::MAX);
        for type_ in [
            "Ready",
            "Stalled",
            "BaselineRecorded",
            "Optimized",
            "Validated",
            "EvidenceRecorded",
        ] {
            conditions.set(type_, Truth::False, "WorkerIdentityMismatch", text(50_000));
        }
        let step = |index| WorkStatus {
            step: name("measure/", index, 112),
            state: "Retrying".into(),
            job: "j".repeat(63),
            attempt: i32::MAX,
            reason: "WorkerIdentityMismatch".into(),
            message: text(5_000),
            at: "2026-11-24T00:00:00.123456789Z".into(),
            report: digest(),
        };
        let run = OptimizationRun {
            generation: i64::MAX,
            rerun: text(253),
            phase: "Superseded".into(),
            selected: "c".repeat(40),
            at: "2026-11-24T00:00:00.123456789Z".into(),
        };
        ModelOptimizationStatus {
            observed_generation: Some(i64::MAX),
            phase: "Validating".into(),
            rerun: Some(text(253)),
            summary: OptimizationSummary {
                digest: "a".repeat(12),
                candidates: "64/64".into(),
            },
            conditions: conditions.into_list(),
            work: (0..environments + candidates * (1 + environments)).map(step).collect(),
            baseline: (0..environments).map(measured_in).collect(),
            candidates: (0..candidates)
                .map(|index| candidate(index, environments, gates))
                .collect(),
            pareto: (0..candidates).map(|index| name("c", index, 40)).collect(),
            selected: Some("c".repeat(40)),
            history: vec![run; 10],
        }
    }

    #[test]
    fn the_largest_status_fits() {
        for (candidates, environments, gates) in [(64, 2, 8), (4, 32, 128), (32, 4, 16), (1, 32, 128), (64, 1, 8)] {
            assert!(candidates * environments <= MAX_MEASURED && candidates * gates <= MAX_VERDICTS);
            let mut status = largest(candidates, environments, gates);
            let entries = |status: &ModelOptimizationStatus| {
                let verdicts: usize = status.candidates.iter().map(|c| c.verdicts.len()).sum();
                (status.work.len(), status.candidates.len(), verdicts)
            };
            let before = entries(&status);
            fit(&mut status);
            assert_eq!(entries(&status), before);
            let bytes = serde_json::to_vec(&status).unwrap().len();
            assert!(
                bytes < 1 << 20,
                "{candidates} x {environments}, {gates} gates: {bytes} bytes"
            );
        }
    }
}
