//! From a spec to its pieces of work: which steps there are, what each worker is asked, and how its Job is called.
//!
//! Pure. Names and nonces follow from the run, the step and the attempt, so that a crash between two writes finds its own Job again.
//! Never decides when a step runs.

use std::fmt;

use assayer_crds::ModelOptimizationSpec;
use assayer_crds::contract::{
    CONTRACT_VERSION, CalibrationSource, InputBinding, MakePlan, MeasurePlan, ModelSource, Work, WorkerPlan,
};
use assayer_crds::digest::Digest;
use assayer_crds::optimization::{Candidate, Environment};
use assayer_crds::stages::{QuantizeMode, RecoverMethod, Stage, WeightType};
use assayer_crds::units;
use serde::Serialize;

/// Longest part of an object's name that goes into its Jobs' names.
const NAME_CUT: usize = 30;

/// One piece of work: one Job for each attempt.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Step {
    /// Measure the model as delivered, before anything is changed.
    Baseline {
        /// Where.
        environment: String,
    },
    /// Make a candidate and publish it.
    Make {
        /// Which.
        candidate: String,
    },
    /// Measure a candidate together with the baseline.
    Measure {
        /// Which.
        candidate: String,
        /// Where.
        environment: String,
    },
}

impl fmt::Display for Step {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Baseline { environment } => write!(f, "baseline/{environment}"),
            Self::Make { candidate } => write!(f, "make/{candidate}"),
            Self::Measure { candidate, environment } => write!(f, "measure/{candidate}/{environment}"),
        }
    }
}

impl Step {
    /// The environment that it runs in, where the step is bound to one.
    pub fn environment(&self) -> Option<&str> {
        match self {
            Self::Baseline { environment } | Self::Measure { environment, .. } => Some(environment),
            Self::Make { .. } => None,
        }
    }

    /// The candidate that it is about.
    pub fn candidate(&self) -> Option<&str> {
        match self {
            Self::Baseline { .. } => None,
            Self::Make { candidate } | Self::Measure { candidate, .. } => Some(candidate),
        }
    }
}

/// The baseline's steps, one for each environment.
pub fn baselines(spec: &ModelOptimizationSpec) -> impl Iterator<Item = Step> {
    spec.environments.iter().map(|environment| Step::Baseline {
        environment: environment.name.clone(),
    })
}

/// The making of each candidate.
pub fn makes(spec: &ModelOptimizationSpec) -> impl Iterator<Item = Step> {
    spec.candidates.iter().map(|candidate| Step::Make {
        candidate: candidate.name.clone(),
    })
}

/// The measurements of one candidate.
pub fn measures(spec: &ModelOptimizationSpec, candidate: &str) -> impl Iterator<Item = Step> {
    spec.environments.iter().map(move |environment| Step::Measure {
        candidate: candidate.to_owned(),
        environment: environment.name.clone(),
    })
}

/// What makes one run different from any other of the same object.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Run {
    /// Uid of the object.
    pub uid: String,
    /// Generation of the spec.
    pub generation: i64,
    /// Token of `assayer.dev/rerun`, if any.
    pub rerun: Option<String>,
    /// Image of the workers, by digest: a run is never continued by other workers.
    pub worker_image: String,
}

impl Run {
    fn hash(&self, purpose: &str, step: &Step, attempt: i32) -> Digest {
        let parts = [
            purpose,
            &self.uid,
            &self.generation.to_string(),
            self.rerun.as_deref().unwrap_or_default(),
            &self.worker_image,
            &step.to_string(),
            &attempt.to_string(),
        ];
        // A length before each part, so that no two lists of parts read alike.
        let lengths = parts.iter().map(|part| part.len().to_string());
        let text: Vec<String> = lengths
            .zip(parts)
            .map(|(length, part)| format!("{length}:{part}"))
            .collect();
        Digest::of(text.join(";").as_bytes())
    }

    /// Ties an answer to one attempt at a step.
    pub fn nonce(&self, step: &Step, attempt: i32) -> String {
        self.hash("nonce", step, attempt).short(32).to_owned()
    }

    /// 12 hex digits that end the Job's name and that of the kept report.
    pub fn short(&self, step: &Step, attempt: i32) -> String {
        self.hash("job", step, attempt).short(12).to_owned()
    }

    /// Name of the Job: `assayer-<name cut to 30>-<hash>`.
    pub fn job_name(&self, object: &str, step: &Step, attempt: i32) -> String {
        let cut: String = object.replace('.', "-").chars().take(NAME_CUT).collect();
        format!("assayer-{}-{}", cut.trim_end_matches('-'), self.short(step, attempt))
    }
}

/// What the operator's settings add to every plan.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Settings {
    /// Image of the workers, by digest.
    pub worker_image: String,
    /// Registries that are spoken to without TLS.
    pub plain_http: Vec<String>,
}

fn inputs(spec: &ModelOptimizationSpec) -> Vec<InputBinding> {
    let bind = |input: &assayer_crds::optimization::Input| InputBinding {
        name: input.name.clone(),
        column: input.column.clone(),
        shape: input.shape.clone(),
        padding_mask: input.padding_mask,
    };
    spec.data.inputs.iter().map(bind).collect()
}

