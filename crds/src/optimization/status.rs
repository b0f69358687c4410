//! What is found out about a `ModelOptimization`: its status.
//!
//! Decides the schema that the operator alone writes. Status strings are open.

use k8s_openapi::apimachinery::pkg::apis::meta::v1::Condition;
use kube::KubeSchema;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::common::{ArtifactStatus, EvidenceReference};

/// What was found. Written only by the operator.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, KubeSchema)]
#[serde(rename_all = "camelCase")]
pub struct ModelOptimizationStatus {
    /// Generation that this status speaks of.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub observed_generation: Option<i64>,
    /// `Pending`, `Queued`, `Baselining`, `Optimizing`, `Validating`, `Succeeded`, `Rejected` or `Failed`.
    #[serde(default)]
    pub phase: String,
    /// The token of the last `assayer.dev/rerun` that was acted upon.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub rerun: Option<String>,
    /// What columns show.
    #[serde(default)]
    pub summary: OptimizationSummary,
    /// `Ready`, `Reconciling`, `Stalled`, `BaselineRecorded`, `Optimized`, `Validated`, `EvidenceRecorded`.
    #[serde(default)]
    #[x_kube(merge_strategy = ListMerge::Map(vec!["type".into()]))]
    pub conditions: Vec<Condition>,
    /// Every piece of work of this generation: one Job each.
    #[serde(default)]
    #[schemars(length(max = 224))]
    #[x_kube(merge_strategy = ListMerge::Map(vec!["step".into()]))]
    pub work: Vec<WorkStatus>,
    /// The baseline, before anything was changed, by environment.
    #[serde(default)]
    #[x_kube(merge_strategy = ListMerge::Map(vec!["environment".into()]))]
    pub baseline: Vec<MeasuredStatus>,
    /// Each candidate's state, artifact, measurements and verdicts.
    #[serde(default)]
    #[x_kube(merge_strategy = ListMerge::Map(vec!["name".into()]))]
    pub candidates: Vec<CandidateStatus>,
    /// Candidates that no other beats in accuracy, latency and size at once.
    #[serde(default)]
    pub pareto: Vec<String>,
    /// The candidate that passed every gate and is fastest.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub selected: Option<String>,
    /// Earlier runs, newest first; at most 10.
    #[serde(default)]
    #[schemars(length(max = 10))]
    pub history: Vec<OptimizationRun>,
}

/// What printer columns can't compute.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct OptimizationSummary {
    /// 12 hex digits of the selected artifact's digest.
    #[serde(default)]
    pub digest: String,
    /// Candidates judged of all: `1/2`.
    #[serde(default)]
    pub candidates: String,
}

/// One piece of work.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct WorkStatus {
    /// `baseline/<environment>`, `make/<candidate>` or `measure/<candidate>/<environment>`.
    pub step: String,
    /// `Running`, `Queued`, `Done`, `Retrying` or `Failed`.
    pub state: String,
    /// The Job of the current attempt.
    #[serde(default)]
    pub job: String,
    /// The current attempt, from 1.
    #[serde(default)]
    pub attempt: i32,
    /// Why it failed or waits.
    #[serde(default)]
    pub reason: String,
    /// In words.
    #[serde(default)]
    pub message: String,
    /// When the current attempt may start or was started, RFC 3339.
    #[serde(default)]
    pub at: String,
    /// Digest of the report that was taken.
    #[serde(default)]
    pub report: String,
}

/// Measurements in one environment, as decimal strings.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct MeasuredStatus {
    /// Name of the environment.
    pub environment: String,
    /// Each metric's value.
    #[serde(default)]
    pub metrics: Vec<MetricStatus>,
}

/// One measured value.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct MetricStatus {
    /// Name of the metric.
    pub name: String,
    /// The value with its unit, for people: `0.9257`, `1.78ms`, `843KiB`.
    pub value: String,
    /// The baseline in the same run, where there is one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub baseline: Option<String>,
    /// Observations behind it.
    #[serde(default)]
    pub samples: i64,
}

/// One candidate.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, KubeSchema)]
#[serde(rename_all = "camelCase")]
pub struct CandidateStatus {
    /// Name.
    pub name: String,
    /// `Pending`, `Making`, `Made`, `Measuring`, `Passed`, `Rejected` or `Failed`.
    pub state: String,
    /// sha256 of its plan without gates: a full match within a generation is reused.
    #[serde(default)]
    pub key: String,
    /// One phrase: `static-int8`.
    #[serde(default)]
    pub technique: String,
    /// The published artifact.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub artifact: Option<ArtifactStatus>,
    /// Measurements by environment.
    #[serde(default)]
    #[x_kube(merge_strategy = ListMerge::Map(vec!["environment".into()]))]
    pub measured: Vec<MeasuredStatus>,
    /// Verdict of every gate.
    #[serde(default)]
    #[x_kube(merge_strategy = ListMerge::Map(vec!["gate".into()]))]
    pub verdicts: Vec<VerdictStatus>,
    /// Signed evidence.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub evidence: Option<EvidenceReference>,
    /// Why it was rejected or failed.
    #[serde(default)]
    pub message: String,
}

/// A gate's verdict.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct VerdictStatus {
    /// Name of the gate.
    pub gate: String,
    /// `Passed`, `Failed`, `Inconclusive` or `Error`.
    pub verdict: String,
    /// `Block`, `Warn` or `DryRun`.
    pub severity: String,
    /// Number against limit.
    pub message: String,
}

/// A finished run.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct OptimizationRun {
    /// Generation.
    pub generation: i64,
    /// Rerun token, if any.
    #[serde(default)]
    pub rerun: String,
    /// How it ended.
    pub phase: String,
    /// What was selected.
    #[serde(default)]
    pub selected: String,
    /// When, RFC 3339.
    pub at: String,
}
