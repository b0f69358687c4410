//! The worker's answer: one line on stdout, its digest as termination message, an exit code.
//!
//! Decides what is said, once, whatever happens: success, refusal, panic or deadline. Logs never go to stdout.

use std::io::Write as _;
use std::path::PathBuf;
use std::sync::Mutex;

use assayer_crds::contract::{
    CONTRACT_VERSION, Failure, FailureClass, MAX_REPORT_BYTES, MAX_TERMINATION_BYTES, Outcome, Report, Runtime,
    Termination,
};
use assayer_crds::digest::{Digest, canonical};

use crate::failure::{bug, cut};

/// Longest name or reason of a node that a pass left alone.
const MAX_LEFT: usize = 200;

/// Speaks once.
#[derive(Debug)]
pub struct Reporter {
    nonce: String,
    plan_sha256: Digest,
    termination: Option<PathBuf>,
    spoken: Mutex<bool>,
}

impl Reporter {
    /// For the plan with this nonce and digest. The termination message goes to `termination`, where there is one.
    pub fn new(nonce: String, plan_sha256: Digest, termination: Option<PathBuf>) -> Self {
        Self {
            nonce,
            plan_sha256,
            termination,
            spoken: Mutex::new(false),
        }
    }

    /// Writes report and termination message; returns the exit code. Only the first call speaks.
    pub fn emit(&self, runtime: Runtime, outcome: Outcome) -> u8 {
        let mut spoken = self.spoken.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        let mut code = exit_code(&outcome);
        if *spoken {
            return code;
        }
        *spoken = true;
        let report = Report {
            v: CONTRACT_VERSION,
            nonce: self.nonce.clone(),
            plan_sha256: self.plan_sha256.clone(),
            runtime,
            outcome,
        };
        let (line, termination) = match render(report.clone()) {
            Ok(rendered) => rendered,
            Err(failure) => {
                code = failure.class.exit_code();
                let failed = Report {
                    outcome: Outcome::Failed(failure),
                    ..report
                };
                match render(failed) {
                    Ok(rendered) => rendered,
                    Err(_) => return FailureClass::Bug.exit_code(),
                }
            }
        };
        if let Err(error) = self.write(&line, &termination) {
            tracing::error!(%error, "the report can't be written");
            return FailureClass::Storage.exit_code();
        }
        code
    }

    fn write(&self, line: &[u8], termination: &[u8]) -> std::io::Result<()> {
        if let Some(path) = &self.termination {
            std::fs::write(path, termination)?;
        }
        let mut out = std::io::stdout().lock();
        out.write_all(line)?;
        out.write_all(b"\n")?;
        out.flush()
    }
}

fn exit_code(outcome: &Outcome) -> u8 {
    match outcome {
        Outcome::Failed(failure) => failure.class.exit_code(),
        Outcome::Made(_) | Outcome::Measured(_) => 0,
    }
}

/// The report line (without newline) and the termination message that vouches for it.
fn render(mut report: Report) -> Result<(Vec<u8>, Vec<u8>), Failure> {
    let not_json = |error: serde_json::Error| bug(format!("the report is no JSON: {error}"));
    let (mut artifact_digest, mut model_digest) = (None, None);
    if let Outcome::Made(made) = &mut report.outcome {
        artifact_digest = Some(made.artifact_digest.clone());
        model_digest = Some(made.model_digest.clone());
        for left in made.passes.iter_mut().flat_map(|pass| &mut pass.left) {
            left.node = cut(&left.node, MAX_LEFT);
            left.why = cut(&left.why, MAX_LEFT);
        }
    }
    let mut line = canonical(&report).map_err(not_json)?;
    while line.len() as u64 > MAX_REPORT_BYTES {
        // Counts stay whole; the longest list of nodes that were left loses its second half.
        let longest = match &mut report.outcome {
            Outcome::Made(made) => made
                .passes
                .iter_mut()
                .map(|pass| &mut pass.left)
                .max_by_key(|left| left.len()),
            _ => None,
        };
        match longest {
            Some(left) if !left.is_empty() => left.truncate(left.len() / 2),
            _ => {
                return Err(bug(format!(
                    "the report has {} bytes; at most {MAX_REPORT_BYTES} are read",
                    line.len()
                )));
            }
        }
        line = canonical(&report).map_err(not_json)?;
    }
    // A number that is not finite is written as null, which nobody can read back: that is no report.
    serde_json::from_slice::<Report>(&line).map_err(not_json)?;
    let termination = canonical(&Termination {
        v: CONTRACT_VERSION,
        nonce: report.nonce,
        report_sha256: Digest::of(&line),
        report_bytes: line.len() as u64,
        artifact_digest,
        model_digest,
    })
    .map_err(not_json)?;
    if termination.len() > MAX_TERMINATION_BYTES {
        return Err(bug(format!("the termination message has {} bytes", termination.len())));
    }
    Ok((line, termination))
}

