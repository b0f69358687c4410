//! The worker's roles as processes, one after the other, on a real model and real files, without a cluster.
//!
//! Needs ONNX Runtime and the magika model; `cargo xtask test` provides both.

#![allow(
    clippy::unwrap_used,
    clippy::print_stdout,
    reason = "a test: what breaks shall break it"
)]

use std::collections::BTreeMap;
use std::fs::File;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::sync::Arc;

use arrow_array::types::Int32Type;
use arrow_array::{ArrayRef, Int64Array, ListArray, RecordBatch};
use assayer_crds::contract::*;
use assayer_crds::digest::Digest;
use assayer_crds::stages::{ActivationType, Format, Granularity, Quantize, QuantizeMode, Stage, WeightType};
use assayer_worker::onnx::{
    self, AttributeValue, Dim, ElementType, Graph, Limits, Model, Node, Opset, Tensor, ValueInfo,
};
use parquet::arrow::ArrowWriter;

const NONCE: &str = "00112233445566778899aabbccddeeff";

fn required(variable: &str) -> PathBuf {
    let value = std::env::var_os(variable);
    PathBuf::from(value.unwrap_or_else(|| panic!("{variable} is not set: run `cargo xtask test`")))
}

/// Rows of features and labels.
type Rows = Vec<(Vec<i32>, i64)>;

/// First and last 1,024 bytes without white space at the ends, padded with 256, as the model's own configuration says.
fn features(bytes: &[u8]) -> Vec<i32> {
    let begin = &bytes[..bytes.len().min(4_096)].trim_ascii_start();
    let end = &bytes[bytes.len() - bytes.len().min(4_096)..].trim_ascii_end();
    let begin = &begin[..begin.len().min(1_024)];
    let end = &end[end.len() - end.len().min(1_024)..];
    let mut row: Vec<i32> = begin.iter().map(|&byte| i32::from(byte)).collect();
    row.resize(1_024, 256);
    row.resize(2_048 - end.len(), 256);
    row.extend(end.iter().map(|&byte| i32::from(byte)));
    row
}

/// Files of this machine whose extension says what they are.
fn real_files() -> Rows {
    let sources: [(&str, &str, &str); 4] = [
        (concat!(env!("CARGO_MANIFEST_DIR"), "/.."), "rs", "rust"),
        (concat!(env!("CARGO_MANIFEST_DIR"), "/.."), "toml", "toml"),
        ("/usr/include", "h", "c"),
        ("/usr/lib/python3", "py", "python"),
    ];
    let config = required("ASSAYER_MAGIKA").with_file_name("config.min.json");
    let config: serde_json::Value = serde_json::from_slice(&std::fs::read(config).unwrap()).unwrap();
    let names: Vec<&str> = config["target_labels_space"]
        .as_array()
        .unwrap()
        .iter()
        .map(|name| name.as_str().unwrap())
        .collect();
    let mut rows = BTreeMap::new();
    for (folder, extension, class) in sources {
        let label = names.iter().position(|name| *name == class).unwrap();
        let mut found = Vec::new();
        collect(Path::new(folder), extension, &mut found, 0);
        found.sort();
        for path in found.into_iter().take(80) {
            let bytes = std::fs::read(&path).unwrap_or_default();
            if bytes.len() > 200 {
                rows.insert(features(&bytes), i64::try_from(label).unwrap());
            }
        }
    }
    // A map: no two equal rows, in an order that mixes classes and is the same every time.
    let mut rows: Rows = rows.into_iter().collect();
    rows.sort_by_key(|(features, _)| Digest::of(&features.iter().flat_map(|v| v.to_le_bytes()).collect::<Vec<u8>>()));
    rows
}

fn collect(folder: &Path, extension: &str, found: &mut Vec<PathBuf>, depth: usize) {
    if depth > 5 || found.len() > 400 || folder.ends_with("target") || folder.ends_with(".git") {
        return;
    }
    let mut entries: Vec<PathBuf> = std::fs::read_dir(folder)
        .into_iter()
        .flatten()
        .flatten()
        .map(|entry| entry.path())
        .collect();
    entries.sort();
    for path in entries {
        if path.is_dir() && !path.is_symlink() {
            collect(&path, extension, found, depth + 1);
        } else if path.extension().is_some_and(|found| found == extension) {
            found.push(path);
        }
    }
}

