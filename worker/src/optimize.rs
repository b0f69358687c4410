//! From a model file to a candidate file: read, check, simplify, quantize, check again, write, and run once.
//!
//! The candidate's bytes are a pure function of the model, the calibration data, the stages, ONNX Runtime's version and
//! the instruction set. A candidate that ONNX Runtime does not load and run is an error, not a result.

mod goal;
mod integers;
mod kernels;
mod likeness;
mod pace;
mod quantization;
mod reference;
mod regions;
mod stage;

pub use stage::{Chosen, Stage};

use crate::{
    calibrate::{self, DataError, Samples},
    made_up,
    onnx::{self, Limits, Model, Tensor},
    passes::{self, Report, Simplify},
    session::{self, Runtime},
};
use reference::{Baseline, Reference};
use stage::Calibration;
use std::{
    collections::BTreeMap,
    path::{Path, PathBuf},
};

/// Why there is no candidate.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The model was refused, or could not be written.
    #[error(transparent)]
    Model(#[from] onnx::Error),
    /// Rows are given in a shape that the model can't have.
    #[error(transparent)]
    Shape(#[from] onnx::Mismatch),
    /// A pass failed or changed nothing.
    #[error(transparent)]
    Pass(#[from] passes::Error),
    /// Calibration failed.
    #[error(transparent)]
    Calibration(#[from] calibrate::Error),
    /// ONNX Runtime does not take a model.
    #[error("the {which} does not run: {source}")]
    Run {
        /// Baseline or candidate.
        which: &'static str,
        /// ONNX Runtime's words.
        source: session::Error,
    },
    /// The candidate runs and gives something else than a model of that shape.
    #[error("the candidate's output {name} {what}")]
    Unfaithful {
        /// Escaped name.
        name: String,
        /// What is wrong with it.
        what: String,
    },
    /// A stage that calibrates got no sample.
    #[error("calibration data is empty: mode Static needs at least one sample")]
    NoSample,
    /// Without data, and the model can't be run on inputs that were made up.
    #[error(
        "there is no calibration data, and the model can't be tried on made-up inputs ({0}): set data.calibration, or data.inputs[].shape \
         where the model does not say how large its inputs are"
    )]
    MadeUp(String),
    /// The data ended with an error.
    #[error("calibration data: {0}")]
    Data(#[source] DataError),
}

/// Bytes of a baseline that is run beside the work on the candidate (512 MiB). What both read is in memory twice meanwhile, which a larger
/// one has no room for.
const MOST_BESIDE: u64 = 512 << 20;

/// Rows that are run at once. What a model makes of them is in memory together, while kernels gain next to nothing from more: eight take
/// 1.4 times the memory of two, in the same time.
pub const ROWS_AT_ONCE: usize = 2;

/// Name under which it is reported how many declared sizes were freed.
const FREE: &str = "free-dimensions";

/// What to make.
#[derive(Debug)]
pub struct Request<'r> {
    /// The baseline's ONNX file; its external data lies beside it.
    pub model: &'r Path,
    /// The candidate's file. Existing files are replaced.
    pub output: &'r Path,
    /// Stages in order.
    pub stages: &'r [Stage],
    /// Threads for calibration runs.
    pub threads: usize,
    /// Bounds on the model.
    pub limits: Limits,
    /// What is known of the samples beforehand.
    pub given: Given,
}

/// What the user says of the samples, and what is known of them from earlier runs.
#[derive(Debug, Clone, Default)]
pub struct Given {
    /// Shapes of rows, without the batch: what the model declares otherwise is freed.
    pub shapes: onnx::RowShapes,
    /// Where ranges are looked up and kept; each stage calibrates where there is none.
    pub tables: Option<calibrate::Tables>,
}

/// Where [`optimize`] is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Step {
    /// Reading and checking the model.
    Read,
    /// Rewriting the float model.
    Simplify,
    /// Calibrating; batches done.
    Calibrate(u64),
    /// Quantizing.
    Quantize,
    /// Writing the candidate.
    Write,
    /// Running the candidate once; its files are complete.
    Verify,
}

