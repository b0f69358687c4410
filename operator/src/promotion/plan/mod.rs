//! What happens next to one promotion: observed state in, changes, status and notes out.
//!
//! Pure and total: no client, no clock, no `Result`. An attempt under way is gone on with first (`attempt`); else what was reached stands
//! as long as nothing new is asked (`settled`); else the gates are asked (`fresh`). The workload is written only one reading after the
//! decision was recorded, and only if every gate passes at that reading too.

mod attempt;
mod bounds;
mod draft;
mod fresh;
mod settled;

use std::time::Duration;

use assayer_crds::promotion::ModelPromotionStatus;
use jiff::Timestamp;

use super::chain::Reading;
use super::observed::{Observed, active};
use crate::events::Note;
use crate::targets::deployment::Patch;
use draft::Draft;

/// What is to be done.
#[derive(Clone, Debug, PartialEq)]
pub struct Plan {
    /// Writes on other objects, before the status.
    pub changes: Vec<Change>,
    /// The whole status.
    pub status: ModelPromotionStatus,
    /// Events, after the status.
    pub notes: Vec<Note>,
    /// When to look again.
    pub next: Next,
}

/// A write on another object.
#[derive(Clone, Debug, PartialEq)]
pub enum Change {
    /// Sets the delivered field of the workload; the generation that comes of it is recorded in `status.attempt`.
    Deliver {
        /// The server-side apply.
        patch: Box<Patch>,
        /// Name of the Deployment.
        workload: String,
        /// What it becomes.
        value: String,
        /// Why, for the log.
        why: String,
    },
}

/// When to look again.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Next {
    /// At once: a decision was recorded.
    Now,
    /// After this time, unless something changes before.
    After(Duration),
    /// When something changes.
    AwaitChange,
}

/// The longest time between two readings: ages run out without an event.
pub const SLOW: Duration = Duration::from_mins(1);
/// The time between two readings while something is expected that sends no event.
pub const QUICK: Duration = Duration::from_secs(5);

/// Plans the next step.
pub fn plan(observed: &Observed, now: Timestamp) -> Plan {
    if observed.promotion.metadata.deletion_timestamp.is_some() {
        return Plan {
            changes: Vec::new(),
            status: observed.promotion.status.clone().unwrap_or_default(),
            notes: Vec::new(),
            next: Next::AwaitChange,
        };
    }
    let reading = Reading::new(observed, now);
    let mut draft = Draft::new(observed, now);
    let handled = active(&observed.promotion).is_some() && attempt::go_on(&mut draft, &reading);
    if !handled && !settled::stands(&mut draft, &reading) {
        fresh::ask(&mut draft, &reading);
    }
    draft.finish()
}

#[cfg(test)]
mod tests;
