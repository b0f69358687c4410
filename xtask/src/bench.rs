//! `cargo xtask bench`: figures of the worker on this machine, with a peer's beside them from the same run. Nothing is asserted.
//!
//! Decides what is compared: the candidates of `examples/magika`, the static one once more with every calibration method, and ONNX Runtime's
//! own quantization of the same model with the same calibration rows: dynamic, static by default, and static restricted to Conv and
//! `MatMul` by hand. All models are measured by the worker at one thread, each in alternating blocks with FP32.

use std::{
    fs::{self, File},
    path::{Path, PathBuf},
    process::Command,
    time::Instant,
};

use anyhow::{Context, Result, bail};
use arrow_array::{Array, FixedSizeListArray, Int32Array};
use assayer_crds::{
    ModelOptimization,
    contract::{
        CONTRACT_VERSION, CalibrationSource, InputBinding, Made, MakePlan, MeasurePlan, Measured, ModelSource, Outcome,
        Report, Role, Work, WorkerPlan, paths,
    },
    optimization::Candidate,
    stages::{CalibrationKind, CalibrationMethod, QuantizeMode},
};
use clap::{Args, Subcommand};
use parquet::arrow::arrow_reader::ParquetRecordBatchReaderBuilder;

mod table;

use self::table::table;
use crate::{
    cache,
    example::{self, ExampleData, FEATURES, LABEL},
    images, process,
    progress::Progress,
    tools::pypi,
};

/// What to measure.
#[derive(Debug, Subcommand)]
pub enum Bench {
    /// Time and memory of optimizing examples/magika, and accuracy, latency and size of what comes out
    Worker(Options),
}

/// How often.
#[derive(Debug, Args)]
pub struct Options {
    /// Times that everything is done; the table shows minimum, median and maximum
    #[arg(long, default_value_t = 3, value_parser = clap::value_parser!(u32).range(1..=100))]
    runs: u32,
    /// Program to measure, such as target/release/assayer [default: built with the workspace's dev profile]
    #[arg(long, value_name = "FILE")]
    program: Option<PathBuf>,
    /// Calibration rows, the same for the peer
    #[arg(long, default_value_t = 64, value_parser = clap::value_parser!(u32).range(1..=512))]
    samples: u32,
}

/// The peer, by its exact version; `onnx` is what it needs.
const PEER: [&str; 2] = ["onnxruntime==1.32.0", "onnx"];
/// Its ways: the script's argument, and how the table calls it.
const WAYS: [(&str, &str); 3] = [
    ("dynamic", "dynamic"),
    ("default", "static"),
    ("by-hand", "static, Conv and MatMul only, by hand"),
];
const SCRIPT: &str = include_str!("bench/peer.py");

/// One way to get a small model.
struct Contestant {
    name: String,
    model: PathBuf,
    /// Wall seconds of the process that made it.
    seconds: Vec<f64>,
    /// Its peak resident memory in MiB.
    memory: Vec<f64>,
    measured: Vec<Measured>,
    /// Why there is no model to measure.
    failed: Option<String>,
}

/// What the peer's script says.
#[derive(serde::Deserialize)]
struct Said {
    peak: u64,
    error: Option<String>,
}

struct Bed {
    samples: u32,
    data: ExampleData,
    folder: tempfile::TempDir,
    program: PathBuf,
    library: PathBuf,
}

