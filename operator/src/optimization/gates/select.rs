//! Which candidate is selected, and which ones no other beats.
//!
//! Pure. Only candidates whose blocking gates all passed can be selected; where none did, none is.

use assayer_crds::contract::{Measured, metrics};

/// Candidates whose speed differs by less are equally fast; then the smaller one is taken.
const TIE: f64 = 1.03;

/// A judged candidate, as far as choosing goes.
#[derive(Clone, Debug, PartialEq)]
pub struct Contender {
    /// Name of the candidate.
    pub name: String,
    /// Whether every blocking gate passed in every environment.
    pub passed: bool,
    /// Median latency against the baseline's in the same run, as the geometric mean over environments. Smaller is faster.
    pub speed: Option<f64>,
    /// Lowest accuracy over environments.
    pub accuracy: Option<f64>,
    /// Size of the model's files in bytes.
    pub bytes: u64,
}

impl Contender {
    /// Puts together what counts. A number that is missing in one environment is missing.
    pub fn new(name: &str, passed: bool, bytes: u64, measured: &[&Measured]) -> Self {
        Self {
            name: name.to_owned(),
            passed,
            speed: speed(measured),
            accuracy: accuracy(measured),
            bytes,
        }
    }
}

#[expect(clippy::cast_precision_loss, reason = "a count of environments")]
fn speed(measured: &[&Measured]) -> Option<f64> {
    let ratio = |measured: &&Measured| {
        let candidate = measured.candidate.as_ref()?.get(metrics::LATENCY_P50)?.value;
        let baseline = measured.baseline.get(metrics::LATENCY_P50)?.value;
        let ratio = candidate / baseline;
        (ratio.is_finite() && ratio > 0.0).then_some(ratio)
    };
    let ratios: Option<Vec<f64>> = measured.iter().map(ratio).collect();
    let ratios = ratios.filter(|ratios| !ratios.is_empty())?;
    Some((ratios.iter().map(|ratio| ratio.ln()).sum::<f64>() / ratios.len() as f64).exp())
}

fn accuracy(measured: &[&Measured]) -> Option<f64> {
    let taken: Option<Vec<f64>> = measured
        .iter()
        .map(|measured| Some(measured.candidate.as_ref()?.get(metrics::ACCURACY)?.value))
        .collect();
    taken?.into_iter().filter(|value| value.is_finite()).reduce(f64::min)
}

/// The fastest candidate that passed; among those within 3 % of it the smallest, then the first by name.
pub fn select(contenders: &[Contender]) -> Option<&Contender> {
    let passed = contenders.iter().filter(|contender| contender.passed);
    let timed: Vec<(&Contender, f64)> = passed
        .filter_map(|contender| Some((contender, contender.speed?)))
        .collect();
    let fastest = timed.iter().map(|(_, speed)| *speed).reduce(f64::min)?;
    let close = timed.into_iter().filter(|(_, speed)| *speed <= fastest * TIE);
    close
        .min_by(|(a, fast_a), (b, fast_b)| {
            let by_size = a.bytes.cmp(&b.bytes);
            by_size.then(fast_a.total_cmp(fast_b)).then_with(|| a.name.cmp(&b.name))
        })
        .map(|(contender, _)| contender)
}

/// Names of those that no other beats in accuracy, speed and size at once. Those with a missing number are left out.
pub fn pareto(contenders: &[Contender]) -> Vec<String> {
    let points: Vec<(&str, f64, f64, u64)> = contenders
        .iter()
        .filter_map(|c| Some((c.name.as_str(), c.accuracy?, c.speed?, c.bytes)))
        .collect();
    let beaten = |point: &(&str, f64, f64, u64)| {
        points.iter().any(|other| {
            let as_good = other.1 >= point.1 && other.2 <= point.2 && other.3 <= point.3;
            as_good && (other.1 > point.1 || other.2 < point.2 || other.3 < point.3)
        })
    };
    points
        .iter()
        .filter(|point| !beaten(point))
        .map(|point| point.0.to_owned())
        .collect()
}
