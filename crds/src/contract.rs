//! What the operator (or `assayer optimize`) asks of a worker and what the worker answers.
//!
//! Versioned JSON. The plan is mounted read-only; the report is one line on the last container's stdout and is believed only when
//! its length and digest match the termination message of the pod that was asked. Decides shapes and names, does no work.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::digest::{Digest, ModelFile};
use crate::stages::Stage;

/// Version of plan and report; a worker refuses any other.
pub const CONTRACT_VERSION: u32 = 1;
/// Most bytes of a report; a longer one is refused unread.
pub const MAX_REPORT_BYTES: u64 = 256 * 1024;
/// Most bytes of a termination message (the kubelet shares 12 KiB over all containers of a pod).
pub const MAX_TERMINATION_BYTES: usize = 1_024;
/// Root of everything that is mounted into worker containers.
pub const ROOT: &str = "/assayer";

/// Folders and files under [`ROOT`] (or under a private folder in a local run). Each container gets only those it must share.
pub mod paths {
    /// The plan: read-only in every container.
    pub const PLAN: &str = "plan/plan.json";
    /// The baseline's files. Written by `stage`.
    pub const BASELINE: &str = "baseline";
    /// The candidate's files in a measure Job. Written by `stage`.
    pub const CANDIDATE: &str = "candidate";
    /// Calibration (make) or evaluation (measure) inputs, without labels. Written by `stage`.
    pub const INPUTS: &str = "inputs";
    /// Labels; only `stage` (writes) and `score` (reads) see them.
    pub const LABELS: &str = "labels";
    /// The optimized model and the optimizer's notes. Written by `optimize`, read by `publish`.
    pub const OUT: &str = "out";
    /// Predictions and timings. Written by `run`, read by `score`.
    pub const PREDICTIONS: &str = "predictions";
    /// Registry credentials for pulling (`.dockerconfigjson`); only `stage`.
    pub const PULL_SECRET: &str = "secrets/pull";
    /// Registry credentials for pushing (`.dockerconfigjson`); only `publish`.
    pub const PUSH_SECRET: &str = "secrets/push";
    /// Where the kubelet reads a container's termination message.
    pub const TERMINATION: &str = "/dev/termination-log";
}

/// What a container of a worker pod does; also the worker's sub-commands.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Role {
    /// Fetch, verify digests, split inputs from labels.
    Stage,
    /// Change the model.
    Optimize,
    /// Push the artifact by digest.
    Publish,
    /// Run ONNX Runtime; never sees labels or credentials.
    Run,
    /// Compare predictions with labels; never loads a model.
    Score,
}

impl Role {
    /// The sub-command and container name.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Stage => "stage",
            Self::Optimize => "optimize",
            Self::Publish => "publish",
            Self::Run => "run",
            Self::Score => "score",
        }
    }

    /// The containers of a job, in the order in which they run; the last one reports.
    pub fn sequence(work: &Work) -> [Self; 3] {
        match work {
            Work::Make(_) => [Self::Stage, Self::Optimize, Self::Publish],
            Work::Measure(_) => [Self::Stage, Self::Run, Self::Score],
        }
    }
}

/// Everything that one worker pod is asked to do.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct WorkerPlan {
    /// [`CONTRACT_VERSION`].
    pub v: u32,
    /// Ties the answer to this attempt; 32 hex digits.
    pub nonce: String,
    /// The worker gives up by itself after this many seconds, before the Job's own deadline takes its words away.
    pub deadline_seconds: u64,
    /// Registries (`host:port`) that are spoken to without TLS.
    #[serde(default)]
    pub plain_http: Vec<String>,
    /// Make a candidate, or measure one.
    pub work: Work,
}

/// The two kinds of work.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum Work {
    /// Make a candidate from the baseline.
    Make(MakePlan),
    /// Measure the baseline, alone or together with a candidate.
    Measure(MeasurePlan),
}

/// A model artifact: where it is, and what it must turn out to be.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct ModelSource {
    /// `oci://host/repository@sha256:…`, or a path in a local run.
    pub uri: String,
    /// The model digest that must come out, where it is known already.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub model_digest: Option<Digest>,
}

