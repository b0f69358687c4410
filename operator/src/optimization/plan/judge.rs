//! The candidates: how each stands, its verdicts, its evidence.
//!
//! A candidate is judged once every environment was measured or given up. Every judged candidate that was made gets evidence, the
//! rejected ones too. Never selects.

use std::collections::BTreeMap;

use assayer_crds::conditions as reasons;
use assayer_crds::digest::Digest;
use assayer_crds::evidence::{GateVerdict, OptimizationReference, Statement};
use assayer_crds::optimization::{
    ArtifactStatus, Candidate, CandidateStatus, EvidenceReference, VerdictStatus, WorkStatus,
};
use kube::ResourceExt as _;

use super::draft::{Draft, Standing, states};
use super::{Change, words};
use crate::events::Note;
use crate::evidence::statement::{self, Claim, Runner};
use crate::evidence::store;
use crate::optimization::gates::{self, Findings};
use crate::optimization::observed::KeptReport;
use crate::optimization::steps::{self, Step};

/// The words of `status.candidates[].state`.
pub(super) mod standings {
    pub(in crate::optimization::plan) const PENDING: &str = "Pending";
    pub(in crate::optimization::plan) const MAKING: &str = "Making";
    pub(in crate::optimization::plan) const MADE: &str = "Made";
    pub(in crate::optimization::plan) const MEASURING: &str = "Measuring";
    pub(in crate::optimization::plan) const PASSED: &str = "Passed";
    pub(in crate::optimization::plan) const REJECTED: &str = "Rejected";
    pub(in crate::optimization::plan) const FAILED: &str = "Failed";

    pub(in crate::optimization::plan) fn settled(state: &str) -> bool {
        matches!(state, PASSED | REJECTED | FAILED)
    }
}

/// Everything that was found out about a candidate, or about the baseline alone where it was not made.
pub(super) fn findings<'a>(draft: &Draft<'a>, candidate: &str) -> Findings<'a> {
    let spec = draft.spec();
    let make = Step::Make {
        candidate: candidate.to_owned(),
    };
    let measured = steps::measures(spec, candidate).filter_map(|step| draft.done(&step)?.measured());
    let baseline = steps::baselines(spec).filter_map(|step| draft.done(&step)?.measured());
    let mut failures = BTreeMap::new();
    for step in steps::baselines(spec).chain(steps::measures(spec, candidate)) {
        if let (Standing::Failed(work), Some(environment)) = (draft.standing(&step), step.environment()) {
            failures.entry(environment.to_owned()).or_insert_with(|| told(work));
        }
    }
    Findings {
        made: draft.done(&make).and_then(KeptReport::made),
        baseline: baseline.collect(),
        measured: measured.collect(),
        failures,
    }
}

/// A failed step in one phrase.
pub(super) fn told(work: &WorkStatus) -> String {
    format!("{}: {}", work.reason, work.message)
}

/// Brings every candidate's entry up to date.
pub(super) fn candidates(draft: &mut Draft<'_>) {
    let spec = draft.spec();
    let recorded = steps::baselines(spec).filter_map(|step| draft.done(&step)?.measured());
    draft.status.baseline = recorded.map(words::shown).collect();
    let no_baseline = steps::baselines(spec).all(|step| matches!(draft.standing(&step), Standing::Failed(_)));
    for (index, candidate) in spec.candidates.iter().enumerate() {
        let Some(mut entry) = draft.status.candidates.get(index).cloned() else {
            continue;
        };
        let before = entry.state.clone();
        if no_baseline {
            hopeless(draft, candidate, &mut entry);
        } else {
            update(draft, candidate, &mut entry);
        }
        if entry.state != before {
            announce(draft, &entry);
        }
        draft.status.candidates[index] = entry;
    }
}

/// No environment could be measured: nothing is made, and every gate says why.
fn hopeless(draft: &Draft<'_>, candidate: &Candidate, entry: &mut CandidateStatus) {
    let findings = findings(draft, &candidate.name);
    let verdicts = gates::judge(draft.spec(), &findings);
    standings::FAILED.clone_into(&mut entry.state);
    entry.message = failures_in_words(&findings);
    entry.verdicts = verdicts.iter().map(shown).collect();
}

