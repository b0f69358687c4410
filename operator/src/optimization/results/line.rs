//! The report's line: found in the log by the termination message, then read.
//!
//! Pure. The log may hold other lines (the kubelet joins both streams); only the one whose length and digest were announced counts.

use assayer_crds::contract::{CONTRACT_VERSION, MAX_REPORT_BYTES, MAX_TERMINATION_BYTES, Report, Termination};
use assayer_crds::digest::Digest;

use super::Asked;

/// The line that the termination message announces.
pub(super) fn find(asked: Asked<'_>, message: &str, log: &[u8]) -> Result<(String, Termination), String> {
    if message.len() > MAX_TERMINATION_BYTES {
        return Err(format!(
            "the termination message has {} bytes, at most {MAX_TERMINATION_BYTES}",
            message.len()
        ));
    }
    let termination: Termination =
        serde_json::from_str(message).map_err(|error| format!("the termination message can't be read: {error}"))?;
    if termination.v != CONTRACT_VERSION {
        return Err(format!(
            "the termination message has version {}, expected {CONTRACT_VERSION}",
            termination.v
        ));
    }
    if termination.nonce != asked.plan.nonce {
        return Err("the termination message names another attempt's nonce".to_owned());
    }
    if termination.report_bytes > MAX_REPORT_BYTES {
        return Err(format!(
            "the report has {} bytes, at most {MAX_REPORT_BYTES}",
            termination.report_bytes
        ));
    }
    let announced = |line: &&[u8]| {
        u64::try_from(line.len()) == Ok(termination.report_bytes) && Digest::of(line) == termination.report_sha256
    };
    let line = log.split(|byte| *byte == b'\n').find(announced).ok_or_else(|| {
        format!(
            "no line of the log has {} bytes and digest {}",
            termination.report_bytes, termination.report_sha256
        )
    })?;
    let text = std::str::from_utf8(line).map_err(|_| "the report is not UTF-8".to_owned())?;
    Ok((text.to_owned(), termination))
}

/// Reads the line and holds it against what was asked.
pub(super) fn parse(asked: Asked<'_>, line: &str) -> Result<Report, String> {
    let report: Report = serde_json::from_str(line).map_err(|error| format!("the report can't be read: {error}"))?;
    if report.v != CONTRACT_VERSION {
        return Err(format!(
            "the report has version {}, expected {CONTRACT_VERSION}",
            report.v
        ));
    }
    if report.nonce != asked.plan.nonce {
        return Err("the report names another attempt's nonce".to_owned());
    }
    let expected = asked
        .job
        .metadata
        .annotations
        .as_ref()
        .and_then(|annotations| annotations.get(assayer_crds::names::PLAN_DIGEST));
    if expected.map(String::as_str) != Some(report.plan_sha256.as_str()) {
        return Err("the report is about another plan".to_owned());
    }
    Ok(report)
}