fn write_parquet(path: &Path, rows: &[(Vec<i32>, i64)]) {
    let features = ListArray::from_iter_primitive::<Int32Type, _, _>(
        rows.iter().map(|(row, _)| Some(row.iter().map(|v| Some(*v)))),
    );
    let labels = Int64Array::from_iter_values(rows.iter().map(|(_, label)| *label));
    let batch = RecordBatch::try_from_iter([
        ("features", Arc::new(features) as ArrayRef),
        ("file_type", Arc::new(labels)),
    ])
    .unwrap();
    let mut writer = ArrowWriter::try_new(File::create(path).unwrap(), batch.schema(), None).unwrap();
    writer.write(&batch).unwrap();
    writer.close().unwrap();
}

/// One user's folder: data, and a private root for each job.
struct Bench {
    folder: tempfile::TempDir,
    rows: usize,
}

impl Bench {
    fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let rows = real_files();
        assert!(
            rows.len() >= 120,
            "only {} files were found on this machine",
            rows.len()
        );
        write_parquet(&folder.path().join("calibration.parquet"), &rows[..64]);
        write_parquet(&folder.path().join("evaluation.parquet"), &rows[64..]);
        Self {
            folder,
            rows: rows.len() - 64,
        }
    }

    fn path(&self, name: &str) -> String {
        self.folder.path().join(name).to_str().unwrap().to_owned()
    }

    fn measure(&self, candidate: Option<&Made>) -> MeasurePlan {
        MeasurePlan {
            baseline: ModelSource {
                uri: required("ASSAYER_MAGIKA").to_str().unwrap().into(),
                model_digest: None,
            },
            candidate: candidate.map(|made| ModelSource {
                uri: made.uri.clone(),
                model_digest: Some(made.model_digest.clone()),
            }),
            evaluation: self.path("evaluation.parquet"),
            disjoint_from: Some(self.path("calibration.parquet")),
            inputs: vec![InputBinding {
                name: "bytes".into(),
                column: "features".into(),
                shape: None,
                padding_mask: false,
            }],
            label: "file_type".into(),
            output: "target_label".into(),
            environment: "here".into(),
            execution_provider: "CPU".into(),
        }
    }

    fn make(&self, mode: QuantizeMode) -> MakePlan {
        let stage = Quantize {
            mode,
            weights: Some(WeightType::Int8),
            activations: ActivationType::UInt8,
            granularity: Granularity::PerChannel,
            block: None,
            format: None,
            calibration: None,
            only: Vec::new(),
            except: Vec::new(),
            integer_inputs_outputs: false,
        };
        MakePlan {
            baseline: ModelSource {
                uri: required("ASSAYER_MAGIKA").to_str().unwrap().into(),
                model_digest: None,
            },
            candidate: "int8".into(),
            stages: vec![Stage {
                simplify: None,
                quantize: Some(stage),
                recover: None,
            }],
            calibration: Some(CalibrationSource {
                uri: self.path("calibration.parquet"),
                samples: 64,
            }),
            inputs: vec![InputBinding {
                name: "bytes".into(),
                column: "features".into(),
                shape: None,
                padding_mask: false,
            }],
            output: self.path("published"),
        }
    }

    /// Runs a job's containers in order; stops at the first that fails, as a pod does.
    fn job(&self, name: &str, work: Work) -> Job {
        self.job_within(name, work, 300)
    }

    fn job_within(&self, name: &str, work: Work, deadline_seconds: u64) -> Job {
        let root = self.folder.path().join(name);
        std::fs::create_dir_all(root.join("plan")).unwrap();
        let sequence = Role::sequence(&work);
        let plan = WorkerPlan {
            v: CONTRACT_VERSION,
            nonce: NONCE.into(),
            deadline_seconds,
            plain_http: Vec::new(),
            work,
        };
        let plan = serde_json::to_vec(&plan).unwrap();
        std::fs::write(root.join(paths::PLAN), &plan).unwrap();
        let mut job = Job {
            root,
            plan: Digest::of(&plan),
            outputs: Vec::new(),
        };
        for role in sequence {
            let output = job.container(role);
            let ended = !output.status.success();
            job.outputs.push(output);
            if ended {
                break;
            }
        }
        job
    }
}

