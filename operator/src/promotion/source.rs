//! Which candidate a promotion means, and whether it is there, finished and passed.
//!
//! Pure. Results of another generation of the optimization are never used.

use assayer_crds::conditions::{GATES_FAILED, NO_CANDIDATE, SOURCE_NOT_FOUND, SOURCE_NOT_READY};
use assayer_crds::optimization::CandidateStatus;
use assayer_crds::{ModelOptimization, ModelPromotion};
use kube::ResourceExt as _;

use crate::targets::Problem;

fn problem(reason: &'static str, message: impl Into<String>) -> Problem {
    Problem {
        reason,
        message: message.into(),
    }
}

/// The optimization that `promotion` names.
///
/// # Errors
/// When it is not there.
pub fn found<'a>(
    promotion: &ModelPromotion,
    optimization: Option<&'a ModelOptimization>,
) -> Result<&'a ModelOptimization, Problem> {
    let name = &promotion.spec.source.model_optimization.name;
    optimization.ok_or_else(|| {
        problem(
            SOURCE_NOT_FOUND,
            format!("ModelOptimization {name} does not exist in this namespace: create it, or correct source.modelOptimization.name"),
        )
    })
}

/// The same, once it has finished the present generation of its spec.
///
/// # Errors
/// When it is not there, has not finished, or failed.
pub fn finished<'a>(
    promotion: &ModelPromotion,
    optimization: Option<&'a ModelOptimization>,
) -> Result<&'a ModelOptimization, Problem> {
    let optimization = found(promotion, optimization)?;
    let name = optimization.name_any();
    let status = optimization.status.clone().unwrap_or_default();
    let current =
        status.observed_generation.is_some() && status.observed_generation == optimization.metadata.generation;
    if !current {
        return Err(problem(
            SOURCE_NOT_READY,
            format!("ModelOptimization {name} has not taken up its present spec yet"),
        ));
    }
    match status.phase.as_str() {
        "Succeeded" | "Rejected" => Ok(optimization),
        "Failed" => Err(problem(
            SOURCE_NOT_READY,
            format!(
                "ModelOptimization {name} failed: kubectl describe mopt {name} says why; then change it or annotate it with assayer.dev/rerun"
            ),
        )),
        phase => Err(problem(
            SOURCE_NOT_READY,
            format!(
                "ModelOptimization {name} has not finished: {}",
                if phase.is_empty() { "Pending" } else { phase }
            ),
        )),
    }
}

/// The candidate that is meant: the named one, or the selected one. It must have passed.
///
/// # Errors
/// When the optimization has not finished, or the candidate is unknown or did not pass.
pub fn candidate<'a>(
    promotion: &ModelPromotion,
    optimization: Option<&'a ModelOptimization>,
) -> Result<&'a CandidateStatus, Problem> {
    let optimization = finished(promotion, optimization)?;
    let name = optimization.name_any();
    let Some(status) = &optimization.status else {
        return Err(problem(
            SOURCE_NOT_READY,
            format!("ModelOptimization {name} has no status"),
        ));
    };
    let wanted = promotion.spec.source.model_optimization.candidate.as_ref();
    let Some(wanted) = wanted.or(status.selected.as_ref()) else {
        return Err(problem(
            GATES_FAILED,
            format!(
                "no candidate of ModelOptimization {name} passed its gates: kubectl describe mopt {name} has the numbers"
            ),
        ));
    };
    let Some(candidate) = status.candidates.iter().find(|candidate| candidate.name == *wanted) else {
        let names: Vec<_> = status.candidates.iter().map(|c| c.name.as_str()).collect();
        return Err(problem(
            SOURCE_NOT_FOUND,
            format!(
                "ModelOptimization {name} has no candidate `{wanted}` (it has: {})",
                names.join(", ")
            ),
        ));
    };
    match candidate.state.as_str() {
        "Passed" => Ok(candidate),
        "Failed" => Err(problem(
            NO_CANDIDATE,
            format!(
                "candidate {wanted} of ModelOptimization {name} could not be made or measured: {}",
                candidate.message
            ),
        )),
        "Rejected" => Err(problem(
            GATES_FAILED,
            format!(
                "candidate {wanted} of ModelOptimization {name} failed its gates: {}",
                candidate.message
            ),
        )),
        state => Err(problem(
            SOURCE_NOT_READY,
            format!("candidate {wanted} of ModelOptimization {name} is not judged yet: {state}"),
        )),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::promotion::fixtures;

    #[test]
    fn each_state_of_the_source_has_its_reason() {
        type Edit = fn(&mut ModelPromotion, &mut ModelOptimization);
        let cases: [(Edit, Result<&str, &str>); 10] = [
            (|_, _| (), Ok("int8")),
            (|p, _| p.spec.source.model_optimization.candidate = None, Ok("int8")),
            (|_, o| o.metadata.generation = Some(9), Err(SOURCE_NOT_READY)),
            (|_, o| o.status = None, Err(SOURCE_NOT_READY)),
            (
                |_, o| o.status.as_mut().unwrap().phase = "Validating".into(),
                Err(SOURCE_NOT_READY),
            ),
            (
                |_, o| o.status.as_mut().unwrap().phase = "Failed".into(),
                Err(SOURCE_NOT_READY),
            ),
            (
                |p, o| {
                    p.spec.source.model_optimization.candidate = None;
                    o.status.as_mut().unwrap().selected = None;
                },
                Err(GATES_FAILED),
            ),
            (
                |p, _| p.spec.source.model_optimization.candidate = Some("int4".into()),
                Err(SOURCE_NOT_FOUND),
            ),
            (
                |_, o| o.status.as_mut().unwrap().candidates[0].state = "Rejected".into(),
                Err(GATES_FAILED),
            ),
            (
                |_, o| o.status.as_mut().unwrap().candidates[0].state = "Failed".into(),
                Err(NO_CANDIDATE),
            ),
        ];
        for (index, (edit, expected)) in cases.into_iter().enumerate() {
            let (mut promotion, mut optimization) = (fixtures::promotion(), fixtures::optimization());
            edit(&mut promotion, &mut optimization);
            let found = candidate(&promotion, Some(&optimization));
            assert_eq!(
                found.as_ref().map(|c| c.name.as_str()).map_err(|p| p.reason),
                expected,
                "case {index}: {found:?}"
            );
        }
        let missing = candidate(&fixtures::promotion(), None).unwrap_err();
        assert_eq!(missing.reason, SOURCE_NOT_FOUND);
        assert!(missing.message.contains("magika-int8"));
    }
}
