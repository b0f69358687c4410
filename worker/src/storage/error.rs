//! Why fetching or publishing failed, and what that means for the job.

use std::io;
use std::path::PathBuf;

use crate::failure::{Failure, FailureClass, disk, failure, reasons, refused};

/// A failure of storage. Messages name the artifact, what was found and the way out.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A URI that names nothing that can be fetched.
    #[error("`{uri}` can't be used: {reason}")]
    Uri {
        /// As given.
        uri: String,
        /// What is wrong and what would be right.
        reason: String,
    },
    /// The registry or the disk has no such thing.
    #[error("{uri} does not exist: {reason}: push it, or correct the URI")]
    NotFound {
        /// What was asked for.
        uri: String,
        /// The registry's words.
        reason: String,
    },
    /// Credentials are missing or not enough.
    #[error("{uri}: the registry refused the credentials: {reason}: check the pull or push secret")]
    Forbidden {
        /// What was asked for.
        uri: String,
        /// The registry's words.
        reason: String,
    },
    /// No answer, or a server's error: worth another attempt.
    #[error(
        "{uri}: the registry does not answer as it should: {reason}: see whether it runs, and whether pods reach it"
    )]
    Unavailable {
        /// What was asked for.
        uri: String,
        /// What happened.
        reason: String,
    },
    /// The bytes are not those that the digest names.
    #[error("{what}: expected {expected}, got {actual}: the artifact was changed, cut or mixed up; pin it again")]
    DigestMismatch {
        /// Manifest, layer or model.
        what: String,
        /// The digest that was asked for.
        expected: String,
        /// The digest of what came.
        actual: String,
    },
    /// The artifact has a shape that can't be mounted as a volume, or holds things that a model artifact must not.
    #[error("{uri} is refused: {reason}")]
    Refused {
        /// The artifact.
        uri: String,
        /// What is wrong and the way out.
        reason: String,
    },
    /// The credentials file can't be read.
    #[error("credentials {path}: {reason}")]
    Credentials {
        /// The file.
        path: PathBuf,
        /// What is wrong.
        reason: String,
    },
    /// A local file operation failed.
    #[error("cannot {action} {path}: {source}")]
    Disk {
        /// What was tried.
        action: &'static str,
        /// On what.
        path: PathBuf,
        /// The system's answer.
        source: io::Error,
    },
}

impl Error {
    /// Whether trying again may help.
    pub fn is_transient(&self) -> bool {
        matches!(self, Self::Unavailable { .. })
    }

    pub(super) fn disk(action: &'static str, path: impl Into<PathBuf>) -> impl FnOnce(io::Error) -> Self {
        let path = path.into();
        move |source| Self::Disk { action, path, source }
    }
}

impl From<Error> for Failure {
    fn from(error: Error) -> Self {
        let message = error.to_string();
        match error {
            Error::Disk { action, path, source } => disk(action, &path, &source),
            Error::Uri { .. } | Error::Refused { .. } => refused(reasons::ARTIFACT_REFUSED, message),
            Error::NotFound { .. } => refused(reasons::NOT_FOUND, message),
            Error::DigestMismatch { .. } => refused(reasons::DIGEST_MISMATCH, message),
            Error::Forbidden { .. } | Error::Credentials { .. } => {
                failure(FailureClass::Storage, reasons::STORAGE_FORBIDDEN, message)
            }
            Error::Unavailable { .. } => failure(FailureClass::Storage, reasons::STORAGE_UNAVAILABLE, message),
        }
    }
}
