//! What can be wrong with a model file, in words that name the place, the value, the limit and the way out.
//!
//! Names inside a model are hostile text: every message shows them through [`shown`], escaped and cut.

use std::path::PathBuf;

/// Why a model was refused.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A file could not be read or written.
    #[error("cannot {action} {path}: {source}")]
    Io {
        /// What was tried, e.g. `open`.
        action: &'static str,
        /// The file.
        path: PathBuf,
        /// The system's own error.
        source: std::io::Error,
    },
    /// The bytes are not a well-formed ONNX protobuf.
    #[error(
        "not a well-formed ONNX file: {what} in {message}; it is damaged or of another format: export the model again"
    )]
    Malformed {
        /// The protobuf message being read.
        message: &'static str,
        /// What is wrong.
        what: String,
    },
    /// A documented bound is exceeded.
    #[error("{what} {value} exceeds the limit {limit}; simplify or split the model")]
    Limit {
        /// What was counted.
        what: &'static str,
        /// The value found, or the first value above the limit.
        value: u64,
        /// The limit.
        limit: u64,
    },
    /// A construct that Assayer does not accept.
    #[error("{construct} is not supported: {hint}")]
    Unsupported {
        /// What was found.
        construct: String,
        /// The way out.
        hint: &'static str,
    },
    /// A tensor is inconsistent with itself.
    #[error("tensor {name}: {reason}")]
    Tensor {
        /// Escaped name.
        name: String,
        /// What is wrong.
        reason: String,
    },
    /// External data leaves its folder, or is not there.
    #[error("external data of tensor {name}: {reason}")]
    External {
        /// Escaped name.
        name: String,
        /// What is wrong.
        reason: String,
    },
    /// The graph is not valid.
    #[error("invalid graph {graph}: {reason}")]
    Graph {
        /// Escaped name of the graph.
        graph: String,
        /// What is wrong.
        reason: String,
    },
    /// The operator set cannot be raised without changing what the model computes.
    #[error("cannot raise operator set {from} to {to}: {reason}")]
    Opset {
        /// The version of the file.
        from: i64,
        /// The version needed.
        to: i64,
        /// The operator in the way and why.
        reason: String,
    },
    /// A rewrite does not fit the graph it is applied to (a bug in a pass, never the user's fault).
    #[error("patch {label} does not apply: {reason}")]
    Patch {
        /// The pass.
        label: &'static str,
        /// What does not fit.
        reason: String,
    },
}

/// A hostile name made fit for a message: escaped, quoted, at most 120 characters.
pub fn shown(name: &str) -> String {
    const MAX: usize = 120;
    let mut text: String = name
        .chars()
        .take(MAX)
        .flat_map(char::escape_debug)
        .take(2 * MAX)
        .collect();
    if name.chars().nth(MAX).is_some() {
        text.push('…');
    }
    format!("`{text}`")
}

impl Error {
    pub(crate) fn malformed(message: &'static str, what: impl Into<String>) -> Self {
        Self::Malformed {
            message,
            what: what.into(),
        }
    }

    pub(crate) fn tensor(name: &str, reason: impl Into<String>) -> Self {
        Self::Tensor {
            name: shown(name),
            reason: reason.into(),
        }
    }

    pub(crate) fn external(name: &str, reason: impl Into<String>) -> Self {
        Self::External {
            name: shown(name),
            reason: reason.into(),
        }
    }

    pub(crate) fn graph(graph: &str, reason: impl Into<String>) -> Self {
        Self::Graph {
            graph: shown(graph),
            reason: reason.into(),
        }
    }

    pub(crate) fn unsupported(construct: impl Into<String>, hint: &'static str) -> Self {
        Self::Unsupported {
            construct: construct.into(),
            hint,
        }
    }
}
