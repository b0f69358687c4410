//! From a model file to a candidate file: read, check, simplify, quantize, check again, write, and run once.
//!
//! The candidate's bytes are a pure function of the model, the calibration data, the stages, ONNX Runtime's version and
//! the instruction set. A candidate that ONNX Runtime does not load and run is an error, not a result.

mod goal;
mod likeness;
mod quantization;
mod scratch;
mod stage;

pub use stage::Stage;

use crate::{
    calibrate::{self, DataError, Samples},
    made_up,
    onnx::{self, Limits, Model, Tensor, shown},
    passes::{self, Report, Simplify},
    session::{self, Options, Runtime, Session},
};
use scratch::Scratch;
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
    #[error("there is no calibration data, and the model can't be tried on made-up inputs ({0}): set data.calibration")]
    MadeUp(String),
    /// The data ended with an error.
    #[error("calibration data: {0}")]
    Data(#[source] DataError),
}

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
}

/// What the user says of the samples.
#[derive(Debug, Clone, Default)]
pub struct Given {
    /// Shapes of rows, without the batch: what the model declares otherwise is freed.
    pub shapes: onnx::RowShapes,
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
    /// Writing the candidate and running it once.
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
    optimize_given(runtime, request, &Given::default(), samples, progress)
}

/// Makes one candidate, as [`optimize`] does, for samples of which something is given.
pub fn optimize_given(
    runtime: &Runtime,
    request: &Request<'_>,
    given: &Given,
    samples: Samples<'_>,
    progress: &mut dyn FnMut(Step),
) -> Result<OptimizeReport, Error> {
    progress(Step::Read);
    let mut model = onnx::read(request.model, &request.limits)?;
    onnx::check(&model, &request.limits)?;
    let freed = onnx::free_dimensions(&mut model, &given.shapes)?;
    let bytes_before = total_bytes(&model, request.model)?;
    let nodes_before = model.graph.nodes.len();
    let sample = samples().next().transpose().map_err(Error::Data)?;
    let (probe, made_up) = match sample {
        Some(sample) => (sample, false),
        None if request.stages.iter().any(Stage::calibrates) => return Err(Error::NoSample),
        None => (made_up::inputs(&model, &given.shapes).map_err(Error::MadeUp)?, true),
    };
    let scratch = Scratch::of(&mut model, request.output, &request.limits)?;
    let once = Options {
        prepack: false,
        ..Options::default()
    };
    let which = if given.shapes.is_empty() {
        "baseline"
    } else {
        "baseline, with rows of data.inputs[].shape,"
    };
    progress(Step::Simplify);
    // As Assayer's own canonical bytes: ONNX Runtime never sees the file as it came.
    let original = model.clone();
    let (baseline, simplified) = rayon::join(
        || run(runtime.open_model(&original, &once), which, &probe),
        || simplify(&mut model, request),
    );
    drop(original);
    // First: what does not run needs no simplifying.
    let baseline = baseline.map_err(|error| match error {
        Error::Run { source, .. } if made_up => Error::MadeUp(source.to_string()),
        error => error,
    })?;
    let Simplified {
        upgraded,
        stages,
        mut reports,
    } = simplified?;

    if !given.shapes.is_empty() {
        let report = Report {
            name: FREE,
            changed: freed,
            ..Report::default()
        };
        reports.insert(0, report);
    }
    let mut done = 0;
    for stage in stages {
        let mut told = |step| {
            if let Step::Calibrate(batches) = step {
                done = batches;
            }
            progress(step);
        };
        let mut calibration = Calibration {
            runtime,
            threads: request.threads,
            samples,
            probe: &probe,
            progress: &mut told,
        };
        reports.extend(stage.apply(&mut model, &mut calibration)?);
        onnx::check(&model, &request.limits)?;
    }

    progress(Step::Verify);
    onnx::settle(&mut model.graph);
    let written = onnx::write(&model, request.output)?;
    let nodes_after = model.graph.nodes.len();
    // Nothing of the baseline is needed any more, and the candidate may be as large.
    drop(model);
    onnx::check(&onnx::read(request.output, &request.limits)?, &request.limits)?;
    let ((), candidate) = rayon::join(
        || drop(scratch),
        || run(runtime.open(request.output, &once), "candidate", &probe),
    );
    let candidate = candidate?;
    Ok(OptimizeReport {
        opset_before: upgraded.before,
        opset_after: upgraded.after,
        passes: reports,
        bytes_before,
        bytes_after: written.bytes,
        nodes_before,
        nodes_after,
        calibration_batches: done,
        files: std::iter::once(written.model).chain(written.external).collect(),
        first_sample_difference: compare(&baseline, &candidate)?,
    })
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

fn run(session: Result<Session, session::Error>, which: &'static str, inputs: &[Tensor]) -> Result<Vec<Tensor>, Error> {
    let failed = |source| Error::Run { which, source };
    let mut session = session.map_err(failed)?;
    let mut outputs = Vec::new();
    session
        .run(inputs, |output| {
            outputs.push(output.to_tensor()?);
            Ok::<_, session::Error>(())
        })
        .map_err(failed)?;
    Ok(outputs)
}

/// Same outputs, same types and shapes, finite where the baseline is finite; and how far apart.
fn compare(baseline: &[Tensor], candidate: &[Tensor]) -> Result<BTreeMap<String, f32>, Error> {
    let mut differences = BTreeMap::new();
    for before in baseline {
        let unfaithful = |what: String| Error::Unfaithful {
            name: shown(&before.name),
            what,
        };
        let after = candidate
            .iter()
            .find(|after| after.name == before.name)
            .ok_or_else(|| unfaithful("is missing".to_owned()))?;
        if (after.element, &after.dims) != (before.element, &before.dims) {
            let what = format!(
                "is {:?} {:?}, the baseline's {:?} {:?}",
                after.element, after.dims, before.element, before.dims
            );
            return Err(unfaithful(what));
        }
        let name = before.name.clone();
        let (Some(before), Some(after)) = (before.to_floats(), after.to_floats()) else {
            continue;
        };
        let mut largest = 0.0_f32;
        for (before, after) in before.iter().zip(&after).filter(|(before, _)| before.is_finite()) {
            if !after.is_finite() {
                return Err(unfaithful(format!("is {after} where the baseline's is {before}")));
            }
            largest = largest.max((before - after).abs());
        }
        differences.insert(name, largest);
    }
    Ok(differences)
}

#[cfg(test)]
mod given_tests;
#[cfg(test)]
mod tests;
