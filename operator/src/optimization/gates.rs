//! Gates: bounds on measured metrics, judged one by one.
//!
//! Pure and closed: all gates are judged, and what is missing, not a number, taken from too few samples or from an environment that
//! failed never passes. The operator, a promotion (again, from the evidence) and a local run use the same functions. Never decides
//! what happens to a candidate that failed.

mod bounds;
mod select;
mod words;

use std::collections::BTreeMap;

use assayer_crds::ModelOptimizationSpec;
use assayer_crds::contract::{Made, Measured, Measurement, metrics};
use assayer_crds::evidence::{Evidence, GateVerdict};
use assayer_crds::optimization::{Gate, Metric, Severity};

pub use select::{Contender, pareto, select};
pub use words::value as value_in_words;

/// The bound holds.
pub const PASSED: &str = "Passed";
/// The bound does not hold.
pub const FAILED: &str = "Failed";
/// It can't be told whether the bound holds.
pub const INCONCLUSIVE: &str = "Inconclusive";
/// An environment that the gate speaks of could not be measured.
pub const ERROR: &str = "Error";

/// Everything that was found out about one candidate.
#[derive(Clone, Debug, Default)]
pub struct Findings<'a> {
    /// How it was made.
    pub made: Option<&'a Made>,
    /// The baseline alone, before anything was changed, for each environment.
    pub baseline: Vec<&'a Measured>,
    /// Candidate and baseline together, for each environment.
    pub measured: Vec<&'a Measured>,
    /// Environments that could not be measured, with the reason in words.
    pub failures: BTreeMap<String, String>,
}

impl<'a> Findings<'a> {
    /// What recorded evidence says, for judging it again. Environments that had failed are missing there, and so don't pass.
    pub fn of(evidence: &'a Evidence) -> Self {
        Self {
            made: Some(&evidence.made),
            baseline: evidence.baseline.iter().collect(),
            measured: evidence.measured.iter().map(|by| &by.measured).collect(),
            failures: BTreeMap::new(),
        }
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Verdict {
    Passed,
    Inconclusive,
    Error,
    Failed,
}

impl Verdict {
    fn as_str(self) -> &'static str {
        match self {
            Self::Passed => PASSED,
            Self::Inconclusive => INCONCLUSIVE,
            Self::Error => ERROR,
            Self::Failed => FAILED,
        }
    }
}

/// One gate in one environment.
#[derive(Clone, Debug)]
struct Judged {
    verdict: Verdict,
    /// Value over limit: which of several is worst.
    share: f64,
    environment: String,
    measured: String,
    limit: String,
    message: String,
}

/// Judges every gate of `spec`.
pub fn judge(spec: &ModelOptimizationSpec, findings: &Findings<'_>) -> Vec<GateVerdict> {
    spec.gates.iter().map(|gate| judge_gate(spec, gate, findings)).collect()
}

/// Whether every blocking gate passed and every environment was measured.
pub fn passes(spec: &ModelOptimizationSpec, verdicts: &[GateVerdict], findings: &Findings<'_>) -> bool {
    let measured = |name: &str| findings.measured.iter().any(|measured| measured.environment == name);
    let blocking = spec.gates.iter().filter(|gate| gate.severity == Severity::Block);
    let mut held = blocking.map(|gate| {
        verdicts.iter().any(|verdict| {
            verdict.gate == gate.name && verdict.verdict == PASSED && verdict.metric == gate.metric.as_str()
        })
    });
    spec.environments.iter().all(|environment| measured(&environment.name)) && held.all(|held| held)
}

/// The verdicts that block, other than passed ones.
pub fn blocking(verdicts: &[GateVerdict]) -> impl Iterator<Item = &GateVerdict> {
    let block = severity(Severity::Block);
    verdicts
        .iter()
        .filter(move |verdict| verdict.severity == block && verdict.verdict != PASSED)
}

fn severity(severity: Severity) -> &'static str {
    match severity {
        Severity::Block => "Block",
        Severity::Warn => "Warn",
        Severity::DryRun => "DryRun",
    }
}

fn judge_gate(spec: &ModelOptimizationSpec, gate: &Gate, findings: &Findings<'_>) -> GateVerdict {
    let every = spec.environments.iter().map(|environment| environment.name.as_str());
    let places: Vec<&str> = match &gate.environment {
        Some(name) => vec![name.as_str()],
        None => every.collect(),
    };
    let judged = places.iter().map(|name| judge_in(spec, gate, findings, name));
    let worst = judged.reduce(|worst, next| {
        let worse = (next.verdict, next.share) > (worst.verdict, worst.share);
        if worse { next } else { worst }
    });
    let worst = worst.unwrap_or_else(|| open(Verdict::Inconclusive, gate, "", "there is no environment"));
    let place = match gate.metric {
        Metric::ArtifactSize => String::new(),
        _ => worst.environment,
    };
    let many = spec.environments.len() > 1 && !place.is_empty();
    let message = if many {
        format!("{} in {place}", worst.message)
    } else {
        worst.message
    };
    GateVerdict {
        gate: gate.name.clone(),
        verdict: worst.verdict.as_str().to_owned(),
        severity: severity(gate.severity).to_owned(),
        metric: gate.metric.as_str().to_owned(),
        environment: place,
        measured: worst.measured,
        limit: worst.limit,
        message,
    }
}