#[cfg(test)]
mod tests {
    use assayer_crds::contract::{Left, Made, PassReport};

    use super::*;
    use crate::failure::{reasons, refused};

    fn report(outcome: Outcome) -> Report {
        Report {
            v: 1,
            nonce: "0".repeat(32),
            plan_sha256: Digest::of(b"p"),
            runtime: Runtime::default(),
            outcome,
        }
    }

    fn made(left: usize) -> Made {
        let node = |i: usize| Left {
            node: format!("{i}").repeat(300),
            why: "w".repeat(300),
        };
        Made {
            uri: "u".into(),
            tag: "t".into(),
            artifact_digest: Digest::of(b"a"),
            model_digest: Digest::of(b"m"),
            baseline_digest: Digest::of(b"b"),
            files: Vec::new(),
            bytes: 1,
            opset: [9, 17],
            passes: vec![PassReport {
                name: "p".into(),
                changed: 3,
                left: (0..left).map(node).collect(),
                raised: Vec::new(),
                note: String::new(),
            }],
            calibration_rows: 1,
            seconds: 1.0,
            peak_memory_bytes: 1,
            recipe: None,
        }
    }

    #[test]
    fn the_termination_message_vouches_for_the_line() {
        let (line, termination) = render(report(Outcome::Made(made(2)))).unwrap();
        let said: Termination = serde_json::from_slice(&termination).unwrap();
        assert_eq!(
            (said.report_sha256, said.report_bytes),
            (Digest::of(&line), line.len() as u64)
        );
        assert_eq!(said.model_digest, Some(Digest::of(b"m")));
        assert!(termination.len() <= MAX_TERMINATION_BYTES && !line.contains(&b'\n'));
        let back: Report = serde_json::from_slice(&line).unwrap();
        assert_eq!(canonical(&back).unwrap(), line);
    }

    #[test]
    fn long_reports_lose_detail_and_never_exceed_the_limit() {
        let (line, _) = render(report(Outcome::Made(made(5_000)))).unwrap();
        assert!(line.len() as u64 <= MAX_REPORT_BYTES);
        let back: Report = serde_json::from_slice(&line).unwrap();
        let Outcome::Made(made) = back.outcome else {
            panic!("made")
        };
        assert!(made.passes[0].changed == 3 && made.passes[0].left.len() > 100);
    }

    #[test]
    fn only_the_first_word_counts_and_it_sets_the_exit_code() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("termination");
        let reporter = Reporter::new("0".repeat(32), Digest::of(b"p"), Some(path.clone()));
        let failed = |reason: &str| Outcome::Failed(refused(reason, "no"));
        assert_eq!(reporter.emit(Runtime::default(), failed(reasons::DATA_EMPTY)), 2);
        let first = std::fs::read(&path).unwrap();
        reporter.emit(Runtime::default(), Outcome::Failed(bug("later")));
        assert_eq!(std::fs::read(&path).unwrap(), first);
        let nan = Made {
            seconds: f64::NAN,
            ..made(0)
        };
        let reporter = Reporter::new("0".repeat(32), Digest::of(b"p"), None);
        assert_eq!(
            reporter.emit(Runtime::default(), Outcome::Made(nan)),
            1,
            "NaN is no JSON and no success"
        );
    }
}
