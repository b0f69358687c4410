//! What the operator counts about itself. Labels are words of ours, never free text, and every label set is capped.
//!
//! Numbers about models and promotions are not here: they are rendered from the watch cache (`inventory`), so that no series outlives
//! its object.

use std::collections::HashSet;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use assayer_crds::conditions::REASONS;
use prometheus::core::{Collector, MetricVec, MetricVecBuilder};
use prometheus::{HistogramOpts, HistogramVec, IntCounterVec, IntGauge, IntGaugeVec, Opts, Registry, TextEncoder};

use crate::error::Error;

/// Value of every label of the series that takes what is beyond a cap.
pub const OVERFLOW: &str = "_overflow";
/// Most label sets of one family.
pub const MAX_SERIES: usize = 200;

const SECONDS: [f64; 9] = [0.01, 0.03, 0.1, 0.3, 1.0, 3.0, 10.0, 30.0, 100.0];

/// A family whose label sets are capped; those beyond share one series.
struct Capped<T: MetricVecBuilder> {
    vector: MetricVec<T>,
    seen: Mutex<HashSet<String>>,
}

impl<T: MetricVecBuilder> Capped<T> {
    fn new(vector: MetricVec<T>) -> Self {
        Self {
            vector,
            seen: Mutex::new(HashSet::new()),
        }
    }

    fn with(&self, values: &[&str]) -> T::M {
        let key = values.join("\u{1f}");
        let mut seen = self.seen.lock().unwrap_or_else(PoisonError::into_inner);
        let known = seen.contains(&key) || (seen.len() < MAX_SERIES && seen.insert(key));
        drop(seen);
        if known {
            self.vector.with_label_values(values)
        } else {
            self.vector.with_label_values(&vec![OVERFLOW; values.len()])
        }
    }
}

/// The operator's own metrics.
pub struct Metrics {
    registry: Registry,
    durations: Capped<<HistogramVec as Alias>::Builder>,
    errors: Capped<<IntCounterVec as Alias>::Builder>,
    rollbacks: Capped<<IntCounterVec as Alias>::Builder>,
    watch_errors: Capped<<IntCounterVec as Alias>::Builder>,
    guard_probes: Capped<<IntCounterVec as Alias>::Builder>,
    guard: IntGaugeVec,
    leader: IntGauge,
}

/// The builder type behind a vector's name.
trait Alias {
    type Builder: MetricVecBuilder;
}

impl<T: MetricVecBuilder> Alias for MetricVec<T> {
    type Builder = T;
}

impl Default for Metrics {
    fn default() -> Self {
        Self::new()
    }
}

impl Metrics {
    /// All families, without any series yet.
    pub fn new() -> Self {
        let registry = Registry::new();
        let version = gauges("assayer_build_info", "Version of the operator; always 1.", &["version"]);
        version.with_label_values(&[env!("CARGO_PKG_VERSION")]).set(1);
        register(&registry, version);
        let durations = histograms(
            "assayer_reconcile_duration_seconds",
            "How long reconciles took.",
            &["kind"],
        );
        let leader = leader_gauge();
        let metrics = Self {
            durations: Capped::new(durations),
            errors: Capped::new(counters(
                "assayer_reconcile_errors_total",
                "Reconciles that failed, by reason.",
                &["kind", "reason"],
            )),
            rollbacks: Capped::new(counters(
                "assayer_rollbacks_total",
                "Promotions that were rolled back while this process watched, by the reason in their condition RolledOut.",
                &["reason"],
            )),
            watch_errors: Capped::new(counters(
                "assayer_watch_errors_total",
                "Failed lists and watches of the inventory; each is tried again.",
                &["kind"],
            )),
            guard_probes: Capped::new(counters(
                "assayer_guard_probes_total",
                "Forged approvals that were tried as a dry run, by what came of it.",
                &["result"],
            )),
            guard: gauges(
                "assayer_guard_in_force",
                "1 when the cluster refused the last forged approval. While it is 0 and required, all gates are closed. Leader only.",
                &["required"],
            ),
            leader,
            registry,
        };
        register(&metrics.registry, metrics.durations.vector.clone());
        for family in [
            &metrics.errors,
            &metrics.rollbacks,
            &metrics.watch_errors,
            &metrics.guard_probes,
        ] {
            register(&metrics.registry, family.vector.clone());
        }
        register(&metrics.registry, metrics.guard.clone());
        register(&metrics.registry, metrics.leader.clone());
        metrics
    }

    /// A reconcile of `kind` has ended.
    pub fn reconciled(&self, kind: &str, took: Duration, error: Option<&Error>) {
        self.durations.with(&[kind]).observe(took.as_secs_f64());
        if let Some(error) = error {
            self.errors.with(&[kind, error.reason()]).inc();
        }
    }

