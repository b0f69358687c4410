//! `ModelPromotion`: where an optimized model goes, and who must say yes.
//!
//! Decides the schema and its rules. `status.live` and `status.attempt` are apart, so that a failed attempt never makes the healthy
//! live model look unhealthy.

use k8s_openapi::apimachinery::pkg::apis::meta::v1::Condition;
use kube::{CustomResource, KubeSchema};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::common::{ArtifactStatus, EvidenceReference, Owner};
use crate::policy::RequiredApproval;

/// Moves a candidate with recorded evidence into a workload, once the approvals that its risk asks for name this very request.
#[derive(CustomResource, KubeSchema, Clone, Debug, PartialEq, Serialize, Deserialize)]
#[kube(
    group = "assayer.dev",
    version = "v1alpha1",
    kind = "ModelPromotion",
    plural = "modelpromotions",
    namespaced,
    doc = "Moves a candidate with recorded evidence into a workload, once the approvals that its risk asks for name this very request.",
    status = "ModelPromotionStatus",
    derive = "PartialEq",
    shortname = "mpromo",
    category = "assayer",
    printcolumn(name = "Phase", type_ = "string", json_path = ".status.phase"),
    printcolumn(name = "Candidate", type_ = "string", json_path = ".status.request.candidate"),
    printcolumn(name = "Digest", type_ = "string", json_path = ".status.summary.digest"),
    printcolumn(name = "Tier", type_ = "string", json_path = ".status.request.tier"),
    printcolumn(name = "Approvals", type_ = "string", json_path = ".status.summary.approvals"),
    printcolumn(name = "Live", type_ = "string", json_path = ".status.summary.live"),
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
    "self.target.workload == oldSelf.target.workload",
    "target.workload is immutable: create another ModelPromotion for another workload"))]
pub struct ModelPromotionSpec {
    /// Who owns the change; the group can't approve it.
    pub owner: Owner,
    /// The change as it is known elsewhere.
    pub change: Change,
    /// What is promoted.
    pub source: Source,
    /// Where it goes.
    pub target: Target,
    /// Starts no new attempt while true. A roll-out under way is finished or rolled back.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub suspend: bool,
}

/// Ticket and reason of the change.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, KubeSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Change {
    /// Ticket in the change-management system.
    #[schemars(
        length(min = 1, max = 63),
        regex(pattern = r"^[A-Za-z0-9]([-A-Za-z0-9_.#/]*[A-Za-z0-9])?$")
    )]
    pub ticket: String,
    /// Why, in one sentence. Kept in status and evidence, never a label.
    #[schemars(length(min = 1, max = 512))]
    pub reason: String,
}

/// What is promoted.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, KubeSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Source {
    /// A candidate of an optimization in the same namespace.
    pub model_optimization: OptimizationSource,
}

/// A candidate of an optimization.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, KubeSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct OptimizationSource {
    /// Name of the `ModelOptimization`.
    #[schemars(length(min = 1, max = 253))]
    pub name: String,
    /// Name of the candidate. Default: the selected one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 40))]
    pub candidate: Option<String>,
}

/// Where the model goes, and how.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, KubeSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Target {
    /// The workload in the same namespace; immutable.
    pub workload: Workload,
    /// How the artifact reaches its pods.
    pub delivery: Delivery,
}

/// A workload that serves models.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, KubeSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
#[x_kube(validation = ("self.apiVersion == 'apps/v1'", "target.workload.apiVersion must be apps/v1"))]
pub struct Workload {
    /// `apps/v1`.
    #[schemars(length(max = 63))]
    pub api_version: String,
    /// `Deployment`.
    pub kind: WorkloadKind,
    /// Name.
    #[schemars(length(min = 1, max = 253))]
    pub name: String,
}

/// Kinds of workload that can be promoted to.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub enum WorkloadKind {
    /// `apps/v1` Deployment.
    Deployment,
}

