//! The public contract of Assayer: the three API kinds, the words in their status, and what operator and worker say
//! to each other.
//!
//! This crate decides names and shapes. It never reads a file, opens a socket or asks for the time.
//! Without the feature `kube` only the worker contract and the digests remain, so that the worker never builds a
//! Kubernetes client.

#![cfg_attr(
    feature = "kube",
    allow(unreachable_pub, reason = "KubeSchema generates validation structs that trip it")
)]
#![allow(clippy::duplicated_attributes, reason = "printer columns repeat their keys")]

pub mod contract;
pub mod digest;
pub mod evidence;
pub mod names;
pub mod units;

#[cfg(feature = "kube")]
pub mod common;
#[cfg(feature = "kube")]
pub mod conditions;
#[cfg(feature = "kube")]
mod definition;
#[cfg(feature = "kube")]
pub mod optimization;
#[cfg(feature = "kube")]
pub mod pods;
#[cfg(feature = "kube")]
pub mod policy;
#[cfg(feature = "kube")]
pub mod promotion;
pub mod stages;

#[cfg(feature = "kube")]
pub use optimization::{ModelOptimization, ModelOptimizationSpec, ModelOptimizationStatus};
#[cfg(feature = "kube")]
pub use policy::{PromotionPolicy, PromotionPolicySpec, PromotionPolicyStatus};
#[cfg(feature = "kube")]
pub use promotion::{ModelPromotion, ModelPromotionSpec, ModelPromotionStatus};

/// Every custom resource definition of the group, in the order in which they are applied.
#[cfg(feature = "kube")]
pub fn all() -> Vec<k8s_openapi::apiextensions_apiserver::pkg::apis::apiextensions::v1::CustomResourceDefinition> {
    use kube::CustomResourceExt as _;
    vec![ModelOptimization::crd(), ModelPromotion::crd(), PromotionPolicy::crd()]
        .into_iter()
        .map(definition::with_flowing_descriptions)
        .collect()
}