    /// A promotion was rolled back. A reason that is not ours counts as the overflow.
    pub fn rolled_back(&self, reason: &str) {
        let known = REASONS.iter().find(|known| known.name == reason);
        self.rollbacks.with(&[known.map_or(OVERFLOW, |known| known.name)]).inc();
    }

    /// A list or watch of `kind` failed.
    pub fn watch_failed(&self, kind: &str) {
        self.watch_errors.with(&[kind]).inc();
    }

    /// A forged approval was tried.
    pub fn guard_probed(&self, result: &'static str) {
        self.guard_probes.with(&[result]).inc();
    }

    /// Whether the guard is in force, and whether gates wait for it.
    pub fn guard(&self, in_force: bool, required: bool) {
        let required = if required { "true" } else { "false" };
        self.guard.with_label_values(&[required]).set(in_force.into());
    }

    /// Whether this process leads.
    pub fn leading(&self, leads: bool) {
        self.leader.set(leads.into());
    }

    /// The Prometheus text exposition.
    ///
    /// # Errors
    /// When a family can't be written.
    pub fn text(&self) -> Result<String, prometheus::Error> {
        TextEncoder::new().encode_to_string(&self.registry.gather())
    }
}

#[expect(
    clippy::expect_used,
    reason = "names and labels are literals; every one is made in the tests"
)]
fn counters(name: &str, help: &str, labels: &[&str]) -> IntCounterVec {
    IntCounterVec::new(Opts::new(name, help), labels).expect("a literal name is valid")
}

#[expect(
    clippy::expect_used,
    reason = "names and labels are literals; every one is made in the tests"
)]
fn gauges(name: &str, help: &str, labels: &[&str]) -> IntGaugeVec {
    IntGaugeVec::new(Opts::new(name, help), labels).expect("a literal name is valid")
}

#[expect(
    clippy::expect_used,
    reason = "names and labels are literals; every one is made in the tests"
)]
fn histograms(name: &str, help: &str, labels: &[&str]) -> HistogramVec {
    HistogramVec::new(HistogramOpts::new(name, help).buckets(SECONDS.to_vec()), labels)
        .expect("a literal name is valid")
}

#[expect(clippy::expect_used, reason = "the name is a literal; it is made in the tests")]
fn leader_gauge() -> IntGauge {
    IntGauge::new("assayer_leader", "1 while this process leads.").expect("a literal name is valid")
}

#[expect(clippy::expect_used, reason = "names differ; all are registered in the tests")]
fn register(registry: &Registry, family: impl Collector + 'static) {
    registry.register(Box::new(family)).expect("no name is taken twice");
}

#[cfg(test)]
mod tests {
    use super::*;

    fn has(text: &str, line: &str) -> bool {
        text.lines().any(|found| found == line)
    }

    #[test]
    fn counts_appear_under_their_reasons() {
        let metrics = Metrics::new();
        let error = Error::Malformed {
            what: "ModelPromotion ml/a".into(),
            problem: "free text".into(),
        };
        metrics.reconciled("ModelPromotion", Duration::from_millis(20), Some(&error));
        metrics.reconciled("ModelPromotion", Duration::from_millis(20), None);
        metrics.rolled_back("RolloutFailed");
        metrics.rolled_back("made up by somebody");
        metrics.guard(false, true);
        metrics.leading(true);
        let text = metrics.text().unwrap();
        for line in [
            r#"assayer_reconcile_duration_seconds_count{kind="ModelPromotion"} 2"#,
            r#"assayer_reconcile_errors_total{kind="ModelPromotion",reason="InvalidSpec"} 1"#,
            r#"assayer_rollbacks_total{reason="RolloutFailed"} 1"#,
            r#"assayer_rollbacks_total{reason="_overflow"} 1"#,
            r#"assayer_guard_in_force{required="true"} 0"#,
            "assayer_leader 1",
        ] {
            assert!(has(&text, line), "{line} is not in\n{text}");
        }
        assert!(!text.contains("free text"));
    }

    #[test]
    fn label_sets_beyond_the_cap_share_one_series() {
        let counters = Capped::new(counters("a", "a", &["b", "c"]));
        for n in 0..MAX_SERIES + 7 {
            counters.with(&[&n.to_string(), "x"]).inc();
        }
        counters.with(&["0", "x"]).inc();
        assert_eq!(counters.with(&["0", "x"]).get(), 2);
        assert_eq!(counters.vector.with_label_values(&[OVERFLOW, OVERFLOW]).get(), 7);
    }
}