/// A column of a data set that feeds an input of the model.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct InputBinding {
    /// Name of the model's input.
    pub name: String,
    /// Name of the data set's column.
    pub column: String,
    /// Shape of a row, without the batch, where the model's own does not say or is another; or of all of an input that counts no rows.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub shape: Option<Vec<u32>>,
    /// Whether the column says what of a row is padding: 1 for data and, behind it, 0 for padding.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub padding_mask: bool,
}

/// How a candidate is made.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct MakePlan {
    /// The model as delivered.
    pub baseline: ModelSource,
    /// Name of the candidate; part of the tag.
    pub candidate: String,
    /// What is done to it, in order.
    pub stages: Vec<Stage>,
    /// Calibration data: needed by static stages.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub calibration: Option<CalibrationSource>,
    /// Columns that feed the model.
    pub inputs: Vec<InputBinding>,
    /// Where the artifact goes: `oci://host/repository` without tag and digest, or a folder in a local run.
    pub output: String,
}

/// Calibration data and how much of it is used.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct CalibrationSource {
    /// `oci://…@sha256:…`, or a path in a local run.
    pub uri: String,
    /// Most rows that are used, from the first.
    pub samples: u32,
}

/// How models are measured in one environment.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct MeasurePlan {
    /// The model as delivered.
    pub baseline: ModelSource,
    /// The candidate; none when the baseline is recorded before anything is changed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub candidate: Option<ModelSource>,
    /// Labelled evaluation data.
    pub evaluation: String,
    /// Data that must share no row with the evaluation data (the calibration set).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub disjoint_from: Option<String>,
    /// Columns that feed the model.
    pub inputs: Vec<InputBinding>,
    /// Column with the expected class: the class index or its name.
    pub label: String,
    /// Name of the model's output that holds class scores.
    pub output: String,
    /// Name of the environment, as in the spec.
    pub environment: String,
    /// `CPU`, `CUDA` or `TensorRT`; proven by building a session before anything is measured.
    pub execution_provider: String,
}

/// Why work was not done; also the exit code of the process.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum FailureClass {
    /// A bug of ours: exit code 1.
    Bug,
    /// The input was refused for a clear reason; trying again gives the same: exit code 2.
    Refused,
    /// Memory, disk, time or an accelerator was missing: exit code 3.
    Resources,
    /// A registry or a disk did not answer: exit code 4; worth another attempt.
    Storage,
}

impl FailureClass {
    /// Exit code of the worker process.
    pub fn exit_code(self) -> u8 {
        match self {
            Self::Bug => 1,
            Self::Refused => 2,
            Self::Resources => 3,
            Self::Storage => 4,
        }
    }

    /// The class of a container's exit code, where the container left no report. 137 is the kernel's kill for memory.
    pub fn of_exit_code(code: i32) -> Self {
        match code {
            2 => Self::Refused,
            3 | 137 => Self::Resources,
            4 => Self::Storage,
            _ => Self::Bug,
        }
    }
}

/// A failure in the worker's words.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Failure {
    /// Why, as a class.
    pub class: FailureClass,
    /// `PascalCase` reason: see [`reasons`].
    pub reason: String,
    /// What happened: the field, the value, the limit and the way out; at most 1,024 characters.
    pub message: String,
}

