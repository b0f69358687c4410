//! The key pair that evidence is signed with: ECDSA P-256, as stock tools verify it.
//!
//! Makes, reads and writes keys. Never decides whom to trust.

use hmac::{Hmac, KeyInit as _, Mac as _};
use p256::ecdsa::{SigningKey as Secret, VerifyingKey};
use p256::pkcs8::{
    DecodePrivateKey as _, DecodePublicKey as _, EncodePrivateKey as _, EncodePublicKey as _, LineEnding,
};
use sha2::{Digest as _, Sha256};

use super::EvidenceError;

/// Name of the private key in the Secret: PKCS#8 PEM.
pub const PRIVATE: &str = "signing.key";
/// Name of the public key in the Secret: SPKI PEM.
pub const PUBLIC: &str = "signing.pub";

/// A private key and its public half.
#[derive(Clone)]
pub struct SigningKey {
    pub(super) secret: Secret,
    public: PublicKey,
}

/// A public key and its id.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PublicKey {
    pub(super) key: VerifyingKey,
    id: String,
    pem: String,
}

impl SigningKey {
    /// Makes a new key from the system's randomness.
    ///
    /// # Errors
    /// When the key can't be encoded.
    pub fn generate() -> Result<Self, EvidenceError> {
        use p256::elliptic_curve::Generate as _;
        Self::new(Secret::generate())
    }

    /// Reads a PKCS#8 PEM.
    ///
    /// # Errors
    /// When it is not a P-256 private key.
    pub fn from_pem(pem: &str) -> Result<Self, EvidenceError> {
        Self::new(Secret::from_pkcs8_pem(pem).map_err(|error| EvidenceError::Key(error.to_string()))?)
    }

    fn new(secret: Secret) -> Result<Self, EvidenceError> {
        let public = PublicKey::new(*secret.verifying_key())?;
        Ok(Self { secret, public })
    }

    /// The PKCS#8 PEM.
    ///
    /// # Errors
    /// When the key can't be encoded.
    pub fn to_pem(&self) -> Result<String, EvidenceError> {
        let pem = self
            .secret
            .to_pkcs8_pem(LineEnding::LF)
            .map_err(|error| EvidenceError::Key(error.to_string()))?;
        Ok(pem.to_string())
    }

    /// HMAC-SHA256 over `text` in hex: the same for the same text, and unknown to whoever lacks the key.
    #[expect(clippy::expect_used, reason = "HMAC takes a key of any length")]
    pub fn mark(&self, text: &[u8]) -> String {
        let mut mac = Hmac::<Sha256>::new_from_slice(&self.secret.to_bytes()).expect("any length will do");
        mac.update(text);
        hex::encode(mac.finalize().into_bytes())
    }

    /// The public half.
    pub fn public(&self) -> &PublicKey {
        &self.public
    }
}

impl PublicKey {
    fn new(key: VerifyingKey) -> Result<Self, EvidenceError> {
        let wrong = |error: p256::pkcs8::spki::Error| EvidenceError::Key(error.to_string());
        let pem = key.to_public_key_pem(LineEnding::LF).map_err(wrong)?;
        let der = key.to_public_key_der().map_err(wrong)?;
        Ok(Self {
            key,
            id: hex::encode(Sha256::digest(der.as_bytes())),
            pem,
        })
    }

    /// Reads an SPKI PEM.
    ///
    /// # Errors
    /// When it is not a P-256 public key.
    pub fn from_pem(pem: &str) -> Result<Self, EvidenceError> {
        Self::new(VerifyingKey::from_public_key_pem(pem).map_err(|error| EvidenceError::Key(error.to_string()))?)
    }

    /// sha256 of the DER encoding, in hex: the DSSE `keyid`.
    pub fn id(&self) -> &str {
        &self.id
    }

    /// The SPKI PEM.
    pub fn pem(&self) -> &str {
        &self.pem
    }
}
