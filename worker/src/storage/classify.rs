//! What a registry's answer means: not there, not allowed, not now, or not the right bytes.
//!
//! Decides the class of each error of the OCI client; unknown answers count as transient, since a retry is bounded.

use std::error::Error as StdError;
use std::io;

use oci_client::errors::{DigestError, OciDistributionError as Oci, OciErrorCode as Code};

use super::Error;

/// Classifies an answer about `uri`.
pub(super) fn registry(uri: &str, error: &Oci) -> Error {
    let uri = uri.to_owned();
    let reason = chain(error);
    match error {
        Oci::AuthenticationFailure(_) | Oci::UnauthorizedError { .. } | Oci::ServerError { code: 401 | 403, .. } => {
            Error::Forbidden { uri, reason }
        }
        Oci::ServerError { code: 404, .. } | Oci::ImageManifestNotFoundError(_) => Error::NotFound { uri, reason },
        Oci::ServerError {
            code: 400 | 405 | 413 | 415,
            ..
        } => Error::Refused {
            uri,
            reason: format!("the registry refuses it: {reason}"),
        },
        Oci::RegistryError { envelope, .. } => match envelope.errors.first().map(|error| &error.code) {
            Some(
                Code::BlobUnknown
                | Code::ManifestUnknown
                | Code::NameUnknown
                | Code::NotFound
                | Code::ManifestBlobUnknown,
            ) => Error::NotFound { uri, reason },
            Some(Code::Unauthorized | Code::Denied) => Error::Forbidden { uri, reason },
            Some(Code::NameInvalid | Code::ManifestInvalid | Code::Unsupported | Code::SizeInvalid) => Error::Refused {
                uri,
                reason: format!("the registry refuses it: {reason}"),
            },
            _ => Error::Unavailable { uri, reason },
        },
        Oci::DigestError(digest) => mismatch(uri, digest),
        Oci::RequestError(error) if error.is_status() => match error.status().map(|status| status.as_u16()) {
            Some(401 | 403) => Error::Forbidden { uri, reason },
            Some(404) => Error::NotFound { uri, reason },
            _ => Error::Unavailable { uri, reason },
        },
        Oci::IoError(source) => stream(&uri, source),
        _ => Error::Unavailable { uri, reason },
    }
}

/// Classifies an error in the middle of a blob.
pub(super) fn stream(uri: &str, error: &io::Error) -> Error {
    let inner = error.get_ref().and_then(|inner| inner.downcast_ref::<DigestError>());
    match inner {
        Some(digest) => mismatch(uri.to_owned(), digest),
        None => Error::Unavailable {
            uri: uri.to_owned(),
            reason: chain(error),
        },
    }
}

fn mismatch(uri: String, error: &DigestError) -> Error {
    match error {
        DigestError::VerificationError { expected, actual } => Error::DigestMismatch {
            what: uri,
            expected: expected.clone(),
            actual: actual.clone(),
        },
        other => Error::Unavailable {
            uri,
            reason: other.to_string(),
        },
    }
}

/// An error and its causes, each once: `reqwest` says only "error sending request" by itself.
pub(super) fn chain(error: &dyn StdError) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        let cause_text = cause.to_string();
        if !text.contains(&cause_text) {
            text.push_str(": ");
            text.push_str(&cause_text);
        }
        source = cause.source();
    }
    crate::failure::cut(&text, 600)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn server(code: u16) -> Error {
        registry(
            "u",
            &Oci::ServerError {
                code,
                url: "u".into(),
                message: "m".into(),
            },
        )
    }

    #[test]
    fn answers_are_classified() {
        assert!(matches!(server(404), Error::NotFound { .. }));
        assert!(matches!(server(403), Error::Forbidden { .. }));
        assert!(matches!(server(413), Error::Refused { .. }));
        assert!(server(503).is_transient());
        assert!(server(429).is_transient());
        let digest = DigestError::VerificationError {
            expected: "a".into(),
            actual: "b".into(),
        };
        assert!(matches!(
            stream("u", &io::Error::other(digest)),
            Error::DigestMismatch { .. }
        ));
        assert!(stream("u", &io::Error::from(io::ErrorKind::ConnectionReset)).is_transient());
    }
}
