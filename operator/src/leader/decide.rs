//! Whether to create, take, renew or leave alone the lease. Pure: no client, and no clock but the monotonic one that is handed in.
//!
//! The times that a lease carries were written by another machine's wall clock and are never compared with ours. What counts is how long
//! *this* process has seen the record unchanged, by its own monotonic clock; so skewed clocks can neither steal a lease nor keep it.

use std::time::{Duration, Instant};

use jiff::Timestamp;

/// How long a lease holds, how soon it must be renewed, and how often that is tried.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Terms {
    /// A record that others have seen unchanged for so long is free.
    pub lease: Duration,
    /// A leader that could not renew for so long has lost; shorter than `lease` by more than any write can last.
    pub renew: Duration,
    /// Pause between tries.
    pub retry: Duration,
}

impl Default for Terms {
    fn default() -> Self {
        Self {
            lease: Duration::from_secs(15),
            renew: Duration::from_secs(10),
            retry: Duration::from_secs(2),
        }
    }
}

/// What a lease says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Record {
    /// Who holds it; empty when it was released.
    pub holder: String,
    /// For how long after it was last seen to change; the candidate's own term where the lease has none.
    pub duration: Option<Duration>,
    /// How often it changed hands.
    pub transitions: i32,
    /// When the holder took it, by his clock: kept, shown to people, never compared.
    pub acquired: Option<Timestamp>,
    /// The resource version, which every write names.
    pub version: String,
}

/// What to do next.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Decision {
    /// There is no lease: create it.
    Create,
    /// It is free: put our name in, if nobody was faster.
    Take {
        /// Version that the write insists on.
        version: String,
        /// The new count of transitions.
        transitions: i32,
    },
    /// It is ours: touch it.
    Renew {
        /// Version that the write insists on.
        version: String,
        /// The count of transitions, unchanged.
        transitions: i32,
        /// When we took it.
        acquired: Option<Timestamp>,
    },
    /// Somebody else's, and not old enough.
    Wait {
        /// Who.
        holder: String,
    },
}

/// One process that wants to lead, and what it has seen.
#[derive(Clone, Debug)]
pub struct Candidate {
    identity: String,
    terms: Terms,
    seen: Option<(Record, Instant)>,
    renewed: Option<Instant>,
}

impl Candidate {
    /// A candidate that has seen nothing.
    pub fn new(identity: impl Into<String>, terms: Terms) -> Self {
        Self {
            identity: identity.into(),
            terms,
            seen: None,
            renewed: None,
        }
    }

    /// Its name in the lease.
    pub fn identity(&self) -> &str {
        &self.identity
    }

    /// The terms.
    pub fn terms(&self) -> Terms {
        self.terms
    }

    /// Takes note of what was read at `now`. The time of the last change moves only when the record did.
    pub fn observe(&mut self, record: Option<Record>, now: Instant) {
        let unchanged = matches!((&self.seen, &record), (Some((old, _)), Some(new)) if old == new);
        if unchanged {
            return;
        }
        if record.as_ref().is_none_or(|record| record.holder != self.identity) {
            self.renewed = None;
        }
        self.seen = record.map(|record| (record, now));
    }

    /// What to do at `now`.
    pub fn decide(&self, now: Instant) -> Decision {
        let Some((record, since)) = &self.seen else {
            return Decision::Create;
        };
        let version = record.version.clone();
        if record.holder == self.identity {
            return Decision::Renew {
                version,
                transitions: record.transitions,
                acquired: record.acquired,
            };
        }
        let term = record.duration.unwrap_or(self.terms.lease);
        if record.holder.is_empty() || now.saturating_duration_since(*since) >= term {
            return Decision::Take {
                version,
                transitions: record.transitions.saturating_add(1),
            };
        }
        Decision::Wait {
            holder: record.holder.clone(),
        }
    }

    /// Our own write was accepted; the request began at `started`, from when the term counts.
    pub fn wrote(&mut self, record: Record, started: Instant) {
        self.renewed = (record.holder == self.identity).then_some(started);
        self.seen = Some((record, started));
    }

    /// Until when this process may act as the leader; none when it does not lead.
    pub fn leads_until(&self) -> Option<Instant> {
        self.renewed.map(|renewed| renewed + self.terms.renew)
    }

