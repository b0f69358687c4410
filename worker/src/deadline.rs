//! The worker's own deadline, before the Job's: at that one the pod is deleted together with its words.
//!
//! Decides how much of the plan's time is left to a container, counted from the start of the first one.

use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use assayer_crds::contract::{Outcome, Runtime};
use serde::{Deserialize, Serialize};

use crate::failure::{Result, reasons, resources};
use crate::layout::{read_note, write_note};
use crate::report::Reporter;

/// When the first container of the job began, in seconds since 1970.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Start(u64);

const FILE: &str = "started.json";

impl Start {
    /// Now.
    pub fn now() -> Self {
        Self(
            SystemTime::now()
                .duration_since(UNIX_EPOCH)
                .unwrap_or_default()
                .as_secs(),
        )
    }

    /// Leaves the start in a folder that a later container sees.
    pub fn leave(self, folder: &Path) -> Result<()> {
        write_note(&folder.join(FILE), &self)
    }

    /// The start that an earlier container left, or this one. A start in the future is nobody's.
    pub fn found(folder: &Path) -> Self {
        let now = Self::now();
        read_note::<Self>(&folder.join(FILE))
            .ok()
            .filter(|start| start.0 <= now.0)
            .unwrap_or(now)
    }

    /// What is left of `deadline`; at least a second, so that a clock that jumped gives an error and not a crash.
    pub fn left(self, deadline: Duration) -> Duration {
        let passed = Duration::from_secs(Self::now().0.saturating_sub(self.0));
        deadline.saturating_sub(passed).max(Duration::from_secs(1))
    }
}

/// Ends the process when `left` has passed, with a report that says so.
#[allow(
    clippy::exit,
    reason = "the work may hang in native code: only ending the process stops it"
)]
pub(crate) fn watch(left: Duration, seconds: u64, reporter: Arc<Reporter>) -> std::io::Result<()> {
    std::thread::Builder::new().name("deadline".into()).spawn(move || {
        std::thread::sleep(left);
        let message =
            format!("not done within the deadline of {seconds} s: raise run.deadline, or give the pod more CPU");
        let failure = resources(reasons::DEADLINE_EXCEEDED, message);
        let code = reporter.emit(Runtime::default(), Outcome::Failed(failure));
        std::process::exit(i32::from(code));
    })?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn time_is_counted_from_the_first_container() {
        let folder = tempfile::tempdir().unwrap();
        let now = Start::now();
        Start(now.0 - 100).leave(folder.path()).unwrap();
        let left = Start::found(folder.path()).left(Duration::from_secs(160));
        assert!((55..=60).contains(&left.as_secs()), "{left:?}");
        assert_eq!(
            Start::found(folder.path()).left(Duration::from_secs(50)),
            Duration::from_secs(1)
        );
        Start(now.0 + 1_000).leave(folder.path()).unwrap();
        assert!(
            Start::found(folder.path()).0 <= now.0 + 5,
            "a start in the future is not believed"
        );
    }
}
