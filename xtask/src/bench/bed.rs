//! What all contestants of a model share: files, programs, and how a process is timed. Decides nothing about who competes.

use std::{
    fs,
    path::{Path, PathBuf},
    process::{Command, Output, Stdio},
};

use anyhow::{Context, Result, bail};
use serde::Deserialize;

use super::{Options, contestant::Taken, environment, task::Task};
use crate::{foreground, images, process, progress::Progress, tools::pypi};

/// The Python files, by the names under which they know each other.
const SCRIPTS: &[(&str, &str)] = &[
    ("evaluate.py", include_str!("python/evaluate.py")),
    ("feeds.py", include_str!("python/feeds.py")),
    ("peer.py", include_str!("python/peer.py")),
    ("peer_inc.py", include_str!("python/peer_inc.py")),
    ("peer_modelopt.py", include_str!("python/peer_modelopt.py")),
    ("peer_nncf.py", include_str!("python/peer_nncf.py")),
    ("peer_olive.py", include_str!("python/peer_olive.py")),
    ("peer_ort.py", include_str!("python/peer_ort.py")),
    ("prepare_centerface.py", include_str!("python/prepare_centerface.py")),
    ("prepare_large.py", include_str!("python/prepare_large.py")),
    ("prepare_magika.py", include_str!("python/prepare_magika.py")),
    ("prepare_minilm.py", include_str!("python/prepare_minilm.py")),
    ("prepare_tinylm.py", include_str!("python/prepare_tinylm.py")),
    ("tasks.py", include_str!("python/tasks.py")),
    ("timed.py", include_str!("python/timed.py")),
    ("transformer.py", include_str!("python/transformer.py")),
];

/// What prepares data and evaluates: a neutral environment, no contestant's.
const EVALUATION: &[&str] = &[
    "onnxruntime==1.32.0",
    "onnx==1.23.2",
    "numpy==2.4.6",
    "pyarrow==26.0.1",
    "scikit-image==0.26.0",
    "tokenizers==0.23.3",
];

/// What all contestants of a model share.
#[derive(Debug)]
pub(super) struct Bed {
    task: Task,
    /// The task's files: see [`Bed::data`].
    data: PathBuf,
    /// Scripts, and everything that is made.
    folder: tempfile::TempDir,
    /// Python of the neutral environment.
    python: PathBuf,
    /// The worker's program, and the library that it loads.
    program: PathBuf,
    library: PathBuf,
}

/// What `timed.py` writes.
#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Timed {
    seconds: f64,
    peak_bytes: u64,
}

/// The scripts in a folder.
pub(super) fn write_scripts(folder: &Path) -> Result<()> {
    for (name, text) in SCRIPTS {
        fs::write(folder.join(name), text).with_context(|| format!("write {name}"))?;
    }
    Ok(())
}

/// All files below a folder, with their sizes.
pub(super) fn files_below(folder: &Path) -> Result<Vec<(PathBuf, u64)>> {
    let mut files = Vec::new();
    for entry in fs::read_dir(folder)? {
        let entry = entry?;
        if entry.file_type()?.is_dir() {
            files.extend(files_below(&entry.path())?);
        } else {
            files.push((entry.path(), entry.metadata()?.len()));
        }
    }
    Ok(files)
}

/// The text of a script.
pub(super) fn script(name: &str) -> &'static str {
    SCRIPTS
        .iter()
        .find(|(known, _)| *known == name)
        .map_or("", |(_, text)| text)
}

impl Bed {
    /// Fetches and makes what the task needs and the cache lacks.
    pub(super) fn new(task: Task, options: &Options, progress: &Progress) -> Result<Self> {
        let folder = environment::aside()?;
        let program = if let Some(program) = &options.program {
            std::path::absolute(program)?
        } else {
            // What is in images, and starts sooner.
            let program = folder.path().join("assayer");
            images::strip(images::compile(progress)?.path("assayer")?, &program)?;
            program
        };
        write_scripts(folder.path())?;
        let python = environment::python("evaluation", EVALUATION, progress)?;
        let data = task.data(&python, folder.path(), progress)?;
        Ok(Self {
            task,
            data,
            folder,
            python,
            program,
            library: pypi::onnx_runtime(progress)?,
        })
    }

    pub(super) fn task(&self) -> Task {
        self.task
    }

