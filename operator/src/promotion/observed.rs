//! What was read, as plain data: everything that a plan may know.
//!
//! No client, no clock, no decision. `observe` fills it from live reads, tests fill it by hand.

use std::collections::BTreeMap;

use assayer_crds::names::RERUN;
use assayer_crds::promotion::AttemptStatus;
use assayer_crds::{ModelOptimization, ModelPromotion, PromotionPolicy};
use k8s_openapi::api::apps::v1::Deployment;
use k8s_openapi::api::core::v1::Pod;
use kube::ResourceExt as _;

use crate::evidence::dsse::Verified;

/// One promotion with everything that its decision rests on, read live.
#[derive(Clone, Debug)]
pub struct Observed {
    /// The object.
    pub promotion: ModelPromotion,
    /// Labels of its namespace.
    pub namespace_labels: BTreeMap<String, String>,
    /// Every policy of the cluster.
    pub policies: Vec<PromotionPolicy>,
    /// Names of policies that can't be read: they may ask for anything.
    pub unreadable_policies: Vec<String>,
    /// The optimization that it names.
    pub optimization: Option<ModelOptimization>,
    /// Evidence of the candidate that it names.
    pub evidence: EvidenceReading,
    /// The workload.
    pub deployment: Option<Deployment>,
    /// Pods of the workload; read only while a roll-out goes on.
    pub pods: Vec<Pod>,
    /// Other promotions with the same workload.
    pub others: Vec<ModelPromotion>,
    /// Names of promotions in the namespace that can't be read: they may work on any workload.
    pub unreadable_promotions: Vec<String>,
    /// The guard's epoch, while forged approvals are known to be refused; none while they are not.
    pub guard: Option<String>,
}

/// What became of reading the evidence.
#[derive(Clone, Debug)]
pub enum EvidenceReading {
    /// There was nothing to read: no candidate with evidence is named yet.
    NotRead,
    /// It can't be believed; the sentence says why.
    Invalid(String),
    /// Its signature holds and its digest is the one in the optimization's status.
    Verified(Box<Verified>),
}

/// Longest rerun token that tells reruns apart, in bytes.
const MAX_TOKEN: usize = 253;

/// States of an attempt that still changes the workload or is about to.
pub const DECIDING: &str = "Deciding";
/// The workload was changed and its rollout is watched.
pub const PROGRESSING: &str = "Progressing";
/// The former value is being restored.
pub const ROLLING_BACK: &str = "RollingBack";
/// The rollout completed.
pub const COMPLETE: &str = "Complete";
/// The former value was restored.
pub const ROLLED_BACK: &str = "RolledBack";
/// It ended in another way.
pub const FAILED: &str = "Failed";

/// Whether the attempt still changes the workload or is about to.
pub fn is_active(attempt: &AttemptStatus) -> bool {
    [DECIDING, PROGRESSING, ROLLING_BACK].contains(&attempt.state.as_str())
}

/// The attempt of `promotion` that is under way.
pub fn active(promotion: &ModelPromotion) -> Option<&AttemptStatus> {
    promotion
        .status
        .as_ref()?
        .attempt
        .as_ref()
        .filter(|attempt| is_active(attempt))
}

impl Observed {
    /// The guard's epoch, or while it is down the one in which the request was last put: what is asked stays the same question.
    pub fn epoch(&self) -> Option<&str> {
        let status = self.promotion.status.as_ref();
        let asked = status.and_then(|status| status.request.as_ref());
        self.guard.as_deref().or_else(|| Some(asked?.guard_epoch.as_str()))
    }
}

/// The token of a rerun that was asked for and not acted upon yet.
pub fn rerun(promotion: &ModelPromotion) -> Option<&str> {
    let token = promotion.annotations().get(RERUN)?;
    let token = token.split_at(token.floor_char_boundary(MAX_TOKEN)).0;
    let done = promotion.status.as_ref().and_then(|status| status.rerun.as_deref());
    (!token.is_empty() && done != Some(token)).then_some(token)
}
