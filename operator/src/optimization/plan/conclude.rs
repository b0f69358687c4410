//! Phase, conditions and summary: what the whole comes to.
//!
//! Decides words from how steps and candidates stand. `Rejected` means that a gate said no; `Failed` that the machinery gave up. Never
//! starts anything.

mod stations;

use assayer_crds::conditions as reasons;
use assayer_crds::optimization::{CandidateStatus, WorkStatus};

use super::draft::{Draft, Standing, states};
use super::judge::{self, standings};
use super::{phases, words};
use crate::events::Note;
use crate::optimization::gates::{self, Contender};
use crate::optimization::results::known;
use crate::optimization::steps::{self, Step};
use crate::status::{Conditions, Standing as Whole};
use stations::Domain;

/// How the whole stands, in the words of Ready.
struct Word {
    phase: &'static str,
    standing: Whole,
    reason: &'static str,
    message: String,
}

/// The spec can't be carried out.
pub(super) fn refuse(draft: &mut Draft<'_>, problem: &str) {
    if draft.status.phase != phases::FAILED {
        draft
            .notes
            .push(Note::warning(reasons::INVALID_SPEC, "CheckSpec", problem));
    }
    let word = Word {
        phase: phases::FAILED,
        standing: Whole::Stalled,
        reason: reasons::INVALID_SPEC,
        message: problem.to_owned(),
    };
    say(draft, word, |_| {});
}

/// Nothing is started while `spec.suspend` is true.
pub(super) fn suspend(draft: &mut Draft<'_>) {
    let word = Word {
        phase: phases::PENDING,
        standing: Whole::InProgress,
        reason: reasons::SUSPENDED,
        message: "spec.suspend is true: no work is started until it is removed".to_owned(),
    };
    say(draft, word, |_| {});
}

/// Sets phase, conditions and summary from what the steps and candidates came to.
pub(super) fn conclude(draft: &mut Draft<'_>) {
    summarize(draft);
    let word = whole(draft);
    let domain = Domain::of(draft);
    domain.announce(draft);
    if phases::terminal(word.phase) {
        announce(draft, &word);
    }
    say(draft, word, |conditions| domain.set(conditions));
}

fn say(draft: &mut Draft<'_>, word: Word, domain: impl FnOnce(&mut Conditions)) {
    let mut conditions = Conditions::new(&draft.status.conditions, draft.run.generation, draft.now);
    domain(&mut conditions);
    conditions.settle(word.standing, word.reason, word.message);
    draft.status.conditions = conditions.into_list();
    word.phase.clone_into(&mut draft.status.phase);
}

fn summarize(draft: &mut Draft<'_>) {
    let settled = draft
        .status
        .candidates
        .iter()
        .filter(|entry| standings::settled(&entry.state))
        .count();
    draft.status.summary.candidates = format!("{settled}/{}", draft.spec().candidates.len());
    let contenders = contenders(draft);
    let over = settled == draft.spec().candidates.len();
    let selected = gates::select(&contenders)
        .filter(|_| over)
        .map(|contender| contender.name.clone());
    draft.status.pareto = gates::pareto(&contenders);
    let artifact = draft
        .status
        .candidates
        .iter()
        .find(|entry| Some(&entry.name) == selected.as_ref())
        .and_then(|entry| entry.artifact.as_ref());
    let digest = artifact.and_then(|artifact| artifact.artifact_digest.strip_prefix("sha256:"));
    let digest = digest.map(|hex| hex.chars().take(12).collect()).unwrap_or_default();
    draft.status.summary.digest = digest;
    draft.status.selected = selected;
}

fn contenders(draft: &Draft<'_>) -> Vec<Contender> {
    let judged = draft
        .status
        .candidates
        .iter()
        .filter(|entry| entry.artifact.is_some() && entry.evidence.is_some() && standings::settled(&entry.state));
    judged
        .map(|entry| {
            let findings = judge::findings(draft, &entry.name);
            let bytes = findings.made.map_or(u64::MAX, |made| made.bytes);
            Contender::new(&entry.name, entry.state == standings::PASSED, bytes, &findings.measured)
        })
        .collect()
}

/// The steps that are under way, in order.
fn under_way<'a>(draft: &'a Draft<'_>) -> Option<(Step, Option<&'a WorkStatus>)> {
    let spec = draft.spec();
    let made = |candidate: &&assayer_crds::optimization::Candidate| {
        let make = Step::Make {
            candidate: candidate.name.clone(),
        };
        matches!(draft.standing(&make), Standing::Done)
    };
    let measures = spec
        .candidates
        .iter()
        .filter(made)
        .flat_map(|candidate| steps::measures(spec, &candidate.name));
    let open = steps::baselines(spec)
        .chain(steps::makes(spec))
        .chain(measures)
        .filter(|step| draft.open(step));
    let mut open: Vec<Step> = open.collect();
    // Steps of one kind may run at once: the one that waits for something is the one to speak of.
    let kind = std::mem::discriminant(open.first()?);
    open.retain(|step| std::mem::discriminant(step) == kind);
    let waiting = open.iter().position(|step| {
        draft
            .work(&step.to_string())
            .is_some_and(|work| !work.reason.is_empty())
    });
    let step = open.swap_remove(waiting.unwrap_or(0));
    let work = draft.work(&step.to_string());
    Some((step, work))
}