/// What [`optimize`] made.
#[derive(Debug, Clone, PartialEq)]
pub struct OptimizeReport {
    /// Operator set of the baseline.
    pub opset_before: i64,
    /// Operator set of the candidate.
    pub opset_after: i64,
    /// Every pass in order.
    pub passes: Vec<Report>,
    /// What each stage that quantizes chose, in order.
    pub chosen: Vec<Chosen>,
    /// Bytes of the baseline, external data included.
    pub bytes_before: u64,
    /// Bytes of the candidate, external data included.
    pub bytes_after: u64,
    /// Nodes of the baseline.
    pub nodes_before: usize,
    /// Nodes of the candidate.
    pub nodes_after: usize,
    /// Batches used for calibration.
    pub calibration_batches: u64,
    /// The candidate's files: the model first, external data after it.
    pub files: Vec<PathBuf>,
    /// Largest absolute difference to the baseline on the first sample, for each float output.
    pub first_sample_difference: BTreeMap<String, f32>,
}

/// Makes one candidate.
///
/// `samples` opens the batches, each with one tensor for every input of the model. The first is also what baseline and candidate are
/// run on; every stage that calibrates opens them anew. Where none does, there may be no batch: a first run on made-up inputs takes its
/// place, so that no candidate is released without having run.
pub fn optimize(
    runtime: &Runtime,
    request: &Request<'_>,
    samples: Samples<'_>,
    progress: &mut dyn FnMut(Step),
) -> Result<OptimizeReport, Error> {
    let given = &request.given;
    progress(Step::Read);
    let mut model = onnx::read(request.model, &request.limits)?;
    onnx::check(&model, &request.limits)?;
    // What they say is about these inputs and outputs, and not about the candidate's.
    onnx::set_ends(&mut model, &onnx::Ends::new())?;
    let freed = onnx::free_dimensions(&mut model, &given.shapes)?;
    let bytes_before = total_bytes(&model, request.model)?;
    let nodes_before = model.graph.nodes.len();
    let sample = samples().next().transpose().map_err(Error::Data)?;
    let (probe, made_up) = match sample {
        Some(sample) => (sample, false),
        None if request.stages.iter().any(Stage::calibrates) => return Err(Error::NoSample),
        None => (made_up::inputs(&model, &given.shapes).map_err(Error::MadeUp)?, true),
    };
    let baseline = Baseline {
        runtime,
        model: model.clone(),
        which: if given.shapes.is_empty() {
            "baseline"
        } else {
            "baseline, with rows of data.inputs[].shape,"
        },
        made_up,
    };
    std::thread::scope(|scope| {
        let mut reference = Reference::begin(scope, baseline, &probe);
        let work = Work {
            runtime,
            request,
            samples,
            probe: &probe,
            bytes_before,
            nodes_before,
        };
        let made = work.make(model, &mut reference, progress);
        // First: of a baseline that does not run nothing can be made.
        reference.wait()?;
        let mut report = made?;
        if !given.shapes.is_empty() {
            let freed = Report {
                name: FREE,
                changed: freed,
                ..Report::default()
            };
            report.passes.insert(0, freed);
        }
        Ok(report)
    })
}

/// What a candidate is made with.
struct Work<'w, 's> {
    runtime: &'w Runtime,
    request: &'w Request<'w>,
    samples: Samples<'s>,
    probe: &'w [Tensor],
    bytes_before: u64,
    nodes_before: usize,
}