/// Measures and prints.
pub fn run(bench: &Bench, progress: &Progress) -> Result<()> {
    let Bench::Worker(options) = bench;
    let bed = Bed {
        samples: options.samples,
        data: example::ensure(&example::default_folder(), progress)?,
        folder: tempfile::tempdir()?,
        program: match &options.program {
            Some(program) => std::path::absolute(program)?,
            None => images::compile(progress)?.path("assayer")?.to_owned(),
        },
        library: pypi::onnx_runtime(progress)?,
    };
    let mut contestants = Vec::new();
    let manifest = fs::read_to_string(cache::workspace().join("examples/magika/modeloptimization.yaml"))?;
    let manifest: ModelOptimization = serde_saphyr::from_str(&manifest)?;
    for candidate in &candidates(manifest.spec.candidates) {
        let step = progress.step(format!("make {} {} times", candidate.name, options.runs));
        contestants.push(bed.make(candidate, options.runs)?);
        step.done("");
    }
    let python = peer(progress)?;
    for way in WAYS {
        let step = progress.step(format!("make the peer's model ({}) {} times", way.1, options.runs));
        contestants.push(bed.peer(&python, way, options.runs)?);
        step.done("");
    }
    for round in 0..options.runs {
        let step = progress.step(format!("measure all, round {} of {}", round + 1, options.runs));
        for contestant in contestants.iter_mut().filter(|contestant| contestant.failed.is_none()) {
            let measured = bed
                .measure(&contestant.model)
                .with_context(|| contestant.name.clone())?;
            contestant.measured.push(measured);
        }
        step.done("");
    }
    progress.say(&format!(
        "program: {}; in profile `dev` dependencies are at opt-level 2 and the worker at 3",
        bed.program.display()
    ));
    progress.say("each cell: median [minimum, maximum]; latencies at 1 thread; speed and memory against what ran in the same round");
    progress.say(&format!("\n{}", table(&contestants)));
    Ok(())
}

impl Bed {
    fn make(&self, candidate: &Candidate, runs: u32) -> Result<Contestant> {
        let plan = MakePlan {
            baseline: source(&self.data.model),
            candidate: candidate.name.clone(),
            stages: candidate.stages.clone(),
            calibration: Some(CalibrationSource {
                uri: text(&self.data.calibration),
                samples: self.samples,
            }),
            inputs: inputs(),
            output: text(&self.folder.path().join("made")),
        };
        let (mut seconds, mut memory, mut model) = (Vec::new(), Vec::new(), PathBuf::new());
        for _ in 0..runs {
            let (report, times) = self.work(Work::Make(plan.clone()))?;
            let Outcome::Made(Made {
                uri, peak_memory_bytes, ..
            }) = report.outcome
            else {
                bail!("{:?}", report.outcome)
            };
            seconds.push(times[1]);
            memory.push(mebibytes(peak_memory_bytes));
            model = uri.into();
        }
        Ok(Contestant {
            name: candidate.name.clone(),
            model,
            seconds,
            memory,
            measured: Vec::new(),
            failed: None,
        })
    }

    fn peer(&self, python: &Path, (way, called): (&str, &str), runs: u32) -> Result<Contestant> {
        let (script, rows) = (self.folder.path().join("peer.py"), self.folder.path().join("rows.i32"));
        fs::write(&script, SCRIPT)?;
        let width = unpack(&self.data.calibration, &rows)?;
        let model = self.folder.path().join(format!("peer-{way}.onnx"));
        let (mut seconds, mut memory, mut failed) = (Vec::new(), Vec::new(), None);
        for _ in 0..runs {
            let mut command = Command::new("python3");
            command
                .env("PYTHONPATH", python)
                .arg(&script)
                .arg(way)
                .args([&self.data.model, &rows])
                .args([width.to_string(), self.samples.to_string()])
                .arg(&model);
            let began = Instant::now();
            let said = process::read(&mut command)?;
            seconds.push(began.elapsed().as_secs_f64());
            let last = said.lines().last().unwrap_or_default();
            let said: Said = serde_json::from_str(last).with_context(|| format!("the peer said: {said}"))?;
            memory.push(mebibytes(said.peak));
            failed = said.error;
        }
        Ok(Contestant {
            name: format!("{} {called}", PEER[0]),
            model,
            seconds,
            memory,
            measured: Vec::new(),
            failed,
        })
    }

    fn measure(&self, model: &Path) -> Result<Measured> {
        let plan = MeasurePlan {
            baseline: source(&self.data.model),
            candidate: Some(source(model)),
            evaluation: text(&self.data.evaluation),
            disjoint_from: Some(text(&self.data.calibration)),
            inputs: inputs(),
            label: LABEL.to_owned(),
            output: scanner::model::OUTPUT.to_owned(),
            environment: "bench".to_owned(),
            execution_provider: "CPU".to_owned(),
        };
        match self.work(Work::Measure(plan))?.0.outcome {
            Outcome::Measured(measured) => Ok(measured),
            other => bail!("{other:?}"),
        }
    }

