//! DSSE v1 envelopes around in-toto statements.
//!
//! Signs canonical JSON and verifies before it parses. The evidence digest is taken over the payload, never over the envelope, because
//! signatures may differ from run to run. Source: DSSE v1 protocol (pre-authentication encoding), in-toto envelope.

use assayer_crds::digest::{Digest, canonical};
use assayer_crds::evidence::{PAYLOAD_TYPE, PREDICATE_TYPE, STATEMENT_TYPE, Statement};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use p256::ecdsa::Signature;
use p256::ecdsa::signature::{Signer as _, Verifier as _};
use serde::{Deserialize, Serialize};

use super::EvidenceError;
use super::keys::{PublicKey, SigningKey};

/// Largest envelope that is read: a config map holds 1 MiB.
pub const MAX_ENVELOPE_BYTES: usize = 1024 * 1024;

/// A DSSE envelope.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Envelope {
    /// `application/vnd.in-toto+json`.
    pub payload_type: String,
    /// Base64 of the statement's canonical JSON.
    pub payload: String,
    /// One or more signatures.
    pub signatures: Vec<EnvelopeSignature>,
}

/// One signature.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct EnvelopeSignature {
    /// Hint at the key: sha256 of its DER encoding.
    pub keyid: String,
    /// Base64 of the DER-encoded ECDSA signature.
    pub sig: String,
}

/// A statement whose signature held, with the digest of its bytes.
#[derive(Clone, Debug, PartialEq)]
pub struct Verified {
    /// What is claimed.
    pub statement: Statement,
    /// sha256 of the payload.
    pub digest: Digest,
}

/// DSSE's pre-authentication encoding: what is really signed.
fn pre_authentication(payload_type: &str, payload: &[u8]) -> Vec<u8> {
    let mut bytes = format!("DSSEv1 {} {payload_type} {} ", payload_type.len(), payload.len()).into_bytes();
    bytes.extend_from_slice(payload);
    bytes
}

/// Signs `statement`; returns the envelope's JSON and the evidence digest.
///
/// # Errors
/// When the statement can't be canonical JSON (a number that is not finite).
pub fn sign(statement: &Statement, key: &SigningKey) -> Result<(String, Digest), EvidenceError> {
    let payload = canonical(statement)?;
    let signature: Signature = key.secret.sign(&pre_authentication(PAYLOAD_TYPE, &payload));
    let envelope = Envelope {
        payload_type: PAYLOAD_TYPE.to_owned(),
        payload: STANDARD.encode(&payload),
        signatures: vec![EnvelopeSignature {
            keyid: key.public().id().to_owned(),
            sig: STANDARD.encode(signature.to_der().as_bytes()),
        }],
    };
    Ok((serde_json::to_string(&envelope)?, Digest::of(&payload)))
}

/// Verifies an envelope with `key` and returns what it states.
///
/// # Errors
/// When it can't be read, has another type, or no signature holds.
pub fn verify(envelope: &str, key: &PublicKey) -> Result<Verified, EvidenceError> {
    let (envelope, payload) = open(envelope)?;
    let signed = pre_authentication(PAYLOAD_TYPE, &payload);
    let holds = envelope.signatures.iter().take(16).any(|signature| {
        let der = STANDARD.decode(&signature.sig).unwrap_or_default();
        Signature::from_der(&der).is_ok_and(|signature| key.key.verify(&signed, &signature).is_ok())
    });
    if !holds {
        return Err(EvidenceError::Signature(key.id().to_owned()));
    }
    parse(&payload)
}

/// What an envelope states, without a word on who signed it: for people who look at it, never for a gate.
///
/// # Errors
/// When it can't be read or has another type.
pub fn read_unverified(envelope: &str) -> Result<Verified, EvidenceError> {
    parse(&open(envelope)?.1)
}

fn open(envelope: &str) -> Result<(Envelope, Vec<u8>), EvidenceError> {
    if envelope.len() > MAX_ENVELOPE_BYTES {
        return Err(EvidenceError::Envelope(format!(
            "{} bytes, at most {MAX_ENVELOPE_BYTES}",
            envelope.len()
        )));
    }
    let envelope: Envelope =
        serde_json::from_str(envelope).map_err(|error| EvidenceError::Envelope(error.to_string()))?;
    if envelope.payload_type != PAYLOAD_TYPE {
        return Err(EvidenceError::Type {
            found: envelope.payload_type,
            expected: PAYLOAD_TYPE,
        });
    }
    let payload = STANDARD
        .decode(&envelope.payload)
        .map_err(|error| EvidenceError::Envelope(error.to_string()))?;
    Ok((envelope, payload))
}

fn parse(payload: &[u8]) -> Result<Verified, EvidenceError> {
    let statement: Statement =
        serde_json::from_slice(payload).map_err(|error| EvidenceError::Envelope(error.to_string()))?;
    for (found, expected) in [
        (&statement.statement_type, STATEMENT_TYPE),
        (&statement.predicate_type, PREDICATE_TYPE),
    ] {
        if found != expected {
            return Err(EvidenceError::Type {
                found: found.clone(),
                expected,
            });
        }
    }
    Ok(Verified {
        statement,
        digest: Digest::of(payload),
    })
}
