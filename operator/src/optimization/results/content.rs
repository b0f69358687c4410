//! Whether a successful report holds together, and agrees with what was asked.
//!
//! Pure, and the same for pods and local runs. What a runner reports of itself is bounded by the time that its container ran.

use assayer_crds::conditions::{REPORT_IMPLAUSIBLE, REPORT_INVALID};
use assayer_crds::contract::{
    Made, MakePlan, MeasurePlan, Measured, Measurements, Outcome, Report, Role, Termination, Work, WorkerPlan, metrics,
};
use assayer_crds::digest::model_digest;
use k8s_openapi::api::core::v1::Pod;

use super::Problem;

/// Kubernetes cuts times to whole seconds at both ends.
const SLACK_SECONDS: f64 = 2.0;
/// Most metrics in one report.
const MAX_METRICS: usize = 64;

fn invalid(message: impl Into<String>) -> Problem {
    Problem::lasting(REPORT_INVALID, message)
}

fn require(holds: bool, message: impl FnOnce() -> String) -> Result<(), Problem> {
    if holds { Ok(()) } else { Err(invalid(message())) }
}

/// Checks a report of success against the plan. `termination` is the announcement, where the report came through a pod.
///
/// # Errors
/// The first thing that does not hold.
pub fn check(plan: &WorkerPlan, report: &Report, termination: Option<&Termination>) -> Result<(), Problem> {
    match (&plan.work, &report.outcome) {
        (Work::Make(asked), Outcome::Made(made)) => {
            check_made(asked, made)?;
            if let Some(announced) = termination {
                let same = announced.artifact_digest.as_ref() == Some(&made.artifact_digest)
                    && announced.model_digest.as_ref() == Some(&made.model_digest);
                require(same, || {
                    "the termination message announces another artifact than the report".into()
                })?;
                let uri = format!("{}@{}", asked.output, made.artifact_digest);
                require(made.uri == uri, || {
                    format!("the artifact is at {}, expected {uri}", made.uri)
                })?;
            }
            Ok(())
        }
        (Work::Measure(asked), Outcome::Measured(measured)) => check_measured(asked, measured),
        _ => Err(invalid("the report answers another kind of work than was asked")),
    }
}

fn check_made(asked: &MakePlan, made: &Made) -> Result<(), Problem> {
    if let Some(expected) = &asked.baseline.model_digest {
        require(made.baseline_digest == *expected, || {
            format!(
                "the baseline had model digest {}, expected {expected}",
                made.baseline_digest
            )
        })?;
    }
    require(!made.files.is_empty(), || "the artifact has no files".into())?;
    let computed = model_digest(&made.files);
    require(computed == made.model_digest, || {
        format!(
            "the files make model digest {computed}, the report says {}",
            made.model_digest
        )
    })?;
    let sum = made
        .files
        .iter()
        .try_fold(0_u64, |sum, file| sum.checked_add(file.size));
    require(sum == Some(made.bytes), || {
        format!("the files do not add up to {} bytes", made.bytes)
    })?;
    require(made.model_digest != made.baseline_digest, || {
        "the candidate is the baseline, byte for byte".into()
    })?;
    require(made.seconds.is_finite() && made.seconds >= 0.0, || {
        "seconds is not a time".into()
    })
}

fn check_measured(asked: &MeasurePlan, measured: &Measured) -> Result<(), Problem> {
    require(measured.environment == asked.environment, || {
        format!(
            "environment is `{}`, expected `{}`",
            measured.environment, asked.environment
        )
    })?;
    require(measured.execution_provider == asked.execution_provider, || {
        format!(
            "the model ran on {}, expected {}",
            measured.execution_provider, asked.execution_provider
        )
    })?;
    if let Some(expected) = &asked.baseline.model_digest {
        require(measured.baseline_digest == *expected, || {
            format!(
                "the baseline had model digest {}, expected {expected}",
                measured.baseline_digest
            )
        })?;
    }
    let expected = asked
        .candidate
        .as_ref()
        .and_then(|candidate| candidate.model_digest.as_ref());
    require(measured.candidate_digest.as_ref() == expected, || {
        format!(
            "the candidate had model digest {:?}, expected {expected:?}",
            measured.candidate_digest
        )
    })?;
    require(measured.candidate.is_some() == asked.candidate.is_some(), || {
        "the report has measurements of a candidate where none was asked for, or lacks them".into()
    })?;
    require(measured.run_seconds.is_finite() && measured.run_seconds >= 0.0, || {
        "runSeconds is not a time".into()
    })?;
    for measurements in std::iter::once(&measured.baseline).chain(&measured.candidate) {
        check_values(measurements)?;
    }
    let labelled = [metrics::ACCURACY, metrics::ARTIFACT_SIZE];
    let claimed = measured
        .self_reported
        .iter()
        .find(|name| labelled.contains(&name.as_str()));
    require(claimed.is_none(), || {
        "accuracy and artifactSize can't be self-reported".into()
    })
}

