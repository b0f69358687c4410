//! Conditions: merges new values into old ones and keeps the kstatus rules.
//!
//! Pure. `Ready` is always there; `Reconciling` and `Stalled` only while True; each condition carries the observed generation, and keeps
//! its transition time until its status changes, so that an unchanged status is an unchanged document.

use assayer_crds::conditions::{READY, RECONCILING, STALLED};
use jiff::Timestamp;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{Condition, Time};

/// Shortens `text` to at most so many bytes, at a character, and takes out what would not print.
pub fn cut(text: &mut String, bytes: usize) {
    if text.contains(char::is_control) {
        *text = text.replace(char::is_control, " ");
    }
    text.truncate(text.floor_char_boundary(bytes));
}

/// Longest message of a condition.
pub const MAX_MESSAGE: usize = 1_024;

/// True, False or Unknown.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Truth {
    /// It has come about.
    True,
    /// It has not and won't by itself.
    False,
    /// It is not known yet.
    Unknown,
}

impl Truth {
    /// The API's word.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::True => "True",
            Self::False => "False",
            Self::Unknown => "Unknown",
        }
    }
}

/// How an object stands as a whole: decides Ready, Reconciling and Stalled together.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Standing {
    /// Work goes on or is waited for: Ready is Unknown, Reconciling is True.
    InProgress,
    /// What the spec asks has come about: Ready is True.
    Done,
    /// It won't come about without a change: Ready is False, Stalled is True.
    Stalled,
}

/// The conditions of one object while a plan writes them.
#[derive(Clone, Debug)]
pub struct Conditions {
    list: Vec<Condition>,
    generation: i64,
    now: Timestamp,
}

impl Conditions {
    /// Starts from what the status has.
    pub fn new(previous: &[Condition], generation: i64, now: Timestamp) -> Self {
        Self {
            list: previous.to_vec(),
            generation,
            now,
        }
    }

    /// Sets one condition.
    pub fn set(&mut self, type_: &str, truth: Truth, reason: &str, message: impl Into<String>) {
        let message: String = message.into().chars().take(MAX_MESSAGE).collect();
        let status = truth.as_str();
        let since = self
            .list
            .iter()
            .find(|c| c.type_ == type_ && c.status == status)
            .map(|c| c.last_transition_time.clone());
        let condition = Condition {
            type_: type_.to_owned(),
            status: status.to_owned(),
            reason: reason.to_owned(),
            message,
            observed_generation: Some(self.generation),
            last_transition_time: since.unwrap_or(Time(self.now)),
        };
        match self.list.iter_mut().find(|c| c.type_ == type_) {
            Some(old) => *old = condition,
            None => self.list.push(condition),
        }
    }

    /// Removes one condition.
    pub fn remove(&mut self, type_: &str) {
        self.list.retain(|c| c.type_ != type_);
    }

    /// Sets Ready, Reconciling and Stalled.
    pub fn settle(&mut self, standing: Standing, reason: &str, message: impl Into<String>) {
        let message = message.into();
        let (ready, present, absent) = match standing {
            Standing::InProgress => (Truth::Unknown, Some(RECONCILING), &[STALLED][..]),
            Standing::Done => (Truth::True, None, &[RECONCILING, STALLED][..]),
            Standing::Stalled => (Truth::False, Some(STALLED), &[RECONCILING][..]),
        };
        self.set(READY, ready, reason, message.clone());
        if let Some(type_) = present {
            self.set(type_, Truth::True, reason, message);
        }
        for type_ in absent {
            self.remove(type_);
        }
    }

    /// Sets those of `types` that are missing to Unknown: at the first visit every condition is there.
    pub fn introduce(&mut self, types: &[&str], reason: &str) {
        for type_ in types {
            if !self.list.iter().any(|c| c.type_ == *type_) {
                self.set(type_, Truth::Unknown, reason, "");
            }
        }
    }

    /// The full set, for the status.
    pub fn into_list(self) -> Vec<Condition> {
        self.list
    }
}

/// Problems of `conditions` against the rules above and kstatus; empty when they conform. Run on every object that a test leaves behind.
pub fn violations(conditions: &[Condition], observed_generation: Option<i64>) -> Vec<String> {
    let find = |type_: &str| conditions.iter().find(|c| c.type_ == type_);
    let mut problems = Vec::new();
    let Some(ready) = find(READY) else {
        return vec!["Ready is missing".to_owned()];
    };
    for type_ in [RECONCILING, STALLED] {
        if find(type_).is_some_and(|c| c.status != "True") {
            problems.push(format!("{type_} is present and not True"));
        }
    }
    let expected = match ready.status.as_str() {
        "Unknown" => (true, false),
        "True" => (false, false),
        "False" => (false, true),
        other => return vec![format!("Ready is {other}")],
    };
    if (find(RECONCILING).is_some(), find(STALLED).is_some()) != expected {
        problems.push(format!(
            "Ready={} does not go with Reconciling and Stalled as they are",
            ready.status
        ));
    }
    for condition in conditions {
        if condition.observed_generation.is_none() || condition.observed_generation > observed_generation {
            problems.push(format!("{} has no usable observedGeneration", condition.type_));
        }
        if !assayer_crds::conditions::REASONS
            .iter()
            .any(|reason| reason.name == condition.reason)
        {
            problems.push(format!(
                "{} has the undocumented reason {}",
                condition.type_, condition.reason
            ));
        }
        if condition.message.chars().count() > MAX_MESSAGE {
            problems.push(format!(
                "{} has a message beyond {MAX_MESSAGE} characters",
                condition.type_
            ));
        }
    }
    problems
}

#[cfg(test)]
mod tests {
    use super::*;
    use assayer_crds::conditions::{PROGRESSING, SUCCEEDED};

    #[test]
    fn transition_time_moves_only_with_the_status() {
        let first: Timestamp = "2026-01-01T00:00:00Z".parse().unwrap();
        let later: Timestamp = "2026-01-01T01:00:00Z".parse().unwrap();
        let mut conditions = Conditions::new(&[], 1, first);
        conditions.settle(Standing::InProgress, PROGRESSING, "a");
        let list = conditions.into_list();
        let mut conditions = Conditions::new(&list, 2, later);
        conditions.settle(Standing::InProgress, PROGRESSING, "b");
        assert!(
            conditions
                .list
                .iter()
                .all(|c| c.last_transition_time.0 == first && c.message == "b")
        );
        conditions.settle(Standing::Done, SUCCEEDED, "c");
        let list = conditions.into_list();
        assert_eq!(list.len(), 1);
        assert_eq!(list[0].last_transition_time.0, later);
        assert!(violations(&list, Some(2)).is_empty());
    }
}