fn failures_in_words(findings: &Findings<'_>) -> String {
    let told: Vec<String> = findings
        .failures
        .iter()
        .map(|(name, why)| format!("{name}: {why}"))
        .collect();
    told.join("; ")
}

fn shown(verdict: &GateVerdict) -> VerdictStatus {
    VerdictStatus {
        gate: verdict.gate.clone(),
        verdict: verdict.verdict.clone(),
        severity: verdict.severity.clone(),
        message: verdict.message.clone(),
    }
}

fn update(draft: &mut Draft<'_>, candidate: &Candidate, entry: &mut CandidateStatus) {
    let step = Step::Make {
        candidate: candidate.name.clone(),
    };
    let name = step.to_string();
    let report = match draft.standing(&step) {
        Standing::Open => {
            let begun = draft.work(&name).is_some();
            let state = if begun { standings::MAKING } else { standings::PENDING };
            state.clone_into(&mut entry.state);
            return;
        }
        Standing::Failed(work) => {
            entry.message = told(work);
            standings::FAILED.clone_into(&mut entry.state);
            return;
        }
        Standing::Done => draft.done(&step),
    };
    let Some((report, made)) = report.and_then(|report| Some((report, report.made()?))) else {
        return;
    };
    entry.artifact = Some(ArtifactStatus {
        uri: made.uri.clone(),
        artifact_digest: made.artifact_digest.to_string(),
        model_digest: made.model_digest.to_string(),
        bytes: i64::try_from(made.bytes).unwrap_or(i64::MAX),
    });
    let findings = findings(draft, &candidate.name);
    entry.measured = findings
        .measured
        .iter()
        .map(|measured| words::shown(measured))
        .collect();
    let measures: Vec<Step> = steps::measures(draft.spec(), &candidate.name).collect();
    if measures.iter().any(|step| draft.open(step)) {
        let begun = measures.iter().any(|step| draft.work(&step.to_string()).is_some());
        let state = if begun { standings::MEASURING } else { standings::MADE };
        state.clone_into(&mut entry.state);
        return;
    }
    verdict(draft, candidate, entry, &findings, report);
}

fn verdict(
    draft: &mut Draft<'_>,
    candidate: &Candidate,
    entry: &mut CandidateStatus,
    findings: &Findings<'_>,
    report: &KeptReport,
) {
    let verdicts = gates::judge(draft.spec(), findings);
    let passed = gates::passes(draft.spec(), &verdicts, findings);
    let refused = gates::blocking(&verdicts).any(|verdict| verdict.verdict != gates::ERROR);
    let state = match (passed, refused) {
        (true, _) => standings::PASSED,
        (false, true) => standings::REJECTED,
        (false, false) => standings::FAILED,
    };
    state.clone_into(&mut entry.state);
    entry.message = match (passed, refused) {
        (true, _) => String::new(),
        (false, true) => {
            let told: Vec<&str> = gates::blocking(&verdicts)
                .map(|verdict| verdict.message.as_str())
                .collect();
            told.join("; ")
        }
        (false, false) => failures_in_words(findings),
    };
    entry.verdicts = verdicts.iter().map(shown).collect();
    record(draft, candidate, entry, report, verdicts);
}

