//! `ModelOptimization`: what to try on a model, and what must hold for the result.
//!
//! Decides the schema and its rules. Spec enums are closed.

mod status;

use kube::{CustomResource, KubeSchema};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

pub use self::status::{
    CandidateStatus, MeasuredStatus, MetricStatus, ModelOptimizationStatus, OptimizationRun, OptimizationSummary,
    VerdictStatus, WorkStatus,
};
pub use crate::common::{ArtifactStatus, EvidenceReference, Influence, Owner};
use crate::pods::PodOptions;
use crate::stages::Stage;

/// Makes optimized candidates of an ONNX model in pods, measures each against the baseline, judges the gates, and records signed
/// evidence for the candidates. A spec change supersedes the run; `assayer.dev/rerun: <token>` runs again.
#[derive(CustomResource, KubeSchema, Clone, Debug, PartialEq, Serialize, Deserialize)]
#[kube(
    group = "assayer.dev",
    version = "v1alpha1",
    kind = "ModelOptimization",
    plural = "modeloptimizations",
    namespaced,
    doc = "Makes optimized candidates of an ONNX model in pods, measures each against the baseline, judges the gates, and records signed evidence.",
    status = "ModelOptimizationStatus",
    derive = "PartialEq",
    shortname = "mopt",
    category = "assayer",
    printcolumn(name = "Phase", type_ = "string", json_path = ".status.phase"),
    printcolumn(name = "Selected", type_ = "string", json_path = ".status.selected"),
    printcolumn(name = "Digest", type_ = "string", json_path = ".status.summary.digest"),
    printcolumn(name = "Candidates", type_ = "string", json_path = ".status.summary.candidates"),
    printcolumn(
        name = "Ready",
        type_ = "string",
        json_path = ".status.conditions[?(@.type=='Ready')].status"
    ),
    printcolumn(name = "Age", type_ = "date", json_path = ".metadata.creationTimestamp"),
    printcolumn(
        name = "Message",
        type_ = "string",
        json_path = ".status.conditions[?(@.type=='Ready')].message",
        priority = 1
    )
)]
#[cfg_attr(test, kube(cel))]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
#[x_kube(validation = (
    "self.gates.all(g, !has(g.environment) || self.environments.exists(e, e.name == g.environment))",
    "gates[].environment must name one of environments[].name"))]
#[x_kube(validation = (
    "has(self.data.calibration) || !self.candidates.exists(c, c.stages.exists(s, has(s.quantize) && s.quantize.mode == 'Static'))",
    "data.calibration is required because a candidate has a quantize stage with mode: Static"))]
#[x_kube(validation = (
    "self.candidates.size() * self.environments.size() <= 128",
    "candidates times environments is at most 128, since each is measured by a Job of its own: split it into several ModelOptimizations"))]
#[x_kube(validation = (
    "self.candidates.size() * self.gates.size() <= 512",
    "candidates times gates is at most 512, since status has a verdict for each: split it into several ModelOptimizations"))]
#[x_kube(validation = ("self.model.name == oldSelf.model.name", "model.name is immutable: create another ModelOptimization for another model"))]
pub struct ModelOptimizationSpec {
    /// Who owns the model; the group can't approve its promotion.
    pub owner: Owner,
    /// What decisions rest on the model. Required: it sets the risk tier of a promotion.
    #[schemars(length(min = 1, max = 4))]
    #[x_kube(merge_strategy = ListMerge::Set)]
    pub influences: Vec<Influence>,
    /// The baseline: the model as delivered.
    pub model: Model,
    /// Calibration and evaluation data, and how their columns feed the model.
    pub data: Data,
    /// What the model does, and which output says so.
    pub task: Task,
    /// Where the model will run, and is therefore measured.
    #[schemars(length(min = 1, max = 32))]
    #[x_kube(merge_strategy = ListMerge::Map(vec!["name".into()]))]
    pub environments: Vec<Environment>,
    /// The optimized forms to make. All are made and measured; the fastest one that passes every gate is selected.
    #[schemars(length(min = 1, max = 64))]
    #[x_kube(merge_strategy = ListMerge::Map(vec!["name".into()]))]
    pub candidates: Vec<Candidate>,
    /// What must hold. Every gate is judged for every candidate. Anything missing, stale or not a number never passes.
    #[schemars(length(min = 1, max = 128))]
    #[x_kube(merge_strategy = ListMerge::Map(vec!["name".into()]))]
    pub gates: Vec<Gate>,
    /// Where candidates are published.
    pub output: Output,
    /// Credentials, deadline and retries of the workers.
    #[serde(default)]
    pub run: Run,
    /// Starts no new work while true; running workers are stopped.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub suspend: bool,
}

