//! Small worlds for the tests of rows, exposition and page.

use std::collections::BTreeMap;

use assayer_crds::common::{ArtifactStatus, EvidenceReference};
use assayer_crds::digest::Digest;
use assayer_crds::promotion::{
    ApprovalStatus, AttemptStatus, Delivery, ImageVolumeDelivery, LiveStatus, ModelPromotionStatus,
};

use super::facts::{Artifact, Carried, EvidenceFact, Facts, Key, Place, PodFact, PromotionFact, WorkloadFact};

pub(crate) fn digest(name: &str) -> Digest {
    Digest::of(name.as_bytes())
}

pub(crate) fn key(name: &str) -> Key {
    ("ml".into(), name.into())
}

pub(crate) fn artifact(name: &str) -> ArtifactStatus {
    ArtifactStatus {
        uri: format!("oci://r/m@{}", digest(name)),
        artifact_digest: digest(name).to_string(),
        ..ArtifactStatus::default()
    }
}

pub(crate) fn carried(name: &str) -> Vec<Carried> {
    vec![Carried {
        place: Place::Volume("model".into()),
        artifact: Artifact::Pinned(digest(name)),
    }]
}

pub(crate) fn approval(user: &str) -> ApprovalStatus {
    ApprovalStatus {
        role: "security".into(),
        user: user.into(),
        ..ApprovalStatus::default()
    }
}

pub(crate) fn attempt(name: &str, state: &str) -> AttemptStatus {
    AttemptStatus {
        artifact: artifact(name),
        state: state.into(),
        started_at: "2026-01-01T00:00:00Z".into(),
        approvals: vec![approval("bob@example.com")],
        ..AttemptStatus::default()
    }
}

pub(crate) fn promotion(status: ModelPromotionStatus) -> PromotionFact {
    PromotionFact {
        workload: "scanner".into(),
        delivery: Delivery {
            image_volume: Some(ImageVolumeDelivery { volume: "model".into() }),
            env: None,
        },
        status,
    }
}

pub(crate) fn pod(name: &str) -> PodFact {
    PodFact {
        owner: ("ReplicaSet".into(), "scanner-1".into()),
        carried: carried(name),
        ready: true,
    }
}

pub(crate) fn evidence(name: &str) -> EvidenceFact {
    EvidenceFact {
        digest: digest("evidence"),
        artifact: digest(name),
        model: "magika".into(),
        version: "3.3.0".into(),
        technique: "static-int8".into(),
        owner: "file-security".into(),
    }
}

/// Promotion `magika-prod` has brought model `a` into Deployment `scanner`; two governed pods carry it, one is ready.
pub(crate) fn live() -> Facts {
    let status = ModelPromotionStatus {
        phase: "Live".into(),
        live: Some(LiveStatus {
            model: "magika".into(),
            version: "3.3.0".into(),
            candidate: "int8".into(),
            technique: "static-int8".into(),
            artifact: artifact("a"),
            evidence: EvidenceReference {
                config_map: "assayer-evidence-x".into(),
                digest: digest("evidence").to_string(),
            },
            request_digest: digest("request").to_string(),
            tier: "high".into(),
            owner: "file-security".into(),
            ticket: "CHG-4711".into(),
            reason: "Halves p99".into(),
            approvals: vec![approval("alice@example.com")],
            since: "2026-01-01T00:00:00Z".into(),
        }),
        ..ModelPromotionStatus::default()
    };
    Facts {
        promotions: BTreeMap::from([(key("magika-prod"), promotion(status))]),
        workloads: BTreeMap::from([(
            key("scanner"),
            WorkloadFact {
                governed: true,
                carried: carried("a"),
                available: 1,
            },
        )]),
        replica_sets: BTreeMap::from([(key("scanner-1"), "scanner".into())]),
        pods: BTreeMap::from([
            (key("scanner-1-x"), pod("a")),
            (
                key("scanner-1-y"),
                PodFact {
                    ready: false,
                    ..pod("a")
                },
            ),
        ]),
        evidence: BTreeMap::from([(key("assayer-evidence-x"), evidence("a"))]),
        ..Facts::default()
    }
}