struct Job {
    root: PathBuf,
    plan: Digest,
    outputs: Vec<Output>,
}

impl Job {
    fn container(&self, role: Role) -> Output {
        Command::new(env!("CARGO_BIN_EXE_assayer-worker"))
            .arg(role.as_str())
            .arg("--root")
            .arg(&self.root)
            .arg("--termination")
            .arg(self.root.join("termination"))
            .env("ORT_DYLIB_PATH", required("ASSAYER_ORT"))
            .stdin(Stdio::null())
            .output()
            .unwrap()
    }

    /// The report, believed only as the operator believes it.
    fn report(&self) -> (i32, Report) {
        let (last, before) = self.outputs.split_last().unwrap();
        assert!(
            before.iter().all(|output| output.stdout.is_empty()),
            "only the last container speaks"
        );
        let line = String::from_utf8(last.stdout.clone()).unwrap();
        let logs = String::from_utf8_lossy(&last.stderr);
        let termination =
            std::fs::read(self.root.join("termination")).unwrap_or_else(|_| panic!("no termination message: {logs}"));
        assert!(termination.len() <= MAX_TERMINATION_BYTES);
        let termination: Termination = serde_json::from_slice(&termination).unwrap();
        let line = line.strip_suffix('\n').unwrap();
        assert_eq!(termination.report_sha256, Digest::of(line.as_bytes()));
        assert_eq!(
            (termination.report_bytes, termination.nonce.as_str()),
            (line.len() as u64, NONCE)
        );
        let report: Report = serde_json::from_str(line).unwrap();
        assert_eq!((&report.plan_sha256, report.nonce.as_str()), (&self.plan, NONCE));
        (last.status.code().unwrap(), report)
    }

    fn made(&self) -> Made {
        match self.report() {
            (
                0,
                Report {
                    outcome: Outcome::Made(made),
                    ..
                },
            ) => made,
            other => panic!("{other:#?}"),
        }
    }

    fn measured(&self) -> Measured {
        match self.report() {
            (
                0,
                Report {
                    outcome: Outcome::Measured(measured),
                    ..
                },
            ) => measured,
            other => panic!("{other:#?}"),
        }
    }

    fn failed(&self) -> (i32, Failure) {
        match self.report() {
            (
                code,
                Report {
                    outcome: Outcome::Failed(failure),
                    ..
                },
            ) => (code, failure),
            other => panic!("{other:#?}"),
        }
    }
}

#[test]
fn a_model_is_made_and_measured() {
    let bench = Bench::new();
    let baseline = bench.job("baseline", Work::Measure(bench.measure(None))).measured();
    assert_eq!(baseline.rows, bench.rows as u64);
    assert!(
        baseline.baseline[metrics::ACCURACY].value > 0.8,
        "{:?}",
        baseline.baseline
    );
    assert!(baseline.candidate.is_none());

    let made = bench.job("make", Work::Make(bench.make(QuantizeMode::Static))).made();
    assert_eq!(made.tag, format!("assayer-int8-{}", made.artifact_digest.short(12)));
    assert_eq!(made.calibration_rows, 64);
    assert!(
        made.passes
            .iter()
            .any(|pass| pass.name.contains("quantize") && pass.changed > 0),
        "{:?}",
        made.passes
    );
    let again = bench.job("again", Work::Make(bench.make(QuantizeMode::Static))).made();
    assert_eq!(
        again.artifact_digest, made.artifact_digest,
        "equal inputs give equal bytes"
    );

    let job = bench.job("measure", Work::Measure(bench.measure(Some(&made))));
    let measured = job.measured();
    let candidate = measured.candidate.clone().unwrap();
    println!(
        "made in {:.3} s with {} MiB",
        made.seconds,
        made.peak_memory_bytes >> 20
    );
    println!("baseline {:#?}\ncandidate {candidate:#?}", measured.baseline);
    assert_eq!(measured.candidate_digest, Some(made.model_digest.clone()));
    assert!(candidate[metrics::ACCURACY].value > measured.baseline[metrics::ACCURACY].value - 0.02);
    assert!(candidate[metrics::ARTIFACT_SIZE].value < measured.baseline[metrics::ARTIFACT_SIZE].value / 2.0);
    assert!(candidate[metrics::LATENCY_P50].samples >= 10);
    let p50 = candidate[metrics::LATENCY_P50].value;
    assert!(p50 > 0.0 && p50 <= candidate[metrics::LATENCY_P99].value && p50 < measured.run_seconds);

    // What `run` saw holds neither labels nor the data set they came in.
    let mut seen: Vec<String> = std::fs::read_dir(job.root.join(paths::INPUTS))
        .unwrap()
        .map(|e| e.unwrap().file_name().into_string().unwrap())
        .collect();
    seen.sort();
    assert_eq!(seen, ["0.bin", "inputs.json", "started.json"]);
}

