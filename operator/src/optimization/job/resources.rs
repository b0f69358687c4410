//! Where a worker runs and what it may use.
//!
//! Pure. An accelerator is asked for in measure Jobs only; making a candidate is processor work. Nothing is taken from a node beyond
//! what the environment names, except one `nvidia.com/gpu` where the provider needs it and nothing else was named.

use std::collections::BTreeMap;

use assayer_crds::optimization::{Environment, ExecutionProvider};
use assayer_crds::pods::{PodOptions, ResourceQuantity, TaintEffect, TolerationOperator};
use k8s_openapi::api::core::v1::{PodResourceClaim, PodSpec, ResourceClaim, ResourceRequirements, Toleration};
use k8s_openapi::apimachinery::pkg::api::resource::Quantity;

/// What a worker container gets where nothing is named.
const DEFAULTS: [(&str, &str); 2] = [("cpu", "1"), ("memory", "1Gi")];
/// The accelerator that CUDA and TensorRT need unless another one is named.
const NVIDIA: &str = "nvidia.com/gpu";

/// Whether the environment needs an accelerator.
pub(super) fn accelerated(environment: &Environment) -> bool {
    match environment.execution_provider {
        ExecutionProvider::CPU => false,
        ExecutionProvider::CUDA | ExecutionProvider::TensorRT => true,
    }
}

/// An extended resource has a domain that is not Kubernetes' own.
fn extended(name: &str) -> bool {
    name.contains('/') && !name.starts_with("kubernetes.io/")
}

fn quantities(given: &BTreeMap<String, ResourceQuantity>, measured: bool) -> BTreeMap<String, Quantity> {
    given
        .iter()
        .filter(|(name, _)| measured || !extended(name))
        .map(|(name, quantity)| (name.clone(), Quantity(quantity.0.clone())))
        .collect()
}

/// Requests and limits of one container. Limits that are missing are the requests, then the defaults: without a CPU limit ONNX
/// Runtime would take as many threads as the node has cores.
pub(super) fn requirements(environment: Option<&Environment>, measured: bool) -> ResourceRequirements {
    let given = environment
        .and_then(|e| e.pod.as_ref())
        .and_then(|pod| pod.resources.as_ref());
    let mut requests = given
        .map(|given| quantities(&given.requests, measured))
        .unwrap_or_default();
    let mut limits = given
        .map(|given| quantities(&given.limits, measured))
        .unwrap_or_default();
    for (name, default) in DEFAULTS {
        let fallback = requests
            .get(name)
            .cloned()
            .unwrap_or_else(|| Quantity(default.to_owned()));
        limits.entry(name.to_owned()).or_insert(fallback);
    }
    let claims = environment
        .and_then(|e| e.pod.as_ref())
        .map(|pod| pod.resource_claims.as_slice())
        .unwrap_or_default();
    let wants_gpu = measured && environment.is_some_and(accelerated);
    if wants_gpu && claims.is_empty() && !limits.keys().any(|name| extended(name)) {
        limits.insert(NVIDIA.to_owned(), Quantity("1".to_owned()));
    }
    for (name, limit) in &limits {
        requests.entry(name.clone()).or_insert_with(|| limit.clone());
    }
    let claims = claims.iter().map(|claim| ResourceClaim {
        name: claim.name.clone(),
        request: None,
    });
    ResourceRequirements {
        requests: Some(requests),
        limits: Some(limits),
        claims: Some(claims.collect::<Vec<_>>()).filter(|claims| measured && !claims.is_empty()),
    }
}

/// Puts the pod where the environment says.
pub(super) fn place(spec: &mut PodSpec, options: &PodOptions, measured: bool) {
    if !options.node_selector.is_empty() {
        let selector = options
            .node_selector
            .iter()
            .map(|(key, value)| (key.clone(), value.0.clone()));
        spec.node_selector = Some(selector.collect());
    }
    if !options.tolerations.is_empty() {
        spec.tolerations = Some(options.tolerations.iter().map(toleration).collect());
    }
    spec.priority_class_name.clone_from(&options.priority_class_name);
    spec.runtime_class_name.clone_from(&options.runtime_class_name);
    if measured && !options.resource_claims.is_empty() {
        let claims = options.resource_claims.iter().map(|claim| PodResourceClaim {
            name: claim.name.clone(),
            resource_claim_name: claim.resource_claim_name.clone(),
            resource_claim_template_name: claim.resource_claim_template_name.clone(),
        });
        spec.resource_claims = Some(claims.collect());
    }
}

fn toleration(given: &assayer_crds::pods::Toleration) -> Toleration {
    Toleration {
        key: given.key.clone(),
        operator: given.operator.map(|operator| {
            match operator {
                TolerationOperator::Equal => "Equal",
                TolerationOperator::Exists => "Exists",
            }
            .to_owned()
        }),
        value: given.value.clone(),
        effect: given.effect.map(|effect| {
            match effect {
                TaintEffect::NoSchedule => "NoSchedule",
                TaintEffect::PreferNoSchedule => "PreferNoSchedule",
                TaintEffect::NoExecute => "NoExecute",
            }
            .to_owned()
        }),
        toleration_seconds: given.toleration_seconds,
    }
}
