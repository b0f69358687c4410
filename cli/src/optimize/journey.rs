//! The order of the work, as in the cluster: the baseline everywhere, then each candidate, then candidate and baseline together.
//!
//! Decides what a failed step means for those after it. Judging is the gates' own; nothing is written here.

use std::collections::BTreeMap;
use std::path::PathBuf;

use anyhow::{Context as _, Result};
use assayer_crds::contract::{self, Made, Measured, ModelSource, Runtime, Work, metrics};
use assayer_crds::digest::Digest;
use assayer_crds::evidence::GateVerdict;
use assayer_crds::optimization::{Candidate, Environment};
use assayer_operator::optimization::gates::{self, Contender, Findings, value_in_words as words};
use assayer_operator::optimization::steps::{self, Step};

use super::input::{self, Input};
use super::job::{Done, Jobs, Problem};
use super::output::Place;
use crate::progress::Progress;

/// What became of everything.
pub(super) struct Outcome {
    /// The baseline alone, where it could be measured.
    pub(super) baseline: Vec<Taken>,
    /// Every candidate, in the manifest's order.
    pub(super) candidates: Vec<Judged>,
    /// Name of the one that is selected.
    pub(super) selected: Option<String>,
}

/// A measurement and who took it.
pub(super) struct Taken {
    pub(super) measured: Measured,
    pub(super) runtime: Runtime,
}

/// A model that was made.
pub(super) struct Model {
    pub(super) made: Made,
    pub(super) runtime: Runtime,
    /// Its files, in the work folder.
    pub(super) folder: PathBuf,
}

/// A candidate with all that was found out about it.
pub(super) struct Judged {
    pub(super) candidate: Candidate,
    pub(super) model: Option<Model>,
    pub(super) measured: Vec<Taken>,
    /// Environments that could not be measured, with the reason.
    pub(super) failures: BTreeMap<String, String>,
    pub(super) verdicts: Vec<GateVerdict>,
    pub(super) state: State,
    /// Why it was rejected or failed.
    pub(super) message: String,
}

/// How a candidate stands in the end; the words of the status in a cluster.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum State {
    /// Every blocking gate passed.
    Passed,
    /// A gate said no.
    Rejected,
    /// It could not be made or measured.
    Failed,
}

impl State {
    pub(super) fn as_str(self) -> &'static str {
        match self {
            Self::Passed => "Passed",
            Self::Rejected => "Rejected",
            Self::Failed => "Failed",
        }
    }
}

struct Journey<'a> {
    input: &'a Input,
    place: &'a Place,
    jobs: &'a mut Jobs,
    progress: Progress,
    baseline: Vec<Taken>,
    failures: BTreeMap<String, String>,
    digest: Option<Digest>,
}

/// Goes the whole way.
pub(super) async fn go(input: &Input, place: &Place, jobs: &mut Jobs) -> Result<Outcome> {
    let spec = &input.runnable;
    let steps = spec.environments.len() * (1 + spec.candidates.len()) + spec.candidates.len();
    let digest = input.baseline.clone();
    let mut journey = Journey {
        input,
        place,
        jobs,
        progress: Progress::new(steps),
        baseline: Vec::new(),
        failures: BTreeMap::new(),
        digest,
    };
    for environment in &spec.environments {
        journey.baseline(environment).await?;
    }
    let mut candidates = Vec::new();
    for candidate in &spec.candidates {
        candidates.push(journey.make(candidate).await?);
    }
    for judged in &mut candidates {
        if judged.model.is_some() {
            for environment in &spec.environments {
                journey.measure(judged, environment).await?;
            }
        }
        journey.judge(judged);
    }
    journey.progress.finish();
    let selected = select(&candidates);
    Ok(Outcome {
        baseline: journey.baseline,
        candidates,
        selected,
    })
}

