//! Where a run begins: what supersedes the one before, and which specs can't be carried out at all.
//!
//! Decides when results no longer count. A change of the spec, a rerun token, or another worker image in the middle of a run begin
//! anew; a finished run is not made stale by a worker image alone. The schema refuses most bad specs earlier; what it can't know, or what an
//! older schema let through, is refused here.

use std::collections::BTreeSet;

use assayer_crds::conditions as reasons;
use assayer_crds::optimization::{CandidateStatus, Gate, Metric, OptimizationRun};
use assayer_crds::stages;
use assayer_crds::{ModelOptimizationSpec, ModelOptimizationStatus, units};

use super::draft::Draft;
use super::phases;
use crate::events::Note;
use crate::optimization::steps::{candidate_key, technique};
use crate::status::{Conditions, Standing, Truth};

/// Most pairs of candidate and environment, as the schema has it.
pub(super) const MAX_MEASURED: usize = 128;
/// Most pairs of candidate and gate, as the schema has it.
pub(super) const MAX_VERDICTS: usize = 512;
/// Earlier runs that are kept.
const HISTORY: usize = 10;
/// The conditions that every object has, beside Ready.
pub(super) const DOMAIN: [&str; 4] = [
    reasons::BASELINE_RECORDED,
    reasons::OPTIMIZED,
    reasons::VALIDATED,
    reasons::EVIDENCE_RECORDED,
];

/// Starts a new run where the status is about another one.
pub(super) fn begin(draft: &mut Draft<'_>) {
    let Some(why) = superseded(draft) else {
        return;
    };
    let before = std::mem::take(&mut draft.status);
    let mut history = before.history.clone();
    if let Some(generation) = before.observed_generation {
        let unfinished = !phases::terminal(&before.phase);
        history.insert(0, past(&before, generation, unfinished, draft));
        history.truncate(HISTORY);
        if unfinished {
            let message = format!("the run of generation {generation} was given up: {why}");
            draft
                .notes
                .push(Note::normal(reasons::SUPERSEDED, "SupersedeRun", message));
        }
    }
    let spec = draft.spec();
    let candidates = spec.candidates.iter().map(|candidate| CandidateStatus {
        name: candidate.name.clone(),
        state: "Pending".to_owned(),
        key: candidate_key(spec, candidate, &draft.run.worker_image).to_string(),
        technique: technique(&candidate.stages),
        ..CandidateStatus::default()
    });
    let mut conditions = Conditions::new(&before.conditions, draft.run.generation, draft.now);
    for type_ in DOMAIN {
        conditions.set(type_, Truth::Unknown, reasons::PENDING, "");
    }
    conditions.settle(Standing::InProgress, reasons::PENDING, why);
    draft.status = ModelOptimizationStatus {
        observed_generation: Some(draft.run.generation),
        phase: phases::PENDING.to_owned(),
        rerun: draft.run.rerun.clone(),
        conditions: conditions.into_list(),
        candidates: candidates.collect(),
        history,
        ..ModelOptimizationStatus::default()
    };
}

fn past(before: &ModelOptimizationStatus, generation: i64, unfinished: bool, draft: &Draft<'_>) -> OptimizationRun {
    OptimizationRun {
        generation,
        rerun: before.rerun.clone().unwrap_or_default(),
        phase: if unfinished {
            "Superseded".to_owned()
        } else {
            before.phase.clone()
        },
        selected: before.selected.clone().unwrap_or_default(),
        at: draft.now.to_string(),
    }
}

