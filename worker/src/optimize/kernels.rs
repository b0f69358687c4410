//! Which quantized nodes ONNX Runtime computes with floats all the same, read from the graph that it makes of a candidate at load.
//!
//! Changes no model and measures no time: what it finds depends on the model and ONNX Runtime alone.

use crate::{
    onnx::{self, Index, Limits, Model, Node},
    session::{self, Options, Runtime},
};
use std::{collections::HashSet, path::Path};

/// Why nothing is known of a candidate's kernels.
#[derive(Debug, thiserror::Error)]
pub(super) enum Unknown {
    /// There is no such graph.
    #[error(transparent)]
    Session(#[from] session::Error),
    /// It can't be read.
    #[error(transparent)]
    Graph(#[from] onnx::Error),
}

/// The nodes of `float` that [`between`] found in `quantized` and that fuse with neither neighbour. ONNX Runtime leaves its graph at
/// `scratch` for as long as it is read; without nodes of that kind, it is not asked.
pub(super) fn floats(
    runtime: &Runtime,
    float: &Model,
    quantized: &Model,
    scratch: &Path,
    limits: &Limits,
) -> Result<Vec<String>, Unknown> {
    let results = between(float, quantized);
    if results.is_empty() {
        return Ok(Vec::new());
    }
    let options = Options {
        prepack: false,
        optimized_model: Some(scratch.to_owned()),
        ..Options::default()
    };
    let opened = runtime.open_model(quantized, &options).map_err(Unknown::from);
    let optimized = opened.and_then(|_| {
        Ok(match quantized.beside.folder() {
            Some(weights) => onnx::read_beside(scratch, weights, limits)?,
            None => onnx::read(scratch, limits)?,
        })
    });
    if scratch.exists()
        && let Err(error) = std::fs::remove_file(scratch)
    {
        tracing::warn!("cannot remove {}: {error}", scratch.display());
    }
    let optimized = optimized?;
    let index = Index::new(&optimized.graph);
    let computed = results.into_iter().filter(|(_, result)| with_floats(&index, result));
    Ok(computed.map(|(name, _)| name).collect())
}

/// Names of the nodes of `float` that stand between Dequantize and Quantize nodes in `quantized`: they read values that only this one has.
/// With the value in which their work ends, behind a Relu or Clip and behind Quantize where there is one.
pub(super) fn between(float: &Model, quantized: &Model) -> Vec<(String, String)> {
    let before: HashSet<&str> = float.graph.nodes.iter().map(|node| node.name.as_str()).collect();
    let known: HashSet<&str> = float
        .graph
        .nodes
        .iter()
        .flat_map(|node| &node.outputs)
        .map(String::as_str)
        .collect();
    let index = Index::new(&quantized.graph);
    let dequantized = |name: &str| {
        index
            .producer(name)
            .is_some_and(|(_, node)| node.is("DequantizeLinear"))
    };
    let mut results = Vec::new();
    for node in &quantized.graph.nodes {
        let new = node
            .input(0)
            .is_some_and(|name| !known.contains(name) && dequantized(name));
        if !new || node.name.is_empty() || !before.contains(node.name.as_str()) {
            continue;
        }
        let mut result = node.output();
        if let Some((_, next)) = index.only_use(result).filter(|(_, next)| activation(next)) {
            result = next.output();
        }
        if let Some((_, next)) = index.only_use(result).filter(|(_, next)| next.is("QuantizeLinear")) {
            result = next.output();
        }
        results.push((node.name.clone(), result.to_owned()));
    }
    results
}

fn activation(node: &Node) -> bool {
    node.is("Relu") || node.is("Clip")
}

/// Whether `result` is computed from dequantized values. Of a value that is gone nothing is known.
fn with_floats(optimized: &Index<'_>, result: &str) -> bool {
    let before = |node: &Node| {
        node.input(0)
            .and_then(|name| optimized.producer(name))
            .map(|(_, node)| node)
    };
    let mut maker = optimized.producer(result).map(|(_, node)| node);
    maker = maker.and_then(|node| {
        if node.is("QuantizeLinear") {
            before(node)
        } else {
            Some(node)
        }
    });
    maker = maker.and_then(|node| if activation(node) { before(node) } else { Some(node) });
    maker.is_some_and(|node| {
        let mut makers = node.inputs.iter().filter_map(|name| optimized.producer(name));
        makers.any(|(_, maker)| maker.is("DequantizeLinear"))
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        calibrate,
        onnx::Tensor,
        passes::{Quantize, quantize_static},
        testing::{Build, noise, runtime},
    };

    /// A convolution and, on its own, a `HardSwish`.
    fn model() -> Model {
        let mut b = Build::opset(17);
        let (x, z) = (b.input("x", &[8, 64]), b.input("z", &[1, 4, 8, 8]));
        let filters = b.weights(&[16, 4, 3, 3]);
        let image = b.node("Conv", &[&z, &filters]);
        let image = b.node("Relu", &[&image]);
        let swish = b.node("HardSwish", &[&x]);
        let mut model = b.finish(&[&image, &swish]);
        onnx::normalize(&mut model).unwrap();
        model
    }

    #[test]
    fn an_operator_without_an_integer_kernel_is_found_and_a_convolution_is_not() {
        let float = model();
        let tensor =
            |name, dims: &[usize], seed| Tensor::floats(name, dims, &noise(seed, dims.iter().product())).unwrap();
        let mut batches = std::iter::once_with(|| Ok(vec![tensor("x", &[8, 64], 1), tensor("z", &[1, 4, 8, 8], 3)]));
        let settings = Quantize::default();
        let taps = quantize_static::taps(&float);
        let seen = calibrate::calibrate(
            &runtime(),
            1,
            &float,
            &taps,
            settings.calibration,
            &mut batches,
            &mut |_| {},
        );
        let mut quantized = float.clone();
        quantize_static::apply(&mut quantized, &settings, &seen.unwrap()).unwrap();
        let folder = tempfile::tempdir().unwrap();
        let scratch = folder.path().join("optimized.onnx");
        let found = |quantized: &Model| floats(&runtime(), &float, quantized, &scratch, &Limits::default()).unwrap();
        assert!(!between(&float, &quantized).is_empty());
        assert_eq!(found(&quantized), Vec::<String>::new());

        // As a tool would that quantizes whatever a list of operators says.
        let graph = &mut quantized.graph;
        let (scale, zero) = (
            Tensor::floats("s", &[], &[0.02]).unwrap(),
            Tensor::new("o", crate::onnx::ElementType::Uint8, &[], vec![128]).unwrap(),
        );
        graph.initializers.extend([scale, zero]);
        let at = graph.nodes.iter().position(|node| node.is("HardSwish")).unwrap();
        let swish = &mut graph.nodes[at];
        let (name, output) = (swish.name.clone(), swish.output().to_owned());
        swish.inputs[0] = "x/d".into();
        swish.outputs[0] = "y/f".into();
        let behind = [
            Node::new("QuantizeLinear", &["y/f", "s", "o"], &["y/q"]),
            Node::new("DequantizeLinear", &["y/q", "s", "o"], &[&output]),
        ];
        let before = [
            Node::new("QuantizeLinear", &["x", "s", "o"], &["x/q"]),
            Node::new("DequantizeLinear", &["x/q", "s", "o"], &["x/d"]),
        ];
        let swish = graph.nodes.remove(at);
        graph
            .nodes
            .splice(at..at, before.into_iter().chain([swish]).chain(behind));
        assert_eq!(found(&quantized), [name]);
        assert!(between(&float, &float).is_empty());
        assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 0);
    }
}
