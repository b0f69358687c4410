//! What people read in conditions, Events and status. Pure; decides nothing.

use assayer_crds::contract::{Measured, Measurements};
use assayer_crds::optimization::{MeasuredStatus, MetricStatus};

use crate::optimization::gates::value_in_words;
use crate::optimization::steps::Step;

/// What a step does: `measuring the baseline in edge-cpu`.
pub(super) fn doing(step: &Step) -> String {
    match step {
        Step::Baseline { environment } => format!("measuring the baseline in {environment}"),
        Step::Make { candidate } => format!("making {candidate}"),
        Step::Measure { candidate, environment } => {
            format!("measuring {candidate} against the baseline in {environment}")
        }
    }
}

/// Measurements as status shows them: the candidate's beside the baseline's, or the baseline's alone.
pub(super) fn shown(measured: &Measured) -> MeasuredStatus {
    let subject = measured.candidate.as_ref().unwrap_or(&measured.baseline);
    let beside = measured.candidate.is_some().then_some(&measured.baseline);
    MeasuredStatus {
        environment: measured.environment.clone(),
        metrics: subject.keys().map(|name| metric(name, subject, beside)).collect(),
    }
}

fn metric(name: &str, subject: &Measurements, beside: Option<&Measurements>) -> MetricStatus {
    let of = |measurements: &Measurements| measurements.get(name).map(|m| value_in_words(name, m.value));
    MetricStatus {
        name: name.chars().take(63).collect(),
        value: of(subject).unwrap_or_default(),
        baseline: beside.and_then(of),
        samples: subject
            .get(name)
            .map_or(0, |m| i64::try_from(m.samples).unwrap_or(i64::MAX)),
    }
}