/// What the making of `candidate` asks. `baseline` is the digest that the recorded baseline had, where it is known.
pub fn make_plan(spec: &ModelOptimizationSpec, candidate: &Candidate, baseline: Option<&Digest>) -> MakePlan {
    // Dynamic stages learn nothing from it, but every candidate is run on some of it before it is published.
    let calibration = spec.data.calibration.as_ref();
    MakePlan {
        baseline: ModelSource {
            uri: spec.model.uri.clone(),
            model_digest: baseline.cloned(),
        },
        candidate: candidate.name.clone(),
        stages: candidate.stages.clone(),
        calibration: calibration.map(|calibration| CalibrationSource {
            uri: calibration.uri.clone(),
            samples: calibration.samples,
        }),
        inputs: inputs(spec),
        output: spec.output.uri.clone(),
    }
}

/// What a measurement in `environment` asks: of the baseline alone, or together with `candidate`.
pub fn measure_plan(
    spec: &ModelOptimizationSpec,
    environment: &Environment,
    baseline: Option<&Digest>,
    candidate: Option<ModelSource>,
) -> MeasurePlan {
    MeasurePlan {
        baseline: ModelSource {
            uri: spec.model.uri.clone(),
            model_digest: baseline.cloned(),
        },
        candidate,
        evaluation: spec.data.evaluation.uri.clone(),
        disjoint_from: spec
            .data
            .calibration
            .as_ref()
            .map(|calibration| calibration.uri.clone()),
        inputs: inputs(spec),
        label: spec.data.label.clone(),
        output: spec.task.output.clone(),
        environment: environment.name.clone(),
        execution_provider: environment.execution_provider.as_str().to_owned(),
    }
}

/// Seconds after which a worker gives up by itself; the spec's deadline, or 1 h where that can't be read (a spec that `invalid` refuses).
pub fn deadline_seconds(spec: &ModelOptimizationSpec) -> u64 {
    let seconds = units::seconds(&spec.run.deadline).unwrap_or(3_600.0).clamp(1.0, 1e9);
    #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "clamped above")]
    let whole = seconds as u64;
    whole
}

/// The plan of one attempt, around its work.
pub fn worker_plan(
    spec: &ModelOptimizationSpec,
    settings: &Settings,
    run: &Run,
    step: &Step,
    attempt: i32,
    work: Work,
) -> WorkerPlan {
    WorkerPlan {
        v: CONTRACT_VERSION,
        nonce: run.nonce(step, attempt),
        deadline_seconds: deadline_seconds(spec),
        plain_http: settings.plain_http.clone(),
        work,
    }
}

/// The candidate's key: sha256 of everything that decides what is made and measured, without gates. Equal keys, equal work.
pub fn candidate_key(spec: &ModelOptimizationSpec, candidate: &Candidate, worker_image: &str) -> Digest {
    #[derive(Serialize)]
    #[serde(rename_all = "camelCase")]
    struct Key<'a> {
        make: MakePlan,
        measure: Vec<MeasurePlan>,
        environments: &'a [Environment],
        worker_image: &'a str,
    }
    let key = Key {
        make: make_plan(spec, candidate, None),
        measure: spec
            .environments
            .iter()
            .map(|e| measure_plan(spec, e, None, None))
            .collect(),
        environments: &spec.environments,
        worker_image,
    };
    // Strings and integers only: this can't fail to be JSON; the fallback keeps the function total and matches no key.
    Digest::of_canonical(&key).unwrap_or_else(|_| Digest::of(b""))
}

/// One phrase for tables: `static-int8`, `dynamic-int8`, `blocks-int4`, `simplified`.
pub fn technique(stages: &[Stage]) -> String {
    let phrases: Vec<&str> = stages
        .iter()
        .filter_map(|stage| match (&stage.quantize, &stage.recover) {
            (Some(quantize), _) => Some(match (quantize.mode, quantize.weights) {
                (QuantizeMode::Static, Some(WeightType::Int4)) => "static-int4",
                (QuantizeMode::Dynamic, Some(WeightType::Int4)) => "dynamic-int4",
                (QuantizeMode::Static, _) => "static-int8",
                (QuantizeMode::Dynamic, _) => "dynamic-int8",
                (QuantizeMode::Float16, _) => "float16",
                (QuantizeMode::WeightOnly, Some(WeightType::Int4)) => "blocks-int4",
                (QuantizeMode::WeightOnly, _) => "blocks-int8",
            }),
            (None, Some(recover)) => Some(match recover.method {
                RecoverMethod::SmoothQuant => "smoothquant",
                RecoverMethod::Equalization => "equalization",
                RecoverMethod::GPTQ => "gptq",
                RecoverMethod::BiasCorrection => "biascorrection",
                RecoverMethod::RaisePrecision => "raiseprecision",
            }),
            // Every candidate is simplified: only what is nothing else is called so.
            (None, None) => (stages.len() == 1 && stage.simplify.is_some()).then_some("simplified"),
        })
        .collect();
    phrases.join("+")
}
