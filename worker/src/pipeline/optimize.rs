//! `optimize`: one candidate out of the staged baseline and calibration rows.
//!
//! Brings the plan's data to the optimizer and its errors into the contract's words. Has no network, no
//! credentials and no labels.

use std::time::Instant;

use assayer_crds::contract::{Left, MakePlan, PassReport, Recipe, Runtime, reasons};
use assayer_crds::digest::{Digest, model_digest};
use serde::{Deserialize, Serialize};

use super::{recipe, stage, techniques};
use crate::calibrate::{self, DataError};
use crate::data::{self, Feed, inputs_of, padding_mask, row_shapes};
use crate::deadline::Start;
use crate::failure::{Failure, Result, bug, disk, refused};
use crate::layout::{Layout, clear, read_note, write_note};
use crate::onnx::{self, Limits};
use crate::optimize::{self, Given, OptimizeReport, ROWS_AT_ONCE, Request, Step};
use crate::passes;
use crate::run::{describe, machine, model_failure, provider, shape_failure};
use crate::sandbox::{self, Level};
use crate::session;
use crate::storage;
use crate::threads::joined;

/// The folder with the candidate's files, inside the job's `out`.
pub(super) const MODEL: &str = "model";
/// The note for `publish`.
pub(super) const NOTE: &str = "optimize.json";

/// What `optimize` tells `publish`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub(super) struct OptimizeNote {
    pub(super) runtime: Runtime,
    pub(super) baseline_digest: Digest,
    /// Digest over the candidate's files.
    pub(super) model_digest: Digest,
    pub(super) opset: [i64; 2],
    pub(super) passes: Vec<PassReport>,
    pub(super) calibration_rows: u64,
    pub(super) seconds: f64,
    pub(super) peak_memory_bytes: u64,
    pub(super) recipe: Recipe,
}

/// Makes the candidate and leaves a note.
pub(super) fn optimize(plan: &MakePlan, layout: &Layout) -> Result<()> {
    let begin = Instant::now();
    let stages = techniques::of(plan, machine::instruction_set())?;
    let (baseline, out) = (layout.baseline(), layout.out());
    clear(&out)?;
    let names = storage::find(&baseline, storage::Limits::default())?;
    let source = storage::single(&baseline, "onnx", names.iter().map(String::as_str), "baseline")?;
    let runtime =
        session::Runtime::load(None).map_err(|error| provider::failure_of(&error, reasons::RUNTIME_FAILED))?;
    sandbox::enter(Level::Model)?;
    let limits = Limits::default();
    let given = Given {
        shapes: row_shapes(&plan.inputs),
        tables: tables(layout),
    };
    let feed = feed(plan, layout, &source, &limits, &given)?;
    let (used, most) = (std::cell::Cell::new(0_u64), std::cell::Cell::new(ROWS_AT_ONCE));
    let open = || {
        used.set(0);
        let batches = feed.iter().flat_map(|feed| feed.batches(most.get())).map(|batch| {
            let batch = batch.map_err(|error| -> DataError { Box::new(error) })?;
            let rows = batch.first().and_then(|tensor| tensor.dims.first());
            used.set(used.get() + rows.map_or(0, |rows| *rows as u64));
            Ok(batch)
        });
        Box::new(batches) as Box<dyn Iterator<Item = _>>
    };
    let folder = out.join(MODEL);
    std::fs::create_dir_all(&folder).map_err(|error| disk("create", &folder, &error))?;
    let threads = machine::threads();
    let request = Request {
        model: &source,
        output: &folder.join(source.file_name().unwrap_or("model.onnx".as_ref())),
        stages: &stages,
        threads: threads as usize,
        limits,
        given,
    };
    let at_once = feed.as_ref().map_or(1, Feed::batch_limit).min(ROWS_AT_ONCE);
    let list = || storage::list(&folder, storage::Limits::default());
    let (report, made) = std::thread::scope(|scope| {
        let mut listing = None;
        let report = together(at_once, |batch| {
            most.set(batch);
            optimize::optimize(&runtime, &request, &open, &mut |step| {
                // From here on the files stay as they are.
                if step == Step::Verify {
                    listing = Some(scope.spawn(list));
                }
                progress(step);
            })
        });
        (report, listing.map_or_else(list, joined))
    });
    let report = report.map_err(|error| failure(&error))?;
    let made = made?;
    let runtime = describe(provider::version(&runtime), threads);
    let baseline_digest: Digest = read_note(&layout.inputs().join(stage::DIGEST))?;
    let calibration_rows = if report.calibration_batches > 0 { used.get() } else { 0 };
    let recipe = Recipe {
        stages: recipe::spelled_out(&plan.stages, &report.chosen, machine::instruction_set()),
        model: baseline_digest.clone(),
        calibration: match calibration_rows {
            0 => None,
            _ => Some(read_note(&layout.inputs().join(stage::CALIBRATION))?),
        },
        rows: calibration_rows,
        inputs: plan.inputs.clone(),
        worker: runtime.worker.clone(),
        onnxruntime: runtime.onnxruntime.clone(),
        instruction_set: runtime.instruction_set.clone(),
    };
    let note = OptimizeNote {
        runtime,
        baseline_digest,
        model_digest: model_digest(&made),
        opset: [report.opset_before, report.opset_after],
        passes: passes_of(&report),
        calibration_rows,
        seconds: begin.elapsed().as_secs_f64(),
        peak_memory_bytes: machine::peak_memory("self").ok_or_else(|| bug("the kernel tells no peak memory"))?,
        recipe,
    };
    tracing::info!(
        seconds = note.seconds,
        peak_memory_bytes = note.peak_memory_bytes,
        "candidate is made"
    );
    Start::found(&layout.inputs()).leave(&out)?;
    write_note(&out.join(NOTE), &note)
}

