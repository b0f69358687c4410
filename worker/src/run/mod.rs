//! Running models: predictions for every row, latency, memory and utilisation, one process a model.
//!
//! Decides what is measured and how. Sees inputs and models, never labels or credentials; judges nothing.

mod child;
pub mod machine;
mod measure;
mod process;
mod protocol;
pub(crate) mod provider;

use std::fs::File;
use std::io::{BufWriter, Write as _};
use std::path::{Path, PathBuf};
use std::time::Instant;

use assayer_crds::contract::{MeasurePlan, Runtime};
use serde::{Deserialize, Serialize};

pub use self::child::serve;
pub use self::process::Program;

use self::measure::Budget;
use self::process::{Process, Which};
use self::protocol::{Setup, WireInput};
use crate::data::{inputs_of, row_shapes};
use crate::failure::{Failure, Result, disk, reasons, refused};
use crate::layout::{Layout, clear, write_note};
use crate::onnx::{self, Limits};
use crate::sandbox::{self, Level};
use crate::storage;

/// The note that `run` leaves beside the predictions.
pub const NOTE: &str = "run.json";

/// What `run` tells `score`. All of it is self-reported.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct RunNote {
    /// Versions and hardware.
    pub runtime: Runtime,
    /// Provider that ran the models.
    pub execution_provider: String,
    /// Rows that were predicted.
    pub rows: u64,
    /// Wall seconds from the start of `run` to its end.
    pub run_seconds: f64,
    /// The baseline's figures.
    pub baseline: ModelRun,
    /// The candidate's figures.
    pub candidate: Option<ModelRun>,
}

/// Figures of one model.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct ModelRun {
    /// Scores in a row of predictions.
    pub classes: u32,
    /// Timed runs.
    pub runs: u64,
    /// Median latency of single rows.
    pub p50_seconds: f64,
    /// 99th percentile of the latency of single rows.
    pub p99_seconds: f64,
    /// Peak resident memory of the process while it ran single rows.
    pub peak_memory_bytes: u64,
    /// Processor time over wall time and threads.
    pub utilisation: f64,
}

/// File of a model's predictions: rows of 32-bit little-endian floats.
pub fn predictions_file(layout: &Layout, candidate: bool) -> PathBuf {
    layout
        .predictions()
        .join(if candidate { "candidate.f32" } else { "baseline.f32" })
}

/// Measures the models of a plan.
pub fn run(plan: &MeasurePlan, layout: &Layout, program: &Program) -> Result<()> {
    let begin = Instant::now();
    provider::parse(&plan.execution_provider)?;
    clear(&layout.predictions())?;
    sandbox::enter(Level::Parent)?;
    let scratch = layout.predictions().join("models");
    let threads = machine::threads();
    let mut processes = vec![start(Which::Baseline, plan, layout, &scratch, threads, program)?];
    if plan.candidate.is_some() {
        processes.push(start(Which::Candidate, plan, layout, &scratch, threads, program)?);
    }
    tracing::info!(threads, provider = %plan.execution_provider, "models are loaded, measuring");
    let latencies = measure::latencies(&mut processes, Budget::default())?;
    let mut runs = Vec::new();
    for ((process, latencies), candidate) in processes.iter_mut().zip(latencies).zip([false, true]) {
        let figures = latencies.figures(threads)?;
        // Before predictions in batches, which take more memory than serving does.
        let peak_memory_bytes = process.peak_memory()?;
        let classes = predict(process, &predictions_file(layout, candidate))?;
        tracing::info!(
            candidate,
            runs = figures.runs,
            p50 = figures.p50_seconds,
            p99 = figures.p99_seconds,
            "measured"
        );
        runs.push(ModelRun {
            classes,
            runs: figures.runs,
            p50_seconds: figures.p50_seconds,
            p99_seconds: figures.p99_seconds,
            peak_memory_bytes,
            utilisation: figures.utilisation,
        });
    }
    let (rows, onnxruntime) = (processes[0].rows, processes[0].onnxruntime.clone());
    drop(processes);
    std::fs::remove_dir_all(&scratch).map_err(|error| disk("remove", &scratch, &error))?;
    let note = RunNote {
        runtime: describe(onnxruntime, threads),
        execution_provider: plan.execution_provider.clone(),
        rows,
        run_seconds: begin.elapsed().as_secs_f64(),
        baseline: runs[0],
        candidate: runs.get(1).copied(),
    };
    write_note(&layout.predictions().join(NOTE), &note)
}

