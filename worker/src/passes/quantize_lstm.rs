//! LSTMs with constant weights in 8 bits, spelled as ONNX Runtime's `DynamicQuantizeLSTM`: inputs and hidden states are quantized as they
//! come. Other recurrent operators have no such kernel; they are left, and said to be.

use super::{
    Error, Format, Granularity, Grid, Quantize, Report,
    layout::{Layout, Packed},
    product::DOMAIN,
    weights,
};
use crate::onnx::{ElementType, Index, Node, Tensor, shown};

/// Fewer weights cost more to quantize inputs for than they save.
const FEWEST_WEIGHTS: usize = 1024;
/// Products summed into one 32-bit accumulator: 255 * 127 * 32,768 stays below 2^30.
const MOST_PRODUCTS: usize = 32_768;
/// Inputs in front of the scales: data, weights, recurrent weights, bias, lengths, initial hidden and cell state, peepholes.
const FLOAT_INPUTS: usize = 8;

/// Quantizes every such node of one graph, as a patch of `layout`; their positions.
pub(super) fn quantize(
    index: &Index<'_>,
    settings: &Quantize,
    layout: &mut Layout,
    report: &mut Report,
) -> Result<Vec<usize>, Error> {
    let mut positions = Vec::new();
    for (position, node) in index.graph.nodes.iter().enumerate().filter(|(_, node)| recurrent(node)) {
        if let Some(why) = node.pinned {
            report.leave(node, why);
            continue;
        }
        if settings.format == Format::Qdq {
            report.leave(
                node,
                "ONNX itself has no quantized recurrent operator: use format QOperator",
            );
            continue;
        }
        match find(index, node) {
            Ok((input, hidden)) => {
                if settings.four_bits.is_some() {
                    report.raise(
                        node,
                        "its weights keep 8 bits: the recurrent kernel takes none that are unpacked on loading",
                    );
                }
                let input = packed(layout, input, settings.grid())?;
                let hidden = packed(layout, hidden, settings.grid())?;
                let mut inputs = node.inputs.clone();
                inputs.resize(FLOAT_INPUTS, String::new());
                for (slot, packed) in [(1, input), (2, hidden)] {
                    inputs[slot] = packed.values;
                    inputs.extend([packed.scale, packed.zero_point]);
                }
                let mut lstm = Node {
                    op_type: "DynamicQuantizeLSTM".to_owned(),
                    domain: DOMAIN.to_owned(),
                    inputs,
                    ..node.clone()
                };
                lstm.take_attribute("layout");
                layout.patch.replace(position, vec![lstm]);
                positions.push(position);
            }
            Err(why) => report.leave(node, why),
        }
    }
    Ok(positions)
}

/// Whether it is a recurrent operator of ONNX.
pub(super) fn recurrent(node: &Node) -> bool {
    ["LSTM", "GRU", "RNN"].iter().any(|op_type| node.is(op_type))
}

/// Weights `[directions, 4 hidden, inputs]` and recurrent weights `[directions, 4 hidden, hidden]`.
fn find<'g>(index: &Index<'g>, node: &Node) -> Result<(&'g Tensor, &'g Tensor), &'static str> {
    if !node.is("LSTM") {
        return Err("ONNX Runtime has integer kernels for LSTM only, not for GRU and RNN");
    }
    if node.int("layout", 0) != Some(0) {
        return Err("its batch comes first (layout 1), which the integer kernel does not take");
    }
    let matrices = |slot| {
        let tensor = node.input(slot).and_then(|name| index.constant(name));
        let tensor = tensor.ok_or("its weights are computed at run time")?;
        match tensor.dims[..] {
            _ if tensor.element != ElementType::Float => Err("its weights are not 32-bit floats"),
            [_, _, 0] | [0, ..] | [_, 0, _] => Err("its weights are empty"),
            [_, _, inputs] if inputs > MOST_PRODUCTS => Err("it sums more products than a 32-bit accumulator can hold"),
            [_, _, _] => Ok(tensor),
            _ => Err("its weights are no matrix for each direction"),
        }
    };
    let (input, hidden) = (matrices(1)?, matrices(2)?);
    if input.len() + hidden.len() < FEWEST_WEIGHTS {
        return Err("it is too small to pay for quantizing its input");
    }
    Ok((input, hidden))
}

