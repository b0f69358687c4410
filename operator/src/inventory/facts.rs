//! What the inventory keeps of each object: a few words instead of the whole, so that a big cluster fits into little memory.
//!
//! Pure. Pods, templates and evidence are read as hostile: counts and lengths are bounded, and evidence counts only with the operator's
//! own signature.

use std::collections::BTreeMap;

use assayer_crds::ModelOptimization;
use assayer_crds::digest::Digest;
use assayer_crds::names::{EVIDENCE_KEY, GOVERNED};
use assayer_crds::promotion::{Delivery, ModelPromotion, ModelPromotionStatus};
use k8s_openapi::api::apps::v1::{Deployment, ReplicaSet};
use k8s_openapi::api::core::v1::{ConfigMap, Container, Pod, PodSpec};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use kube::core::PartialObjectMeta;

use crate::evidence::keys::PublicKey;
use crate::evidence::{dsse, store};

/// Most model references that one pod can show.
const MAX_CARRIED: usize = 16;

/// What a reference to a model says: a digest, or a name that can change its meaning.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Artifact {
    /// By digest.
    Pinned(Digest),
    /// By tag, or by nothing: what runs can't be known.
    Unpinned,
}

impl Artifact {
    /// Reads `registry/name@sha256:…`, with or without `oci://`.
    pub fn of(reference: &str) -> Self {
        let digest = reference
            .rsplit_once('@')
            .and_then(|(_, digest)| digest.parse::<Digest>().ok());
        digest.map_or(Self::Unpinned, Self::Pinned)
    }

    /// The digest, or `unpinned`.
    pub fn as_str(&self) -> &str {
        match self {
            Self::Pinned(digest) => digest.as_str(),
            Self::Unpinned => "unpinned",
        }
    }
}

/// Where in a pod a model is named.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Place {
    /// An image volume, by its name.
    Volume(String),
    /// A variable of a container.
    Env {
        /// Name of the container.
        container: String,
        /// Name of the variable.
        name: String,
    },
}

/// A model in a pod or a template.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Carried {
    /// Where.
    pub place: Place,
    /// Which.
    pub artifact: Artifact,
}

/// Namespace and name.
pub type Key = (String, String);

/// A running pod that is labelled as governed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PodFact {
    /// Kind and name of what controls it; its own where nothing does.
    pub owner: (String, String),
    /// Models that it carries.
    pub carried: Vec<Carried>,
    /// Whether it serves: ready and not about to go.
    pub ready: bool,
}

/// A Deployment.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct WorkloadFact {
    /// Whether its pods are labelled as governed.
    pub governed: bool,
    /// Models that its template carries.
    pub carried: Vec<Carried>,
    /// Pods that are available.
    pub available: i32,
}

/// A promotion.
#[derive(Clone, Debug, PartialEq)]
pub struct PromotionFact {
    /// Name of the target.
    pub workload: String,
    /// Where in the target the model goes.
    pub delivery: Delivery,
    /// What the operator wrote about it.
    pub status: ModelPromotionStatus,
}

/// Evidence whose signature holds.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct EvidenceFact {
    /// Digest of the statement.
    pub digest: Digest,
    /// Digest of the artifact.
    pub artifact: Digest,
    /// Name of the model.
    pub model: String,
    /// Version of the model.
    pub version: String,
    /// How it was optimized.
    pub technique: String,
    /// Owning group.
    pub owner: String,
}

/// An optimization.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct OptimizationFact {
    /// Its phase.
    pub phase: String,
    /// How many gates came to a verdict, by severity and verdict, over all candidates.
    pub verdicts: BTreeMap<(String, String), u64>,
}

/// Everything that the inventory rests on.
#[derive(Clone, Debug, Default)]
pub struct Facts {
    /// Promotions.
    pub promotions: BTreeMap<Key, PromotionFact>,
    /// Optimizations.
    pub optimizations: BTreeMap<Key, OptimizationFact>,
    /// Deployments.
    pub workloads: BTreeMap<Key, WorkloadFact>,
    /// Replica sets of governed pods, with the Deployment that owns them.
    pub replica_sets: BTreeMap<Key, String>,
    /// Governed pods.
    pub pods: BTreeMap<Key, PodFact>,
    /// Evidence.
    pub evidence: BTreeMap<Key, EvidenceFact>,
}

