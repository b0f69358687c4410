//! `PromotionPolicy`: how much sign-off a change of model needs, by risk.
//!
//! Cluster-scoped, so that nobody chooses his own policy. Decides the schema only; `operator/src/promotion/policy.rs` applies it.

use k8s_openapi::apimachinery::pkg::apis::meta::v1::{Condition, LabelSelector};
use kube::{CustomResource, KubeSchema};
use serde::{Deserialize, Serialize};

use crate::common::Influence;

/// Says which approvals a promotion needs, and how fresh its evidence must be, in the namespaces that it selects.
#[derive(CustomResource, KubeSchema, Clone, Debug, PartialEq, Serialize, Deserialize)]
#[kube(
    group = "assayer.dev",
    version = "v1alpha1",
    kind = "PromotionPolicy",
    plural = "promotionpolicies",
    doc = "Says which approvals a promotion needs, by risk tier, and how fresh its evidence must be, in the namespaces that it selects.",
    status = "PromotionPolicyStatus",
    derive = "PartialEq",
    shortname = "ppolicy",
    category = "assayer",
    printcolumn(name = "Tiers", type_ = "string", json_path = ".spec.tiers[*].name"),
    printcolumn(
        name = "Ready",
        type_ = "string",
        json_path = ".status.conditions[?(@.type=='Ready')].status"
    ),
    printcolumn(name = "Age", type_ = "date", json_path = ".metadata.creationTimestamp")
)]
#[cfg_attr(test, kube(cel))]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct PromotionPolicySpec {
    /// Namespaces where the policy holds. An empty selector means all of them. Where no policy matches, promotion is refused; where
    /// several match, all of them must be satisfied.
    pub namespace_selector: LabelSelector,
    /// Tiers from the mildest to the gravest. The last one whose conditions match is the tier of the change.
    #[schemars(length(min = 1, max = 16))]
    #[x_kube(merge_strategy = ListMerge::Map(vec!["name".into()]))]
    pub tiers: Vec<Tier>,
}

/// A level of risk and the sign-off that it needs. The requester and the owner's group never count as approvers.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, KubeSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Tier {
    /// Name, shown in status and inventory.
    #[schemars(length(min = 1, max = 63), regex(pattern = r"^[a-z0-9]([-a-z0-9]*[a-z0-9])?$"))]
    pub name: String,
    /// The tier is selected when the model influences any of these. Empty: always.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 4))]
    #[x_kube(merge_strategy = ListMerge::Set)]
    pub influences: Vec<Influence>,
    /// Approvals that are needed, by role. Empty: none.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 8))]
    #[x_kube(merge_strategy = ListMerge::Map(vec!["role".into()]))]
    pub approvals: Vec<RequiredApproval>,
    /// Oldest evidence that may be promoted. Default `30d`.
    #[serde(default = "default_age")]
    #[schemars(length(max = 16), regex(pattern = r"^[1-9][0-9]{0,5}(m|h|d)$"))]
    pub max_evidence_age: String,
}

fn default_age() -> String {
    "30d".to_owned()
}

/// How many distinct people must approve in a role.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, KubeSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct RequiredApproval {
    /// Role: a person needs the verb `approve` on `approvalroles.assayer.dev/<role>`.
    #[schemars(length(min = 1, max = 50), regex(pattern = r"^[a-z0-9]([-a-z0-9]*[a-z0-9])?$"))]
    pub role: String,
    /// Distinct people. Default 1.
    #[serde(default = "one")]
    #[schemars(with = "i32", range(min = 1, max = 9))]
    pub count: u32,
}

fn one() -> u32 {
    1
}

/// Written only by the operator.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, KubeSchema)]
#[serde(rename_all = "camelCase")]
pub struct PromotionPolicyStatus {
    /// Generation that this status speaks of.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub observed_generation: Option<i64>,
    /// Digest of the spec: part of every request digest made under it.
    #[serde(default)]
    pub digest: String,
    /// `Ready`.
    #[serde(default)]
    #[x_kube(merge_strategy = ListMerge::Map(vec!["type".into()]))]
    pub conditions: Vec<Condition>,
}