fn whole(draft: &Draft<'_>) -> Word {
    let no_baseline = draft
        .status
        .candidates
        .iter()
        .all(|entry| standings::settled(&entry.state));
    if no_baseline {
        return over(draft);
    }
    match under_way(draft) {
        Some((step, work)) => in_progress(&step, work),
        None => over(draft),
    }
}

fn in_progress(step: &Step, work: Option<&WorkStatus>) -> Word {
    let phase = match step {
        Step::Baseline { .. } => phases::BASELINING,
        Step::Make { .. } => phases::OPTIMIZING,
        Step::Measure { .. } => phases::VALIDATING,
    };
    let doing = words::doing(step);
    let state = work.map(|work| work.state.as_str()).unwrap_or_default();
    let (phase, reason, message) = match (work, state) {
        (Some(work), _) if judge::queued(work) => (
            phases::QUEUED,
            reasons::QUEUED,
            format!("{doing}: Job {} waits in its queue", work.job),
        ),
        (Some(work), states::RETRYING) => {
            let told = format!(
                "{doing}: attempt {} begins at {}: {}: {}",
                work.attempt, work.at, work.reason, work.message
            );
            (phase, reasons::RETRYING, told)
        }
        (Some(work), _) if !work.reason.is_empty() => {
            let reason = known(&work.reason).unwrap_or(reasons::PROGRESSING);
            (phase, reason, format!("{doing}: {}", work.message))
        }
        (Some(work), _) if !work.job.is_empty() => (phase, reasons::PROGRESSING, format!("{doing}: Job {}", work.job)),
        _ => (phase, reasons::PROGRESSING, doing),
    };
    Word {
        phase,
        standing: Whole::InProgress,
        reason,
        message,
    }
}

fn over(draft: &Draft<'_>) -> Word {
    let entries = &draft.status.candidates;
    if let Some(selected) = &draft.status.selected {
        let digest = &draft.status.summary.digest;
        let others = told(entries.iter().filter(|entry| entry.state != standings::PASSED));
        let others = if others.is_empty() {
            String::new()
        } else {
            format!("; {others}")
        };
        return Word {
            phase: phases::SUCCEEDED,
            standing: Whole::Done,
            reason: reasons::SUCCEEDED,
            message: format!("{selected} passed every blocking gate and is selected (sha256:{digest}){others}"),
        };
    }
    let rejected: Vec<&CandidateStatus> = entries
        .iter()
        .filter(|entry| entry.state != standings::FAILED)
        .collect();
    let (phase, reason) = if rejected.is_empty() {
        (phases::FAILED, failure(draft))
    } else {
        let failed = |entry: &&CandidateStatus| {
            entry
                .verdicts
                .iter()
                .any(|verdict| verdict.severity == "Block" && verdict.verdict == gates::FAILED)
        };
        let said_no = rejected.iter().any(failed);
        (
            phases::REJECTED,
            if said_no {
                reasons::GATES_FAILED
            } else {
                reasons::GATES_INCONCLUSIVE
            },
        )
    };
    Word {
        phase,
        standing: Whole::Stalled,
        reason,
        message: told(entries.iter()),
    }
}

fn told<'a>(entries: impl Iterator<Item = &'a CandidateStatus>) -> String {
    let told: Vec<String> = entries
        .map(|entry| format!("{}: {}", entry.name, entry.message))
        .collect();
    // Where all of them failed alike, once is enough.
    let mut messages: Vec<&str> = told
        .iter()
        .filter_map(|line| line.split_once(": ").map(|(_, rest)| rest))
        .collect();
    messages.dedup();
    match (messages.as_slice(), told.len()) {
        ([one], 2..) => (*one).to_owned(),
        _ => told.join("; "),
    }
}

/// Why the machinery gave up: the reason of the first step that did.
fn failure(draft: &Draft<'_>) -> &'static str {
    let retries = i32::try_from(draft.spec().run.retries).unwrap_or(0);
    let failed: Vec<&WorkStatus> = draft
        .status
        .work
        .iter()
        .filter(|work| work.state == states::FAILED)
        .collect();
    let exhausted = |work: &&&WorkStatus| {
        work.attempt > retries && matches!(work.reason.as_str(), reasons::POD_LOST | reasons::STORAGE_UNAVAILABLE)
    };
    if failed.iter().any(|work| exhausted(&work)) {
        return reasons::RETRIES_EXHAUSTED;
    }
    let makes = failed.iter().filter(|work| work.step.starts_with("make/")).count();
    if makes > 1 && makes == draft.spec().candidates.len() {
        return reasons::NO_CANDIDATE;
    }
    failed
        .first()
        .and_then(|work| known(&work.reason))
        .unwrap_or(reasons::NO_CANDIDATE)
}

fn announce(draft: &mut Draft<'_>, word: &Word) {
    let note = match &draft.status.selected {
        Some(_) => Note::normal(reasons::CANDIDATE_SELECTED, "SelectCandidate", word.message.clone()),
        None => Note::warning(word.reason, "ConcludeRun", word.message.clone()),
    };
    draft.notes.push(note);
}