/// How the artifact reaches the pods. Exactly one way is named.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, KubeSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
#[x_kube(validation = ("has(self.imageVolume) != has(self.env)", "delivery names exactly one of imageVolume and env"))]
pub struct Delivery {
    /// The artifact is mounted read-only by the kubelet (Kubernetes 1.35 and newer). The workload declares
    /// `volumes: [{name: model, image: {}}]` and mounts it; the operator owns only `image.reference`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub image_volume: Option<ImageVolumeDelivery>,
    /// The artifact's URI by digest is put into an environment variable, and the server fetches it by itself.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub env: Option<EnvDelivery>,
}

/// Delivery as an image volume.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, KubeSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct ImageVolumeDelivery {
    /// Name of the volume in the pod template.
    #[schemars(length(min = 1, max = 63), regex(pattern = r"^[a-z0-9]([-a-z0-9]*[a-z0-9])?$"))]
    pub volume: String,
}

/// Delivery as an environment variable.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, KubeSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct EnvDelivery {
    /// Name of the variable. The manifest must not set it.
    #[schemars(length(min = 1, max = 128), regex(pattern = r"^[A-Za-z_][A-Za-z0-9_]*$"))]
    pub name: String,
    /// Name of the container.
    #[schemars(length(min = 1, max = 63), regex(pattern = r"^[a-z0-9]([-a-z0-9]*[a-z0-9])?$"))]
    pub container: String,
}

/// What became of the request. Written only by the operator.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, KubeSchema)]
#[serde(rename_all = "camelCase")]
pub struct ModelPromotionStatus {
    /// Generation that this status speaks of.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub observed_generation: Option<i64>,
    /// `Pending`, `Verifying`, `AwaitingApproval`, `Progressing`, `Live`, `RolledBack`, `Rejected`, `Superseded` or `Failed`.
    #[serde(default)]
    pub phase: String,
    /// The token of the last `assayer.dev/rerun` that was acted upon.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub rerun: Option<String>,
    /// What columns show.
    #[serde(default)]
    pub summary: PromotionSummary,
    /// `Ready`, `Reconciling`, `Stalled`, `EvidenceVerified`, `GatesPassed`, `Approved`, `RolledOut`.
    #[serde(default)]
    #[x_kube(merge_strategy = ListMerge::Map(vec!["type".into()]))]
    pub conditions: Vec<Condition>,
    /// What approvals must name.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub request: Option<RequestStatus>,
    /// Approvals that count for the request.
    #[serde(default)]
    #[schemars(length(max = 64))]
    pub approvals: Vec<ApprovalStatus>,
    /// The roll-out under way, or the last one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub attempt: Option<AttemptStatus>,
    /// The model that this promotion brought into the workload and that is there now.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub live: Option<LiveStatus>,
    /// Request digests that somebody rejected: terminal. Newest first; at most 32.
    #[serde(default)]
    #[schemars(length(max = 32))]
    pub rejected: Vec<RefusedDigest>,
    /// Artifact digests that were rolled back and are not promoted again unless asked (`assayer.dev/rerun`). At most 32.
    #[serde(default)]
    #[schemars(length(max = 32))]
    pub rolled_back: Vec<RefusedDigest>,
    /// Earlier attempts, newest first; at most 10.
    #[serde(default)]
    #[schemars(length(max = 10))]
    pub history: Vec<AttemptStatus>,
}

/// What printer columns can't compute.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct PromotionSummary {
    /// Approvals of those needed: `0/1`.
    #[serde(default)]
    pub approvals: String,
    /// 12 hex digits of the requested artifact's digest.
    #[serde(default)]
    pub digest: String,
    /// 12 hex digits of the live artifact's digest.
    #[serde(default)]
    pub live: String,
}

/// The request that approvals name by its digest.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct RequestStatus {
    /// sha256 of canonical {uid, namespace, name, spec without suspend, evidence digest, tier, policy digest, guard epoch}.
    pub digest: String,
    /// Name of the candidate.
    pub candidate: String,
    /// What would go live.
    pub artifact: ArtifactStatus,
    /// The evidence that it rests on.
    pub evidence: EvidenceReference,
    /// Tier of the change.
    pub tier: String,
    /// Digest over the policies that apply.
    pub policy_digest: String,
    /// The guard's epoch: another one once the admission policy that guards approvals was away or changed, so that approvals from before
    /// don't count any more.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub guard_epoch: String,
    /// Approvals that are needed.
    #[serde(default)]
    pub required: Vec<RequiredApproval>,
    /// Since when this request waits, RFC 3339.
    #[serde(default)]
    pub since: String,
}

