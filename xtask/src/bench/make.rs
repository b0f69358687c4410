//! Makes the models of all contestants, each in processes of its own, and notes what that took. A tool's crash is a result in its own words.

use std::{
    fs,
    path::Path,
    process::{Command, Output},
};

use anyhow::{Context, Result, bail};
use assayer_crds::contract::{
    CONTRACT_VERSION, CalibrationSource, MakePlan, ModelSource, Outcome, Report, Role, Work, WorkerPlan, paths,
};
use assayer_crds::stages::Stage;
use serde::Deserialize;

use super::{
    bed::{Bed, files_below},
    contestant::{Contestant, Taken, Way},
};

/// Samples that quality is judged with.
const FOR_QUALITY: u32 = 256;
/// No candidate of the bench may take longer.
const DEADLINE_SECONDS: u64 = 3_600;
/// Longest words of a tool that are kept.
const WORDS: usize = 300;

/// What a peer's script writes.
#[derive(Deserialize)]
struct Said {
    error: Option<String>,
}

/// Makes it once more for time and memory, unless it failed before.
pub(super) fn timed(bed: &Bed, contestant: &mut Contestant, samples: u32) -> Result<()> {
    if contestant.failure.is_none() && !matches!(contestant.way, Way::Given) {
        let samples = contestant.most_samples.map_or(samples, |most| most.min(samples));
        if let Some(taken) = once(bed, contestant, samples)? {
            contestant.taken.push(taken);
        }
    }
    Ok(())
}

/// Makes it as its quality is judged, where that is not what [`timed`] has made.
pub(super) fn for_quality(bed: &Bed, contestant: &mut Contestant) -> Result<()> {
    let samples = contestant
        .most_samples
        .map_or(FOR_QUALITY, |most| most.min(FOR_QUALITY));
    let made = contestant.taken.last().map(|taken| taken.samples);
    if contestant.failure.is_none() && contestant.calibrated && made != Some(samples) {
        contestant.for_quality = once(bed, contestant, samples)?;
    }
    Ok(())
}

fn once(bed: &Bed, contestant: &mut Contestant, samples: u32) -> Result<Option<Taken>> {
    let folder = bed.made(&contestant.id);
    if folder.exists() {
        fs::remove_dir_all(&folder)?;
    }
    fs::create_dir_all(&folder)?;
    let taken = match contestant.way.clone() {
        Way::Given => return Ok(None),
        Way::Stages(stages) => by_worker(bed, contestant, stages, &folder, samples)?,
        Way::Script { python, script, method } => {
            let mut command = Command::new(python);
            command.arg(bed.script(script));
            by_script(bed, contestant, command, method, &folder, samples)?
        }
    };
    if contestant.failure.is_none() {
        let files = files_below(&folder)?;
        contestant.bytes = files.iter().map(|(_, bytes)| bytes).sum();
        let model = files
            .into_iter()
            .find(|(path, _)| path.extension().is_some_and(|end| end == "onnx"));
        contestant.model = Some(model.context("there is no .onnx file among what was made")?.0);
    }
    Ok(Some(taken))
}

/// As pods do it, one process a role. Its time is that of `stage` and `optimize`, in which the candidate is loaded and run.
fn by_worker(bed: &Bed, contestant: &mut Contestant, stages: Vec<Stage>, folder: &Path, samples: u32) -> Result<Taken> {
    let plan = WorkerPlan {
        v: CONTRACT_VERSION,
        nonce: "0".repeat(32),
        deadline_seconds: DEADLINE_SECONDS,
        plain_http: Vec::new(),
        work: Work::Make(MakePlan {
            baseline: ModelSource {
                uri: bed.delivered().display().to_string(),
                model_digest: None,
            },
            candidate: "bench".to_owned(),
            stages,
            calibration: contestant.calibrated.then(|| CalibrationSource {
                uri: bed.data().join("calibration.parquet").display().to_string(),
                samples,
            }),
            inputs: Vec::new(),
            output: folder.display().to_string(),
        }),
    };
    let root = bed.made("job");
    let file = root.join(paths::PLAN);
    fs::create_dir_all(file.parent().context("the plan has no folder")?)?;
    let mut written = serde_json::to_value(&plan)?;
    // As the data's script says, for whatever worker is measured: an older one refuses what it does not know, in its own words.
    let inputs = written
        .pointer_mut("/work/make/inputs")
        .context("the plan has no inputs")?;
    *inputs = bed.inputs()?;
    fs::write(&file, serde_json::to_vec(&written)?)?;
    let mut all = Taken {
        samples,
        seconds: 0.0,
        peak_bytes: 0,
    };
    for role in Role::sequence(&plan.work) {
        let (taken, output) = bed.timed(&bed.worker(role.as_str(), &root), samples)?;
        if role != Role::Publish {
            all.seconds += taken.seconds;
            all.peak_bytes = all.peak_bytes.max(taken.peak_bytes);
        }
        if let Some(outcome) = outcome(&output)? {
            match outcome {
                Outcome::Made(made) => contestant.passes = made.passes,
                Outcome::Failed(failure) => {
                    contestant.failure = Some(format!("{}: {}", failure.reason, failure.message));
                }
                Outcome::Measured(_) => bail!("the worker measured instead of making"),
            }
            break;
        }
    }
    fs::remove_dir_all(&root)?;
    Ok(all)
}

/// What the worker reports; nothing where the role has nothing to report yet.
fn outcome(output: &Output) -> Result<Option<Outcome>> {
    let said = String::from_utf8_lossy(&output.stdout);
    match said.lines().last() {
        None if output.status.success() => Ok(None),
        None => bail!(
            "the worker ended ({}) without a report: {}",
            output.status,
            String::from_utf8_lossy(&output.stderr).trim_end()
        ),
        Some(line) => {
            let report: Report = serde_json::from_str(line).with_context(|| format!("the worker said: {line}"))?;
            Ok(Some(report.outcome))
        }
    }
}

fn by_script(
    bed: &Bed,
    contestant: &mut Contestant,
    mut command: Command,
    method: &str,
    folder: &Path,
    samples: u32,
) -> Result<Taken> {
    let scratch = bed.made("scratch");
    fs::create_dir_all(&scratch)?;
    let (job, said) = (scratch.join("job.json"), scratch.join("said.json"));
    let text = serde_json::json!({
        "task": bed.task().name(),
        "model": bed.baseline(),
        "feeds": bed.data().join("calibration.npz"),
        "samples": samples,
        "method": method,
        "output": folder.join("model.onnx"),
        "scratch": scratch,
        "said": said,
    });
    fs::write(&job, serde_json::to_vec(&text)?)?;
    command.arg(&job);
    // Nobody's telemetry, nobody's hub.
    command.envs([
        ("OLIVE_DISABLE_TELEMETRY", "1"),
        ("HF_HUB_OFFLINE", "1"),
        ("TQDM_DISABLE", "1"),
    ]);
    let (taken, output) = bed.timed(&command, samples)?;
    contestant.failure = if let Ok(text) = fs::read(&said) {
        serde_json::from_slice::<Said>(&text)?.error
    } else {
        // Killed from outside, most likely for its memory.
        let words = String::from_utf8_lossy(&output.stderr).into_owned();
        let last = words.lines().last().unwrap_or_default();
        Some(format!("{}: {last}", output.status))
    };
    if let Some(words) = &mut contestant.failure {
        *words = words.chars().take(WORDS).collect();
    }
    fs::remove_dir_all(&scratch)?;
    Ok(taken)
}
