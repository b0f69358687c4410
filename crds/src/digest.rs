//! Digests and the canonical bytes that they are taken over.
//!
//! Decides what exactly is hashed: RFC 8785 canonical JSON for documents, and a sorted file manifest for models, so that
//! external data counts. Never reads files: sizes and file digests are handed in.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};
use sha2::{Digest as _, Sha256};

/// `sha256:<64 lower-case hex digits>`, checked when it is made.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Digest(String);

/// A string that is not `sha256:` and 64 lower-case hex digits.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("`{0}` is not a digest: expected sha256: and 64 lower-case hex digits")]
pub struct InvalidDigest(String);

impl Digest {
    /// Digest of `bytes`.
    pub fn of(bytes: &[u8]) -> Self {
        Self::from_hash(Sha256::digest(bytes).into())
    }

    /// Digest from a finished hash.
    pub fn from_hash(hash: [u8; 32]) -> Self {
        Self(format!("sha256:{}", hex::encode(hash)))
    }

    /// Digest of the RFC 8785 canonical JSON of `value`.
    ///
    /// # Errors
    /// When `value` can't be JSON: a non-finite number, a map with keys that are not strings.
    pub fn of_canonical<T: Serialize>(value: &T) -> Result<Self, serde_json::Error> {
        canonical(value).map(|bytes| Self::of(&bytes))
    }

    /// The 64 hex digits.
    pub fn hex(&self) -> &str {
        &self.0["sha256:".len()..]
    }

    /// The first `digits` hex digits, for names and columns.
    pub fn short(&self, digits: usize) -> &str {
        &self.hex()[..digits.min(64)]
    }

    /// `sha256:…` in full.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for Digest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl fmt::Debug for Digest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl FromStr for Digest {
    type Err = InvalidDigest;

    fn from_str(text: &str) -> Result<Self, InvalidDigest> {
        let hex = text.strip_prefix("sha256:").unwrap_or_default();
        let holds = hex.len() == 64 && hex.bytes().all(|b| b.is_ascii_digit() || (b'a'..=b'f').contains(&b));
        if holds {
            Ok(Self(text.to_owned()))
        } else {
            Err(InvalidDigest(text.chars().take(100).collect()))
        }
    }
}

impl TryFrom<String> for Digest {
    type Error = InvalidDigest;

    fn try_from(text: String) -> Result<Self, InvalidDigest> {
        text.parse()
    }
}

impl From<Digest> for String {
    fn from(digest: Digest) -> Self {
        digest.0
    }
}

/// RFC 8785 canonical JSON of `value`.
///
/// # Errors
/// When `value` can't be JSON.
pub fn canonical<T: Serialize>(value: &T) -> Result<Vec<u8>, serde_json::Error> {
    serde_json_canonicalizer::to_vec(value)
}

/// One file of a model, as it counts in the model's digest.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct ModelFile {
    /// Path inside the artifact, with `/`, never absolute.
    pub path: String,
    /// Size in bytes.
    pub size: u64,
    /// Digest of the file's bytes.
    pub sha256: Digest,
}

/// The model digest: sha256 over the canonical JSON of the model's files, sorted by path.
pub fn model_digest(files: &[ModelFile]) -> Digest {
    let mut sorted: Vec<&ModelFile> = files.iter().collect();
    sorted.sort();
    // Strings and integers only: this can't fail to be JSON; the fallback keeps the function total without hiding anything.
    canonical(&sorted).map_or_else(|_| Digest::of(b""), |bytes| Digest::of(&bytes))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn order_of_files_does_not_matter_and_every_field_does() {
        let file = |path: &str, size| ModelFile {
            path: path.into(),
            size,
            sha256: Digest::of(path.as_bytes()),
        };
        let one = model_digest(&[file("a", 1), file("b", 2)]);
        assert_eq!(one, model_digest(&[file("b", 2), file("a", 1)]));
        assert_ne!(one, model_digest(&[file("a", 1), file("b", 3)]));
    }

    #[test]
    fn digests_are_checked() {
        assert!("sha256:ABC".parse::<Digest>().is_err());
        assert!(Digest::of(b"x").as_str().parse::<Digest>().is_ok());
    }
}
