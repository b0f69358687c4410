//! A plan while it is being made: the status so far, the changes so far, and how each step stands.
//!
//! Keeps books; decides nothing.

use std::collections::BTreeSet;
use std::time::Duration;

use assayer_crds::optimization::WorkStatus;
use assayer_crds::{ModelOptimizationSpec, ModelOptimizationStatus};
use jiff::{SignedDuration, Timestamp};

use super::{Change, Next, Plan, SOON, bounds};
use crate::events::Note;
use crate::optimization::observed::{KeptReport, Observed};
use crate::optimization::steps::{Run, Step};

/// The words of `status.work[].state`.
pub(super) mod states {
    pub(in crate::optimization::plan) const RUNNING: &str = "Running";
    pub(in crate::optimization::plan) const QUEUED: &str = "Queued";
    pub(in crate::optimization::plan) const DONE: &str = "Done";
    pub(in crate::optimization::plan) const RETRYING: &str = "Retrying";
    pub(in crate::optimization::plan) const FAILED: &str = "Failed";
}

/// How a step stands.
#[derive(Clone, Copy, Debug)]
pub(super) enum Standing<'a> {
    /// Not begun, running, or waiting for another attempt.
    Open,
    /// Its report counts and is kept.
    Done,
    /// It failed for good.
    Failed(&'a WorkStatus),
}

pub(super) struct Draft<'a> {
    pub(super) observed: &'a Observed,
    pub(super) now: Timestamp,
    pub(super) run: Run,
    pub(super) status: ModelOptimizationStatus,
    pub(super) changes: Vec<Change>,
    pub(super) notes: Vec<Note>,
    pub(super) wake: Option<Duration>,
    /// Steps whose report was accepted just now: kept before the status says so, read back at the next look.
    pub(super) fresh: BTreeSet<String>,
}

impl<'a> Draft<'a> {
    pub(super) fn new(observed: &'a Observed, now: Timestamp) -> Self {
        Self {
            observed,
            now,
            run: observed.run(),
            status: observed.object.status.clone().unwrap_or_default(),
            changes: Vec::new(),
            notes: Vec::new(),
            wake: None,
            fresh: BTreeSet::new(),
        }
    }

    pub(super) fn spec(&self) -> &'a ModelOptimizationSpec {
        &self.observed.object.spec
    }

    /// Name of the object.
    pub(super) fn object(&self) -> &'a str {
        self.observed.object.metadata.name.as_deref().unwrap_or_default()
    }

    /// What the API server has.
    pub(super) fn persisted(&self) -> Option<&'a ModelOptimizationStatus> {
        self.observed.object.status.as_ref()
    }

    pub(super) fn work(&self, step: &str) -> Option<&WorkStatus> {
        self.status.work.iter().find(|work| work.step == step)
    }

    pub(super) fn set_work(&mut self, work: WorkStatus) {
        match self.status.work.iter_mut().find(|old| old.step == work.step) {
            Some(old) => *old = work,
            None => self.status.work.push(work),
        }
    }

    pub(super) fn standing(&self, step: &Step) -> Standing<'_> {
        let name = step.to_string();
        let Some(work) = self.work(&name) else {
            return Standing::Open;
        };
        match work.state.as_str() {
            states::FAILED => Standing::Failed(work),
            states::DONE => match self.observed.reports.get(&name) {
                Some(_) => Standing::Done,
                None => Standing::Open,
            },
            _ => Standing::Open,
        }
    }

    pub(super) fn open(&self, step: &Step) -> bool {
        matches!(self.standing(step), Standing::Open)
    }

    pub(super) fn done(&self, step: &Step) -> Option<&'a KeptReport> {
        let name = step.to_string();
        let done = self.work(&name).is_some_and(|work| work.state == states::DONE);
        self.observed.reports.get(&name).filter(|_| done)
    }

    /// Look again after `delay` at the latest.
    pub(super) fn wake_in(&mut self, delay: Duration) {
        self.wake = Some(self.wake.map_or(delay, |wake| wake.min(delay)));
    }

    /// Look again at `time`.
    pub(super) fn wake_at(&mut self, time: Timestamp) {
        let left = time.duration_since(self.now).max(SignedDuration::from_millis(100));
        self.wake_in(left.unsigned_abs());
    }

    /// Closes the books. What was changed is looked at again soon, so that one plan does one thing at a time.
    pub(super) fn finish(mut self, next: Next) -> Plan {
        bounds::fit(&mut self.status);
        let moved = !self.changes.is_empty() || self.observed.object.status.as_ref() != Some(&self.status);
        let going = self.observed.object.metadata.deletion_timestamp.is_none();
        Plan {
            changes: self.changes,
            status: self.status,
            notes: self.notes,
            next: if moved && going { Next::After(SOON) } else { next },
        }
    }
}
