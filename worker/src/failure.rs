//! Failures in the contract's own words: class, reason and a message that fits a report.
//!
//! Decides how long a message may be and which errors of the operating system mean that something ran out.

use std::io;
use std::path::Path;

pub use assayer_crds::contract::{Failure, FailureClass, reasons};

/// Result of everything that a worker does.
pub type Result<T, E = Failure> = std::result::Result<T, E>;

/// Most characters of a failure's message (the contract's limit).
pub const MAX_MESSAGE: usize = 1_024;

/// A failure with its message cut to [`MAX_MESSAGE`] characters.
pub fn failure(class: FailureClass, reason: &str, message: impl AsRef<str>) -> Failure {
    Failure {
        class,
        reason: reason.to_owned(),
        message: cut(message.as_ref(), MAX_MESSAGE),
    }
}

/// The input is refused: trying again gives the same.
pub fn refused(reason: &str, message: impl AsRef<str>) -> Failure {
    failure(FailureClass::Refused, reason, message)
}

/// Memory, disk, time or an accelerator is missing.
pub fn resources(reason: &str, message: impl AsRef<str>) -> Failure {
    failure(FailureClass::Resources, reason, message)
}

/// A bug of ours.
pub fn bug(message: impl AsRef<str>) -> Failure {
    failure(FailureClass::Bug, reasons::INTERNAL, message)
}

/// A file operation failed: full disks and memory are resources, all else is storage.
pub fn disk(action: &str, path: &Path, error: &io::Error) -> Failure {
    let message = format!("cannot {action} {}: {error}", path.display());
    if ran_out(error) {
        resources(
            reasons::OUT_OF_RESOURCES,
            format!("{message}: give the pod more ephemeral storage or memory"),
        )
    } else {
        failure(FailureClass::Storage, reasons::STORAGE_UNAVAILABLE, message)
    }
}

/// Whether an error says that disk, quota or memory is exhausted.
pub fn ran_out(error: &io::Error) -> bool {
    matches!(
        error.kind(),
        io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded | io::ErrorKind::OutOfMemory
    )
}

/// `text` with control characters replaced and at most `limit` characters.
pub fn cut(text: &str, limit: usize) -> String {
    let clean = |c: char| if c.is_control() { ' ' } else { c };
    if text.chars().count() <= limit {
        return text.chars().map(clean).collect();
    }
    let mut kept: String = text.chars().take(limit.saturating_sub(1)).map(clean).collect();
    kept.push('…');
    kept
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn messages_are_cut_by_characters_and_hold_no_control_characters() {
        let failure = refused(reasons::DATA_INVALID, "ä\n".repeat(2_000));
        assert_eq!(failure.message.chars().count(), MAX_MESSAGE);
        assert!(failure.message.ends_with('…'));
        assert!(!failure.message.contains('\n'));
        assert_eq!(cut("short", 5), "short");
    }

    #[test]
    fn a_full_disk_is_a_resource_and_a_broken_one_is_storage() {
        let full = io::Error::from(io::ErrorKind::StorageFull);
        assert_eq!(disk("write", Path::new("x"), &full).class, FailureClass::Resources);
        let broken = io::Error::from(io::ErrorKind::PermissionDenied);
        assert_eq!(disk("write", Path::new("x"), &broken).class, FailureClass::Storage);
    }
}