/// A pod that has not ended.
pub fn of_pod(pod: &Pod) -> Option<PodFact> {
    let status = pod.status.as_ref();
    if status
        .and_then(|status| status.phase.as_deref())
        .is_some_and(|phase| matches!(phase, "Succeeded" | "Failed"))
    {
        return None;
    }
    let ready = status
        .and_then(|status| status.conditions.as_ref())
        .is_some_and(|conditions| conditions.iter().any(|c| c.type_ == "Ready" && c.status == "True"));
    let own = || ("Pod".to_owned(), pod.metadata.name.clone().unwrap_or_default());
    Some(PodFact {
        owner: controller(&pod.metadata).unwrap_or_else(own),
        carried: pod.spec.as_ref().map(carried).unwrap_or_default(),
        ready: ready && pod.metadata.deletion_timestamp.is_none(),
    })
}

/// A Deployment.
pub fn of_deployment(deployment: &Deployment) -> Option<WorkloadFact> {
    let template = &deployment.spec.as_ref()?.template;
    let labels = template.metadata.as_ref().and_then(|metadata| metadata.labels.as_ref());
    Some(WorkloadFact {
        governed: labels
            .and_then(|labels| labels.get(GOVERNED))
            .is_some_and(|value| value == "true"),
        carried: template.spec.as_ref().map(carried).unwrap_or_default(),
        available: deployment
            .status
            .as_ref()
            .and_then(|status| status.available_replicas)
            .unwrap_or_default(),
    })
}

/// The Deployment of a replica set.
pub fn of_replica_set(set: &PartialObjectMeta<ReplicaSet>) -> Option<String> {
    let (kind, name) = controller(&set.metadata)?;
    (kind == "Deployment").then_some(name)
}

/// A promotion.
pub fn of_promotion(promotion: &ModelPromotion) -> Option<PromotionFact> {
    Some(PromotionFact {
        workload: promotion.spec.target.workload.name.clone(),
        delivery: promotion.spec.target.delivery.clone(),
        status: promotion.status.clone().unwrap_or_default(),
    })
}

/// An optimization.
pub fn of_optimization(optimization: &ModelOptimization) -> Option<OptimizationFact> {
    let status = optimization.status.clone().unwrap_or_default();
    let mut verdicts = BTreeMap::new();
    for verdict in status.candidates.into_iter().flat_map(|candidate| candidate.verdicts) {
        *verdicts.entry((verdict.severity, verdict.verdict)).or_insert(0) += 1;
    }
    Some(OptimizationFact {
        phase: status.phase,
        verdicts,
    })
}

/// Evidence, if `key` signed it.
pub fn of_evidence(map: &ConfigMap, key: &PublicKey) -> Option<EvidenceFact> {
    let envelope = map.data.as_ref()?.get(EVIDENCE_KEY)?;
    let name = map.metadata.name.as_deref().unwrap_or_default();
    let verified = match dsse::verify(envelope, key) {
        Ok(verified) => verified,
        Err(error) => {
            tracing::warn!(config_map = name, %error, "evidence does not count in the inventory");
            return None;
        }
    };
    if !store::is_about(&verified.statement, &verified.statement.predicate.made.artifact_digest) {
        tracing::warn!(
            config_map = name,
            "evidence does not count in the inventory: its subject is not the artifact it speaks of"
        );
        return None;
    }
    let evidence = verified.statement.predicate;
    Some(EvidenceFact {
        digest: verified.digest,
        artifact: evidence.made.artifact_digest,
        model: evidence.model.name,
        version: evidence.model.version,
        technique: evidence.technique,
        owner: evidence.owner.group,
    })
}

fn controller(metadata: &ObjectMeta) -> Option<(String, String)> {
    let owners = metadata.owner_references.as_ref()?;
    let owner = owners.iter().find(|owner| owner.controller == Some(true))?;
    Some((owner.kind.clone(), owner.name.clone()))
}

/// Every image volume, and every variable that names an OCI artifact.
fn carried(spec: &PodSpec) -> Vec<Carried> {
    let volumes = spec.volumes.iter().flatten().filter_map(|volume| {
        let reference = volume
            .image
            .as_ref()?
            .reference
            .as_deref()
            .filter(|reference| !reference.is_empty())?;
        Some(Carried {
            place: Place::Volume(volume.name.clone()),
            artifact: Artifact::of(reference),
        })
    });
    let containers = spec.containers.iter().chain(spec.init_containers.iter().flatten());
    let mut carried: Vec<Carried> = volumes
        .chain(containers.flat_map(variables))
        .take(MAX_CARRIED)
        .collect();
    carried.sort();
    carried
}

