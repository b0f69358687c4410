//! The inventory's rows, as `/inventory` serves them: camelCase JSON that scripts and `assayer inventory` rely on.
//!
//! Shapes only. Strings are as the cluster has them; whoever writes them down escapes them.

use serde::Serialize;

/// A workload in its namespace.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct WorkloadRef {
    /// Namespace.
    pub namespace: String,
    /// `Deployment` and the like; `Pod` where nothing controls it.
    #[serde(rename = "workloadKind")]
    pub kind: String,
    /// Name.
    #[serde(rename = "workload")]
    pub name: String,
}

/// A model that runs.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct ModelRow {
    /// Where.
    #[serde(flatten)]
    pub workload: WorkloadRef,
    /// Name of the model.
    pub model: String,
    /// Version of the model.
    pub version: String,
    /// Digest that the pods name.
    pub artifact_digest: String,
    /// How it was optimized.
    pub technique: String,
    /// Tier of the change; empty without an approval on record.
    pub tier: String,
    /// Owning group.
    pub owner: String,
    /// Who approved it; empty without an approval on record, or where the tier needs none.
    pub approvers: Vec<String>,
    /// Ticket of the change.
    pub ticket: String,
    /// Reason of the change: free text, shown to people and never a label.
    pub reason: String,
    /// Digest of the evidence.
    pub evidence: String,
    /// The promotion; empty when it was deleted.
    pub promotion: String,
    /// Since when, RFC 3339.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub since: Option<String>,
    /// Pods that serve it.
    pub replicas: u64,
    /// Whether the decision is on record for this workload and digest.
    pub approved: bool,
}

/// A model that runs without an approval on record.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct UnapprovedRow {
    /// Where.
    #[serde(flatten)]
    pub workload: WorkloadRef,
    /// What; `unpinned` where no digest is named.
    pub artifact_digest: String,
    /// Pods that carry it.
    pub pods: u64,
}

/// A workload that no longer carries the model that was promoted to it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct DriftedRow {
    /// Where.
    #[serde(flatten)]
    pub workload: WorkloadRef,
    /// The promotion.
    pub promotion: String,
    /// What it should be.
    pub artifact_digest: String,
    /// What is there: a digest, `unpinned`, or nothing.
    pub found: String,
}

/// A promotion that waits for people.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct WaitingRow {
    /// Namespace.
    pub namespace: String,
    /// Name.
    pub promotion: String,
    /// Tier of the change.
    pub tier: String,
    /// Approvals that are still missing.
    pub missing: u64,
    /// Since when, RFC 3339.
    pub since: String,
}

/// What depends on one model.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct BlastRow {
    /// Name of the model; empty where no record knows it.
    pub model: String,
    /// Digest that the pods name.
    pub artifact_digest: String,
    /// Workloads that carry it.
    pub workloads: u64,
    /// Pods that carry it.
    pub pods: u64,
    /// Namespaces of these.
    pub namespaces: u64,
}

/// How many objects of a kind are in a phase.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct PhaseRow {
    /// Kind.
    pub kind: &'static str,
    /// Phase; `Pending` before the first status.
    pub phase: String,
    /// How many.
    pub count: u64,
}

/// How many gates of an optimization came to a verdict.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct GateRow {
    /// Namespace.
    pub namespace: String,
    /// Name of the optimization.
    pub optimization: String,
    /// `Block`, `Warn` or `DryRun`.
    pub severity: String,
    /// `Passed`, `Failed`, `Inconclusive` or `Error`.
    pub verdict: String,
    /// How many, over all candidates.
    pub count: u64,
}

/// The whole inventory, in a stable order.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Inventory {
    /// Models that run.
    pub models: Vec<ModelRow>,
    /// Those without an approval on record.
    pub unapproved: Vec<UnapprovedRow>,
    /// Workloads that drifted.
    pub drifted: Vec<DriftedRow>,
    /// Promotions that wait for people.
    pub waiting: Vec<WaitingRow>,
    /// Blast radius by model.
    pub blast_radius: Vec<BlastRow>,
    /// Objects by phase.
    pub phases: Vec<PhaseRow>,
    /// Gates by verdict.
    pub gates: Vec<GateRow>,
}