impl Work<'_, '_> {
    /// Makes the candidate of `model`, and runs it.
    fn make(
        &self,
        mut model: Model,
        reference: &mut Reference<'_>,
        progress: &mut dyn FnMut(Step),
    ) -> Result<OptimizeReport, Error> {
        let Self {
            runtime,
            request,
            samples,
            probe,
            ..
        } = *self;
        if self.bytes_before > MOST_BESIDE {
            reference.wait()?;
        }
        progress(Step::Simplify);
        let Simplified {
            upgraded,
            stages,
            mut reports,
        } = simplify(&mut model, request)?;
        let (mut done, mut chosen) = (0, Vec::new());
        let (mut asked, mut excepted) = (false, 0);
        for stage in stages {
            let mut told = |step| {
                if let Step::Calibrate(batches) = step {
                    done = batches;
                }
                progress(step);
            };
            let mut calibration = Calibration {
                scratch: &request.output.with_added_extension("optimized"),
                limits: &request.limits,
                runtime,
                threads: request.threads,
                asked,
                excepted,
                samples,
                tables: request.given.tables.as_ref(),
                probe,
                progress: &mut told,
            };
            let applied = stage.apply(&mut model, &mut calibration)?;
            (asked, excepted) = match stage {
                Stage::Choose(choice) => (true, choice.except.len()),
                _ => (false, 0),
            };
            reports.extend(applied.reports);
            chosen.extend(applied.chosen);
            onnx::check(&model, &request.limits)?;
        }

        progress(Step::Write);
        onnx::settle(&mut model.graph);
        let written = onnx::write(&model, request.output)?;
        let nodes_after = model.graph.nodes.len();
        let once = reference::once(&model);
        // Nothing of the baseline is needed any more, and the candidate may be as large.
        drop(model);
        let mut made = onnx::read(request.output, &request.limits)?;
        onnx::check(&made, &request.limits)?;
        // Inputs and outputs that are bytes are given and taken as floats, as the baseline's.
        onnx::floats_around(&mut made)?;
        progress(Step::Verify);
        let candidate = reference::run(runtime.open_model(&made, &once), "candidate", probe);
        reference.wait()?;
        Ok(OptimizeReport {
            opset_before: upgraded.before,
            opset_after: upgraded.after,
            passes: reports,
            chosen,
            bytes_before: self.bytes_before,
            bytes_after: written.bytes,
            nodes_before: self.nodes_before,
            nodes_after,
            calibration_batches: done,
            files: std::iter::once(written.model).chain(written.external).collect(),
            first_sample_difference: reference.compare(&candidate?)?,
        })
    }
}

/// A float model that stages can work on.
struct Simplified<'r> {
    upgraded: onnx::Upgraded,
    /// The stages that are still to do.
    stages: &'r [Stage],
    reports: Vec<Report>,
}

/// Brings the model to the operators that stages know, and simplifies it.
fn simplify<'r>(model: &mut Model, request: &Request<'r>) -> Result<Simplified<'r>, Error> {
    onnx::normalize(model)?;
    let upgraded = onnx::upgrade(model)?;
    let (mut settings, stages) = match request.stages {
        [Stage::Simplify(settings), stages @ ..] => (settings.clone(), stages),
        stages => (Simplify::default(), stages),
    };
    settings.keep_tied = !stages.iter().any(Stage::quantizes);
    if stages.iter().any(Stage::is_standard) {
        settings.skip.extend(passes::NOT_STANDARD);
    }
    let reports = passes::simplify(model, &settings, &request.limits)?;
    if stages.is_empty() {
        passes::require_simpler(&reports)?;
    }
    Ok(Simplified {
        upgraded,
        stages,
        reports,
    })
}

/// Bytes of the baseline's files.
fn total_bytes(model: &Model, path: &Path) -> Result<u64, Error> {
    let file = std::fs::metadata(path)
        .map_err(|source| onnx::Error::Io {
            action: "read",
            path: path.to_owned(),
            source,
        })?
        .len();
    // Weights that are not inside the file lie beside it.
    let weights: u64 = model
        .graph
        .initializers
        .iter()
        .map(|tensor| tensor.bytes().len() as u64)
        .sum();
    Ok(if weights > file { file + weights } else { file })
}

#[cfg(test)]
mod ends_tests;
#[cfg(test)]
mod given_tests;
#[cfg(test)]
mod ocr_tests;
#[cfg(test)]
mod opset_tests;
#[cfg(test)]
mod padding_tests;
#[cfg(test)]
mod pitfall_tests;
#[cfg(test)]
mod raise_tests;
#[cfg(test)]
mod speech_tests;
#[cfg(test)]
mod table_tests;
#[cfg(test)]
mod tests;
#[cfg(test)]
mod trial;
