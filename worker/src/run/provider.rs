//! Execution providers: named in plans, proven by a session, never taken on faith.
//!
//! Decides whether a provider really works here. That a library was compiled with one says nothing about the node.

use crate::failure::{Failure, FailureClass, Result, bug, failure, reasons, refused, resources};
use crate::onnx::{self, Dim, ElementType, Graph, Model, Node, Opset, ValueInfo};
use crate::session::{Error, Optimize, Options, Provider, Runtime};

/// The provider of a plan.
pub(super) fn parse(name: &str) -> Result<Provider> {
    match name {
        "CPU" => Ok(Provider::Cpu),
        "CUDA" => Ok(Provider::Cuda),
        "TensorRT" => Ok(Provider::TensorRt),
        other => Err(refused(
            reasons::PLAN_INVALID,
            format!(
                "execution provider `{}` is unknown: use CPU, CUDA or TensorRT",
                crate::failure::cut(other, 60)
            ),
        )),
    }
}

/// Builds a session of one node on `provider`; ONNX Runtime's own words otherwise.
pub(super) fn prove(runtime: &Runtime, provider: Provider) -> Result<()> {
    let options = Options {
        threads: 1,
        optimize: Optimize::Nothing,
        provider,
        optimized_model: None,
        prepack: true,
    };
    let tiny = onnx::to_bytes(&tiny());
    match runtime.open_bytes(&tiny, &options) {
        Ok(_) => Ok(()),
        Err(error) if provider == Provider::Cpu => Err(bug(format!("a model of one node does not load: {error}"))),
        Err(error) => Err(resources(
            reasons::PROVIDER_UNAVAILABLE,
            format!("{provider} can't be used here: {error}"),
        )),
    }
}

/// `y = Identity(x)`.
fn tiny() -> Model {
    let dims = [Dim::Fixed(1)];
    Model {
        ir_version: 8,
        opsets: vec![Opset {
            version: 13,
            ..Opset::default()
        }],
        graph: Graph {
            name: "probe".into(),
            nodes: vec![Node::new("Identity", &["x"], &["y"])],
            inputs: vec![ValueInfo::tensor("x", ElementType::Float, &dims)],
            outputs: vec![ValueInfo::tensor("y", ElementType::Float, &dims)],
            ..Graph::default()
        },
        ..Model::default()
    }
}

/// ONNX Runtime's version, out of its build information.
pub(crate) fn version(runtime: &Runtime) -> String {
    let info = runtime.build_info();
    let number = info
        .split(|c: char| !c.is_ascii_digit() && c != '.')
        .find(|part| part.matches('.').count() == 2);
    crate::failure::cut(number.unwrap_or(info), 100)
}

/// A session's error as a failure: a missing library is the image's fault, all else is `reason`.
pub(crate) fn failure_of(error: &Error, reason: &str) -> Failure {
    match error {
        Error::NoLibrary | Error::OtherLibrary { .. } | Error::Load { .. } => bug(error.to_string()),
        Error::Call { reason: words, .. }
            if words.contains("bad_alloc") || words.contains("Failed to allocate memory") =>
        {
            resources(reasons::OUT_OF_MEMORY, format!("{error}: raise the memory limit"))
        }
        _ => failure(FailureClass::Refused, reason, error.to_string()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn unknown_providers_are_refused_by_name() {
        assert!(parse("CPU").is_ok() && parse("TensorRT").is_ok());
        let failure = parse("cuda").unwrap_err();
        assert_eq!(failure.reason, reasons::PLAN_INVALID);
        assert!(failure.message.contains("`cuda`"));
    }

    #[test]
    fn the_probe_is_a_valid_model() {
        assert!(onnx::check(&tiny(), &onnx::Limits::default()).is_ok());
    }
}