/// Why the status is not about the run that is asked for; none when it is.
fn superseded(draft: &Draft<'_>) -> Option<&'static str> {
    let status = &draft.status;
    if status.observed_generation.is_none() {
        return Some("the object was seen for the first time");
    }
    if status.observed_generation != Some(draft.run.generation) {
        return Some("the spec was changed");
    }
    if status.rerun != draft.run.rerun {
        return Some("another run was asked for");
    }
    let spec = draft.spec();
    let stale = |candidate: &CandidateStatus| {
        let named = spec.candidates.iter().find(|named| named.name == candidate.name);
        named.is_none_or(|named| candidate_key(spec, named, &draft.run.worker_image).as_str() != candidate.key)
    };
    (!phases::terminal(&status.phase) && status.candidates.iter().any(stale))
        .then_some("the workers' image was changed in the middle of the run")
}

/// The first thing that makes the spec impossible to carry out, with the field, the value and the way out.
pub fn invalid(spec: &ModelOptimizationSpec) -> Option<String> {
    empty(spec)
        .or_else(|| too_many(spec))
        .or_else(|| duplicates(spec))
        .or_else(|| deadline(spec))
        .or_else(|| bad_stages(spec))
        .or_else(|| spec.gates.iter().find_map(|gate| bad_gate(spec, gate)))
}

fn empty(spec: &ModelOptimizationSpec) -> Option<String> {
    let lists = [
        ("spec.environments", spec.environments.is_empty()),
        ("spec.candidates", spec.candidates.is_empty()),
        ("spec.gates", spec.gates.is_empty()),
        ("spec.data.inputs", spec.data.inputs.is_empty()),
    ];
    let (field, _) = lists.iter().find(|(_, empty)| *empty)?;
    Some(format!("{field} is empty: name at least one"))
}

/// Status has an entry for each pair, and has to fit into the API server.
fn too_many(spec: &ModelOptimizationSpec) -> Option<String> {
    let candidates = spec.candidates.len();
    let pairs = [
        ("spec.environments", spec.environments.len(), MAX_MEASURED),
        ("spec.gates", spec.gates.len(), MAX_VERDICTS),
    ];
    let (field, count, limit) = pairs
        .into_iter()
        .find(|(_, count, limit)| count.saturating_mul(candidates) > *limit)?;
    Some(format!(
        "spec.candidates times {field} is {candidates} times {count}, at most {limit}: split it into several ModelOptimizations"
    ))
}

fn twice<'a>(mut names: impl Iterator<Item = &'a str>) -> Option<&'a str> {
    let mut seen = BTreeSet::new();
    names.find(|name| !seen.insert(*name))
}

fn duplicates(spec: &ModelOptimizationSpec) -> Option<String> {
    let lists: [(&str, Option<&str>); 4] = [
        (
            "spec.environments",
            twice(spec.environments.iter().map(|e| e.name.as_str())),
        ),
        (
            "spec.candidates",
            twice(spec.candidates.iter().map(|c| c.name.as_str())),
        ),
        ("spec.gates", twice(spec.gates.iter().map(|g| g.name.as_str()))),
        (
            "spec.data.inputs",
            twice(spec.data.inputs.iter().map(|i| i.name.as_str())),
        ),
    ];
    let found = lists.iter().find_map(|(field, name)| name.map(|name| (field, name)));
    found.map(|(field, name)| format!("{field} names `{name}` twice: names must be unique"))
}

fn deadline(spec: &ModelOptimizationSpec) -> Option<String> {
    match units::seconds(&spec.run.deadline) {
        Err(error) => Some(format!("spec.run.deadline {error}")),
        Ok(seconds) if seconds < 1.0 => Some(format!(
            "spec.run.deadline is {}: give the workers at least 1s",
            spec.run.deadline
        )),
        Ok(_) => None,
    }
}

fn bad_stages(spec: &ModelOptimizationSpec) -> Option<String> {
    for candidate in &spec.candidates {
        if let Some(problem) = stages::out_of_order(&candidate.stages) {
            return Some(format!("candidate {}: {problem}", candidate.name));
        }
        if let Some(what) = stages::calibrating(&candidate.stages).filter(|_| spec.data.calibration.is_none()) {
            return Some(format!(
                "spec.data.calibration is missing: candidate {} {what}",
                candidate.name
            ));
        }
    }
    None
}

fn bad_gate(spec: &ModelOptimizationSpec, gate: &Gate) -> Option<String> {
    let name = &gate.name;
    if let Some(environment) = &gate.environment
        && !spec.environments.iter().any(|known| known.name == *environment)
    {
        return Some(format!(
            "gate {name} names environment `{environment}`, which is not in spec.environments"
        ));
    }
    let bounds = [&gate.max, &gate.max_drop, &gate.max_ratio];
    if bounds.iter().filter(|bound| bound.is_some()).count() != 1 {
        return Some(format!(
            "gate {name} must have exactly one bound: max, maxDrop or maxRatio"
        ));
    }
    if (gate.metric == Metric::Accuracy) != gate.max_drop.is_some() {
        return Some(format!(
            "gate {name}: accuracy, and nothing else, is bounded by maxDrop"
        ));
    }
    let read = match (&gate.max, &gate.max_drop, &gate.max_ratio) {
        (Some(max), _, _) => match gate.metric {
            Metric::LatencyP50 | Metric::LatencyP99 => units::seconds(max).map_err(|error| format!("max {error}")),
            _ => units::bytes(max).map_err(|error| format!("max {error}")),
        },
        (_, Some(drop), _) => units::decimal(drop).map_err(|error| format!("maxDrop {error}")),
        (_, _, Some(ratio)) => units::decimal(ratio).map_err(|error| format!("maxRatio {error}")),
        _ => return None,
    };
    read.err().map(|error| format!("gate {name}: {error}"))
}
