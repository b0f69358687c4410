//! Whether the process still does its work: loops beat, reconciles end. Decides what counts as stuck; never restarts anything itself.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

/// A reconcile that takes longer is stuck: every call inside it has a timeout of seconds.
pub const LONGEST_RECONCILE: Duration = Duration::from_mins(5);

/// What runs in this process, and when it was last heard of.
#[derive(Clone, Debug, Default)]
pub struct Health {
    inner: Arc<Mutex<Inner>>,
}

#[derive(Debug, Default)]
struct Inner {
    beats: HashMap<&'static str, (Instant, Duration)>,
    running: HashMap<u64, (String, Instant)>,
    next: u64,
}

/// A piece of work under way; it ends when this is dropped.
#[derive(Debug)]
pub struct Running {
    health: Health,
    id: u64,
}

impl Drop for Running {
    fn drop(&mut self) {
        self.health.lock().running.remove(&self.id);
    }
}

impl Health {
    /// The loop `name` is alive at `now` and will say so again within `within`.
    pub fn beat(&self, name: &'static str, now: Instant, within: Duration) {
        self.lock().beats.insert(name, (now, within));
    }

    /// The loop `name` has ended as it should.
    pub fn ended(&self, name: &'static str) {
        self.lock().beats.remove(name);
    }

    /// Work on `what` began at `now`.
    pub fn begin(&self, what: impl Into<String>, now: Instant) -> Running {
        let mut inner = self.lock();
        let id = inner.next;
        inner.next += 1;
        inner.running.insert(id, (what.into(), now));
        drop(inner);
        Running {
            health: self.clone(),
            id,
        }
    }

    /// What is stuck at `now`, in words; empty when all is well.
    pub fn stuck(&self, now: Instant) -> Vec<String> {
        let inner = self.lock();
        let silent = inner.beats.iter().filter_map(|(name, (at, within))| {
            let silence = now.saturating_duration_since(*at);
            (silence > *within).then(|| format!("{name} was silent for {silence:.0?}, at most {within:.0?}"))
        });
        let endless = inner.running.values().filter_map(|(what, since)| {
            let took = now.saturating_duration_since(*since);
            (took > LONGEST_RECONCILE)
                .then(|| format!("{what} has run for {took:.0?}, at most {LONGEST_RECONCILE:.0?}"))
        });
        let mut problems: Vec<String> = silent.chain(endless).collect();
        problems.sort();
        problems
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn silence_and_endless_work_are_told_and_forgotten_when_they_end() {
        let health = Health::default();
        let start = Instant::now();
        let later = |seconds| start + Duration::from_secs(seconds);
        health.beat("guard", start, Duration::from_secs(90));
        let work = health.begin("ModelPromotion ml/a", start);
        assert_eq!(health.stuck(later(90)), Vec::<String>::new());
        assert_eq!(health.stuck(later(91)).len(), 1);
        assert_eq!(
            health.stuck(later(301)),
            [
                "ModelPromotion ml/a has run for 301s, at most 300s",
                "guard was silent for 301s, at most 90s"
            ]
        );
        drop(work);
        health.beat("guard", later(301), Duration::from_secs(90));
        assert!(health.stuck(later(302)).is_empty());
        health.ended("guard");
        assert!(health.stuck(later(9_999)).is_empty());
    }
}