/// The model as delivered.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, KubeSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Model {
    /// Name of the model; immutable.
    #[schemars(length(min = 1, max = 63), regex(pattern = r"^[a-z0-9]([-a-z0-9.]*[a-z0-9])?$"))]
    pub name: String,
    /// Version of the model, as its makers call it.
    #[schemars(
        length(min = 1, max = 63),
        regex(pattern = r"^[A-Za-z0-9]([-A-Za-z0-9_.+]*[A-Za-z0-9])?$")
    )]
    pub version: String,
    /// The artifact by digest: `oci://registry:5000/models/magika@sha256:…`. `assayer pin` resolves tags and local files.
    #[schemars(length(min = 1, max = 512))]
    #[x_kube(validation = Rule::new(PINNED).message(PINNED_MESSAGE))]
    pub uri: String,
}

/// CEL rule of an artifact that must be named by digest.
pub const PINNED: &str = "self.matches('^oci://[a-zA-Z0-9.-]+(:[0-9]+)?(/[a-z0-9._-]+)+@sha256:[0-9a-f]{64}$')";
const PINNED_MESSAGE: &str =
    "must be oci://registry/repository@sha256:<64 hex>: run `assayer pin -f FILE` to resolve tags and push local files";

/// Data sets, by digest, and how they feed the model.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, KubeSchema)]
#[x_kube(validation = (
    "self.inputs.filter(i, has(i.paddingMask) && i.paddingMask).size() <= 1",
    "at most one input is the padding mask: remove paddingMask from the others"))]
#[x_kube(validation = (
    "has(self.calibration) || !self.inputs.exists(i, has(i.paddingMask) && i.paddingMask)",
    "paddingMask is for calibration: set data.calibration or remove it"))]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Data {
    /// Data from which static quantization learns activation ranges. Must share no row with the evaluation data.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub calibration: Option<Calibration>,
    /// Labelled data that candidates are judged on.
    pub evaluation: Evaluation,
    /// Which column feeds which input of the model.
    #[schemars(length(min = 1, max = 32))]
    #[x_kube(merge_strategy = ListMerge::Map(vec!["name".into()]))]
    pub inputs: Vec<Input>,
    /// Column of the evaluation data with the expected class: its index in the model's output.
    #[schemars(length(min = 1, max = 253))]
    pub label: String,
}

/// A calibration set.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, KubeSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Calibration {
    /// An image-shaped artifact with one Parquet file, by digest.
    #[schemars(length(min = 1, max = 512))]
    #[x_kube(validation = Rule::new(PINNED).message(PINNED_MESSAGE))]
    pub uri: String,
    /// Most rows that are used, from the first. Default 512.
    #[serde(default = "default_samples")]
    #[schemars(with = "i32", range(min = 1, max = 65536))]
    pub samples: u32,
}

/// An evaluation set.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, KubeSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Evaluation {
    /// An image-shaped artifact with one Parquet file, by digest.
    #[schemars(length(min = 1, max = 512))]
    #[x_kube(validation = Rule::new(PINNED).message(PINNED_MESSAGE))]
    pub uri: String,
}

fn default_samples() -> u32 {
    512
}