    /// Whether this process leads at `now`.
    pub fn leads(&self, now: Instant) -> bool {
        self.leads_until().is_some_and(|until| now < until)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn record(holder: &str, version: u32) -> Record {
        Record {
            holder: holder.into(),
            duration: Some(Duration::from_secs(15)),
            transitions: 3,
            acquired: None,
            version: version.to_string(),
        }
    }

    fn after(start: Instant, seconds: u64) -> Instant {
        start + Duration::from_secs(seconds)
    }

    fn waits(decision: &Decision) -> bool {
        matches!(decision, Decision::Wait { .. })
    }

    #[test]
    fn no_lease_is_created_and_a_released_one_is_taken_at_once() {
        let now = Instant::now();
        let mut b = Candidate::new("b", Terms::default());
        assert_eq!(b.decide(now), Decision::Create);
        b.observe(Some(record("", 7)), now);
        assert_eq!(
            b.decide(now),
            Decision::Take {
                version: "7".into(),
                transitions: 4
            }
        );
    }

    #[test]
    fn a_dead_holder_is_followed_only_after_a_full_term_of_own_watching() {
        let start = Instant::now();
        let mut b = Candidate::new("b", Terms::default());
        b.observe(Some(record("a", 1)), start);
        for seconds in [0, 2, 14] {
            b.observe(Some(record("a", 1)), after(start, seconds));
            assert!(waits(&b.decide(after(start, seconds))), "{seconds}");
        }
        assert!(matches!(b.decide(after(start, 15)), Decision::Take { .. }));
    }

    #[test]
    fn each_renewal_starts_the_term_anew() {
        let start = Instant::now();
        let mut b = Candidate::new("b", Terms::default());
        for version in 1..20 {
            let now = after(start, u64::from(version) * 10);
            b.observe(Some(record("a", version)), now);
            assert!(waits(&b.decide(now)));
        }
    }

    #[test]
    fn times_written_by_other_clocks_change_nothing() {
        let start = Instant::now();
        for acquired in ["1970-01-01T00:00:00Z", "2999-01-01T00:00:00Z"] {
            let mut b = Candidate::new("b", Terms::default());
            let skewed = Record {
                acquired: acquired.parse().ok(),
                ..record("a", 1)
            };
            b.observe(Some(skewed), start);
            assert!(waits(&b.decide(after(start, 14))), "{acquired}");
            assert!(
                matches!(b.decide(after(start, 15)), Decision::Take { .. }),
                "{acquired}"
            );
        }
    }

    #[test]
    fn a_candidate_that_slept_looks_again_before_it_takes() {
        let start = Instant::now();
        let mut b = Candidate::new("b", Terms::default());
        b.observe(Some(record("a", 1)), start);
        // Paused for ten minutes, in which the holder went on renewing.
        b.observe(Some(record("a", 300)), after(start, 600));
        assert!(waits(&b.decide(after(start, 600))));
    }

    #[test]
    fn a_leader_that_was_paused_knows_that_it_lost() {
        let start = Instant::now();
        let mut a = Candidate::new("a", Terms::default());
        a.wrote(record("a", 1), start);
        assert!(a.leads(after(start, 9)));
        assert!(!a.leads(after(start, 10)));
        // Leadership ends by our own clock before anybody else's term is over.
        let terms = Terms::default();
        assert!(terms.renew < terms.lease);
        a.observe(Some(record("b", 9)), after(start, 20));
        assert_eq!(a.leads_until(), None);
        assert!(waits(&a.decide(after(start, 21))));
    }

    #[test]
    fn an_earlier_container_of_the_same_pod_is_renewed_not_waited_for() {
        let start = Instant::now();
        let mut a = Candidate::new("a", Terms::default());
        a.observe(Some(record("a", 5)), start);
        assert!(!a.leads(start), "reading our name is no proof: a write is");
        assert!(matches!(a.decide(start), Decision::Renew { transitions: 3, .. }));
    }

    #[test]
    fn a_deleted_lease_ends_leadership_until_it_is_written_again() {
        let start = Instant::now();
        let mut a = Candidate::new("a", Terms::default());
        a.wrote(record("a", 1), start);
        a.observe(None, after(start, 1));
        assert!(!a.leads(after(start, 1)));
        assert_eq!(a.decide(after(start, 1)), Decision::Create);
    }
}