fn open(verdict: Verdict, gate: &Gate, environment: &str, why: &str) -> Judged {
    Judged {
        verdict,
        share: 0.0,
        environment: environment.to_owned(),
        measured: String::new(),
        limit: String::new(),
        message: format!("{} can't be judged: {why}", gate.metric.as_str()),
    }
}

fn judge_in(spec: &ModelOptimizationSpec, gate: &Gate, findings: &Findings<'_>, environment: &str) -> Judged {
    let inconclusive = |why: &str| open(Verdict::Inconclusive, gate, environment, why);
    if let Some(failure) = findings.failures.get(environment) {
        return open(Verdict::Error, gate, environment, failure);
    }
    if !spec.environments.iter().any(|known| known.name == environment) {
        return inconclusive("the environment is unknown");
    }
    let mut found = findings
        .measured
        .iter()
        .filter(|measured| measured.environment == environment);
    let measured = match (found.next(), found.next()) {
        (Some(measured), None) => measured,
        (Some(_), Some(_)) => return inconclusive("it was measured more than once"),
        (None, _) if findings.made.is_none() => return inconclusive("no candidate was made"),
        (None, _) => return inconclusive("it was not measured"),
    };
    if !findings
        .baseline
        .iter()
        .any(|baseline| baseline.environment == environment)
    {
        return inconclusive("the baseline was not recorded");
    }
    if let Err(why) = same_models(findings, measured) {
        return inconclusive(&why);
    }
    match numbers(gate, findings, measured) {
        Ok(numbers) => bound(gate, environment, &numbers),
        Err(why) => inconclusive(&why),
    }
}

/// Numbers count only when they are about the very candidate that was made, and the baseline that it was made from.
fn same_models(findings: &Findings<'_>, measured: &Measured) -> Result<(), String> {
    let made = findings.made.ok_or("nothing was made")?;
    if measured.candidate_digest.as_ref() != Some(&made.model_digest) {
        return Err("another candidate was measured than was made".to_owned());
    }
    let recorded = findings.baseline.iter().map(|baseline| &baseline.baseline_digest);
    if !recorded
        .chain([&measured.baseline_digest])
        .all(|digest| *digest == made.baseline_digest)
    {
        return Err("the candidate was not made from the baseline that was measured".to_owned());
    }
    Ok(())
}

/// Candidate and baseline, both usable numbers.
struct Numbers {
    candidate: f64,
    baseline: Option<f64>,
}

fn numbers(gate: &Gate, findings: &Findings<'_>, measured: &Measured) -> Result<Numbers, String> {
    let name = gate.metric.as_str();
    let taken = measured.candidate.as_ref().and_then(|candidate| candidate.get(name));
    let candidate = usable(gate, "the candidate", taken)?;
    if gate.metric == Metric::ArtifactSize {
        same_size(findings.made, candidate)?;
    }
    let relative = gate.max_drop.is_some() || gate.max_ratio.is_some();
    let baseline = relative
        .then(|| usable(gate, "the baseline", measured.baseline.get(name)))
        .transpose()?;
    Ok(Numbers { candidate, baseline })
}

/// The size that was measured must be that of the artifact that was made.
#[expect(clippy::cast_precision_loss, reason = "sizes are below 2^53")]
fn same_size(made: Option<&Made>, measured: f64) -> Result<(), String> {
    match made {
        Some(made) if (made.bytes as f64 - measured).abs() < 0.5 => Ok(()),
        Some(made) => Err(format!("{} bytes were made and {measured:.0} measured", made.bytes)),
        None => Err("nothing was made".to_owned()),
    }
}

fn usable(gate: &Gate, whose: &str, taken: Option<&Measurement>) -> Result<f64, String> {
    let Some(taken) = taken else {
        return Err(format!("{whose} has no {}", gate.metric.as_str()));
    };
    let least = u64::from(gate.min_samples.unwrap_or(1).max(1));
    if taken.samples < least {
        return Err(format!(
            "{whose} has {} samples, at least {least} are asked for",
            taken.samples
        ));
    }
    let share = matches!(gate.metric.as_str(), metrics::ACCURACY);
    if !taken.value.is_finite() || taken.value < 0.0 || (share && taken.value > 1.0) {
        return Err(format!("{whose} has {}, which is not a usable number", taken.value));
    }
    Ok(taken.value)
}

fn bound(gate: &Gate, environment: &str, numbers: &Numbers) -> Judged {
    let judged = match (&gate.max, &gate.max_drop, &gate.max_ratio) {
        (Some(max), None, None) => bounds::absolute(gate, numbers, max),
        (None, Some(drop), None) => bounds::dropped(gate, numbers, drop),
        (None, None, Some(ratio)) => bounds::relative(gate, numbers, ratio),
        _ => Err("the gate has not exactly one bound".to_owned()),
    };
    match judged {
        Ok(judged) => Judged {
            environment: environment.to_owned(),
            ..judged
        },
        Err(why) => open(Verdict::Inconclusive, gate, environment, &why),
    }
}

#[cfg(test)]
mod tests;