/// Versions and hardware of this container.
pub fn describe(onnxruntime: String, threads: u32) -> Runtime {
    Runtime {
        worker: env!("CARGO_PKG_VERSION").to_owned(),
        onnxruntime,
        cpu: machine::cpu(),
        instruction_set: machine::instruction_set().to_owned(),
        threads,
    }
}

/// Checks a model, writes it anew in Assayer's own spelling, and starts a process that loads that.
fn start(
    which: Which,
    plan: &MeasurePlan,
    layout: &Layout,
    scratch: &Path,
    threads: u32,
    program: &Program,
) -> Result<Process> {
    let folder = match which {
        Which::Baseline => layout.baseline(),
        Which::Candidate => layout.candidate(),
    };
    let refuse = |error: &onnx::Error| model_failure(which.name(), error);
    let files = storage::list(&folder, storage::Limits::default())?;
    let source = storage::single(
        &folder,
        "onnx",
        files.iter().map(|file| file.path.as_str()),
        which.name(),
    )?;
    let limits = Limits::default();
    let mut model = onnx::read(&source, &limits).map_err(|error| refuse(&error))?;
    onnx::free_dimensions(&mut model, &row_shapes(&plan.inputs))
        .map_err(|error| shape_failure(which.name(), &error))?;
    onnx::check(&model, &limits).map_err(|error| refuse(&error))?;
    if matches!(which, Which::Candidate) {
        // Bytes at its ends are given and taken as floats, which callers do, too.
        onnx::floats_around(&mut model).map_err(|error| refuse(&error))?;
    }
    let inputs = inputs_of(&model)?;
    let checked = scratch.join(which.name());
    std::fs::create_dir_all(&checked).map_err(|error| disk("create", &checked, &error))?;
    let written = onnx::write(&model, &checked.join("model.onnx")).map_err(|error| refuse(&error))?;
    drop(model);
    let setup = Setup {
        model: written.model,
        data: layout.inputs(),
        inputs: inputs.iter().map(WireInput::from).collect(),
        output: plan.output.clone(),
        provider: plan.execution_provider.clone(),
        threads,
    };
    Process::start(which, program, &setup)
}

/// A refusal of shapes that the model can't have.
pub(crate) fn shape_failure(name: &str, error: &onnx::Mismatch) -> Failure {
    refused(reasons::COLUMN_MISSING, format!("{name}: {error}"))
}

/// A refusal of a model file, by class.
pub(crate) fn model_failure(name: &str, error: &onnx::Error) -> Failure {
    let message = format!("{name}: {error}");
    match error {
        onnx::Error::Io { action, path, source } => disk(action, path, source),
        onnx::Error::Limit { .. } => refused(reasons::MODEL_TOO_LARGE, message),
        onnx::Error::Unsupported { .. } | onnx::Error::Opset { .. } => refused(reasons::OPERATOR_UNKNOWN, message),
        _ => refused(reasons::MODEL_INVALID, message),
    }
}

fn predict(process: &mut Process, path: &Path) -> Result<u32> {
    let failed = |error: std::io::Error| disk("write", path, &error);
    let mut out = BufWriter::new(File::create(path).map_err(failed)?);
    let classes = measure::predictions(process, &mut out, failed)?;
    out.flush().map_err(failed)?;
    Ok(classes)
}