fn check_values(measurements: &Measurements) -> Result<(), Problem> {
    require(measurements.len() <= MAX_METRICS, || {
        format!("more than {MAX_METRICS} metrics")
    })?;
    for (name, measurement) in measurements {
        let value = measurement.value;
        require(value.is_finite() && value >= 0.0, || format!("{name} is {value}"))?;
        let share = matches!(name.as_str(), metrics::ACCURACY | metrics::AGREEMENT);
        require(!share || value <= 1.0, || format!("{name} is {value}, beyond 1"))?;
    }
    Ok(())
}

/// Holds self-reported times against the time that the container ran.
///
/// # Errors
/// When a time does not fit.
pub fn fits(report: &Report, pod: &Pod) -> Result<(), Problem> {
    let role = match &report.outcome {
        Outcome::Made(_) => Role::Optimize,
        Outcome::Measured(_) => Role::Run,
        Outcome::Failed(_) => return Ok(()),
    };
    let Some(ran) = ran_seconds(pod, role) else {
        return Err(invalid(format!("container {} has no start and finish", role.as_str())));
    };
    fits_seconds(report, ran + SLACK_SECONDS)
}

/// Holds self-reported times against the seconds that `optimize` or `run` took, as somebody else measured them.
///
/// # Errors
/// When a time does not fit.
pub fn fits_seconds(report: &Report, ran: f64) -> Result<(), Problem> {
    match &report.outcome {
        Outcome::Made(made) => fits_within(report, made.seconds, ran),
        Outcome::Measured(measured) => fits_within(report, measured.run_seconds, ran),
        Outcome::Failed(_) => Ok(()),
    }
}

#[expect(clippy::cast_precision_loss, reason = "whole seconds of a pod's life")]
fn ran_seconds(pod: &Pod, role: Role) -> Option<f64> {
    let statuses = pod.status.as_ref()?.init_container_statuses.as_ref()?;
    let status = statuses.iter().find(|status| status.name == role.as_str())?;
    let ended = status.state.as_ref()?.terminated.as_ref()?;
    let (start, finish) = (ended.started_at.as_ref()?.0, ended.finished_at.as_ref()?.0);
    Some(finish.duration_since(start).as_secs() as f64)
}

fn fits_within(report: &Report, claimed: f64, limit: f64) -> Result<(), Problem> {
    let implausible = |what: &str, value: f64| {
        Problem::lasting(
            REPORT_IMPLAUSIBLE,
            format!("{what} is {value:.3} s, but the container ran at most {limit:.0} s"),
        )
    };
    if claimed > limit {
        return Err(implausible("the reported wall time", claimed));
    }
    let Outcome::Measured(measured) = &report.outcome else {
        return Ok(());
    };
    let mut least = 0.0;
    for measurements in std::iter::once(&measured.baseline).chain(&measured.candidate) {
        least += least_seconds(measurements);
        if let Some(p99) = measurements.get(metrics::LATENCY_P99).filter(|m| m.value > limit) {
            return Err(implausible("latencyP99", p99.value));
        }
    }
    if least > limit {
        return Err(implausible("the least time that the latencies add up to", least));
    }
    Ok(())
}

/// Half of the runs took at least the median.
#[expect(clippy::cast_precision_loss, reason = "a bound, not a figure")]
fn least_seconds(measurements: &Measurements) -> f64 {
    measurements
        .get(metrics::LATENCY_P50)
        .map_or(0.0, |p50| p50.value * (p50.samples as f64) / 2.0)
}