/// A classifier of integer kernels only: a convolution and a product with random weights.
fn convolutional(path: &Path) {
    let mut state = 7_u32;
    let mut weights = |name: &str, dims: &[usize]| {
        let mut next = || {
            state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            f32::from(u16::try_from(state >> 16).unwrap()) / 32_768.0 - 1.0
        };
        let values: Vec<f32> = (0..dims.iter().product()).map(|_| next()).collect();
        Tensor::floats(name, dims, &values).unwrap()
    };
    let batch = Dim::Named("N".into());
    let dims = [batch.clone(), Dim::Fixed(8), Dim::Fixed(16), Dim::Fixed(16)];
    let kernel = AttributeValue::Ints(vec![14, 14]);
    let graph = Graph {
        name: "convolutional".into(),
        nodes: vec![
            Node::new("Conv", &["x", "w"], &["y"]),
            Node::new("Relu", &["y"], &["z"]),
            Node::new("MaxPool", &["z"], &["pooled"]).with("kernel_shape", kernel),
            Node::new("Flatten", &["pooled"], &["flat"]),
            Node::new("Gemm", &["flat", "v"], &["scores"]),
        ],
        initializers: vec![weights("w", &[16, 8, 3, 3]), weights("v", &[16, 256])],
        inputs: vec![ValueInfo::tensor("x", ElementType::Float, &dims)],
        outputs: vec![ValueInfo::tensor(
            "scores",
            ElementType::Float,
            &[batch, Dim::Fixed(256)],
        )],
        ..Graph::default()
    };
    let opsets = vec![Opset {
        version: 17,
        ..Opset::default()
    }];
    let model = Model {
        ir_version: 8,
        opsets,
        graph,
        ..Model::default()
    };
    onnx::write(&model, path).unwrap();
}

#[test]
fn bytes_at_the_ends_are_measured_as_the_floats_that_they_stand_for() {
    let bench = Bench::new();
    convolutional(&bench.folder.path().join("convolutional.onnx"));
    let mut plan = bench.make(QuantizeMode::Static);
    plan.baseline.uri = bench.path("convolutional.onnx");
    plan.inputs[0].name = "x".into();
    let quantize = plan.stages[0].quantize.as_mut().unwrap();
    quantize.format = Some(Format::QDQ);
    quantize.integer_inputs_outputs = true;
    let measure = |made: &Made| MeasurePlan {
        baseline: plan.baseline.clone(),
        inputs: plan.inputs.clone(),
        output: "scores".into(),
        ..bench.measure(Some(made))
    };
    let made = bench.job("make", Work::Make(plan.clone())).made();
    let model = onnx::read(&Path::new(&made.uri).join(&made.files[0].path), &Limits::default()).unwrap();
    for end in model.graph.inputs.iter().chain(&model.graph.outputs) {
        assert_eq!(end.tensor_type().unwrap().element, ElementType::Uint8, "{}", end.name);
    }
    let note = &made.passes.last().unwrap().note;
    assert!(note.contains("`x` ") && note.contains("`scores` "), "{note}");
    let measured = bench.job("measure", Work::Measure(measure(&made))).measured();
    let agreement = measured.candidate.unwrap()[metrics::AGREEMENT].value;
    assert!(agreement > 0.8, "{agreement}");

    // The encoder of lookups and layer normalization is not one of them.
    let mut magika = bench.make(QuantizeMode::Static);
    magika.stages[0].quantize.as_mut().unwrap().integer_inputs_outputs = true;
    let (code, failure) = bench.job("magika", Work::Make(magika)).failed();
    assert_eq!(
        (code, failure.reason.as_str()),
        (2, reasons::PLAN_INVALID),
        "{}",
        failure.message
    );
    assert!(failure.message.contains("integerInputsOutputs"), "{}", failure.message);
}