    /// The folder with `model.onnx` as delivered, or where it has files beside it, the folder `model` with all of them; `inputs.json`,
    /// `held-out.npz`, and where they are needed `calibration.parquet`, `calibration.npz` and `latency.npz`; where the file as delivered
    /// can't be run, `repaired.onnx` beside it.
    pub(super) fn data(&self) -> &Path {
        &self.data
    }

    /// The model as delivered: a file, or a folder with it.
    pub(super) fn delivered(&self) -> PathBuf {
        let folder = self.data.join("model");
        if folder.exists() {
            folder
        } else {
            self.data.join("model.onnx")
        }
    }

    /// The file that ONNX Runtime runs and that other tools get: repaired by hand where the model as delivered needs that.
    pub(super) fn baseline(&self) -> PathBuf {
        let repaired = self.data.join("repaired.onnx");
        let delivered = self.delivered();
        if repaired.exists() {
            repaired
        } else if delivered.is_dir() {
            delivered.join("model.onnx")
        } else {
            delivered
        }
    }

    /// With the files beside it.
    pub(super) fn baseline_bytes(&self) -> Result<u64> {
        let delivered = self.delivered();
        if delivered.is_dir() {
            return Ok(files_below(&delivered)?.iter().map(|(_, bytes)| bytes).sum());
        }
        Ok(fs::metadata(self.baseline())?.len())
    }

    /// A folder for what is made.
    pub(super) fn made(&self, name: &str) -> PathBuf {
        self.folder.path().join("made").join(name.replace(' ', "-"))
    }

    /// A script of the bench.
    pub(super) fn script(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    /// The worker in the role `role`, with its files below `root`.
    pub(super) fn worker(&self, role: &str, root: &Path) -> Command {
        let mut command = Command::new(&self.program);
        command
            .args(["worker", role, "--root"])
            .arg(root)
            .env("ORT_DYLIB_PATH", &self.library)
            .env("ORT_DISABLE_TELEMETRY", "1");
        command
    }

    /// The inputs of the model, each fed by the column of its name.
    pub(super) fn inputs(&self) -> Result<serde_json::Value> {
        let path = self.data.join("inputs.json");
        let text = fs::read(&path).with_context(|| format!("read {}", path.display()))?;
        serde_json::from_slice(&text).with_context(|| format!("parse {}", path.display()))
    }

    /// Runs a command to its end, whatever that is, on the processors that all contestants get.
    pub(super) fn timed(&self, command: &Command, samples: u32) -> Result<(Taken, Output)> {
        let report = self.folder.path().join("taken.json");
        let mut timed = Command::new(&self.python);
        timed
            .arg(self.script("timed.py"))
            .arg(&report)
            .arg(command.get_program());
        timed.args(command.get_args());
        timed.envs(command.get_envs().filter_map(|(name, value)| Some((name, value?))));
        let output = foreground::output(timed.stdin(Stdio::null())).context("run timed.py")?;
        let Ok(text) = fs::read(&report) else {
            bail!(
                "a contestant was interrupted ({}): {}",
                output.status,
                String::from_utf8_lossy(&output.stderr).trim_end()
            )
        };
        fs::remove_file(&report)?;
        let timed: Timed = serde_json::from_slice(&text).context("read what timed.py wrote")?;
        let taken = Taken {
            samples,
            seconds: timed.seconds,
            peak_bytes: timed.peak_bytes,
        };
        Ok((taken, output))
    }

    /// Runs `evaluate.py`; its answer.
    pub(super) fn evaluate(&self, job: &serde_json::Value, progress: &Progress) -> Result<String> {
        let path = self.folder.path().join("evaluate.json");
        fs::write(&path, serde_json::to_vec(job)?)?;
        let step = progress.step(format!("{}: evaluate all", self.task.name()));
        let mut command = Command::new(&self.python);
        let said = process::read_shown(command.arg(self.script("evaluate.py")).arg(&path), &step)?;
        step.done("");
        Ok(said)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn files_are_found_in_folders() {
        let folder = tempfile::tempdir().unwrap();
        fs::create_dir(folder.path().join("tag")).unwrap();
        fs::write(folder.path().join("tag/model.onnx"), "abc").unwrap();
        let files = files_below(folder.path()).unwrap();
        assert_eq!(files, [(folder.path().join("tag/model.onnx"), 3)]);
    }
}