/// A column that feeds an input.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, KubeSchema)]
#[x_kube(validation = (
    "!has(self.paddingMask) || !self.paddingMask || !has(self.shape)",
    "rows with a padding mask are cut to their length, rows with a shape have one: remove paddingMask or shape"))]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Input {
    /// Name of the model's input.
    #[schemars(length(min = 1, max = 253))]
    pub name: String,
    /// Name of the column: numbers, or lists of them. Lists of different lengths run at their own length where the model leaves that
    /// dimension free, rows of one length together as long as they follow each other.
    #[schemars(length(min = 1, max = 253))]
    pub column: String,
    /// Shape of a row, without the batch: `[3, 480, 640]`. For inputs with more than one free dimension, and for models exported with a
    /// fixed batch or other sizes than the data has: what they declare is freed, in the baseline and in every candidate. With as many sizes
    /// as the input has dimensions, it is the shape of all of it, as for states of recurrent models: `[2, 1, 128]`. Rows of a given shape run
    /// one at a time, as do those of inputs that are a scalar.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(
        with = "Option<Vec<i32>>",
        length(min = 1, max = 8),
        inner(range(min = 1, max = 268_435_456))
    )]
    pub shape: Option<Vec<u32>>,
    /// Whether this is the padding mask (`attention_mask`): a list with 1 for each position that is data and, behind these, 0 for padding.
    /// Calibration then sees rows without their padding: this input and those that share its free dimension are cut to the length of
    /// each row. Measuring runs the evaluation rows as they are. Default false.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub padding_mask: bool,
}

/// What the model does.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, KubeSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Task {
    /// `Classification`: the output holds one score for each class, and the highest one counts.
    pub kind: TaskKind,
    /// Name of the model's output.
    #[schemars(length(min = 1, max = 253))]
    pub output: String,
}

/// Kind of task.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub enum TaskKind {
    /// One score for each class.
    Classification,
}

/// Where the model will run.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, KubeSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Environment {
    /// Name, used by gates.
    #[schemars(length(min = 1, max = 63), regex(pattern = r"^[a-z0-9]([-a-z0-9]*[a-z0-9])?$"))]
    pub name: String,
    /// ONNX Runtime execution provider. The worker proves it by building a session; there is no silent fallback.
    pub execution_provider: ExecutionProvider,
    /// Scheduling, resources and queue of the workers. With `CUDA` or `TensorRT` one `nvidia.com/gpu` is asked for unless another
    /// extended resource or a claim is named.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub pod: Option<PodOptions>,
}

/// ONNX Runtime execution provider.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub enum ExecutionProvider {
    /// Host processor.
    CPU,
    /// NVIDIA CUDA.
    CUDA,
    /// NVIDIA TensorRT.
    TensorRT,
}

impl ExecutionProvider {
    /// The word of the schema.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::CPU => "CPU",
            Self::CUDA => "CUDA",
            Self::TensorRT => "TensorRT",
        }
    }
}

/// One optimized form of the baseline.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, KubeSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Candidate {
    /// Name, used in status, tags and promotions.
    #[schemars(length(min = 1, max = 40), regex(pattern = r"^[a-z0-9]([-a-z0-9]*[a-z0-9])?$"))]
    pub name: String,
    /// What is done, in order.
    #[schemars(length(min = 1, max = 16))]
    pub stages: Vec<Stage>,
}

/// One bound on one measured metric.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, KubeSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
#[x_kube(validation = (
    "[has(self.max), has(self.maxDrop), has(self.maxRatio)].filter(b, b).size() == 1",
    "a gate has exactly one bound: max, maxDrop or maxRatio"))]
#[x_kube(validation = (
    "self.metric == 'accuracy' ? has(self.maxDrop) : !has(self.maxDrop)",
    "accuracy is bounded by maxDrop; latencyP50, latencyP99, peakMemory and artifactSize by max or maxRatio"))]
#[x_kube(validation = (
    "!has(self.max) || (self.metric in ['latencyP50', 'latencyP99'] ? self.max.matches('^[0-9]{1,9}([.][0-9]{1,6})?(us|ms|s|m|h|d)$') : self.max.matches('^[0-9]{1,15}([.][0-9]{1,6})?(k|M|G|T|Ki|Mi|Gi|Ti)?$'))",
    "max is a duration such as 5ms for latencies and a quantity such as 300Mi for peakMemory and artifactSize"))]
#[x_kube(validation = (
    "!has(self.environment) || self.metric != 'artifactSize'",
    "artifactSize is the same in every environment: remove environment"))]
