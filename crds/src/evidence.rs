//! The evidence of one candidate: an in-toto Statement v1 whose predicate holds everything that was measured and judged.
//!
//! Decides the shape; signing, storing and verifying live elsewhere. Source: in-toto attestation framework, Statement v1;
//! DSSE v1 for the envelope.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::contract::{Made, Measured, Runtime};
use crate::digest::Digest;

/// Type of the statement.
pub const STATEMENT_TYPE: &str = "https://in-toto.io/Statement/v1";
/// Type of our predicate.
pub const PREDICATE_TYPE: &str = "https://assayer.dev/evidence/v1";
/// DSSE payload type.
pub const PAYLOAD_TYPE: &str = "application/vnd.in-toto+json";

/// An in-toto statement about one candidate.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Statement {
    /// [`STATEMENT_TYPE`].
    #[serde(rename = "_type")]
    pub statement_type: String,
    /// The model (by model digest) and the artifact (by manifest digest).
    pub subject: Vec<Subject>,
    /// [`PREDICATE_TYPE`].
    #[serde(rename = "predicateType")]
    pub predicate_type: String,
    /// What is claimed.
    pub predicate: Evidence,
}

/// A thing that the statement is about.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Subject {
    /// `model` or the artifact's URI.
    pub name: String,
    /// `sha256` and 64 hex digits.
    pub digest: BTreeMap<String, String>,
}

/// Provenance, measurements and verdicts of one candidate.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Evidence {
    /// When the evidence was written, RFC 3339, by the API server's word of time where there is one.
    pub recorded_at: String,
    /// Which optimization this came from.
    pub optimization: OptimizationReference,
    /// Who owns the model, and what it influences.
    pub owner: Owner,
    /// `Access`, `Security`, `CustomerDecision`, `Internal`.
    pub influences: Vec<String>,
    /// Name and version of the model.
    pub model: ModelName,
    /// Name of the candidate.
    pub candidate: String,
    /// One phrase for tables: `static-int8`.
    pub technique: String,
    /// Digest of the plan without gates: what was made from what.
    pub plan_digest: Digest,
    /// The spec of the optimization, as it was judged.
    pub spec: serde_json::Value,
    /// How the candidate was made.
    pub made: Made,
    /// Who made it on what.
    pub made_by: Runtime,
    /// The baseline before anything was changed, for each environment.
    pub baseline: Vec<Measured>,
    /// Baseline and candidate measured together, for each environment.
    pub measured: Vec<MeasuredBy>,
    /// Every gate's verdict.
    pub verdicts: Vec<GateVerdict>,
    /// Image of the workers, by digest; empty for a local run.
    pub worker_image: String,
    /// Where it ran: `kubernetes` or `local`.
    pub runner: String,
}

/// Measurements and the runtime that took them.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct MeasuredBy {
    /// What was measured.
    pub measured: Measured,
    /// By what.
    pub runtime: Runtime,
}

/// The optimization that evidence speaks of.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct OptimizationReference {
    /// Namespace; empty for a local run.
    pub namespace: String,
    /// Name.
    pub name: String,
    /// Uid; empty for a local run.
    pub uid: String,
    /// Generation of the spec.
    pub generation: i64,
}

/// Named ownership.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Owner {
    /// Group, compared with users' groups.
    pub group: String,
    /// How to reach it.
    pub contact: String,
}

/// Name and version of a model.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct ModelName {
    /// Name.
    pub name: String,
    /// Version.
    pub version: String,
}

/// What became of one gate.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct GateVerdict {
    /// Name of the gate.
    pub gate: String,
    /// `Passed`, `Failed`, `Inconclusive` or `Error`.
    pub verdict: String,
    /// `Block`, `Warn` or `DryRun`.
    pub severity: String,
    /// Metric that was judged.
    pub metric: String,
    /// Environment that decided it (the worst one), where the metric has one.
    #[serde(default)]
    pub environment: String,
    /// What was measured, for people: `1.92 times the baseline`.
    #[serde(default)]
    pub measured: String,
    /// The bound, for people: `at most 0.80 times the baseline`.
    #[serde(default)]
    pub limit: String,
    /// One sentence with number against limit.
    pub message: String,
}