/// An approval that counts.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct ApprovalStatus {
    /// Role that it was given in.
    pub role: String,
    /// Who gave it, as stamped by the cluster.
    pub user: String,
    /// Why, in the approver's words.
    #[serde(default)]
    pub reason: String,
    /// When the operator first saw it, RFC 3339.
    #[serde(default)]
    pub at: String,
}

/// One roll-out.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct AttemptStatus {
    /// The request that it carries out.
    pub request_digest: String,
    /// What goes live.
    pub artifact: ArtifactStatus,
    /// `Deciding`, `Progressing`, `Complete`, `RollingBack`, `RolledBack` or `Failed`.
    pub state: String,
    /// When the decision was recorded, RFC 3339: before the first write on the workload.
    pub started_at: String,
    /// When it ended, RFC 3339.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub finished_at: Option<String>,
    /// The delivered field's value before the first write; none if there was none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub former_value: Option<String>,
    /// Whether the former value has an approval on record.
    #[serde(default)]
    pub former_approved: bool,
    /// The workload's generation after the write, which its rollout must observe.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub workload_generation: Option<i64>,
    /// Who approved it.
    #[serde(default)]
    pub approvals: Vec<ApprovalStatus>,
    /// How the artifact is delivered. The spec may be edited while the roll-out goes on, and going back needs the same way.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub delivery: Option<Delivery>,
    /// Name of the model.
    #[serde(default)]
    pub model: String,
    /// Version of the model.
    #[serde(default)]
    pub version: String,
    /// Name of the candidate.
    #[serde(default)]
    pub candidate: String,
    /// `static-int8` and the like.
    #[serde(default)]
    pub technique: String,
    /// The evidence that it rests on.
    #[serde(default)]
    pub evidence: EvidenceReference,
    /// Tier of the change.
    #[serde(default)]
    pub tier: String,
    /// Owning group.
    #[serde(default)]
    pub owner: String,
    /// Digest over the policies that applied.
    #[serde(default)]
    pub policy_digest: String,
    /// The guard's epoch in which it was approved.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub guard_epoch: String,
    /// Ticket.
    #[serde(default)]
    pub ticket: String,
    /// Reason of the change.
    #[serde(default)]
    pub reason: String,
    /// How it ended: `RolloutComplete`, `RolledBack`, `NothingToRestore`, `RolloutFailed`, `Drifted`, `TargetNotFound` or the reason why it
    /// was given up before the first write. Empty while it goes on.
    #[serde(default)]
    pub cause: String,
    /// Why it ended as it did.
    #[serde(default)]
    pub message: String,
}

/// The model that is live through this promotion.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct LiveStatus {
    /// Name of the model.
    pub model: String,
    /// Version of the model.
    pub version: String,
    /// Name of the candidate.
    pub candidate: String,
    /// `static-int8` and the like.
    pub technique: String,
    /// The artifact.
    pub artifact: ArtifactStatus,
    /// The evidence that it rests on.
    pub evidence: EvidenceReference,
    /// The request that was approved.
    pub request_digest: String,
    /// Tier of the change.
    pub tier: String,
    /// Owning group.
    pub owner: String,
    /// Ticket.
    pub ticket: String,
    /// Reason of the change.
    pub reason: String,
    /// Who approved it.
    #[serde(default)]
    pub approvals: Vec<ApprovalStatus>,
    /// Since when, RFC 3339.
    pub since: String,
}

/// A digest that is not tried again.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct RefusedDigest {
    /// The digest.
    pub digest: String,
    /// Who or what refused it.
    pub by: String,
    /// Why.
    #[serde(default)]
    pub reason: String,
    /// When, RFC 3339.
    pub at: String,
}