/// What `attempt` gives with `at_once` rows at once, or with one where the model does not run on more: many an exporter leaves the first dimension
/// free and writes the batch of its example into a `Reshape`.
pub(super) fn together<T>(
    at_once: usize,
    mut attempt: impl FnMut(usize) -> std::result::Result<T, optimize::Error>,
) -> std::result::Result<T, optimize::Error> {
    match attempt(at_once) {
        Err(optimize::Error::Calibration(calibrate::Error::Session(error))) if at_once > 1 => {
            tracing::warn!("calibration rows are run one at a time, because {at_once} at once fail: {error}");
            attempt(1)
        }
        first => first,
    }
}

/// Calibration rows, bound to the model's inputs and without padding; none where no stage needs any and the user gave none.
fn feed(
    plan: &MakePlan,
    layout: &Layout,
    source: &std::path::Path,
    limits: &Limits,
    given: &Given,
) -> Result<Option<Feed>> {
    if plan.calibration.is_none() {
        return Ok(None);
    }
    let mut model = onnx::read(source, limits).map_err(|error| model_failure("baseline", &error))?;
    onnx::free_dimensions(&mut model, &given.shapes).map_err(|error| shape_failure("baseline", &error))?;
    let feed = Feed::open(&layout.inputs(), inputs_of(&model)?)?;
    match padding_mask(&plan.inputs)? {
        Some(mask) => feed.without_padding(mask).map(Some),
        None => Ok(Some(feed)),
    }
}

/// Tables from other runs are only for who has them on a machine of his own: nothing in a pod says who wrote them.
fn tables(layout: &Layout) -> Option<calibrate::Tables> {
    let folder = layout.tables();
    (layout.is_local() && folder.is_dir()).then(|| calibrate::Tables {
        folder,
        instruction_set: machine::instruction_set().to_owned(),
    })
}

fn progress(step: Step) {
    match step {
        Step::Calibrate(batches) => tracing::debug!(batches, "calibrating"),
        step => tracing::info!(?step, "optimizing"),
    }
}

fn passes_of(report: &OptimizeReport) -> Vec<PassReport> {
    let noted = |nodes: &[passes::Left]| {
        let note = |noted: &passes::Left| Left {
            node: noted.node.clone(),
            why: noted.why.clone(),
        };
        nodes.iter().map(note).collect()
    };
    let pass = |pass: &passes::Report| PassReport {
        name: pass.name.to_owned(),
        changed: pass.changed as u64,
        left: noted(&pass.left),
        raised: noted(&pass.raised),
        note: pass.note.clone(),
    };
    report.passes.iter().map(pass).collect()
}

/// The optimizer's errors in the contract's words.
fn failure(error: &optimize::Error) -> Failure {
    use optimize::Error as E;
    let message = error.to_string();
    match error {
        E::Model(error) => model_failure("baseline", error),
        E::Shape(error) => shape_failure("baseline", error),
        E::Pass(passes::Error::NoEffect { .. }) => refused(reasons::NO_EFFECT, message),
        E::Pass(passes::Error::Setting { .. } | passes::Error::Pattern { .. } | passes::Error::Floats { .. })
        | E::Calibration(calibrate::Error::Percentile(_) | calibrate::Error::AveragingConstant(_)) => {
            refused(reasons::PLAN_INVALID, message)
        }
        E::Pass(passes::Error::NotFinite { .. }) | E::Calibration(calibrate::Error::NotFloat { .. }) => {
            refused(reasons::MODEL_INVALID, message)
        }
        E::Pass(passes::Error::Graph(error)) | E::Calibration(calibrate::Error::Graph(error)) => {
            model_failure("baseline", error)
        }
        E::Calibration(calibrate::Error::Data(error)) | E::Data(error) => data_failure(error.as_ref(), &message),
        E::Calibration(calibrate::Error::Session(error)) => provider::failure_of(error, reasons::RUNTIME_FAILED),
        E::Calibration(calibrate::Error::Empty) | E::NoSample | E::MadeUp(_) => refused(reasons::DATA_EMPTY, message),
        E::Calibration(calibrate::Error::NotFinite { .. } | calibrate::Error::NeverSeen { .. }) => {
            refused(reasons::DATA_INVALID, message)
        }
        E::Run {
            which: "candidate",
            source,
        } => provider::failure_of(source, reasons::CANDIDATE_BROKEN),
        E::Run { source, .. } => provider::failure_of(source, reasons::RUNTIME_FAILED),
        E::Unfaithful { .. } => refused(reasons::CANDIDATE_BROKEN, message),
    }
}

fn data_failure(error: &(dyn std::error::Error + 'static), message: &str) -> Failure {
    match error.downcast_ref::<data::Error>() {
        Some(data::Error::Disk { action, path, source }) => disk(action, path, source),
        Some(data::Error::Binding { .. }) => refused(reasons::COLUMN_MISSING, message),
        _ => refused(reasons::DATA_INVALID, message),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_stage_without_effect_is_refused_as_such() {
        let error = optimize::Error::Pass(passes::Error::NoEffect {
            pass: "quantize",
            why: "no Conv".into(),
        });
        assert_eq!(failure(&error).reason, reasons::NO_EFFECT);
        assert_eq!(failure(&optimize::Error::NoSample).reason, reasons::DATA_EMPTY);
    }
}
