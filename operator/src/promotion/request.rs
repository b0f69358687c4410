//! The request digest: what an approval names.
//!
//! Pure. Binds the approval to this very object, its spec, its evidence, its tier, the policies and the guard's epoch; nothing else may
//! change unnoticed. `spec.suspend` says when, not what: it is left out.

use assayer_crds::digest::Digest;
use assayer_crds::{ModelPromotion, ModelPromotionSpec};
use serde::Serialize;

/// What is hashed: RFC 8785 canonical JSON of exactly these fields.
#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Bound<'a> {
    uid: &'a str,
    namespace: &'a str,
    name: &'a str,
    spec: &'a ModelPromotionSpec,
    #[serde(flatten)]
    basis: Basis<'a>,
}

/// What a request rests on beside the object itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Basis<'a> {
    /// Digest of the evidence.
    pub evidence_digest: &'a str,
    /// Tier of the change.
    pub tier: &'a str,
    /// Digest over the policies that apply.
    pub policy_digest: &'a str,
    /// The guard's epoch; empty where no guard is asked for.
    #[serde(skip_serializing_if = "str::is_empty")]
    pub guard_epoch: &'a str,
}

/// Digest of the request that `promotion` makes on this `basis`.
///
/// Nothing when the object has no identity yet, or its spec can't be JSON: then there is no request.
pub fn digest(promotion: &ModelPromotion, basis: Basis<'_>) -> Option<Digest> {
    let asked = ModelPromotionSpec {
        suspend: false,
        ..promotion.spec.clone()
    };
    let bound = Bound {
        uid: promotion.metadata.uid.as_deref()?,
        namespace: promotion.metadata.namespace.as_deref()?,
        name: promotion.metadata.name.as_deref()?,
        spec: &asked,
        basis,
    };
    Digest::of_canonical(&bound).ok()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::promotion::fixtures;

    const BASIS: Basis<'_> = Basis {
        evidence_digest: "sha256:e",
        tier: "high",
        policy_digest: "sha256:p",
        guard_epoch: "epoch",
    };

    #[test]
    fn every_field_moves_the_digest() {
        let base = fixtures::promotion();
        let digest_of = |p: &ModelPromotion| digest(p, BASIS).unwrap();
        let original = digest_of(&base);
        assert_eq!(original, digest_of(&base.clone()));
        let mut changed = Vec::new();
        for edit in [
            (|p: &mut ModelPromotion| p.metadata.uid = Some("other".into())) as fn(&mut ModelPromotion),
            |p| p.metadata.namespace = Some("other".into()),
            |p| p.metadata.name = Some("other".into()),
            |p| p.spec.change.ticket = "CHG-1".into(),
            |p| p.spec.owner.group = "other".into(),
        ] {
            let mut promotion = base.clone();
            edit(&mut promotion);
            changed.push(digest_of(&promotion));
        }
        for basis in [
            Basis {
                evidence_digest: "sha256:f",
                ..BASIS
            },
            Basis { tier: "low", ..BASIS },
            Basis {
                policy_digest: "sha256:q",
                ..BASIS
            },
            Basis {
                guard_epoch: "next",
                ..BASIS
            },
            Basis {
                guard_epoch: "",
                ..BASIS
            },
        ] {
            changed.push(digest(&base, basis).unwrap());
        }
        for (index, other) in changed.iter().enumerate() {
            assert_ne!(&original, other, "change {index}");
        }
        changed.sort();
        changed.dedup();
        assert_eq!(changed.len(), 10);
        let mut nameless = base;
        nameless.metadata.uid = None;
        assert_eq!(digest(&nameless, BASIS), None);
    }

    #[test]
    fn annotations_status_and_suspension_do_not_move_it() {
        let base = fixtures::promotion();
        let mut other = base.clone();
        other.metadata.annotations = Some([("a".to_owned(), "b".to_owned())].into());
        other.status = Some(assayer_crds::ModelPromotionStatus::default());
        other.spec.suspend = true;
        assert_eq!(digest(&base, BASIS), digest(&other, BASIS));
    }
}