fn variables(container: &Container) -> impl Iterator<Item = Carried> {
    container.env.iter().flatten().filter_map(|variable| {
        let value = variable.value.as_deref().filter(|value| value.starts_with("oci://"))?;
        Some(Carried {
            place: Place::Env {
                container: container.name.clone(),
                name: variable.name.clone(),
            },
            artifact: Artifact::of(value),
        })
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::evidence::keys::SigningKey;
    use assayer_crds::evidence::Statement;
    use serde_json::json;

    fn digest(n: u8) -> String {
        Digest::of(&[n]).to_string()
    }

    fn pod(extra: &serde_json::Value) -> Pod {
        let mut pod = json!({"metadata": {"name": "p", "namespace": "ml"}, "spec": {"containers": []}});
        for (key, value) in extra.as_object().unwrap() {
            pod[key] = value.clone();
        }
        serde_json::from_value(pod).unwrap()
    }

    #[test]
    fn image_volumes_and_oci_variables_are_models_and_nothing_else_is() {
        let spec = json!({"spec": {
            "volumes": [
                {"name": "model", "image": {"reference": format!("r:5000/m@{}", digest(1))}},
                {"name": "tag", "image": {"reference": "r:5000/m:latest"}},
                {"name": "unset", "image": {}},
                {"name": "tmp", "emptyDir": {}},
            ],
            "containers": [{"name": "server", "image": format!("r/server@{}", digest(9)), "env": [
                {"name": "MODEL_URI", "value": format!("oci://r/m@{}", digest(2))},
                {"name": "MODE", "value": format!("x@{}", digest(3))},
            ]}],
        }});
        let seen = of_pod(&pod(&spec)).unwrap();
        let artifacts: Vec<_> = seen.carried.iter().map(|c| c.artifact.as_str().to_owned()).collect();
        assert_eq!(artifacts, [digest(1), "unpinned".to_owned(), digest(2)]);
    }

    #[test]
    fn a_digest_that_is_none_does_not_pass_for_one() {
        for text in ["m@sha256:", "m@sha256:AB", "m@md5:0", "m", "", "@"] {
            assert_eq!(Artifact::of(text), Artifact::Unpinned, "{text}");
        }
    }

    #[test]
    fn ended_pods_are_forgotten_and_leaving_ones_do_not_serve() {
        assert_eq!(of_pod(&pod(&json!({"status": {"phase": "Succeeded"}}))), None);
        let ready = json!({"phase": "Running", "conditions": [{"type": "Ready", "status": "True"}]});
        assert!(of_pod(&pod(&json!({"status": ready}))).unwrap().ready);
        let leaving = json!({"status": ready, "metadata": {"name": "p", "deletionTimestamp": "2026-01-01T00:00:00Z"}});
        assert!(!of_pod(&pod(&leaving)).unwrap().ready);
    }

    #[test]
    fn a_pod_with_countless_references_is_cut() {
        let volumes: Vec<_> = (0..200)
            .map(|n| json!({"name": format!("v{n}"), "image": {"reference": "r/m:x"}}))
            .collect();
        let seen = of_pod(&pod(&json!({"spec": {"volumes": volumes, "containers": []}}))).unwrap();
        assert_eq!(seen.carried.len(), MAX_CARRIED);
    }

    fn statement(subject: &str) -> Statement {
        let made = json!({"uri": "oci://r/m", "tag": "t", "artifactDigest": digest(1), "modelDigest": digest(2), "baselineDigest": digest(3),
            "files": [], "bytes": 1, "opset": [17, 17], "passes": [], "calibrationRows": 1, "seconds": 0.5, "peakMemoryBytes": 1});
        serde_json::from_value(json!({
            "_type": assayer_crds::evidence::STATEMENT_TYPE,
            "predicateType": assayer_crds::evidence::PREDICATE_TYPE,
            "subject": [{"name": "oci://r/m", "digest": {"sha256": subject.trim_start_matches("sha256:")}}],
            "predicate": {
                "recordedAt": "2026-01-01T00:00:00Z", "optimization": {"namespace": "ml", "name": "o", "uid": "u", "generation": 1},
                "owner": {"group": "file-security", "contact": "c"}, "influences": [], "model": {"name": "magika", "version": "3.3.0"},
                "candidate": "int8", "technique": "static-int8", "planDigest": digest(4), "spec": {}, "made": made, "madeBy": {"worker": "1"},
                "baseline": [], "measured": [], "verdicts": [], "workerImage": "", "runner": "kubernetes",
            },
        }))
        .unwrap()
    }

    #[test]
    fn only_evidence_that_the_operator_signed_about_its_own_subject_counts() {
        let key = SigningKey::generate().unwrap();
        let stranger = SigningKey::generate().unwrap();
        let fact = |subject: &str, signer: &SigningKey| {
            let map = store::config_map("ml", &statement(subject), signer).unwrap();
            of_evidence(&map, key.public())
        };
        let own = fact(&digest(1), &key).unwrap();
        assert_eq!(
            (own.artifact.as_str(), own.model.as_str()),
            (digest(1).as_str(), "magika")
        );
        assert_eq!(fact(&digest(1), &stranger), None);
        assert_eq!(fact(&digest(9), &key), None);
    }
}
