//! Pieces that several kinds share: ownership, influences, the phase summary and run history.
//!
//! Decides shapes and limits only.

use kube::KubeSchema;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// Who owns the model. The group can't approve its own change.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, KubeSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Owner {
    /// Owning group, spelled as in the users' groups that the cluster authenticates.
    #[schemars(length(min = 1, max = 128))]
    pub group: String,
    /// How people reach the group: a mail address or a channel.
    #[schemars(length(min = 1, max = 253))]
    pub contact: String,
}

/// What decisions rest on the model. The gravest one raises the risk tier.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize, JsonSchema)]
pub enum Influence {
    /// Who may enter or log in.
    Access,
    /// What counts as an attack, malware or fraud.
    Security,
    /// What a customer gets, pays or is refused.
    CustomerDecision,
    /// Internal work only.
    Internal,
}

impl Influence {
    /// The word of the schema.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Access => "Access",
            Self::Security => "Security",
            Self::CustomerDecision => "CustomerDecision",
            Self::Internal => "Internal",
        }
    }
}

/// A model artifact as status shows it.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct ArtifactStatus {
    /// Where it is, by digest.
    pub uri: String,
    /// Digest of the OCI manifest: what pods name.
    pub artifact_digest: String,
    /// Digest over the model's files.
    pub model_digest: String,
    /// Size of the model's files in bytes.
    pub bytes: i64,
}

/// Where evidence is kept.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct EvidenceReference {
    /// Immutable config map in the same namespace.
    pub config_map: String,
    /// sha256 of the statement's bytes.
    pub digest: String,
}