pub struct Gate {
    /// Name, used in status and Events.
    #[schemars(length(min = 1, max = 63), regex(pattern = r"^[a-z0-9]([-a-z0-9]*[a-z0-9])?$"))]
    pub name: String,
    /// What is bounded.
    pub metric: Metric,
    /// Environment that is judged. Default: every one, and the worst decides.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 63))]
    pub environment: Option<String>,
    /// Largest absolute value: a duration (`5ms`) for latencies, a quantity (`300Mi`) for sizes.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 24))]
    pub max: Option<String>,
    /// Largest absolute drop of accuracy against the baseline: `"0.01"` is one percentage point.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 16), regex(pattern = r"^[0-9]{1,6}(\.[0-9]{1,9})?$"))]
    pub max_drop: Option<String>,
    /// Largest ratio to the baseline measured in the same run: `"0.80"` asks for a fifth less.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 16), regex(pattern = r"^[0-9]{1,6}(\.[0-9]{1,9})?$"))]
    pub max_ratio: Option<String>,
    /// Fewest observations (rows, runs) behind the number; with fewer the verdict is Inconclusive. Default 1.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(with = "Option<i32>", range(min = 1, max = 10_000_000))]
    pub min_samples: Option<u32>,
    /// `Block` (default) refuses the candidate, `Warn` lets it through with a warning, `DryRun` only records.
    #[serde(default)]
    pub severity: Severity,
}

/// A measured quantity that gates can bound.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub enum Metric {
    /// Share of rows classified as labelled.
    Accuracy,
    /// Median latency of one inference.
    #[serde(rename = "latencyP50")]
    LatencyP50,
    /// 99th percentile of the latency of one inference.
    #[serde(rename = "latencyP99")]
    LatencyP99,
    /// Peak resident memory of the process that runs the model.
    PeakMemory,
    /// Size of the model's files.
    ArtifactSize,
}

impl Metric {
    /// The word of the schema, which is also the name in reports.
    pub fn as_str(self) -> &'static str {
        use crate::contract::metrics;
        match self {
            Self::Accuracy => metrics::ACCURACY,
            Self::LatencyP50 => metrics::LATENCY_P50,
            Self::LatencyP99 => metrics::LATENCY_P99,
            Self::PeakMemory => metrics::PEAK_MEMORY,
            Self::ArtifactSize => metrics::ARTIFACT_SIZE,
        }
    }
}

/// What a missed gate does.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub enum Severity {
    /// Refuses the candidate.
    #[default]
    Block,
    /// Lets it through with a warning.
    Warn,
    /// Only records.
    DryRun,
}

/// Where candidates go.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, KubeSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Output {
    /// Repository without tag and digest: `oci://registry:5000/models/magika`. Candidates get the tag `assayer-<candidate>-<12 hex>`.
    #[schemars(length(min = 1, max = 400))]
    #[x_kube(validation = Rule::new("self.matches('^oci://[a-zA-Z0-9.-]+(:[0-9]+)?(/[a-z0-9._-]+)+$')").message("must be oci://registry/repository without tag and digest"))]
    pub uri: String,
    /// Secret of type `kubernetes.io/dockerconfigjson` for pushing; only the publish container sees it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 253), regex(pattern = r"^[a-z0-9]([-a-z0-9.]*[a-z0-9])?$"))]
    pub push_secret: Option<String>,
}

/// How workers are run.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, KubeSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Run {
    /// Secret of type `kubernetes.io/dockerconfigjson` for pulling models and data; only the stage container sees it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 253), regex(pattern = r"^[a-z0-9]([-a-z0-9.]*[a-z0-9])?$"))]
    pub pull_secret: Option<String>,
    /// Longest time of one worker pod. Default `1h`.
    #[serde(default = "default_deadline")]
    #[schemars(length(max = 16), regex(pattern = r"^[1-9][0-9]{0,5}(s|m|h)$"))]
    pub deadline: String,
    /// Further attempts after a failure that may pass (storage away, pod evicted). Default 2.
    #[serde(default = "default_retries")]
    #[schemars(with = "i32", range(min = 0, max = 10))]
    pub retries: u32,
}

fn default_deadline() -> String {
    "1h".to_owned()
}

fn default_retries() -> u32 {
    2
}

impl Default for Run {
    fn default() -> Self {
        Self {
            pull_secret: None,
            deadline: default_deadline(),
            retries: default_retries(),
        }
    }
}
