//! Evidence in the cluster: immutable config maps without an owner, named by their digest.
//!
//! Writes once and reads with the signature checked every time, because "immutable" stops neither deletion nor re-creation. Never
//! judges what the evidence says.

use std::collections::BTreeMap;

use assayer_crds::digest::Digest;
use assayer_crds::evidence::{Statement, Subject};
use assayer_crds::names;
use k8s_openapi::api::core::v1::ConfigMap;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use kube::api::{Api, PostParams};

use super::EvidenceError;
use super::dsse::{self, Verified};
use super::keys::{PublicKey, SigningKey};
use crate::client::limited;
use crate::error::Error;

/// Most bytes of an envelope that is stored: an object of the API server holds little more.
const MAX_STORED_BYTES: usize = 900 * 1024;

/// Name of the config map of evidence with this digest.
pub fn name_of(digest: &Digest) -> String {
    format!("{}{}", names::EVIDENCE_PREFIX, digest.short(32))
}

/// Digest of a statement's payload: what status, requests and approvals speak of.
///
/// # Errors
/// When the statement can't be JSON.
pub fn digest_of(statement: &Statement) -> Result<Digest, EvidenceError> {
    Ok(Digest::of_canonical(statement)?)
}

/// Signs `statement` and builds its config map.
///
/// # Errors
/// When it can't be signed, or is too large to be stored.
pub fn config_map(namespace: &str, statement: &Statement, key: &SigningKey) -> Result<ConfigMap, EvidenceError> {
    let (envelope, digest) = dsse::sign(statement, key)?;
    if envelope.len() > MAX_STORED_BYTES {
        return Err(EvidenceError::Envelope(format!(
            "{} bytes, at most {MAX_STORED_BYTES}: measure in fewer environments",
            envelope.len()
        )));
    }
    let artifact = statement.predicate.made.artifact_digest.to_string();
    Ok(ConfigMap {
        metadata: ObjectMeta {
            name: Some(name_of(&digest)),
            namespace: Some(namespace.to_owned()),
            labels: Some(BTreeMap::from([(names::EVIDENCE.to_owned(), "true".to_owned())])),
            annotations: Some(BTreeMap::from([
                (names::EVIDENCE_DIGEST.to_owned(), digest.to_string()),
                (names::ARTIFACT_DIGEST.to_owned(), artifact),
            ])),
            ..ObjectMeta::default()
        },
        immutable: Some(true),
        data: Some(BTreeMap::from([(names::EVIDENCE_KEY.to_owned(), envelope)])),
        binary_data: None,
    })
}

/// Verifies a config map: its envelope's signature, and that it holds the evidence with `expected` digest.
///
/// # Errors
/// When the key is missing, the signature does not hold, or the digest is another one.
pub fn open(config_map: &ConfigMap, expected: &Digest, key: &PublicKey) -> Result<Verified, EvidenceError> {
    let envelope = config_map.data.as_ref().and_then(|data| data.get(names::EVIDENCE_KEY));
    let envelope = envelope
        .ok_or_else(|| EvidenceError::Envelope(format!("the config map has no key {}", names::EVIDENCE_KEY)))?;
    let verified = dsse::verify(envelope, key)?;
    if verified.digest != *expected {
        return Err(EvidenceError::Digest {
            found: verified.digest.to_string(),
            expected: expected.to_string(),
        });
    }
    Ok(verified)
}

/// Whether a verified statement is about the artifact with this digest.
pub fn is_about(statement: &Statement, artifact: &Digest) -> bool {
    let named = |subject: &Subject| subject.digest.get("sha256").map(String::as_str) == Some(artifact.hex());
    statement.predicate.made.artifact_digest == *artifact && statement.subject.iter().any(named)
}

/// Writes the evidence. Writing the same evidence again changes nothing; another object of that name is an error.
///
/// # Errors
/// When it can't be signed or written, or the name is taken by something that is not this evidence.
pub async fn write(
    client: &kube::Client,
    namespace: &str,
    statement: &Statement,
    key: &SigningKey,
) -> Result<(), Error> {
    let wrong = |what: &str| {
        let what = what.to_owned();
        move |source| Error::Evidence { what, source }
    };
    let candidate = &statement.predicate.candidate;
    let map = config_map(namespace, statement, key).map_err(wrong(candidate))?;
    let digest = digest_of(statement).map_err(wrong(candidate))?;
    let name = name_of(&digest);
    let api: Api<ConfigMap> = Api::namespaced(client.clone(), namespace);
    let params = PostParams {
        field_manager: Some(names::FIELD_MANAGER.to_owned()),
        ..PostParams::default()
    };
    match limited(&name, api.create(&params, &map)).await? {
        Ok(_) => Ok(()),
        Err(kube::Error::Api(status)) if status.is_already_exists() => {
            let there = limited(&name, api.get(&name))
                .await?
                .map_err(Error::read(format!("config map {name}")))?;
            open(&there, &digest, key.public())
                .map(|_| ())
                .map_err(wrong(&format!("config map {name}")))
        }
        Err(error) => Err(Error::write(format!("config map {name}"))(error)),
    }
}

