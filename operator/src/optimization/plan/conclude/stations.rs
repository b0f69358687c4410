//! The conditions of this kind: which stations a run has reached.
//!
//! Decides their words from how steps and candidates stand. Ready is none of its business.

use assayer_crds::conditions as reasons;

use crate::events::Note;
use crate::optimization::plan::draft::{Draft, Standing};
use crate::optimization::plan::judge::standings;
use crate::optimization::plan::words;
use crate::optimization::results::known;
use crate::optimization::steps::{self, Step};
use crate::status::{Conditions, Truth};

/// The conditions of this kind.
pub(super) struct Domain {
    set: Vec<(&'static str, Truth, &'static str, String)>,
}

impl Domain {
    pub(super) fn of(draft: &Draft<'_>) -> Self {
        let set = vec![baseline(draft), optimized(draft), validated(draft), evidence(draft)];
        Self { set }
    }

    /// Tells of stations that were reached just now. Verdicts and evidence have Events of their own.
    pub(super) fn announce(&self, draft: &mut Draft<'_>) {
        for (type_, truth, reason, message) in &self.set {
            let action = match *type_ {
                reasons::BASELINE_RECORDED => "RecordBaseline",
                reasons::OPTIMIZED => "MakeCandidates",
                _ => continue,
            };
            let before = draft
                .status
                .conditions
                .iter()
                .find(|condition| condition.type_ == *type_);
            let known = before.is_some_and(|condition| condition.status == Truth::True.as_str());
            if *truth == Truth::True && !known {
                draft.notes.push(Note::normal(reason, action, message.clone()));
            }
        }
    }

    pub(super) fn set(self, conditions: &mut Conditions) {
        for (type_, truth, reason, message) in self.set {
            conditions.set(type_, truth, reason, message);
        }
    }
}

type Condition = (&'static str, Truth, &'static str, String);

fn baseline(draft: &Draft<'_>) -> Condition {
    let type_ = reasons::BASELINE_RECORDED;
    let steps: Vec<Step> = steps::baselines(draft.spec()).collect();
    for step in &steps {
        if let Standing::Failed(work) = draft.standing(step) {
            let reason = known(&work.reason).unwrap_or(reasons::RETRIES_EXHAUSTED);
            return (
                type_,
                Truth::False,
                reason,
                format!("{}: {}", words::doing(step), work.message),
            );
        }
    }
    let done = steps.iter().filter(|step| !draft.open(step)).count();
    if done < steps.len() {
        return (
            type_,
            Truth::Unknown,
            reasons::PROGRESSING,
            format!("{done} of {} environments", steps.len()),
        );
    }
    let names: Vec<&str> = steps.iter().filter_map(Step::environment).collect();
    (
        type_,
        Truth::True,
        reasons::BASELINE_MEASURED,
        format!("measured in {}", names.join(", ")),
    )
}

fn optimized(draft: &Draft<'_>) -> Condition {
    let type_ = reasons::OPTIMIZED;
    let steps: Vec<Step> = steps::makes(draft.spec()).collect();
    let over = draft
        .status
        .candidates
        .iter()
        .all(|entry| standings::settled(&entry.state));
    let open = steps.iter().filter(|step| draft.open(step)).count();
    let made = steps
        .iter()
        .filter(|step| matches!(draft.standing(step), Standing::Done))
        .count();
    if open > 0 && !over {
        let message = format!("{made} of {} candidates made", steps.len());
        return (type_, Truth::Unknown, reasons::PROGRESSING, message);
    }
    if made == 0 {
        return (
            type_,
            Truth::False,
            reasons::NO_CANDIDATE,
            "no candidate was made".to_owned(),
        );
    }
    (
        type_,
        Truth::True,
        reasons::CANDIDATES_MADE,
        format!("{made} of {} candidates made", steps.len()),
    )
}

fn validated(draft: &Draft<'_>) -> Condition {
    let type_ = reasons::VALIDATED;
    let entries = &draft.status.candidates;
    let settled = entries.iter().filter(|entry| standings::settled(&entry.state)).count();
    let judged = entries.iter().filter(|entry| entry.evidence.is_some()).count();
    let message = format!("{judged} of {} candidates judged", entries.len());
    match (settled == entries.len(), judged) {
        (false, _) => (type_, Truth::Unknown, reasons::PROGRESSING, message),
        (true, 0) => (type_, Truth::False, reasons::NO_CANDIDATE, message),
        (true, _) => (type_, Truth::True, reasons::CANDIDATES_JUDGED, message),
    }
}

fn evidence(draft: &Draft<'_>) -> Condition {
    let type_ = reasons::EVIDENCE_RECORDED;
    let entries = &draft.status.candidates;
    let settled = entries.iter().all(|entry| standings::settled(&entry.state));
    let recorded = entries.iter().filter(|entry| entry.evidence.is_some()).count();
    let message = format!("signed evidence of {recorded} of {} candidates", entries.len());
    match (settled, recorded) {
        (false, _) => (type_, Truth::Unknown, reasons::PROGRESSING, message),
        (true, 0) => (type_, Truth::False, reasons::NO_CANDIDATE, message),
        (true, _) => (type_, Truth::True, reasons::EVIDENCE_STORED, message),
    }
}