/// The weights as the operator takes them, `[directions, inputs, channels]`, with a scale for each channel of each direction or one for
/// each direction. Nodes that share weights, as in the branches of an `If`, go on sharing them.
fn packed(layout: &mut Layout, weights: &Tensor, grid: Grid) -> Result<Packed, Error> {
    if let Some(known) = layout.recurrent.get(&weights.name) {
        return Ok(known.clone());
    }
    let (directions, channels, inputs) = (weights.dims[0], weights.dims[1], weights.dims[2]);
    let scales = match grid.granularity {
        Granularity::PerChannel => vec![directions, channels],
        Granularity::PerTensor => vec![directions],
    };
    let rows: usize = scales.iter().product();
    let flat = Tensor {
        dims: vec![rows, weights.len() / rows],
        ..weights.clone()
    };
    // A row for each scale, whatever the granularity.
    let rowwise = Grid {
        granularity: Granularity::PerChannel,
        four_bits: None,
        ..grid
    };
    let quantized = weights::quantize(&flat, 0, rowwise, |_| 0.0).ok_or_else(|| Error::NotFinite {
        name: shown(&weights.name),
    })?;
    weights.release();
    let mut turned = Vec::with_capacity(quantized.values.len());
    for matrix in quantized.values.chunks_exact(channels * inputs) {
        for input in 0..inputs {
            turned.extend(
                matrix
                    .iter()
                    .skip(input)
                    .step_by(inputs)
                    .map(|value| value.cast_unsigned()),
            );
        }
    }
    let names = ["/q", "/scale", "/zero_point"].map(|suffix| layout.names.fresh(&weights.name, suffix));
    let dims = [directions, inputs, channels];
    let packed = Packed {
        values: layout.add(Tensor::new(&names[0], ElementType::Int8, &dims, turned)?),
        scale: layout.add(Tensor::floats(&names[1], &scales, &quantized.scales)?),
        zero_point: layout.add(Tensor::new(&names[2], ElementType::Int8, &scales, vec![0; rows])?),
    };
    layout.recurrent.insert(weights.name.clone(), packed.clone());
    Ok(packed)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        onnx::{AttributeValue as A, Limits, Model, to_bytes},
        passes::{Mode, Quantize, quantize_dynamic},
        testing::{Build, noise, relative_difference, run, run_optimized},
    };

    fn small(b: &mut Build, dims: &[usize]) -> String {
        let count = dims.iter().product();
        let values: Vec<f32> = noise(count as u64, count).iter().map(|value| value * 0.2).collect();
        b.floats(dims, &values)
    }

    /// A recurrent node with the given number of gates, and what every optional input can be.
    fn recurrent_model(
        op_type: &str,
        gates: usize,
        directions: usize,
        everything: bool,
        attributes: &[(&str, A)],
    ) -> Model {
        let (inputs, hidden) = (24, 32);
        let mut b = Build::opset(17);
        let x = b.input("x", &[10, 2, 24]);
        let w = small(&mut b, &[directions, gates * hidden, inputs]);
        let r = small(&mut b, &[directions, gates * hidden, hidden]);
        let mut slots = vec![x, w, r];
        if everything {
            let lengths = b.int32s(&[10, 7]);
            slots.extend([small(&mut b, &[directions, 2 * gates * hidden]), lengths]);
            slots.extend((0..2).map(|_| small(&mut b, &[directions, 2, hidden])));
            slots.push(small(&mut b, &[directions, 3 * hidden]));
        }
        let slots: Vec<&str> = slots.iter().map(String::as_str).collect();
        let direction = if directions == 2 { "bidirectional" } else { "reverse" };
        let node = Node::new(op_type, &slots, &["y", "h"])
            .with("hidden_size", A::Int(32))
            .with("direction", A::String(direction.into()));
        b.push(
            attributes
                .iter()
                .fold(node, |node, (name, value)| node.with(name, value.clone())),
        );
        b.finish(&["y", "h"])
    }

    fn sequence() -> Vec<Tensor> {
        vec![Tensor::floats("x", &[10, 2, 24], &noise(8, 480)).unwrap()]
    }

    fn dynamic(granularity: Granularity) -> Quantize {
        Quantize {
            mode: Mode::Dynamic,
            granularity,
            ..Quantize::default()
        }
    }

    #[test]
    fn every_form_of_an_lstm_stays_faithful() {
        for granularity in [Granularity::PerChannel, Granularity::PerTensor] {
            for (directions, everything) in [(1, false), (1, true), (2, false), (2, true)] {
                let clip = [("clip", A::Float(0.9)), ("layout", A::Int(0))];
                let float = recurrent_model("LSTM", 4, directions, everything, &clip);
                let mut model = float.clone();
                let report = quantize_dynamic::apply(&mut model, &dynamic(granularity)).unwrap();
                crate::onnx::check(&model, &Limits::default()).unwrap();
                assert_eq!(report.changed, 1);
                let (after, operators) = run_optimized(&model, &sequence());
                assert_eq!(operators, ["DynamicQuantizeLSTM"]);
                let difference = relative_difference(&run(&float, &sequence()), &after);
                assert!(
                    difference < 0.05,
                    "{granularity:?} {directions} {everything}: {difference}"
                );
            }
        }
    }

    #[test]
    fn nodes_that_share_weights_go_on_sharing_them() {
        let mut b = Build::opset(17);
        let x = b.input("x", &[10, 2, 24]);
        let (w, r) = (small(&mut b, &[1, 128, 24]), small(&mut b, &[1, 128, 32]));
        let hidden = [("hidden_size", A::Int(32))];
        let outputs = [0, 1].map(|_| b.node_with("LSTM", &[&x, &w, &r], &hidden));
        let mut model = b.finish(&[&outputs[0], &outputs[1]]);
        let report = quantize_dynamic::apply(&mut model, &dynamic(Granularity::PerChannel)).unwrap();
        assert_eq!((report.changed, model.graph.initializers.len()), (2, 6));
    }

    #[test]
    fn what_has_no_kernel_is_left_with_the_reason() {
        let first = [("layout", A::Int(1))];
        for (op_type, gates, attributes, why) in [
            ("GRU", 3, &[][..], "not for GRU"),
            ("RNN", 1, &[][..], "not for GRU and RNN"),
            ("LSTM", 4, &first[..], "batch comes first"),
        ] {
            let mut model = recurrent_model(op_type, gates, 2, false, attributes);
            let error = quantize_dynamic::apply(&mut model, &dynamic(Granularity::PerChannel)).unwrap_err();
            assert!(error.to_string().contains(why), "{error}");
        }
        let standard = Quantize {
            format: Format::Qdq,
            ..dynamic(Granularity::PerChannel)
        };
        let mut model = recurrent_model("LSTM", 4, 1, false, &[]);
        let error = quantize_dynamic::apply(&mut model, &standard).unwrap_err();
        assert!(error.to_string().contains("use format QOperator"), "{error}");
    }

    /// Conv - Relu - LSTM - `MatMul`, as speech models have.
    #[test]
    fn a_speech_model_is_a_third_and_says_the_same() {
        let mut b = Build::opset(17);
        let x = b.input("x", &[1, 16, 20]);
        let (kernel, offset) = (small(&mut b, &[32, 16, 3]), small(&mut b, &[32]));
        let conv = b.node_with("Conv", &[&x, &kernel, &offset], &[("pads", A::Ints(vec![1, 1]))]);
        let relu = b.node("Relu", &[&conv]);
        let steps = b.node_with("Transpose", &[&relu], &[("perm", A::Ints(vec![2, 0, 1]))]);
        let (input, recurrent) = (small(&mut b, &[1, 384, 32]), small(&mut b, &[1, 384, 96]));
        let bias = small(&mut b, &[1, 768]);
        let hidden = [("hidden_size", A::Int(96))];
        let states = b.node_with("LSTM", &[&steps, &input, &recurrent, &bias], &hidden);
        let axis = b.ints(&[1]);
        let rows = b.node("Squeeze", &[&states, &axis]);
        let letters = small(&mut b, &[96, 40]);
        let y = b.node("MatMul", &[&rows, &letters]);
        let float = b.finish(&[&y]);
        let mut model = float.clone();
        let report = quantize_dynamic::apply(&mut model, &dynamic(Granularity::PerChannel)).unwrap();
        assert_eq!(report.changed, 2, "{report:?}");
        let inputs = [Tensor::floats("x", &[1, 16, 20], &noise(2, 320)).unwrap()];
        let difference = relative_difference(&run(&float, &inputs), &run_optimized(&model, &inputs).0);
        assert!(difference < 0.05, "{difference}");
        assert!(3 * to_bytes(&model).len() <= to_bytes(&float).len());
    }
}