/// Reads and verifies evidence.
///
/// The outer error is a read that failed and may pass; the inner one says why the evidence can't be believed.
///
/// # Errors
/// When the API server does not answer.
pub async fn read(
    client: &kube::Client,
    namespace: &str,
    name: &str,
    expected: &Digest,
    key: &PublicKey,
) -> Result<Result<Verified, EvidenceError>, Error> {
    let api: Api<ConfigMap> = Api::namespaced(client.clone(), namespace);
    let found = limited(name, api.get_opt(name))
        .await?
        .map_err(Error::read(format!("config map {name}")))?;
    Ok(match found {
        Some(config_map) => open(&config_map, expected, key),
        None => Err(EvidenceError::Gone(name.to_owned())),
    })
}

#[cfg(test)]
mod tests {
    use assayer_crds::evidence::{Evidence, PREDICATE_TYPE, STATEMENT_TYPE};
    use serde_json::json;

    use super::*;

    fn statement() -> Statement {
        let predicate: Evidence = serde_json::from_value(json!({
            "recordedAt": "2026-01-01T00:00:00Z",
            "optimization": {"namespace": "ml", "name": "m", "uid": "u", "generation": 1},
            "owner": {"group": "g", "contact": "c"}, "influences": ["Security"],
            "model": {"name": "m", "version": "1"}, "candidate": "static", "technique": "static-int8",
            "planDigest": Digest::of(b"plan"), "spec": {},
            "made": {
                "uri": "oci://r/m@x", "tag": "t", "artifactDigest": Digest::of(b"a"), "modelDigest": Digest::of(b"m"),
                "baselineDigest": Digest::of(b"b"), "files": [], "bytes": 1, "opset": [15, 17], "passes": [],
                "calibrationRows": 0, "seconds": 1.0, "peakMemoryBytes": 1
            },
            "madeBy": {"worker": "0.1.0"}, "baseline": [], "measured": [], "verdicts": [],
            "workerImage": "i", "runner": "kubernetes"
        }))
        .unwrap();
        let subject = |digest: &Digest| Subject {
            name: "model".into(),
            digest: BTreeMap::from([("sha256".into(), digest.hex().into())]),
        };
        Statement {
            statement_type: STATEMENT_TYPE.into(),
            subject: vec![subject(&Digest::of(b"m")), subject(&Digest::of(b"a"))],
            predicate_type: PREDICATE_TYPE.into(),
            predicate,
        }
    }

    #[test]
    fn what_is_stored_is_immutable_ownerless_and_opens_again() {
        let key = SigningKey::generate().unwrap();
        let map = config_map("ml", &statement(), &key).unwrap();
        let digest = digest_of(&statement()).unwrap();
        assert_eq!(map.immutable, Some(true));
        assert!(map.metadata.owner_references.is_none());
        assert_eq!(map.metadata.name, Some(name_of(&digest)));
        assert_eq!(name_of(&digest).len(), names::EVIDENCE_PREFIX.len() + 32);
        let verified = open(&map, &digest, key.public()).unwrap();
        assert_eq!(verified.statement, statement());
        assert!(is_about(&verified.statement, &Digest::of(b"a")));
        assert!(
            !is_about(&verified.statement, &Digest::of(b"m")),
            "the model is not the artifact"
        );
        assert_eq!(
            map,
            config_map("ml", &statement(), &key).unwrap(),
            "the same bytes again"
        );
    }

    #[test]
    fn forged_and_swapped_evidence_is_refused() {
        let (ours, theirs) = (SigningKey::generate().unwrap(), SigningKey::generate().unwrap());
        let digest = digest_of(&statement()).unwrap();
        let forged = config_map("ml", &statement(), &theirs).unwrap();
        assert!(matches!(
            open(&forged, &digest, ours.public()),
            Err(EvidenceError::Signature(_))
        ));
        let mut other = statement();
        other.predicate.candidate = "other".into();
        let swapped = config_map("ml", &other, &ours).unwrap();
        assert!(matches!(
            open(&swapped, &digest, ours.public()),
            Err(EvidenceError::Digest { .. })
        ));
        let empty = ConfigMap::default();
        assert!(matches!(
            open(&empty, &digest, ours.public()),
            Err(EvidenceError::Envelope(_))
        ));
    }
}
