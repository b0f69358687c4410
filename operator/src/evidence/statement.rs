//! The statement about one judged candidate, put together from the spec, the reports and the verdicts.
//!
//! Pure: the same input gives the same bytes and so the same digest. The operator and a local run make their evidence here. Never
//! judges and never signs.

use std::collections::BTreeMap;

use assayer_crds::ModelOptimizationSpec;
use assayer_crds::contract::{Made, Measured, Runtime};
use assayer_crds::digest::Digest;
use assayer_crds::evidence::{
    Evidence, GateVerdict, MeasuredBy, ModelName, OptimizationReference, Owner, PREDICATE_TYPE, STATEMENT_TYPE,
    Statement, Subject,
};
use assayer_crds::optimization::Candidate;
use jiff::Timestamp;

use super::EvidenceError;
use crate::optimization::steps::technique;

/// Where the work was done.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Runner {
    /// In pods.
    Kubernetes,
    /// On the user's own machine.
    Local,
}

impl Runner {
    fn as_str(self) -> &'static str {
        match self {
            Self::Kubernetes => "kubernetes",
            Self::Local => "local",
        }
    }
}

/// Everything that a statement speaks of.
#[derive(Clone, Debug)]
pub struct Claim<'a> {
    /// When it was found out.
    pub recorded_at: Timestamp,
    /// Which optimization.
    pub optimization: OptimizationReference,
    /// Its spec.
    pub spec: &'a ModelOptimizationSpec,
    /// Which candidate.
    pub candidate: &'a Candidate,
    /// The candidate's key: its plan without gates.
    pub plan_digest: Digest,
    /// How it was made.
    pub made: &'a Made,
    /// By what.
    pub made_by: &'a Runtime,
    /// The baseline before anything was changed.
    pub baseline: Vec<&'a Measured>,
    /// Baseline and candidate together.
    pub measured: Vec<(&'a Measured, &'a Runtime)>,
    /// Every gate's verdict.
    pub verdicts: Vec<GateVerdict>,
    /// Image of the workers, by digest; empty for a local run.
    pub worker_image: &'a str,
    /// Where it ran.
    pub runner: Runner,
}

/// Puts the statement together.
///
/// # Errors
/// When the spec can't be JSON.
pub fn compose(claim: Claim<'_>) -> Result<Statement, EvidenceError> {
    let subject = |name: &str, digest: &Digest| Subject {
        name: name.to_owned(),
        digest: BTreeMap::from([("sha256".to_owned(), digest.hex().to_owned())]),
    };
    let spec = claim.spec;
    let measured = claim.measured.into_iter().map(|(measured, runtime)| MeasuredBy {
        measured: measured.clone(),
        runtime: runtime.clone(),
    });
    Ok(Statement {
        statement_type: STATEMENT_TYPE.to_owned(),
        subject: vec![
            subject("model", &claim.made.model_digest),
            subject(&claim.made.uri, &claim.made.artifact_digest),
        ],
        predicate_type: PREDICATE_TYPE.to_owned(),
        predicate: Evidence {
            recorded_at: claim.recorded_at.to_string(),
            optimization: claim.optimization,
            owner: Owner {
                group: spec.owner.group.clone(),
                contact: spec.owner.contact.clone(),
            },
            influences: spec
                .influences
                .iter()
                .map(|influence| influence.as_str().to_owned())
                .collect(),
            model: ModelName {
                name: spec.model.name.clone(),
                version: spec.model.version.clone(),
            },
            candidate: claim.candidate.name.clone(),
            technique: technique(&claim.candidate.stages),
            plan_digest: claim.plan_digest,
            spec: serde_json::to_value(spec)?,
            made: claim.made.clone(),
            made_by: claim.made_by.clone(),
            baseline: claim.baseline.into_iter().cloned().collect(),
            measured: measured.collect(),
            verdicts: claim.verdicts,
            worker_image: claim.worker_image.to_owned(),
            runner: claim.runner.as_str().to_owned(),
        },
    })
}
