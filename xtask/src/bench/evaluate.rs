//! Has all models evaluated in one neutral process. Decides what is sent, and notes what comes back.

use std::collections::BTreeMap;

use anyhow::{Context, Result};
use serde::Deserialize;
use serde_json::json;

use super::{
    bed::Bed,
    contestant::{Contestant, Evaluation},
};
use crate::progress::Progress;

/// What `evaluate.py` prints.
#[derive(Deserialize)]
struct Found {
    models: BTreeMap<String, Evaluation>,
}

/// Evaluates all that could be made; latencies in `rounds` rounds, with sessions made anew in each.
pub(super) fn all(bed: &Bed, contestants: &mut [Contestant], rounds: u32, progress: &Progress) -> Result<()> {
    let made = contestants.iter().filter(|one| one.failure.is_none());
    let models: Vec<_> = made
        .filter_map(|one| Some(json!({"name": one.id, "path": one.model.as_ref()?})))
        .collect();
    let job = json!({
        "task": bed.task().name(),
        "data": bed.data(),
        "baseline": bed.baseline(),
        "reference": bed.task().reference(),
        "rounds": rounds,
        "models": models,
    });
    let said = bed.evaluate(&job, progress)?;
    let last = said.lines().last().unwrap_or_default();
    let mut found: Found = serde_json::from_str(last).with_context(|| format!("evaluate.py said: {said}"))?;
    for contestant in contestants {
        if let Some(evaluation) = found.models.remove(&contestant.id) {
            contestant.evaluation = evaluation;
        }
    }
    Ok(())
}
