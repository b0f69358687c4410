//! What to do next, given everything that was read.
//!
//! Pure: no client, no clock, no failure. An invalid spec is a plan that says so. A run goes through fixed stations: the baseline in every
//! environment, then the candidates (several at once), then their measurements one Job at a time, so that they don't disturb each other,
//! then verdicts and evidence. Whatever was written before a crash is found again by its name.

mod begin;
mod bounds;
mod conclude;
mod draft;
mod judge;
mod sweep;
mod words;
mod work;

use std::time::Duration;

use assayer_crds::ModelOptimizationStatus;
use assayer_crds::digest::Digest;
use assayer_crds::evidence::Statement;
use jiff::Timestamp;
use k8s_openapi::api::batch::v1::Job;

use super::observed::Observed;
use crate::events::Note;
pub use begin::invalid;
use draft::Draft;

/// Waits for the next look when something was changed just now.
const SOON: Duration = Duration::from_millis(100);
/// Waits for the next look while workers run: Events are not watched.
const POLL: Duration = Duration::from_secs(5);
/// Waits for the next look when nothing is expected: no watch promises delivery.
const RESYNC: Duration = Duration::from_mins(10);

/// The words of `status.phase`.
pub mod phases {
    /// Nothing has begun.
    pub const PENDING: &str = "Pending";
    /// A Job waits in its queue.
    pub const QUEUED: &str = "Queued";
    /// The baseline is measured.
    pub const BASELINING: &str = "Baselining";
    /// Candidates are made.
    pub const OPTIMIZING: &str = "Optimizing";
    /// Candidates are measured and judged.
    pub const VALIDATING: &str = "Validating";
    /// A candidate was selected.
    pub const SUCCEEDED: &str = "Succeeded";
    /// A gate said no to every candidate.
    pub const REJECTED: &str = "Rejected";
    /// The machinery gave up.
    pub const FAILED: &str = "Failed";

    /// Whether nothing more happens in this phase.
    pub fn terminal(phase: &str) -> bool {
        matches!(phase, SUCCEEDED | REJECTED | FAILED)
    }
}

/// One write.
#[derive(Clone, Debug, PartialEq)]
pub enum Change {
    /// Create a worker Job; one of that name that is the same counts as created.
    CreateJob {
        /// The Job.
        job: Box<Job>,
        /// Why.
        why: String,
    },
    /// Delete a Job and its pods.
    DeleteJob {
        /// Name.
        name: String,
        /// Uid: nothing else of that name is deleted.
        uid: String,
        /// Why.
        why: String,
    },
    /// Let a finished Job be collected after a while. What it owns goes with it.
    ExpireJob {
        /// Name.
        name: String,
        /// Uid.
        uid: String,
        /// Why.
        why: String,
    },
    /// Keep an accepted report until the run is over.
    KeepReport {
        /// Name of the config map.
        name: String,
        /// Name of the Job that it came from and that owns it.
        job: String,
        /// Uid of the Job.
        job_uid: String,
        /// The very line.
        line: String,
        /// Its digest.
        digest: Digest,
        /// Why.
        why: String,
    },
    /// Sign and store a candidate's evidence.
    RecordEvidence {
        /// What is stated.
        statement: Box<Statement>,
        /// Why.
        why: String,
    },
}

impl Change {
    /// Why it is done.
    pub fn why(&self) -> &str {
        match self {
            Self::CreateJob { why, .. }
            | Self::DeleteJob { why, .. }
            | Self::ExpireJob { why, .. }
            | Self::KeepReport { why, .. }
            | Self::RecordEvidence { why, .. } => why,
        }
    }
}

/// When to look again, unless something changes before.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Next {
    /// Only when something changes.
    AwaitChange,
    /// After this long.
    After(Duration),
}

/// What is to be done: changes, then status, then Events.
#[derive(Clone, Debug, PartialEq)]
pub struct Plan {
    /// Writes, in order. The status says what is true once all of them are done.
    pub changes: Vec<Change>,
    /// The whole status.
    pub status: ModelOptimizationStatus,
    /// Events.
    pub notes: Vec<Note>,
    /// When to look again.
    pub next: Next,
}

/// Decides.
pub fn plan(observed: &Observed, now: Timestamp) -> Plan {
    let mut draft = Draft::new(observed, now);
    if observed.object.metadata.deletion_timestamp.is_some() {
        // Evidence and artifacts stay.
        sweep::stop_all(&mut draft, "the ModelOptimization is being deleted");
        return draft.finish(Next::AwaitChange);
    }
    begin::begin(&mut draft);
    if let Some(problem) = begin::invalid(&observed.object.spec) {
        sweep::stop_all(&mut draft, "the spec can't be carried out");
        conclude::refuse(&mut draft, &problem);
        return draft.finish(Next::AwaitChange);
    }
    if phases::terminal(&draft.status.phase) {
        sweep::sweep(&mut draft);
        return draft.finish(Next::After(RESYNC));
    }
    if observed.object.spec.suspend {
        sweep::stop_all(&mut draft, "spec.suspend is true");
        conclude::suspend(&mut draft);
        return draft.finish(Next::After(RESYNC));
    }
    work::advance(&mut draft);
    judge::candidates(&mut draft);
    conclude::conclude(&mut draft);
    sweep::sweep(&mut draft);
    let next = Next::After(draft.wake.unwrap_or(POLL));
    draft.finish(next)
}

#[cfg(test)]
mod tests;
