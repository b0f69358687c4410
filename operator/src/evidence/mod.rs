//! Evidence: signed in-toto statements in immutable config maps without an owner.
//!
//! `dsse` signs and verifies, `keys` holds the key pair, `statement` puts the claim together,
//! `store` writes and reads config maps. Nothing here judges what the evidence says.

pub mod dsse;
pub mod keys;
pub mod statement;
pub mod store;

/// Evidence that can't be made or can't be believed.
#[derive(Debug, thiserror::Error)]
pub enum EvidenceError {
    /// The key is not a P-256 key in PEM.
    #[error("the signing key can't be read: {0}")]
    Key(String),
    /// The envelope is not DSSE JSON, or too large.
    #[error("the envelope can't be read: {0}")]
    Envelope(String),
    /// The payload type or the statement's type is another one.
    #[error("the envelope holds `{found}`, expected `{expected}`")]
    Type {
        /// What is there.
        found: String,
        /// What must be there.
        expected: &'static str,
    },
    /// No signature holds for the key.
    #[error("no signature of the envelope holds for key {0}")]
    Signature(String),
    /// The config map does not exist.
    #[error("config map {0} is gone")]
    Gone(String),
    /// The payload's digest is another one.
    #[error("the evidence has digest {found}, expected {expected}")]
    Digest {
        /// What is there.
        found: String,
        /// What must be there.
        expected: String,
    },
    /// The statement can't be written as JSON.
    #[error("the statement can't be written: {0}")]
    Json(#[from] serde_json::Error),
}
