//! Transposed convolutions whose windows lie side by side, as decoders of segmentation models have: each input position gives its own block
//! of the output, which is a pointwise convolution and a move of its channels to their places. Decides whether a node is one, and writes the
//! move; weights are rounded elsewhere.
//!
//! `Y[o, k h + i] = sum_c X[c, h] W[c, o, i]` (ONNX `ConvTranspose` with `strides = kernel_shape = k` and no pads). ONNX Runtime has no integer
//! kernel for transposed convolution and for pointwise ones its best; in floats the detour is slower, so that nothing is rewritten there.

use super::{Error, layout::Layout, windows::automatic};
use crate::onnx::{AttributeValue, Node, Tensor};

/// Why others stay floats.
const OVERLAPS: &str = "ONNX Runtime has integer kernels for transposed convolution only where stride and kernel are the same, without pads \
                        and groups";

/// Blocks of the output, one for each position of the input.
#[derive(Debug)]
pub(super) struct Tiles {
    inputs: usize,
    outputs: usize,
    kernel: Vec<usize>,
}

impl Tiles {
    /// The blocks of `node`, a `ConvTranspose` with `weights` of shape `[inputs, outputs, kernel...]`; why it has none.
    pub(super) fn of(node: &Node, weights: &Tensor) -> Result<Self, &'static str> {
        let [inputs, outputs, kernel @ ..] = &weights.dims[..] else {
            return Err(OVERLAPS);
        };
        let all = |name: &str, expected: i64| {
            node.ints(name)
                .is_none_or(|values| values.iter().all(|value| *value == expected))
        };
        let strides = node.ints("strides").unwrap_or_default();
        let touch = strides.len() == kernel.len()
            && strides
                .iter()
                .zip(kernel)
                .all(|(stride, size)| usize::try_from(*stride) == Ok(*size));
        let plain =
            all("pads", 0) && all("output_padding", 0) && all("dilations", 1) && node.int("group", 1) == Some(1);
        let computed = automatic(node) || node.attribute("output_shape").is_some();
        if kernel.is_empty() || !touch || !plain || computed {
            return Err(OVERLAPS);
        }
        Ok(Self {
            inputs: *inputs,
            outputs: *outputs,
            kernel: kernel.to_vec(),
        })
    }

    /// Places in a block.
    fn places(&self) -> usize {
        self.kernel.iter().product()
    }

    /// The weights of the pointwise convolution: its outputs are all channels of the first place, those of the second and so on.
    pub(super) fn weights(&self, weights: &Tensor) -> Result<Tensor, Error> {
        let (places, floats) = (self.places(), weights.to_floats().unwrap_or_default());
        let outputs = (0..places).flat_map(|place| (0..self.outputs).map(move |output| (place, output)));
        let all = outputs.flat_map(|(place, output)| {
            (0..self.inputs).map(move |input| (input * self.outputs + output) * places + place)
        });
        let values: Vec<f32> = all.filter_map(|at| floats.get(at).copied()).collect();
        let dims = [places * self.outputs, self.inputs];
        let dims: Vec<usize> = dims.into_iter().chain(self.kernel.iter().map(|_| 1)).collect();
        Ok(Tensor::floats(&weights.name, &dims, &values)?)
    }

    /// Its bias: that of `bias` for each place.
    pub(super) fn bias(&self, bias: &Tensor) -> Result<Tensor, Error> {
        let values = bias.to_floats().unwrap_or_default().repeat(self.places());
        Ok(Tensor::floats(&bias.name, &[values.len()], &values)?)
    }

    /// The pointwise convolution in the place of `node`, with the same inputs and output.
    pub(super) fn pointwise(node: &Node) -> Node {
        let mut pointwise = Node::new("Conv", &[], &[]);
        pointwise.name.clone_from(&node.name);
        pointwise.inputs.clone_from(&node.inputs);
        pointwise.outputs.clone_from(&node.outputs);
        pointwise
    }

    /// Nodes that move the outputs of the pointwise convolution, `[batch, places * channels, ...]`, to where `output` has them.
    ///
    /// Channels come last meanwhile, as in ONNX Runtime's integer convolutions: the first and the last `Transpose` go away with theirs.
    pub(super) fn spread(&self, layout: &mut Layout, tiles: &str, output: &str) -> Result<Vec<Node>, Error> {
        let axes = self.kernel.len();
        let int = |value: usize| i64::try_from(value).unwrap_or(0);
        let mut ints = |name: &str, values: Vec<i64>| {
            let name = layout.names.fresh(output, name);
            Ok::<_, Error>(layout.add(Tensor::int64s(&name, &[values.len()], &values)?))
        };
        let kernel = || self.kernel.iter().map(|size| int(*size));
        let kept = std::iter::repeat_n(0, axes + 1);
        let blocks = ints("/blocks", kept.chain(kernel()).chain([int(self.outputs)]).collect())?;
        let grown = ints("/grown", [1].into_iter().chain(kernel()).chain([1]).collect())?;
        let shared = std::iter::repeat_n(1, axes + 1).chain([int(self.places())]);
        let shared = ints("/shared", shared.collect())?;
        let mut value = |name: &str| layout.names.fresh(output, name);
        let [last, parts, rows] = ["/last", "/parts", "/rows"].map(&mut value);
        let [sizes, larger, shape, whole] = ["/sizes", "/larger", "/shape", "/whole"].map(&mut value);
        let perm = |places: Vec<usize>| AttributeValue::Ints(places.into_iter().map(int).collect());
        let to_last: Vec<usize> = std::iter::once(0).chain(2..axes + 2).chain([1]).collect();
        let side_by_side = (1..=axes).flat_map(|axis| [axis, axis + axes]);
        let side_by_side: Vec<usize> = std::iter::once(0).chain(side_by_side).chain([2 * axes + 1]).collect();
        let to_second: Vec<usize> = [0, axes + 1].into_iter().chain(1..=axes).collect();
        Ok(vec![
            Node::new("Transpose", &[tiles], &[&last]).with("perm", perm(to_last)),
            Node::new("Reshape", &[&last, &blocks], &[&parts]),
            Node::new("Transpose", &[&parts], &[&rows]).with("perm", perm(side_by_side)),
            Node::new("Shape", &[&last], &[&sizes]),
            Node::new("Mul", &[&sizes, &grown], &[&larger]),
            Node::new("Div", &[&larger, &shared], &[&shape]),
            Node::new("Reshape", &[&rows, &shape], &[&whole]),
            Node::new("Transpose", &[&whole], &[output]).with("perm", perm(to_second)),
        ])
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        onnx::{Limits, Model, Names, Patch, apply, check},
        testing::{Build, noise, relative_difference, run},
    };

    /// 6 channels to 5 by windows of `kernel`.
    fn larger(kernel: &[usize], settings: &[(&str, AttributeValue)]) -> (Model, Tensor) {
        let mut b = Build::opset(17);
        let int = |size: &usize| i64::try_from(*size).unwrap();
        let sizes = kernel.iter().map(|size| 3 + size);
        let dims: Vec<usize> = [2, 6].into_iter().chain(sizes).collect();
        let x = b.input("x", &dims.iter().map(int).collect::<Vec<_>>());
        let w = b.weights(&[6, 5].into_iter().chain(kernel.iter().copied()).collect::<Vec<_>>());
        let bias = b.weights(&[5]);
        let strides = AttributeValue::Ints(kernel.iter().map(int).collect());
        let settings: Vec<_> = [("strides", strides)]
            .into_iter()
            .chain(settings.iter().cloned())
            .collect();
        let y = b.node_with("ConvTranspose", &[&x, &w, &bias], &settings);
        let input = Tensor::floats("x", &dims, &noise(7, dims.iter().product())).unwrap();
        (b.finish(&[&y]), input)
    }

    #[test]
    fn a_pointwise_convolution_whose_channels_are_moved_is_the_same() {
        for kernel in [&[3][..], &[2, 2], &[2, 3], &[1, 4], &[2, 1, 3]] {
            let (float, input) = larger(kernel, &[]);
            let node = &float.graph.nodes[0];
            let [w, bias] = [1, 2].map(|slot| {
                let name = node.input(slot);
                float
                    .graph
                    .initializers
                    .iter()
                    .find(|tensor| Some(&*tensor.name) == name)
                    .unwrap()
            });
            let tiles = Tiles::of(node, w).unwrap();
            let mut layout = Layout::new(Patch::new("test"), Names::new(&float.graph));
            let mut pointwise = Tiles::pointwise(node);
            for (slot, mut tensor) in [(1, tiles.weights(w).unwrap()), (2, tiles.bias(bias).unwrap())] {
                tensor.name = layout.names.fresh(&tensor.name, "/turned");
                pointwise.inputs[slot] = layout.add(tensor);
            }
            let blocks = layout.names.fresh(node.output(), "/blocks");
            pointwise.outputs = vec![blocks.clone()];
            let spread = tiles.spread(&mut layout, &blocks, node.output()).unwrap();
            let mut patch = layout.take_patch("test");
            patch.replace(0, [vec![pointwise], spread].concat());
            let mut turned = float.clone();
            apply(&mut turned.graph, patch).unwrap();
            check(&turned, &Limits::default()).unwrap();
            let (left, right) = (run(&float, std::slice::from_ref(&input)), run(&turned, &[input]));
            assert_eq!(left[0].dims, right[0].dims);
            assert!(relative_difference(&left, &right) < 1e-6, "{kernel:?}");
        }
    }

    #[test]
    fn windows_that_overlap_or_are_cut_have_no_blocks() {
        use AttributeValue::{Int, Ints, String};
        for (name, value, touch) in [
            ("strides", Ints(vec![2, 1]), false),
            ("pads", Ints(vec![0, 1, 0, 1]), false),
            ("pads", Ints(vec![0; 4]), true),
            ("output_padding", Ints(vec![1, 0]), false),
            ("dilations", Ints(vec![2, 2]), false),
            ("dilations", Ints(vec![1, 1]), true),
            ("group", Int(2), false),
            ("output_shape", Ints(vec![10, 10]), false),
            ("auto_pad", String(b"SAME_UPPER".to_vec().into()), false),
            ("auto_pad", String(b"NOTSET".to_vec().into()), true),
        ] {
            let (float, _) = larger(&[2, 2], &[]);
            let mut node = float.graph.nodes[0].clone();
            node.take_attribute(name);
            let node = node.with(name, value);
            assert_eq!(
                Tiles::of(&node, &float.graph.initializers[0]).is_ok(),
                touch,
                "{node:?}"
            );
        }
    }
}