#[test]
fn a_changed_candidate_is_not_measured() {
    let bench = Bench::new();
    let made = bench.job("make", Work::Make(bench.make(QuantizeMode::Dynamic))).made();
    let file = Path::new(&made.uri).join(&made.files[0].path);
    let mut bytes = std::fs::read(&file).unwrap();
    *bytes.last_mut().unwrap() ^= 1;
    std::fs::write(&file, bytes).unwrap();
    let (code, failure) = bench.job("measure", Work::Measure(bench.measure(Some(&made)))).failed();
    assert_eq!(
        (code, failure.reason.as_str()),
        (2, reasons::DIGEST_MISMATCH),
        "{}",
        failure.message
    );
}

#[test]
fn bad_input_is_refused_with_the_field_and_the_way_out() {
    let bench = Bench::new();
    std::fs::write(bench.folder.path().join("no.onnx"), b"this is no model").unwrap();
    let plan = |change: &dyn Fn(&mut MeasurePlan)| {
        let mut plan = bench.measure(None);
        change(&mut plan);
        plan
    };
    let shared = plan(&|plan| plan.disjoint_from = Some(plan.evaluation.clone()));
    let label = plan(&|plan| plan.label = "type".into());
    let output = plan(&|plan| plan.output = "scores".into());
    let input = plan(&|plan| plan.inputs[0].name = "x".into());
    let model = plan(&|plan| plan.baseline.uri = bench.path("no.onnx"));
    let missing = plan(&|plan| plan.evaluation = bench.path("none.parquet"));
    let provider = plan(&|plan| plan.execution_provider = "CUDA".into());
    let tag = plan(&|plan| plan.baseline.uri = "oci://127.0.0.1:1/m:latest".into());
    for (name, plan, code, reason, why) in [
        ("shared", shared, 2, reasons::DATA_SHARED, "calibration data"),
        (
            "label",
            label,
            2,
            reasons::COLUMN_MISSING,
            "column `type` is not in the data set; it has features, file_type",
        ),
        ("output", output, 2, reasons::COLUMN_MISSING, "it has `target_label`"),
        (
            "input",
            input,
            2,
            reasons::COLUMN_MISSING,
            "data.inputs binds no column",
        ),
        ("model", model, 2, reasons::MODEL_INVALID, "baseline"),
        ("missing", missing, 2, reasons::NOT_FOUND, "data.evaluation"),
        ("provider", provider, 3, reasons::PROVIDER_UNAVAILABLE, "CUDA"),
        ("tag", tag, 2, reasons::ARTIFACT_REFUSED, "assayer pin"),
    ] {
        let (found, failure) = bench.job(name, Work::Measure(plan)).failed();
        println!("{name}: {}", failure.message);
        assert_eq!(
            (found, failure.reason.as_str()),
            (code, reason),
            "{name}: {}",
            failure.message
        );
        assert!(failure.message.contains(why), "{name}: {why}: {}", failure.message);
    }
}

#[test]
fn the_deadline_is_kept_and_said() {
    let bench = Bench::new();
    let (code, failure) = bench.job_within("late", Work::Measure(bench.measure(None)), 1).failed();
    assert_eq!((code, failure.reason.as_str()), (3, reasons::DEADLINE_EXCEEDED));
    assert!(failure.message.contains("1 s"), "{}", failure.message);
}
