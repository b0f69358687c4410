//! Failures of the shells (observe, apply). The pure core has none: an invalid spec is a plan that says so.

use std::time::Duration;

/// A read or write that failed.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A read from the API server failed.
    #[error("could not read {what}")]
    Read {
        /// Kind and name.
        what: String,
        /// The client's error.
        #[source]
        source: Box<kube::Error>,
    },
    /// A write to the API server failed.
    #[error("could not write {what}")]
    Write {
        /// Kind and name.
        what: String,
        /// The client's error.
        #[source]
        source: Box<kube::Error>,
    },
    /// A call took too long; whether it took effect is unknown, so everything is read again.
    #[error("{what} took longer than {limit:?}")]
    Timeout {
        /// What was called.
        what: String,
        /// How long was waited.
        limit: Duration,
    },
    /// Evidence could not be signed or written as JSON.
    #[error("could not sign evidence of {what}")]
    Evidence {
        /// Whose evidence.
        what: String,
        /// Why.
        #[source]
        source: crate::evidence::EvidenceError,
    },
    /// The object can't be read as its kind: written by a newer version, or past the schema.
    #[error("{what} does not match its schema: {problem}")]
    Malformed {
        /// Kind and name.
        what: String,
        /// What is wrong.
        problem: String,
    },
}

/// What to do about a failure.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Class {
    /// Try again after a growing delay.
    Transient,
    /// Somebody else wrote first: read again at once.
    Conflict,
    /// Wait for a change.
    Terminal,
}

impl Error {
    /// A failed read of `what`.
    pub fn read(what: impl Into<String>) -> impl FnOnce(kube::Error) -> Self {
        let what = what.into();
        move |source| Self::Read {
            what,
            source: Box::new(source),
        }
    }

    /// A failed write of `what`.
    pub fn write(what: impl Into<String>) -> impl FnOnce(kube::Error) -> Self {
        let what = what.into();
        move |source| Self::Write {
            what,
            source: Box::new(source),
        }
    }

    /// What to do about it.
    pub fn class(&self) -> Class {
        match self {
            Self::Write { source, .. } if matches!(&**source, kube::Error::Api(status) if status.is_conflict()) => {
                Class::Conflict
            }
            Self::Read { .. } | Self::Write { .. } | Self::Timeout { .. } | Self::Evidence { .. } => Class::Transient,
            Self::Malformed { .. } => Class::Terminal,
        }
    }

    /// Bounded label for metrics.
    pub fn reason(&self) -> &'static str {
        match self {
            Self::Read { .. } => "ReadFailed",
            Self::Write { .. } => "WriteFailed",
            Self::Timeout { .. } => "Timeout",
            Self::Evidence { .. } => "EvidenceInvalid",
            Self::Malformed { .. } => "InvalidSpec",
        }
    }

    /// One line for people: what failed and the API server's own words, once.
    pub fn message(&self) -> String {
        match self {
            Self::Read { source, .. } | Self::Write { source, .. } => match &**source {
                kube::Error::Api(status) => format!("{self}: {}", status.message),
                other => format!("{self}: {other}"),
            },
            Self::Evidence { source, .. } => format!("{self}: {source}"),
            Self::Timeout { .. } | Self::Malformed { .. } => self.to_string(),
        }
    }
}
