//! Judges the gates again from verified evidence: its measurements against the bounds in the spec that it carries.
//!
//! Pure. The verdicts in the evidence are not believed, only its measurements are, and only where they are about the artifact.

use assayer_crds::ModelOptimizationSpec;
use assayer_crds::conditions::{EVIDENCE_INVALID, GATES_FAILED, GATES_INCONCLUSIVE};
use assayer_crds::evidence::Evidence;

use crate::optimization::gates::{FAILED, Findings, blocking, judge, passes};
use crate::targets::Problem;

/// How many gates hold, in words.
///
/// # Errors
/// When a blocking gate does not pass, or the evidence does not add up.
pub fn rejudge(evidence: &Evidence) -> Result<String, Problem> {
    let invalid = |message: String| Problem {
        reason: EVIDENCE_INVALID,
        message,
    };
    let spec: ModelOptimizationSpec = serde_json::from_value(evidence.spec.clone())
        .map_err(|error| invalid(format!("the spec in the evidence can't be read: {error}")))?;
    for measured in evidence.measured.iter().map(|by| &by.measured) {
        if measured.candidate_digest.as_ref() != Some(&evidence.made.model_digest) {
            return Err(invalid(format!(
                "environment {} was measured with another model than {}",
                measured.environment, evidence.made.model_digest
            )));
        }
        if measured.baseline_digest != evidence.made.baseline_digest {
            return Err(invalid(format!(
                "environment {} was measured against another baseline than {}",
                measured.environment, evidence.made.baseline_digest
            )));
        }
    }
    let findings = Findings {
        made: Some(&evidence.made),
        baseline: evidence.baseline.iter().collect(),
        measured: evidence.measured.iter().map(|by| &by.measured).collect(),
        failures: std::collections::BTreeMap::new(),
    };
    let verdicts = judge(&spec, &findings);
    if passes(&spec, &verdicts, &findings) {
        let warned = verdicts
            .iter()
            .filter(|v| v.verdict != crate::optimization::gates::PASSED)
            .count();
        return Ok(format!(
            "{} of {} gates pass{}",
            verdicts.len() - warned,
            verdicts.len(),
            if warned > 0 { ", the others only warn" } else { "" }
        ));
    }
    let closed: Vec<_> = blocking(&verdicts).collect();
    let failed = closed.iter().any(|verdict| verdict.verdict == FAILED);
    let words: Vec<_> = closed
        .iter()
        .map(|verdict| format!("gate {}: {}: {}", verdict.gate, verdict.verdict, verdict.message))
        .collect();
    Err(Problem {
        reason: if failed { GATES_FAILED } else { GATES_INCONCLUSIVE },
        message: if words.is_empty() {
            "an environment of the spec was not measured".to_owned()
        } else {
            words.join("; ")
        },
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::promotion::fixtures;
    use serde_json::json;

    #[test]
    fn measurements_decide_and_stored_verdicts_do_not() {
        type Edit = fn(&mut Evidence);
        let cases: [(Edit, Result<(), &str>); 8] = [
            (|_| (), Ok(())),
            (|e| e.verdicts.clear(), Ok(())),
            (|e| fixtures::metric(e, "latencyP99").value = 1.0, Err(GATES_FAILED)),
            (|e| fixtures::metric(e, "accuracy").samples = 0, Err(GATES_INCONCLUSIVE)),
            (|e| e.measured.clear(), Err(GATES_INCONCLUSIVE)),
            (|e| e.spec = json!({"gates": []}), Err(EVIDENCE_INVALID)),
            (
                |e| e.measured[0].measured.candidate_digest = Some(assayer_crds::digest::Digest::of(b"other")),
                Err(EVIDENCE_INVALID),
            ),
            (
                |e| e.measured[0].measured.baseline_digest = assayer_crds::digest::Digest::of(b"other"),
                Err(EVIDENCE_INVALID),
            ),
        ];
        for (index, (edit, expected)) in cases.into_iter().enumerate() {
            let mut evidence = fixtures::verified().statement.predicate;
            edit(&mut evidence);
            let found = rejudge(&evidence);
            assert_eq!(
                found.as_ref().map(|_| ()).map_err(|p| p.reason),
                expected,
                "case {index}: {found:?}"
            );
        }
    }

    #[test]
    fn a_missed_gate_says_number_against_limit() {
        let mut evidence = fixtures::verified().statement.predicate;
        fixtures::metric(&mut evidence, "latencyP99").value = 1.0;
        let problem = rejudge(&evidence).unwrap_err();
        assert!(
            problem.message.contains("gate p99: Failed") && problem.message.contains("at most"),
            "{}",
            problem.message
        );
    }
}