/// Reasons of worker failures. They appear as condition reasons and are documented with the conditions.
pub mod reasons {
    /// A fetched artifact has another digest than was asked for.
    pub const DIGEST_MISMATCH: &str = "DigestMismatch";
    /// The artifact is not image-shaped, or holds no usable file.
    pub const ARTIFACT_REFUSED: &str = "ArtifactRefused";
    /// The model file is not a model that Assayer can read.
    pub const MODEL_INVALID: &str = "ModelInvalid";
    /// The model needs an operator, domain or opset that is not supported.
    pub const OPERATOR_UNKNOWN: &str = "OperatorUnknown";
    /// The model is beyond a limit of size, count or nesting.
    pub const MODEL_TOO_LARGE: &str = "ModelTooLarge";
    /// A column, input or output that was named does not exist or has another type or shape.
    pub const COLUMN_MISSING: &str = "ColumnMissing";
    /// The data set can't be read or has a type that can't feed the model.
    pub const DATA_INVALID: &str = "DataInvalid";
    /// The data set has no rows.
    pub const DATA_EMPTY: &str = "DataEmpty";
    /// Calibration and evaluation data share rows.
    pub const DATA_SHARED: &str = "DataShared";
    /// A stage changed nothing.
    pub const NO_EFFECT: &str = "NoEffect";
    /// The candidate does not load or run in ONNX Runtime, or its outputs are not finite.
    pub const CANDIDATE_BROKEN: &str = "CandidateBroken";
    /// The execution provider can't be used here; ONNX Runtime's own words follow.
    pub const PROVIDER_UNAVAILABLE: &str = "ProviderUnavailable";
    /// ONNX Runtime failed on a model that it should have run.
    pub const RUNTIME_FAILED: &str = "RuntimeFailed";
    /// A process was killed, or failed, for want of memory.
    pub const OUT_OF_MEMORY: &str = "OutOfMemory";
    /// Disk or a quota ran out.
    pub const OUT_OF_RESOURCES: &str = "OutOfResources";
    /// The plan's deadline passed.
    pub const DEADLINE_EXCEEDED: &str = "DeadlineExceeded";
    /// A registry did not answer, or answered with a server error.
    pub const STORAGE_UNAVAILABLE: &str = "StorageUnavailable";
    /// A registry refused the credentials.
    pub const STORAGE_FORBIDDEN: &str = "StorageForbidden";
    /// The artifact or file does not exist.
    pub const NOT_FOUND: &str = "NotFound";
    /// The plan can't be read, or is of another version.
    pub const PLAN_INVALID: &str = "PlanInvalid";
    /// A bug of ours.
    pub const INTERNAL: &str = "Internal";
    /// All of them: each is documented, and a tidy test checks it.
    pub const ALL: &[&str] = &[
        DIGEST_MISMATCH,
        ARTIFACT_REFUSED,
        MODEL_INVALID,
        OPERATOR_UNKNOWN,
        MODEL_TOO_LARGE,
        COLUMN_MISSING,
        DATA_INVALID,
        DATA_EMPTY,
        DATA_SHARED,
        NO_EFFECT,
        CANDIDATE_BROKEN,
        PROVIDER_UNAVAILABLE,
        RUNTIME_FAILED,
        OUT_OF_MEMORY,
        OUT_OF_RESOURCES,
        DEADLINE_EXCEEDED,
        STORAGE_UNAVAILABLE,
        STORAGE_FORBIDDEN,
        NOT_FOUND,
        PLAN_INVALID,
        INTERNAL,
    ];
}

/// What a worker pod answers.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Report {
    /// [`CONTRACT_VERSION`].
    pub v: u32,
    /// The plan's nonce.
    pub nonce: String,
    /// sha256 of the plan's bytes as they were mounted.
    pub plan_sha256: Digest,
    /// Who ran it on what.
    pub runtime: Runtime,
    /// The result.
    pub outcome: Outcome,
}

/// Versions and hardware, as seen by the container that did the work.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Runtime {
    /// Version of the worker.
    pub worker: String,
    /// Version of ONNX Runtime, where one was loaded.
    #[serde(default)]
    pub onnxruntime: String,
    /// Processor model.
    #[serde(default)]
    pub cpu: String,
    /// Integer instruction set that kernels can use: `avx512_vnni`, `avx_vnni`, `avx512`, `avx2`, `neon`, ….
    #[serde(default)]
    pub instruction_set: String,
    /// Threads that ONNX Runtime was given (from the CPU limit).
    #[serde(default)]
    pub threads: u32,
}

/// How the work ended.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum Outcome {
    /// A candidate was made and published.
    Made(Made),
    /// Models were measured.
    Measured(Measured),
    /// Nothing usable came out.
    Failed(Failure),
}

/// A published candidate.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Made {
    /// Where it is: `oci://host/repository@sha256:…`, or a folder in a local run.
    pub uri: String,
    /// The tag that keeps registries from collecting it.
    pub tag: String,
    /// Digest of the OCI manifest.
    pub artifact_digest: Digest,
    /// Digest over the model's files.
    pub model_digest: Digest,
    /// The baseline's model digest, as fetched.
    pub baseline_digest: Digest,
    /// The model's files.
    pub files: Vec<ModelFile>,
    /// Sum of the sizes of the model's files, in bytes.
    pub bytes: u64,
    /// Opset of the default domain before and after.
    pub opset: [i64; 2],
    /// What each pass did, in order.
    pub passes: Vec<PassReport>,
    /// Rows of calibration data that were used.
    pub calibration_rows: u64,
    /// Wall time of `optimize`, in seconds.
    pub seconds: f64,
    /// Peak resident memory of `optimize`, in bytes.
    pub peak_memory_bytes: u64,
    /// How to make it again; none in reports of workers that knew no recipes.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub recipe: Option<Recipe>,
}

