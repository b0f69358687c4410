//! Notes, labels and predictions as files; the score says what they mean or refuses them.

use assayer_crds::contract::{ModelSource, Runtime};

use super::*;
use crate::layout::write_note;

struct Job {
    folder: tempfile::TempDir,
    layout: Layout,
    plan: MeasurePlan,
    note: RunNote,
}

fn model_run() -> ModelRun {
    ModelRun {
        classes: 3,
        runs: 200,
        p50_seconds: 0.004,
        p99_seconds: 0.006,
        peak_memory_bytes: 4_096,
        utilisation: 0.9,
    }
}

impl Job {
    /// Four rows with labels 0, 1, 2, 0.
    fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let layout = Layout::local(folder.path());
        for path in [layout.labels(), layout.predictions()] {
            std::fs::create_dir(path).unwrap();
        }
        let source = ModelSource {
            uri: "m".into(),
            model_digest: None,
        };
        let plan = MeasurePlan {
            baseline: source.clone(),
            candidate: Some(source),
            evaluation: "e".into(),
            disjoint_from: None,
            inputs: Vec::new(),
            label: "label".into(),
            output: "scores".into(),
            environment: "edge".into(),
            execution_provider: "CPU".into(),
        };
        let note = RunNote {
            runtime: Runtime::default(),
            execution_provider: "CPU".into(),
            rows: 4,
            run_seconds: 3.0,
            baseline: model_run(),
            candidate: Some(model_run()),
        };
        let job = Self {
            folder,
            layout,
            plan,
            note,
        };
        let model = |text: &[u8], bytes| StagedModel {
            model_digest: Digest::of(text),
            files: 1,
            bytes,
        };
        let staged = StagedModels {
            baseline: model(b"b", 100),
            candidate: Some(model(b"c", 30)),
            rows: 4,
        };
        write_note(&job.layout.labels().join(STAGED), &staged).unwrap();
        job.labels(&[0, 1, 2, 0]);
        job.predict(
            false,
            &[[9.0, 1.0, 1.0], [1.0, 9.0, 1.0], [1.0, 1.0, 9.0], [1.0, 9.0, 1.0]],
        );
        job.predict(
            true,
            &[[9.0, 1.0, 1.0], [1.0, 9.0, 1.0], [9.0, 1.0, 8.0], [5.0, 5.0, 1.0]],
        );
        job
    }

    fn labels(&self, labels: &[i64]) {
        let bytes: Vec<u8> = labels.iter().flat_map(|label| label.to_le_bytes()).collect();
        std::fs::write(self.layout.labels().join("labels.bin"), bytes).unwrap();
    }

    fn predict(&self, candidate: bool, rows: &[[f32; 3]]) {
        let bytes: Vec<u8> = rows.iter().flatten().flat_map(|score| score.to_le_bytes()).collect();
        std::fs::write(predictions_file(&self.layout, candidate), bytes).unwrap();
    }

    fn score(&self) -> Result<Measured> {
        write_note(&self.layout.predictions().join(NOTE), &self.note).unwrap();
        assert!(self.folder.path().exists());
        score(&self.plan, &self.layout).map(|(_, measured)| measured)
    }
}

#[test]
fn accuracy_and_agreement_are_counted() {
    let measured = Job::new().score().unwrap();
    let of = |found: &Measurements, metric: &str| (found[metric].value, found[metric].samples);
    assert_eq!(of(&measured.baseline, metrics::ACCURACY), (0.75, 4));
    let candidate = measured.candidate.unwrap();
    // Row 2 is wrong; row 3 is right since the first of two equal scores counts.
    assert_eq!(of(&candidate, metrics::ACCURACY), (0.75, 4));
    assert_eq!(of(&candidate, metrics::AGREEMENT), (0.5, 4));
    assert_eq!(of(&candidate, metrics::ARTIFACT_SIZE), (30.0, 1));
    assert_eq!(of(&candidate, metrics::LATENCY_P99), (0.006, 200));
    assert_eq!(measured.baseline_digest, Digest::of(b"b"));
    assert!(measured.self_reported.contains(&metrics::PEAK_MEMORY.to_owned()));
    assert!(!measured.self_reported.contains(&metrics::ACCURACY.to_owned()));
}

#[test]
fn what_does_not_add_up_is_no_measurement() {
    let job = Job::new();
    job.labels(&[0, 1, 2, 3]);
    let failure = job.score().unwrap_err();
    assert!(
        failure.reason == reasons::DATA_INVALID && failure.message.contains("label 3 of row 3"),
        "{}",
        failure.message
    );

    let job = Job::new();
    job.labels(&[0, 1, 2]);
    assert!(job.score().is_err(), "a label is missing");

    let job = Job::new();
    job.predict(true, &[[1.0, 2.0, 3.0]; 3]);
    assert!(job.score().is_err(), "a prediction is missing");

    let job = Job::new();
    job.predict(true, &[[f32::NAN, 2.0, 3.0]; 4]);
    assert_eq!(job.score().unwrap_err().reason, reasons::CANDIDATE_BROKEN);

    let mut job = Job::new();
    job.note.candidate = None;
    assert!(job.score().is_err(), "the candidate was not run");

    let mut job = Job::new();
    job.note.baseline.runs = 0;
    assert!(job.score().is_err(), "nothing was timed");

    let mut job = Job::new();
    job.note.baseline.p99_seconds = -1.0;
    assert!(job.score().is_err(), "time does not run backwards");
}
