//! What every reconcile has at hand. Holds no decision and no state of any object, except how often it failed in a row.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use kube::runtime::events::{Recorder, Reporter};

use crate::backoff::Backoff;
use crate::clock::Clock;
use crate::config::Config;
use crate::evidence::keys::SigningKey;

/// Shared by all controllers of one process.
pub struct Context {
    /// Client with the operator's own identity; its retries are off.
    pub client: kube::Client,
    /// Settings.
    pub config: Config,
    /// Where the shells read the time.
    pub clock: Clock,
    /// Long-lived, so that repeated events are aggregated.
    pub recorder: Recorder,
    /// Signs and verifies evidence.
    pub key: SigningKey,
    /// Delays after failures.
    pub backoff: Backoff,
    /// Whether the admission guard was seen in force.
    pub guard: Guard,
}

impl Context {
    /// Puts the parts together.
    pub fn new(client: kube::Client, config: Config, key: SigningKey) -> Arc<Self> {
        let reporter = Reporter {
            controller: "assayer-operator".into(),
            instance: Some(config.pod_name.clone()),
        };
        let recorder = Recorder::new(client.clone(), reporter);
        let guard = Guard::new(config.without_guard);
        Arc::new(Self {
            client,
            config,
            clock: Clock,
            recorder,
            key,
            backoff: Backoff::default(),
            guard,
        })
    }
}

/// Whether forged approvals are known to be refused by the cluster. Closed until seen.
#[derive(Debug)]
pub struct Guard {
    not_needed: bool,
    seen: AtomicBool,
}

impl Guard {
    fn new(not_needed: bool) -> Self {
        Self {
            not_needed,
            seen: AtomicBool::new(false),
        }
    }

    /// Whether approvals may count now.
    pub fn in_force(&self) -> bool {
        self.not_needed || self.seen.load(Ordering::SeqCst)
    }

    /// Records what the last probe saw; true when that is a change.
    pub fn record(&self, in_force: bool) -> bool {
        self.seen.swap(in_force, Ordering::SeqCst) != in_force
    }
}
