//! The request digest: what an approval names.
//!
//! Pure. Binds the approval to this very object, its spec, its evidence, its tier and the policies; nothing else may change unnoticed.

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
    evidence_digest: &'a str,
    tier: &'a str,
    policy_digest: &'a str,
}

/// Digest of the request that `promotion` makes, resting on evidence, tier and policies.
///
/// Nothing when the object has no identity yet, or its spec can't be JSON: then there is no request.
pub fn digest(promotion: &ModelPromotion, evidence_digest: &str, tier: &str, policy_digest: &str) -> Option<Digest> {
    let bound = Bound {
        uid: promotion.metadata.uid.as_deref()?,
        namespace: promotion.metadata.namespace.as_deref()?,
        name: promotion.metadata.name.as_deref()?,
        spec: &promotion.spec,
        evidence_digest,
        tier,
        policy_digest,
    };
    Digest::of_canonical(&bound).ok()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::promotion::fixtures;

    #[test]
    fn every_field_moves_the_digest() {
        let base = fixtures::promotion();
        let digest_of = |p: &ModelPromotion| digest(p, "sha256:e", "high", "sha256:p").unwrap();
        let original = digest_of(&base);
        assert_eq!(original, digest_of(&base.clone()));
        let mut changed = Vec::new();
        for edit in [
            (|p: &mut ModelPromotion| p.metadata.uid = Some("other".into())) as fn(&mut ModelPromotion),
            |p| p.metadata.namespace = Some("other".into()),
            |p| p.metadata.name = Some("other".into()),
            |p| p.spec.change.ticket = "CHG-1".into(),
            |p| p.spec.suspend = true,
            |p| p.spec.owner.group = "other".into(),
        ] {
            let mut promotion = base.clone();
            edit(&mut promotion);
            changed.push(digest_of(&promotion));
        }
        changed.push(digest(&base, "sha256:f", "high", "sha256:p").unwrap());
        changed.push(digest(&base, "sha256:e", "low", "sha256:p").unwrap());
        changed.push(digest(&base, "sha256:e", "high", "sha256:q").unwrap());
        for (index, other) in changed.iter().enumerate() {
            assert_ne!(&original, other, "change {index}");
        }
        changed.sort();
        changed.dedup();
        assert_eq!(changed.len(), 9);
        let mut nameless = base;
        nameless.metadata.uid = None;
        assert_eq!(digest(&nameless, "sha256:e", "high", "sha256:p"), None);
    }

    #[test]
    fn annotations_and_status_do_not_move_it() {
        let base = fixtures::promotion();
        let mut other = base.clone();
        other.metadata.annotations = Some([("a".to_owned(), "b".to_owned())].into());
        other.status = Some(assayer_crds::ModelPromotionStatus::default());
        assert_eq!(
            digest(&base, "sha256:e", "high", "sha256:p"),
            digest(&other, "sha256:e", "high", "sha256:p")
        );
    }
}
