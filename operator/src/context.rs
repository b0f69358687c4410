//! What every reconcile has at hand. Holds no decision and no state of any object, except how often it failed in a row.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Instant;

use kube::runtime::events::{Recorder, Reporter};

use crate::backoff::Backoff;
use crate::clock::Clock;
use crate::config::Config;
use crate::error::Error;
use crate::evidence::keys::SigningKey;
use crate::health::Health;
use crate::metrics::Metrics;

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
    /// Counts and durations of this process.
    pub metrics: Metrics,
    /// What runs, and whether it is stuck.
    pub health: Health,
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
            metrics: Metrics::new(),
            health: Health::default(),
        })
    }

    /// Runs one reconcile of `kind` `object`: times it, counts its failure, and lets `/healthz` see when it does not end.
    pub async fn timed<T>(
        &self,
        kind: &'static str,
        object: &str,
        work: impl Future<Output = Result<T, Error>>,
    ) -> Result<T, Error> {
        let started = Instant::now();
        let running = self.health.begin(format!("{kind} {object}"), started);
        let outcome = work.await;
        drop(running);
        self.metrics.reconciled(kind, started.elapsed(), outcome.as_ref().err());
        outcome
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