impl Journey<'_> {
    async fn baseline(&mut self, environment: &Environment) -> Result<()> {
        let step = Step::Baseline {
            environment: environment.name.clone(),
        };
        let plan = steps::measure_plan(&self.input.runnable, environment, self.digest.as_ref(), None);
        match self.measured(&step, environment, Work::Measure(plan)).await? {
            Ok(taken) => {
                self.digest
                    .get_or_insert_with(|| taken.measured.baseline_digest.clone());
                self.baseline.push(taken);
            }
            Err(problem) => drop(self.failures.insert(environment.name.clone(), problem.told)),
        }
        Ok(())
    }

    async fn make(&mut self, candidate: &Candidate) -> Result<Judged> {
        let mut judged = Judged {
            candidate: candidate.clone(),
            model: None,
            measured: Vec::new(),
            failures: self.failures.clone(),
            verdicts: Vec::new(),
            state: State::Failed,
            message: String::new(),
        };
        if self.baseline.is_empty() {
            // Nothing could be compared: nothing is made.
            judged.message = told(&self.failures);
            return Ok(judged);
        }
        let mut plan = steps::make_plan(&self.input.runnable, candidate, self.digest.as_ref());
        let published = self.jobs.folder().join("published");
        if !self.input.pushes {
            plan.output = published
                .to_str()
                .context("the folder for temporary files is not UTF-8")?
                .to_owned();
        }
        let step = Step::Make {
            candidate: candidate.name.clone(),
        };
        let shown = self.progress.step(step.to_string());
        match self
            .jobs
            .work(&self.input.runnable, &step, None, Work::Make(plan))
            .await?
        {
            Ok(done) => {
                let model = self.take(done, candidate)?;
                shown.done(&format!(
                    "{}, {} in {:.2} s",
                    words(metrics::ARTIFACT_SIZE, float(model.made.bytes)),
                    words(metrics::PEAK_MEMORY, float(model.made.peak_memory_bytes)),
                    model.made.seconds
                ));
                judged.model = Some(model);
            }
            Err(problem) => {
                shown.failed(&problem.told);
                judged.message = problem.told;
            }
        }
        Ok(judged)
    }

    /// Moves the model out of the job's folder.
    fn take(&self, done: Done, candidate: &Candidate) -> Result<Model> {
        let contract::Outcome::Made(mut made) = done.report.outcome else {
            anyhow::bail!("a make step that made nothing")
        };
        let folder = self.jobs.folder().join("models").join(&candidate.name);
        let from = if self.input.pushes {
            done.folder.join("out/model")
        } else {
            PathBuf::from(&made.uri)
        };
        std::fs::create_dir_all(self.jobs.folder().join("models"))?;
        std::fs::rename(&from, &folder).with_context(|| format!("move {}", from.display()))?;
        if !self.input.pushes {
            // Where it will lie when the run is over.
            made.uri = self.place.of(&candidate.name).display().to_string();
        }
        Ok(Model {
            made,
            runtime: done.report.runtime,
            folder,
        })
    }

    async fn measure(&mut self, judged: &mut Judged, environment: &Environment) -> Result<()> {
        let Some(model) = &judged.model else { return Ok(()) };
        let step = Step::Measure {
            candidate: judged.candidate.name.clone(),
            environment: environment.name.clone(),
        };
        if let Some(failure) = self.failures.get(&environment.name) {
            let told = format!("the baseline could not be measured there: {failure}");
            self.progress.step(step.to_string()).failed(&told);
            return Ok(());
        }
        let uri = if self.input.pushes {
            model.made.uri.clone()
        } else {
            model.folder.to_string_lossy().into_owned()
        };
        let source = ModelSource {
            uri,
            model_digest: Some(model.made.model_digest.clone()),
        };
        let plan = steps::measure_plan(&self.input.runnable, environment, self.digest.as_ref(), Some(source));
        match self.measured(&step, environment, Work::Measure(plan)).await? {
            Ok(taken) => judged.measured.push(taken),
            Err(problem) => drop(judged.failures.insert(environment.name.clone(), problem.told)),
        }
        Ok(())
    }

    async fn measured(&mut self, step: &Step, environment: &Environment, work: Work) -> Result<Result<Taken, Problem>> {
        let shown = self.progress.step(step.to_string());
        let done = match self
            .jobs
            .work(&self.input.runnable, step, input::cores(environment), work)
            .await?
        {
            Ok(done) => done,
            Err(problem) => {
                shown.failed(&problem.told);
                return Ok(Err(problem));
            }
        };
        let contract::Outcome::Measured(measured) = done.report.outcome else {
            anyhow::bail!("a measure step that measured nothing")
        };
        shown.done(&figures(&measured));
        Ok(Ok(Taken {
            measured,
            runtime: done.report.runtime,
        }))
    }

    fn judge(&self, judged: &mut Judged) {
        let spec = &self.input.stated;
        let findings = Findings {
            made: judged.model.as_ref().map(|model| &model.made),
            baseline: self.baseline.iter().map(|taken| &taken.measured).collect(),
            measured: judged.measured.iter().map(|taken| &taken.measured).collect(),
            failures: judged.failures.clone(),
        };
        let verdicts = gates::judge(spec, &findings);
        let passed = gates::passes(spec, &verdicts, &findings);
        let refused: Vec<&GateVerdict> = gates::blocking(&verdicts)
            .filter(|verdict| verdict.verdict != gates::ERROR)
            .collect();
        if judged.model.is_some() {
            (judged.state, judged.message) = if passed {
                (State::Passed, String::new())
            } else if refused.is_empty() {
                (State::Failed, told(&judged.failures))
            } else {
                let messages: Vec<&str> = gates::blocking(&verdicts)
                    .map(|verdict| verdict.message.as_str())
                    .collect();
                (State::Rejected, messages.join("; "))
            };
        }
        judged.verdicts = verdicts;
    }
}

fn told(failures: &BTreeMap<String, String>) -> String {
    let told: Vec<String> = failures
        .iter()
        .map(|(environment, why)| format!("{environment}: {why}"))
        .collect();
    told.join("; ")
}

/// One line about a measurement: the candidate against the baseline, or the baseline alone.
fn figures(measured: &Measured) -> String {
    let of = |name: &str| {
        let value = |from: &contract::Measurements| from.get(name).map(|taken| words(name, taken.value));
        let baseline = value(&measured.baseline).unwrap_or_default();
        match &measured.candidate {
            None => format!("{name} {baseline}"),
            Some(candidate) => format!("{name} {} ({baseline})", value(candidate).unwrap_or_default()),
        }
    };
    [metrics::ACCURACY, metrics::LATENCY_P50, metrics::LATENCY_P99]
        .map(of)
        .join(", ")
}

/// As the operator selects.
fn select(candidates: &[Judged]) -> Option<String> {
    let contenders: Vec<Contender> = candidates
        .iter()
        .filter_map(|judged| {
            let model = judged.model.as_ref()?;
            let measured: Vec<&Measured> = judged.measured.iter().map(|taken| &taken.measured).collect();
            Some(Contender::new(
                &judged.candidate.name,
                judged.state == State::Passed,
                model.made.bytes,
                &measured,
            ))
        })
        .collect();
    gates::select(&contenders).map(|contender| contender.name.clone())
}

#[expect(clippy::cast_precision_loss, reason = "for showing only")]
pub(super) fn float(bytes: u64) -> f64 {
    bytes as f64
}
