//! The end of a run for people and for programs: who passed what, by which number, and who is selected. Decides looks only.

use assayer_crds::contract::metrics;
use assayer_crds::evidence::GateVerdict;
use assayer_operator::optimization::gates::value_in_words as words;
use assayer_operator::optimization::steps::technique;
use serde_json::{Value, json};

use super::journey::{Judged, Outcome, float};
use super::output::{Place, Recorded};
use crate::terminal;

/// A table of candidates and one of gates.
pub(super) fn tables(outcome: &Outcome) -> String {
    let candidates = outcome.candidates.iter().map(|judged| row(outcome, judged));
    let header = [
        "state",
        "candidate",
        "technique",
        "size",
        "p50 against baseline",
        "accuracy against baseline",
    ];
    let gates = outcome.candidates.iter().flat_map(|judged| {
        let name = &judged.candidate.name;
        judged.verdicts.iter().map(move |verdict| gate(name, verdict))
    });
    let gate_header = ["verdict", "candidate", "gate", "severity", "measured", "limit"];
    format!(
        "{}\n\n{}",
        terminal::table(&header, candidates),
        terminal::table(&gate_header, gates)
    )
}

fn row(outcome: &Outcome, judged: &Judged) -> Vec<String> {
    let name = &judged.candidate.name;
    let state = if outcome.selected.as_ref() == Some(name) {
        "selected"
    } else {
        judged.state.as_str()
    };
    let size = judged
        .model
        .as_ref()
        .map(|model| words(metrics::ARTIFACT_SIZE, float(model.made.bytes)));
    vec![
        state.to_owned(),
        name.clone(),
        technique(&judged.candidate.stages),
        size.unwrap_or_else(|| "-".to_owned()),
        against(judged, metrics::LATENCY_P50),
        against(judged, metrics::ACCURACY),
    ]
}

/// The candidate's number and the baseline's in each environment; for times also how many times as fast.
fn against(judged: &Judged, name: &str) -> String {
    let lines: Vec<String> = judged
        .measured
        .iter()
        .filter_map(|taken| {
            let candidate = taken.measured.candidate.as_ref()?.get(name)?.value;
            let baseline = taken.measured.baseline.get(name)?.value;
            let numbers = format!("{} / {}", words(name, candidate), words(name, baseline));
            let speed = (name == metrics::LATENCY_P50).then(|| format!(" ({:.2}x as fast)", baseline / candidate));
            Some(format!("{numbers}{}", speed.unwrap_or_default()))
        })
        .collect();
    if lines.is_empty() {
        "-".to_owned()
    } else {
        lines.join("\n")
    }
}

fn gate(candidate: &str, verdict: &GateVerdict) -> Vec<String> {
    let measured = if verdict.measured.is_empty() {
        &verdict.message
    } else {
        &verdict.measured
    };
    vec![
        verdict.verdict.clone(),
        candidate.to_owned(),
        verdict.gate.clone(),
        verdict.severity.clone(),
        measured.clone(),
        verdict.limit.clone(),
    ]
}

/// The same for programs.
pub(super) fn json(outcome: &Outcome, recorded: &[Recorded], place: &Place) -> Value {
    let candidates = outcome.candidates.iter().map(|judged| {
        let name = &judged.candidate.name;
        let evidence = recorded.iter().find(|recorded| recorded.candidate == *name);
        json!({
            "name": name,
            "state": judged.state.as_str(),
            "technique": technique(&judged.candidate.stages),
            "message": judged.message,
            "artifact": judged.model.as_ref().map(|model| json!({
                "uri": model.made.uri,
                "artifactDigest": model.made.artifact_digest,
                "modelDigest": model.made.model_digest,
                "bytes": model.made.bytes,
            })),
            "recipe": judged.model.as_ref().and_then(|model| model.made.recipe.as_ref()),
            "measured": judged.measured.iter().map(|taken| &taken.measured).collect::<Vec<_>>(),
            "verdicts": judged.verdicts,
            "evidence": evidence.map(|recorded| json!({"digest": recorded.digest, "folder": place.of(name)})),
        })
    });
    let baseline: Vec<_> = outcome.baseline.iter().map(|taken| &taken.measured).collect();
    json!({"selected": outcome.selected, "baseline": baseline, "candidates": candidates.collect::<Vec<_>>()})
}