    /// Does the work as pods do, one process a role; the report, and each role's wall seconds.
    fn work(&self, work: Work) -> Result<(Report, Vec<f64>)> {
        let root = self.folder.path().join("job");
        let plan = WorkerPlan {
            v: CONTRACT_VERSION,
            nonce: "0".repeat(32),
            deadline_seconds: 600,
            plain_http: Vec::new(),
            work,
        };
        let file = root.join(paths::PLAN);
        fs::create_dir_all(file.parent().context("the plan has no folder")?)?;
        fs::write(&file, serde_json::to_vec(&plan)?)?;
        let (mut times, mut said) = (Vec::new(), String::new());
        for role in Role::sequence(&plan.work) {
            let mut command = Command::new(&self.program);
            command
                .args(["worker", "--cpus", "1", role.as_str(), "--root"])
                .arg(&root)
                .env("ORT_DYLIB_PATH", &self.library);
            let began = Instant::now();
            said = process::read(&mut command)?;
            times.push(began.elapsed().as_secs_f64());
        }
        fs::remove_dir_all(&root)?;
        Ok((serde_json::from_str(&said).context("read the worker's report")?, times))
    }
}

/// The manifest's candidates, and static ones with the calibration methods that it does not use.
fn candidates(mut candidates: Vec<Candidate>) -> Vec<Candidate> {
    let is_static = |candidate: &&Candidate| {
        let quantize = candidate.stages.iter().find_map(|stage| stage.quantize.as_ref());
        quantize.is_some_and(|quantize| quantize.mode == QuantizeMode::Static)
    };
    let Some(model) = candidates.iter().find(is_static).cloned() else {
        return candidates;
    };
    for (name, method) in [
        ("int8-minmax", CalibrationKind::MinMax),
        ("int8-entropy", CalibrationKind::Entropy),
    ] {
        let mut more = model.clone();
        name.clone_into(&mut more.name);
        for quantize in more.stages.iter_mut().filter_map(|stage| stage.quantize.as_mut()) {
            quantize.calibration = Some(CalibrationMethod {
                method,
                percentile: None,
            });
        }
        if !candidates.iter().any(|candidate| candidate.stages == more.stages) {
            candidates.push(more);
        }
    }
    candidates
}

/// The folder with the peer's packages, fetched if they are not in the cache yet.
fn peer(progress: &Progress) -> Result<PathBuf> {
    let folder = cache::folder("bench")?.join(PEER[0]);
    if !folder.exists() {
        let step = progress.step(format!("fetch {} from PyPI", PEER.join(" and ")));
        let aside = tempfile::tempdir_in(cache::folder("bench")?)?;
        let mut pip = Command::new("python3");
        pip.args([
            "-m",
            "pip",
            "install",
            "--quiet",
            "--disable-pip-version-check",
            "--target",
        ])
        .arg(aside.path())
        .args(PEER);
        process::run(&mut pip)?;
        fs::rename(aside.keep(), &folder)?;
        step.done("");
    }
    Ok(folder)
}

/// Calibration rows as plain little-endian int32, for a reader without Parquet; their width.
fn unpack(parquet: &Path, rows: &Path) -> Result<i32> {
    let reader = ParquetRecordBatchReaderBuilder::try_new(File::open(parquet)?)?.build()?;
    let (mut bytes, mut width) = (Vec::new(), 0);
    for batch in reader {
        let batch = batch?;
        let column = batch.column_by_name(FEATURES).context("no column of features")?;
        let lists = column
            .as_any()
            .downcast_ref::<FixedSizeListArray>()
            .context("features are no lists of one size")?;
        width = lists.value_length();
        let values = lists
            .values()
            .as_any()
            .downcast_ref::<Int32Array>()
            .context("features are no int32")?;
        bytes.extend(values.values().iter().flat_map(|value| value.to_le_bytes()));
    }
    fs::write(rows, bytes)?;
    Ok(width)
}

fn source(path: &Path) -> ModelSource {
    ModelSource {
        uri: text(path),
        model_digest: None,
    }
}

fn text(path: &Path) -> String {
    path.display().to_string()
}

fn inputs() -> Vec<InputBinding> {
    vec![InputBinding {
        name: scanner::model::INPUT.to_owned(),
        column: FEATURES.to_owned(),
    }]
}

#[expect(clippy::cast_precision_loss, reason = "for showing only")]
fn mebibytes(bytes: u64) -> f64 {
    bytes as f64 / 1_048_576.0
}
