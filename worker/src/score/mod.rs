//! Labels against predictions: accuracy and agreement, and the report of a measure job.
//!
//! Decides when a row is right: the highest score is the label's class (the first of equals). Never loads a model. What
//! `run` reported of itself is checked for shape and marked as self-reported.

use std::path::Path;

use assayer_crds::contract::{MeasurePlan, Measured, Measurement, Measurements, metrics};
use assayer_crds::digest::Digest;
use serde::{Deserialize, Serialize};

use crate::data::read_labels;
use crate::failure::{Result, bug, disk, reasons, refused};
use crate::layout::{Layout, read_note};
use crate::run::{ModelRun, NOTE, RunNote, predictions_file};

/// The note that `stage` leaves beside the labels.
pub(crate) const STAGED: &str = "stage.json";

/// What `stage` tells `score`: digests and sizes of what it fetched.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub(crate) struct StagedModels {
    /// The baseline.
    pub baseline: StagedModel,
    /// The candidate.
    pub candidate: Option<StagedModel>,
    /// Rows of evaluation data.
    pub rows: u64,
}

/// A fetched model.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub(crate) struct StagedModel {
    /// Digest over its files.
    pub model_digest: Digest,
    /// Number of its files.
    pub files: u64,
    /// Sum of their sizes.
    pub bytes: u64,
}

/// The classes that a model predicts, one a row.
struct Classes(Vec<u32>);

/// Compares and composes the result; the note of `run` comes with it.
pub(crate) fn score(plan: &MeasurePlan, layout: &Layout) -> Result<(RunNote, Measured)> {
    let staged: StagedModels = read_note(&layout.labels().join(STAGED))?;
    let labels = read_labels(&layout.labels())?;
    let note: RunNote = read_note(&layout.predictions().join(NOTE))?;
    if staged.rows != note.rows || labels.len() as u64 != staged.rows {
        return Err(bug(format!(
            "{} labels, {} staged rows, {} predicted rows",
            labels.len(),
            staged.rows,
            note.rows
        )));
    }
    if staged.candidate.is_some() != note.candidate.is_some() || staged.candidate.is_some() != plan.candidate.is_some()
    {
        return Err(bug("plan, stage and run disagree on whether there is a candidate"));
    }
    let baseline_classes = Classes::read(&predictions_file(layout, false), &note.baseline, note.rows, "baseline")?;
    let mut baseline = measurements(&staged.baseline, &note.baseline, "baseline")?;
    baseline.insert(
        metrics::ACCURACY.into(),
        baseline_classes.accuracy(&labels, note.baseline.classes)?,
    );
    let candidate = match (&staged.candidate, &note.candidate) {
        (Some(staged), Some(run)) => {
            let classes = Classes::read(&predictions_file(layout, true), run, note.rows, "candidate")?;
            let mut found = measurements(staged, run, "candidate")?;
            found.insert(metrics::ACCURACY.into(), classes.accuracy(&labels, run.classes)?);
            found.insert(metrics::AGREEMENT.into(), classes.agreement(&baseline_classes));
            Some(found)
        }
        _ => None,
    };
    let measured = Measured {
        environment: plan.environment.clone(),
        execution_provider: note.execution_provider.clone(),
        baseline_digest: staged.baseline.model_digest,
        candidate_digest: staged.candidate.map(|candidate| candidate.model_digest),
        rows: note.rows,
        baseline,
        candidate,
        self_reported: [
            metrics::LATENCY_P50,
            metrics::LATENCY_P99,
            metrics::PEAK_MEMORY,
            metrics::UTILISATION,
        ]
        .map(str::to_owned)
        .to_vec(),
        run_seconds: finite(note.run_seconds, "runSeconds")?,
    };
    Ok((note, measured))
}

fn measurements(staged: &StagedModel, run: &ModelRun, name: &str) -> Result<Measurements> {
    if run.runs == 0 {
        return Err(bug(format!("{name}: no run was timed")));
    }
    let timed = |value: f64, what: &str| -> Result<Measurement> {
        Ok(Measurement {
            value: finite(value, what)?,
            samples: run.runs,
        })
    };
    Ok(Measurements::from([
        (metrics::LATENCY_P50.into(), timed(run.p50_seconds, "p50")?),
        (metrics::LATENCY_P99.into(), timed(run.p99_seconds, "p99")?),
        (metrics::UTILISATION.into(), timed(run.utilisation, "utilisation")?),
        (
            metrics::PEAK_MEMORY.into(),
            Measurement {
                value: float(run.peak_memory_bytes),
                samples: 1,
            },
        ),
        (
            metrics::ARTIFACT_SIZE.into(),
            Measurement {
                value: float(staged.bytes),
                samples: staged.files,
            },
        ),
    ]))
}

fn finite(value: f64, what: &str) -> Result<f64> {
    if value.is_finite() && value >= 0.0 {
        Ok(value)
    } else {
        Err(bug(format!("{what} is {value}")))
    }
}

#[allow(clippy::cast_precision_loss, reason = "sizes and counts fit a double")]
fn float(value: u64) -> f64 {
    value as f64
}

impl Classes {
    /// The highest score of each row.
    fn read(path: &Path, run: &ModelRun, rows: u64, name: &str) -> Result<Self> {
        let bytes = std::fs::read(path).map_err(|error| disk("read", path, &error))?;
        let row = u64::from(run.classes) * 4;
        if run.classes < 2 || row.checked_mul(rows) != Some(bytes.len() as u64) {
            return Err(bug(format!(
                "{name}: {} bytes of predictions for {rows} rows of {} classes",
                bytes.len(),
                run.classes
            )));
        }
        let mut classes = Vec::new();
        for (index, row) in bytes
            .chunks_exact(usize::try_from(row).unwrap_or(usize::MAX))
            .enumerate()
        {
            let (mut best, mut highest) = (0, f32::NEG_INFINITY);
            for (class, score) in (0..).zip(row.as_chunks::<4>().0) {
                let score = f32::from_le_bytes(*score);
                if !score.is_finite() {
                    let reason = if name == "candidate" {
                        reasons::CANDIDATE_BROKEN
                    } else {
                        reasons::RUNTIME_FAILED
                    };
                    return Err(refused(reason, format!("{name}: a score of row {index} is {score}")));
                }
                if score > highest {
                    (best, highest) = (class, score);
                }
            }
            classes.push(best);
        }
        Ok(Self(classes))
    }

    fn accuracy(&self, labels: &[i64], classes: u32) -> Result<Measurement> {
        if let Some((row, label)) = labels
            .iter()
            .enumerate()
            .find(|(_, label)| **label >= i64::from(classes))
        {
            return Err(refused(
                reasons::DATA_INVALID,
                format!(
                    "label {label} of row {row} is beyond the model's {classes} classes (0 to {})",
                    classes - 1
                ),
            ));
        }
        Ok(self.share(labels.iter().copied()))
    }

    fn agreement(&self, other: &Self) -> Measurement {
        self.share(other.0.iter().map(|class| i64::from(*class)))
    }

    fn share(&self, expected: impl Iterator<Item = i64>) -> Measurement {
        let right = self
            .0
            .iter()
            .zip(expected)
            .filter(|(class, expected)| i64::from(**class) == *expected)
            .count();
        let samples = self.0.len() as u64;
        Measurement {
            value: float(right as u64) / float(samples),
            samples,
        }
    }
}

#[cfg(test)]
mod tests;