/// Everything that a candidate's bytes are a function of: the same recipe gives the same bytes, at any number of threads.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Recipe {
    /// The candidate's stages, with all that the worker chose by measuring or by where it ran spelled out in the words of the schema.
    pub stages: Vec<Stage>,
    /// Model digest of the baseline.
    pub model: Digest,
    /// Digest over the files of the calibration data; none where no stage learned from any.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub calibration: Option<Digest>,
    /// Rows of it that were learned from, from the first.
    pub rows: u64,
    /// Columns that fed the model.
    pub inputs: Vec<InputBinding>,
    /// Version of the worker.
    pub worker: String,
    /// Version of ONNX Runtime.
    pub onnxruntime: String,
    /// Integer instruction set, as in [`Runtime`].
    pub instruction_set: String,
}

/// What one pass did to the graph.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct PassReport {
    /// Name of the pass.
    pub name: String,
    /// Nodes that it changed.
    pub changed: u64,
    /// Nodes that it could have changed and left, with the reason; at most 64 are listed.
    #[serde(default)]
    pub left: Vec<Left>,
    /// Nodes that it kept more precise than the others, with the reason; at most 64 are listed.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub raised: Vec<Left>,
    /// What it found out on the way, for people; empty where there is nothing to say.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub note: String,
}

/// A node that a pass left alone, or kept more precise than the others.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Left {
    /// Name of the node.
    pub node: String,
    /// Why.
    pub why: String,
}

/// Names of metrics, as gates and reports spell them.
pub mod metrics {
    /// Share of rows whose highest score is the label's class; higher is better.
    pub const ACCURACY: &str = "accuracy";
    /// Median latency of one inference, in seconds.
    pub const LATENCY_P50: &str = "latencyP50";
    /// 99th percentile of the latency of one inference, in seconds.
    pub const LATENCY_P99: &str = "latencyP99";
    /// Peak resident memory of the process that runs the model, in bytes.
    pub const PEAK_MEMORY: &str = "peakMemory";
    /// Sum of the model's files, in bytes.
    pub const ARTIFACT_SIZE: &str = "artifactSize";
    /// Processor seconds over wall seconds and threads while the model runs: 1 is fully busy.
    pub const UTILISATION: &str = "utilisation";
    /// Share of rows on which the model agrees with the baseline.
    pub const AGREEMENT: &str = "agreement";
}

/// One measured value with the number of observations behind it.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Measurement {
    /// In the metric's unit; never NaN (that would not be JSON).
    pub value: f64,
    /// Rows, runs or files behind it.
    pub samples: u64,
}

/// Measurements by metric name.
pub type Measurements = BTreeMap<String, Measurement>;

/// What a measure job found.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Measured {
    /// Name of the environment.
    pub environment: String,
    /// Provider that really ran the model.
    pub execution_provider: String,
    /// The baseline's model digest, as fetched.
    pub baseline_digest: Digest,
    /// The candidate's model digest, as fetched.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub candidate_digest: Option<Digest>,
    /// Rows of evaluation data.
    pub rows: u64,
    /// The baseline, measured in this very job.
    pub baseline: Measurements,
    /// The candidate, measured in alternating blocks with the baseline.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub candidate: Option<Measurements>,
    /// Metrics that the process running the model reported of itself; bounded by the container's start and finish.
    pub self_reported: Vec<String>,
    /// Wall seconds of the `run` container that the self-reported times must fit into.
    pub run_seconds: f64,
}

/// The termination message: what the report must turn out to be.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Termination {
    /// [`CONTRACT_VERSION`].
    pub v: u32,
    /// The plan's nonce.
    pub nonce: String,
    /// sha256 of the report line, without the newline.
    pub report_sha256: Digest,
    /// Its length in bytes.
    pub report_bytes: u64,
    /// The artifact that was published, where one was.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub artifact_digest: Option<Digest>,
    /// Its model digest.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub model_digest: Option<Digest>,
}
