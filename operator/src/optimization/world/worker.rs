//! What workers of the small world say: reports, termination messages, numbers.

use std::collections::BTreeMap;

use assayer_crds::contract::{
    CONTRACT_VERSION, Made, Measured, Measurement, Measurements, Outcome, PassReport, Report, Runtime, Termination,
    Work, WorkerPlan, metrics,
};
use assayer_crds::digest::{Digest, ModelFile, model_digest};
use assayer_crds::names;
use k8s_openapi::api::batch::v1::Job;
use kube::ResourceExt as _;

pub(super) fn outcome(numbers: &BTreeMap<String, (f64, f64)>, plan: &WorkerPlan) -> Outcome {
    match &plan.work {
        Work::Make(asked) => {
            let artifact = Digest::of(asked.candidate.as_bytes());
            Outcome::Made(Made {
                uri: format!("{}@{artifact}", asked.output),
                tag: format!("assayer-{}", asked.candidate),
                files: files_of(&asked.candidate),
                model_digest: model_digest(&files_of(&asked.candidate)),
                artifact_digest: artifact,
                baseline_digest: Digest::of(b"baseline"),
                bytes: 250,
                opset: [15, 17],
                passes: vec![PassReport {
                    name: "quantize".into(),
                    changed: 3,
                    left: Vec::new(),
                    raised: Vec::new(),
                    note: String::new(),
                }],
                calibration_rows: 512,
                seconds: 3.0,
                peak_memory_bytes: 1 << 27,
                recipe: None,
            })
        }
        Work::Measure(asked) => {
            let of = asked
                .candidate
                .as_ref()
                .map(|source| candidate_of(numbers, &source.uri));
            let (ratio, accuracy) = of.map_or((1.0, 0.0), |name| numbers[&name]);
            Outcome::Measured(Measured {
                environment: asked.environment.clone(),
                execution_provider: asked.execution_provider.clone(),
                baseline_digest: Digest::of(b"baseline"),
                candidate_digest: asked.candidate.as_ref().and_then(|source| source.model_digest.clone()),
                rows: 512,
                baseline: measurements(0.9251, 0.004, 1_000.0),
                candidate: asked
                    .candidate
                    .as_ref()
                    .map(|_| measurements(accuracy, 0.004 * ratio, 250.0)),
                self_reported: vec![metrics::LATENCY_P50.into(), metrics::LATENCY_P99.into()],
                run_seconds: 9.0,
            })
        }
    }
}

fn candidate_of(numbers: &BTreeMap<String, (f64, f64)>, uri: &str) -> String {
    let mut names = numbers.keys();
    names
        .find(|name| uri.ends_with(Digest::of(name.as_bytes()).as_str()))
        .cloned()
        .unwrap()
}

pub(super) fn words(job: &Job, plan: &WorkerPlan, outcome: Outcome, instruction_set: &str) -> (String, String) {
    let made = match &outcome {
        Outcome::Made(made) => Some(made.clone()),
        _ => None,
    };
    let report = Report {
        v: CONTRACT_VERSION,
        nonce: plan.nonce.clone(),
        plan_sha256: job.annotations()[names::PLAN_DIGEST].parse().unwrap(),
        runtime: Runtime {
            worker: "0.1.0".into(),
            onnxruntime: "1.23.0".into(),
            instruction_set: instruction_set.into(),
            ..Runtime::default()
        },
        outcome,
    };
    let line = serde_json::to_string(&report).unwrap();
    let termination = Termination {
        v: CONTRACT_VERSION,
        nonce: plan.nonce.clone(),
        report_sha256: Digest::of(line.as_bytes()),
        report_bytes: line.len() as u64,
        artifact_digest: made.as_ref().map(|made| made.artifact_digest.clone()),
        model_digest: made.map(|made| made.model_digest),
    };
    let message = serde_json::to_string(&termination).unwrap();
    (line, message)
}

fn files_of(candidate: &str) -> Vec<ModelFile> {
    vec![ModelFile {
        path: "model.onnx".into(),
        size: 250,
        sha256: Digest::of(format!("model {candidate}").as_bytes()),
    }]
}

pub(in crate::optimization) fn measurements(accuracy: f64, p50: f64, bytes: f64) -> Measurements {
    let of = |value, samples| Measurement { value, samples };
    BTreeMap::from([
        (metrics::ACCURACY.into(), of(accuracy, 512)),
        (metrics::LATENCY_P50.into(), of(p50, 200)),
        (metrics::LATENCY_P99.into(), of(p50 * 1.5, 200)),
        (metrics::PEAK_MEMORY.into(), of(bytes * 1e5, 1)),
        (metrics::ARTIFACT_SIZE.into(), of(bytes, 1)),
    ])
}

pub(super) fn plan_of(job: &Job) -> WorkerPlan {
    let template = &job.spec.as_ref().unwrap().template;
    let annotations = template.metadata.as_ref().unwrap().annotations.as_ref().unwrap();
    serde_json::from_str(&annotations[names::PLAN]).unwrap()
}
