//! Objects for tests: a promotion that would go live if only people said yes.

use assayer_crds::contract::Measurement;
use assayer_crds::digest::Digest;
use assayer_crds::evidence::{Evidence, Statement};
use assayer_crds::names::{APPROVE, APPROVE_REASON, APPROVED_BY, APPROVER_GROUPS, REQUESTED_BY};
use assayer_crds::{ModelOptimization, ModelPromotion, PromotionPolicy};
use jiff::Timestamp;
use k8s_openapi::api::apps::v1::Deployment;
use serde_json::{Value, json};

use super::observed::{EvidenceReading, Observed};
use crate::evidence::dsse::Verified;

/// The guard's epoch.
pub(crate) const EPOCH: &str = "epoch-1";

/// When everything in the fixtures begins.
pub(crate) fn now() -> Timestamp {
    "2026-11-20T12:00:00Z".parse().unwrap()
}

/// Alice asks for candidate int8 in Deployment scanner.
pub(crate) fn promotion() -> ModelPromotion {
    read(json!({
        "apiVersion": "assayer.dev/v1alpha1", "kind": "ModelPromotion",
        "metadata": {"name": "magika-prod", "namespace": "ml", "uid": "p-1", "generation": 1, "resourceVersion": "1",
            "creationTimestamp": "2026-11-20T11:00:00Z", "annotations": {REQUESTED_BY: "alice"}},
        "spec": {
            "owner": {"group": "file-security", "contact": "file-security@example.com"},
            "change": {"ticket": "CHG-4711", "reason": "Halves p99 on edge nodes"},
            "source": {"modelOptimization": {"name": "magika-int8", "candidate": "int8"}},
            "target": {"workload": {"apiVersion": "apps/v1", "kind": "Deployment", "name": "scanner"}, "delivery": {"imageVolume": {"volume": "model"}}}
        }
    }))
}

fn read<T: serde::de::DeserializeOwned>(value: Value) -> T {
    serde_json::from_value(value).unwrap()
}

/// Digest of the artifact that is promoted.
pub(crate) fn artifact() -> Digest {
    Digest::of(b"artifact of int8")
}

/// Where it is.
pub(crate) fn uri() -> String {
    format!("oci://10.0.0.5:5000/models/magika@{}", artifact())
}

/// What the volume refers to once it is delivered.
pub(crate) fn reference() -> String {
    uri().replace("oci://", "")
}

fn spec() -> Value {
    let pinned = |name: &str| format!("oci://10.0.0.5:5000/{name}@{}", Digest::of(name.as_bytes()));
    json!({
        "owner": {"group": "file-security", "contact": "file-security@example.com"},
        "influences": ["Security"],
        "model": {"name": "magika", "version": "3.3.0", "uri": pinned("models/magika")},
        "data": {"evaluation": {"uri": pinned("data/evaluation")}, "inputs": [{"name": "bytes", "column": "features"}], "label": "file_type"},
        "task": {"kind": "Classification", "output": "target_label"},
        "environments": [{"name": "edge-cpu", "executionProvider": "CPU"}],
        "candidates": [{"name": "int8", "stages": [{"quantize": {"mode": "Dynamic"}}]}],
        "gates": [
            {"name": "accuracy", "metric": "accuracy", "maxDrop": "0.01"},
            {"name": "p99", "metric": "latencyP99", "environment": "edge-cpu", "maxRatio": "0.80"}
        ],
        "output": {"uri": "oci://10.0.0.5:5000/models/magika"}
    })
}

/// The verified evidence of candidate int8.
pub(crate) fn verified() -> Verified {
    let (model, baseline) = (Digest::of(b"model of int8"), Digest::of(b"baseline"));
    let numbers = |accuracy: f64, p99: f64| json!({"accuracy": {"value": accuracy, "samples": 512}, "latencyP99": {"value": p99, "samples": 200}, "latencyP50": {"value": p99, "samples": 200}});
    let measured = |candidate: Option<Value>| {
        json!({"environment": "edge-cpu", "executionProvider": "CPU", "baselineDigest": baseline, "candidateDigest": candidate.as_ref().map(|_| model.clone()),
            "rows": 512, "baseline": numbers(0.92, 0.010), "candidate": candidate, "selfReported": [], "runSeconds": 9.0})
    };
    let runtime = json!({"worker": "0.1.0"});
    let statement: Statement = read(json!({
        "_type": "https://in-toto.io/Statement/v1", "predicateType": "https://assayer.dev/evidence/v1",
        "subject": [{"name": "model", "digest": {"sha256": model.hex()}}, {"name": uri(), "digest": {"sha256": artifact().hex()}}],
        "predicate": {
            "recordedAt": "2026-11-20T10:00:00Z",
            "optimization": {"namespace": "ml", "name": "magika-int8", "uid": "o-1", "generation": 2},
            "owner": {"group": "file-security", "contact": "x"}, "influences": ["Security"],
            "model": {"name": "magika", "version": "3.3.0"}, "candidate": "int8", "technique": "dynamic-int8",
            "planDigest": Digest::of(b"plan"), "spec": spec(),
            "made": {"uri": uri(), "tag": "assayer-int8", "artifactDigest": artifact(), "modelDigest": model, "baselineDigest": baseline,
                "files": [], "bytes": 1000, "opset": [17, 17], "passes": [], "calibrationRows": 0, "seconds": 1.0, "peakMemoryBytes": 1},
            "madeBy": runtime, "baseline": [measured(None)],
            "measured": [{"measured": measured(Some(numbers(0.92, 0.005))), "runtime": runtime}],
            "verdicts": [], "workerImage": "", "runner": "kubernetes"
        }
    }));
    let digest = Digest::of_canonical(&statement).unwrap();
    Verified { statement, digest }
}

