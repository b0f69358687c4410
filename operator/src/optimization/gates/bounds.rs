//! The three kinds of bound: absolute, largest drop, largest ratio.
//!
//! Pure. Each says what was measured, what the limit is, and both in one sentence. A bound that can't be read is never held.

use assayer_crds::optimization::{Gate, Metric};
use assayer_crds::units;

use super::{Judged, Numbers, Verdict, words};

/// Shares are quotients of counts: below this two of them are the same.
const EPSILON: f64 = 1e-9;

fn decide(holds: bool, value: f64, limit: f64, measured: String, limit_in_words: String, message: String) -> Judged {
    Judged {
        verdict: if holds { Verdict::Passed } else { Verdict::Failed },
        share: if limit > 0.0 { value / limit } else { value },
        environment: String::new(),
        measured,
        limit: limit_in_words,
        message,
    }
}

pub(super) fn absolute(gate: &Gate, numbers: &Numbers, max: &str) -> Result<Judged, String> {
    let limit = limit_of(gate, max)?;
    let name = gate.metric.as_str();
    let measured = words::value(name, numbers.candidate);
    let bound = format!("at most {}", words::value(name, limit));
    let message = format!("{name} {measured}, {bound}");
    Ok(decide(
        numbers.candidate <= limit,
        numbers.candidate,
        limit,
        measured,
        bound,
        message,
    ))
}

fn limit_of(gate: &Gate, max: &str) -> Result<f64, String> {
    match gate.metric {
        Metric::LatencyP50 | Metric::LatencyP99 => units::seconds(max),
        Metric::PeakMemory | Metric::ArtifactSize => units::bytes(max),
        Metric::Accuracy => return Err("accuracy is bounded by maxDrop".to_owned()),
    }
    .map_err(|error| format!("max {error}"))
}

pub(super) fn dropped(gate: &Gate, numbers: &Numbers, max_drop: &str) -> Result<Judged, String> {
    if gate.metric != Metric::Accuracy {
        return Err("maxDrop is for accuracy".to_owned());
    }
    let limit = units::decimal(max_drop).map_err(|error| format!("maxDrop {error}"))?;
    let baseline = numbers.baseline.ok_or("the baseline is missing")?;
    let drop = baseline - numbers.candidate;
    let measured = words::drop(drop);
    let bound = format!("at most {limit} below the baseline");
    let message = format!(
        "{} {:.4} is {measured} ({baseline:.4}), at most {limit}",
        gate.metric.as_str(),
        numbers.candidate
    );
    Ok(decide(drop <= limit + EPSILON, drop, limit, measured, bound, message))
}

pub(super) fn relative(gate: &Gate, numbers: &Numbers, max_ratio: &str) -> Result<Judged, String> {
    if gate.metric == Metric::Accuracy {
        return Err("accuracy is bounded by maxDrop".to_owned());
    }
    let limit = units::decimal(max_ratio).map_err(|error| format!("maxRatio {error}"))?;
    let baseline = numbers.baseline.ok_or("the baseline is missing")?;
    if baseline <= 0.0 {
        return Err("the baseline is 0".to_owned());
    }
    let name = gate.metric.as_str();
    let ratio = numbers.candidate / baseline;
    let measured = format!("{} times the baseline", words::ratio(ratio, limit));
    let message = format!(
        "{name} {measured} ({} against {}), at most {max_ratio}",
        words::value(name, numbers.candidate),
        words::value(name, baseline)
    );
    let bound = format!("at most {max_ratio} times the baseline");
    Ok(decide(ratio <= limit, ratio, limit, measured, bound, message))
}