fn record(
    draft: &mut Draft<'_>,
    candidate: &Candidate,
    entry: &mut CandidateStatus,
    report: &KeptReport,
    verdicts: Vec<GateVerdict>,
) {
    let recorded = compose(draft, candidate, report, verdicts);
    let (statement, digest) = match recorded {
        Ok(recorded) => recorded,
        Err(why) => {
            // A spec that was read from JSON is JSON: should this ever happen, the candidate is not promotable.
            standings::FAILED.clone_into(&mut entry.state);
            entry.message = why;
            return;
        }
    };
    let reference = EvidenceReference {
        config_map: store::name_of(&digest),
        digest: digest.to_string(),
    };
    if entry.evidence.as_ref() == Some(&reference) {
        return;
    }
    let message = format!(
        "evidence of {} is in config map {}",
        candidate.name, reference.config_map
    );
    draft.notes.push(Note::normal(
        reasons::EVIDENCE_STORED,
        "RecordEvidence",
        message.clone(),
    ));
    if let Some(message) = other_instruction_set(draft, candidate, report) {
        draft.notes.push(Note::warning(
            reasons::INSTRUCTION_SET_DIFFERS,
            "RecordEvidence",
            message,
        ));
    }
    draft.changes.push(Change::RecordEvidence {
        statement: Box::new(statement),
        why: message,
    });
    entry.evidence = Some(reference);
}

/// Where a candidate was measured on another instruction set than it was made on, in words; none where nothing is known of one.
fn other_instruction_set(draft: &Draft<'_>, candidate: &Candidate, report: &KeptReport) -> Option<String> {
    let made = report.report.runtime.instruction_set.as_str();
    let others: Vec<String> = steps::measures(draft.spec(), &candidate.name)
        .filter_map(|step| draft.done(&step))
        .filter_map(|report| Some((report.measured()?, report.report.runtime.instruction_set.as_str())))
        .filter(|(_, set)| !set.is_empty() && !made.is_empty() && *set != made)
        .map(|(measured, set)| format!("{set} in {}", measured.environment))
        .collect();
    (!others.is_empty()).then(|| {
        format!(
            "{} was made for {made} and measured on {}: make it on nodes of that kind, or set quantize.weights",
            candidate.name,
            others.join(", ")
        )
    })
}

fn compose(
    draft: &Draft<'_>,
    candidate: &Candidate,
    report: &KeptReport,
    verdicts: Vec<GateVerdict>,
) -> Result<(Statement, Digest), String> {
    let spec = draft.spec();
    let made = report.made().ok_or("the candidate was not made")?;
    let reports: Vec<&KeptReport> = steps::measures(spec, &candidate.name)
        .filter_map(|step| draft.done(&step))
        .collect();
    let baselines = steps::baselines(spec).filter_map(|step| draft.done(&step)?.measured());
    // The newest report's time, by the API server's clock: the same evidence is the same bytes, however often it is put together.
    let recorded_at = reports
        .iter()
        .map(|report| report.kept_at)
        .fold(report.kept_at, std::cmp::max);
    let object = &draft.observed.object;
    let statement = statement::compose(Claim {
        recorded_at,
        optimization: OptimizationReference {
            namespace: object.namespace().unwrap_or_default(),
            name: object.name_any(),
            uid: draft.run.uid.clone(),
            generation: draft.run.generation,
        },
        spec,
        candidate,
        plan_digest: steps::candidate_key(spec, candidate, &draft.run.worker_image),
        made,
        made_by: &report.report.runtime,
        baseline: baselines.collect(),
        measured: reports
            .iter()
            .filter_map(|report| Some((report.measured()?, &report.report.runtime)))
            .collect(),
        verdicts,
        worker_image: &draft.run.worker_image,
        runner: Runner::Kubernetes,
    })
    .map_err(|error| error.to_string())?;
    let digest = store::digest_of(&statement).map_err(|error| error.to_string())?;
    Ok((statement, digest))
}

fn announce(draft: &mut Draft<'_>, entry: &CandidateStatus) {
    let message = format!("{}: {}", entry.name, entry.message);
    let note = match entry.state.as_str() {
        standings::REJECTED => Note::warning(reasons::CANDIDATE_REJECTED, "JudgeCandidate", message),
        standings::PASSED => {
            let message = format!("{} passed every blocking gate", entry.name);
            Note::normal(reasons::CANDIDATES_JUDGED, "JudgeCandidate", message)
        }
        _ => return,
    };
    draft.notes.push(note);
}

/// Whether the step's Job waits in its queue.
pub(super) fn queued(work: &WorkStatus) -> bool {
    work.state == states::QUEUED
}