/// A metric of the candidate in the evidence.
pub(crate) fn metric<'a>(evidence: &'a mut Evidence, name: &str) -> &'a mut Measurement {
    let candidate = evidence.measured[0].measured.candidate.as_mut().unwrap();
    candidate.get_mut(name).unwrap()
}

/// The finished optimization with candidate int8.
pub(crate) fn optimization() -> ModelOptimization {
    let verified = verified();
    let made = &verified.statement.predicate.made;
    read(json!({
        "apiVersion": "assayer.dev/v1alpha1", "kind": "ModelOptimization",
        "metadata": {"name": "magika-int8", "namespace": "ml", "uid": "o-1", "generation": 2},
        "spec": spec(),
        "status": {"observedGeneration": 2, "phase": "Succeeded", "selected": "int8", "candidates": [{
            "name": "int8", "state": "Passed", "technique": "dynamic-int8",
            "artifact": {"uri": made.uri, "artifactDigest": made.artifact_digest, "modelDigest": made.model_digest, "bytes": 1000},
            "evidence": {"configMap": "assayer-evidence-x", "digest": verified.digest}
        }]}
    }))
}

/// One approval as security for models that security decisions rest on.
pub(crate) fn policy() -> PromotionPolicy {
    let spec = read(json!({"namespaceSelector": {}, "tiers": [
        {"name": "low"},
        {"name": "high", "influences": ["Security"], "approvals": [{"role": "security"}], "maxEvidenceAge": "30d"}
    ]}));
    PromotionPolicy::new("default", spec)
}

/// A Deployment that waits for its model.
pub(crate) fn deployment() -> Deployment {
    read(json!({
        "metadata": {"name": "scanner", "namespace": "ml", "uid": "d-1", "generation": 1},
        "spec": {"replicas": 2, "selector": {"matchLabels": {"app": "scanner"}}, "template": {"spec": {
            "containers": [{"name": "server", "volumeMounts": [{"name": "model", "mountPath": "/models"}]}],
            "volumes": [{"name": "model", "image": {"pullPolicy": "IfNotPresent"}}]
        }}},
        "status": {"observedGeneration": 1}
    }))
}

/// Everything in place except approvals.
pub(crate) fn observed() -> Observed {
    Observed {
        promotion: promotion(),
        namespace_labels: [("kubernetes.io/metadata.name".to_owned(), "ml".to_owned())].into(),
        policies: vec![policy()],
        unreadable_policies: Vec::new(),
        unreadable_promotions: Vec::new(),
        optimization: Some(optimization()),
        evidence: EvidenceReading::Verified(Box::new(verified())),
        deployment: Some(deployment()),
        pods: Vec::new(),
        others: Vec::new(),
        guard: Some(EPOCH.to_owned()),
    }
}

/// `user` approves `request` as `role`.
pub(crate) fn approve(promotion: &mut ModelPromotion, role: &str, user: &str, request: &str) {
    let annotations = promotion.metadata.annotations.get_or_insert_default();
    for (prefix, value) in [
        (APPROVE, request),
        (APPROVED_BY, user),
        (APPROVER_GROUPS, "sre,system:authenticated"),
        (APPROVE_REASON, "numbers hold"),
    ] {
        annotations.insert(format!("{prefix}{role}"), value.to_owned());
    }
}

/// `user` takes the approval as `role` back.
pub(crate) fn revoke(promotion: &mut ModelPromotion, role: &str) {
    let annotations = promotion.metadata.annotations.get_or_insert_default();
    annotations.retain(|key, _| !key.ends_with(&format!("/{role}")));
}
