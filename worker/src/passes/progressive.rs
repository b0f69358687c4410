//! Weights of 4 bits for kernels of 8: kept in blocks, and unpacked to one scale for each channel when ONNX Runtime loads the model.
//!
//! It is the progressive quantization of `QoQ` (Lin et al., 2024, arXiv:2405.04532, section 4.1): a weight is `s_c q` with a scale for each
//! channel and `q` of 8 bits, and `q = round((c - z) r)` with a code `c` of 4 bits, a zero point and a ratio for each block. The paper
//! unpacks in the kernel, with integer ratios; here ordinary nodes over constants say how, which ONNX Runtime computes once while it loads
//! (constant folding, on at every level but none of its optimizations), so that ratios may be floats and every 8-bit kernel can be had.
//! Decides what is kept so, and how it is written; never how a weight is rounded to 4 bits.
#![allow(
    clippy::cast_possible_truncation,
    clippy::cast_sign_loss,
    reason = "values are rounded and within the target type before they are cast"
)]

use super::{
    Granularity, Grid, Report,
    blocks::{self, Bits, Order},
    gptq::Factor,
    site::{Kind, Site},
    weights::{QuantizedWeights, SMALLEST_SCALE},
};
use crate::onnx::{AttributeValue, ElementType, Error, Names, Node, Patch, Tensor};
use rayon::prelude::*;

/// Shorter blocks cost more than they gain.
const SHORTEST: usize = 16;
/// A scale and a zero point.
const BYTES_PER_BLOCK: usize = 5;
/// What the nodes that unpack a tensor take in a file.
const NODES: usize = 2560;

/// Rows of weights in blocks of 4 bits; what a short last block lacks is the zero point.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Progressive {
    rows: usize,
    length: usize,
    /// Weights of a block.
    block: usize,
    /// For each row its blocks; a byte holds a weight of a block's first half in its lower bits and one of the second in its upper.
    codes: Vec<u8>,
    /// Steps of 8 bits in a step of 4, for each block of each row.
    ratios: Vec<f32>,
    /// One for each block of each row.
    zero_points: Vec<u8>,
}

/// Rows, their length, and where they lie, of weights of shape `dims` with channels along `axis`.
fn layout(dims: &[usize], axis: usize) -> Option<(usize, usize, Order)> {
    match (axis, dims) {
        (0, [rows, rest @ ..]) => Some((*rows, rest.iter().product(), Order::Rows)),
        (1, [length, rows]) => Some((*rows, *length, Order::Columns)),
        _ => None,
    }
}

/// The block for rows of `length`: no longer than a row needs.
fn block_of(size: usize, length: usize) -> usize {
    size.min(length.next_power_of_two().max(SHORTEST))
}

/// Whether so many rows of so many weights are smaller in blocks of 4 bits than in 8.
fn pays(rows: usize, length: usize, size: usize) -> bool {
    let block = block_of(size, length);
    rows * length.div_ceil(block) * (block / 2 + BYTES_PER_BLOCK) + NODES <= rows * length
}

/// The block in which `weights` with channels along `axis` are kept in 4 bits, where they are.
pub(super) fn fitting(weights: &Tensor, axis: usize, grid: Grid) -> Option<usize> {
    let (rows, length, _) = layout(&weights.dims, axis)?;
    grid.four_bits.filter(|size| pays(rows, length, *size))
}

/// Tells of a site that is quantized whether its weights stay in 8 bits although 4 were asked for.
pub(super) fn tell(site: &Site<'_>, grid: Grid, report: &mut Report) {
    let Some(block) = grid.four_bits else {
        return;
    };
    let channels = site.weights.dims[site.channel_axis()];
    let rows = if site.kind == Kind::ConvTranspose {
        // One for each place of the kernel, too.
        channels * site.weights.dims.iter().skip(2).product::<usize>()
    } else {
        channels
    };
    if !pays(rows, site.weights.len() / rows.max(1), block) {
        report.raise(
            site.node,
            "its weights keep 8 bits: in 4, the file would not be smaller",
        );
    }
}

/// Rounds `weights` to 4 bits in blocks of `size`, by `factor` if there is one. Gives the values of 8 bits that they stand for, in the order
/// of the floats, with scales as `grid` says; `None` if a value is not finite. `least` gives, for a channel, the smallest scale that it may
/// have.
pub(super) fn quantize(
    weights: &Tensor,
    axis: usize,
    size: usize,
    grid: Grid,
    least: impl Fn(usize) -> f32 + Sync,
    factor: Option<&Factor>,
) -> Option<QuantizedWeights> {
    let (most, one_scale) = (grid.weights.largest(), grid.granularity == Granularity::PerTensor);
    let (rows, length, order) = layout(&weights.dims, axis)?;
    let block = block_of(size, length);
    let floats = weights.float_bytes()?;
    let blocked = blocks::quantize(floats, (rows, length), order, Bits::Four, block, factor)?;
    weights.release();
    let count = length.div_ceil(block);
    let zero_points: Vec<u8> = (0..rows * count)
        .map(|at| {
            let (row, index) = (at / count, at % count);
            Bits::Four.code(&blocked.zero_points[row * Bits::Four.bytes(count)..], index)
        })
        .collect();
    let steps = |at: usize, code: u8| f32::from(i16::from(code) - i16::from(zero_points[at]));
    let bytes = block / 2;
    let reach = |at: usize| {
        let of_block = &blocked.codes[at * bytes..(at + 1) * bytes];
        let largest = of_block
            .iter()
            .flat_map(|byte| [byte & 15, byte >> 4])
            .map(|code| steps(at, code).abs())
            .fold(0.0, f32::max);
        largest * blocked.scales[at]
    };
    let scale = |row: usize| {
        let largest = (row * count..(row + 1) * count).map(reach).fold(0.0, f32::max);
        let scale = (largest / most).max(least(row));
        if scale > 0.0 { scale.max(SMALLEST_SCALE) } else { 0.0 }
    };
    let mut scales: Vec<f32> = (0..rows).into_par_iter().map(scale).collect();
    if one_scale {
        scales = vec![scales.into_iter().fold(0.0, f32::max)];
    }
    // Nothing but zeros: any scale is exact.
    scales
        .iter_mut()
        .filter(|scale| **scale == 0.0)
        .for_each(|scale| *scale = 1.0);
    let of_row = |row: usize| scales[if one_scale { 0 } else { row }];
    let ratios: Vec<f32> = (0..rows * count)
        .map(|at| blocked.scales[at] / of_row(at / count))
        .collect();
    let mut values = vec![0_i8; rows * length];
    let mut codes = vec![0_u8; blocked.codes.len()];
    let turned: Vec<i8> = codes
        .par_chunks_mut(count * bytes)
        .enumerate()
        .flat_map_iter(|(row, codes)| {
            let mut values = vec![0_i8; length];
            for (index, (to, from)) in codes
                .chunks_exact_mut(bytes)
                .zip(blocked.codes[row * count * bytes..].chunks_exact(bytes))
                .enumerate()
            {
                let at = row * count + index;
                for (position, value) in values[index * block..].iter_mut().take(block).enumerate() {
                    *value = (steps(at, Bits::Four.code(from, position)) * ratios[at]).round_ties_even() as i8;
                }
                for (position, byte) in to.iter_mut().enumerate() {
                    *byte = Bits::Four.code(from, position) | Bits::Four.code(from, position + bytes) << 4;
                }
            }
            values
        })
        .collect();
    match order {
        Order::Rows => values = turned,
        Order::Columns => {
            for (position, line) in values.chunks_exact_mut(rows).enumerate() {
                for (row, value) in line.iter_mut().enumerate() {
                    *value = turned[row * length + position];
                }
            }
        }
    }
    let progressive = Progressive {
        rows,
        length,
        block,
        codes,
        ratios,
        zero_points,
    };
    Some(QuantizedWeights {
        values,
        scales,
        kept: Some(progressive),
    })
}

impl Progressive {
    /// Nodes over constants that give the values of 8 bits as `output`, in the shape `dims` with channels along `axis`; all of it in `patch`.
    pub(super) fn unpack(
        &self,
        names: &mut Names,
        patch: &mut Patch,
        (base, dims, axis): (&str, &[usize], usize),
        output: &str,
    ) -> Result<(), Error> {
        let count = self.length.div_ceil(self.block);
        let bytes =
            |name: &str, dims: &[usize], bytes: &[u8]| Tensor::new(name, ElementType::Uint8, dims, bytes.to_vec());
        let mut given = |suffix, make: &dyn Fn(&str) -> Result<Tensor, Error>| {
            let name = names.fresh(base, suffix);
            patch.add_tensor(make(&name)?);
            Ok::<_, Error>(name)
        };
        let of_blocks = [self.rows, count, 1];
        let codes = given("/q4", &|name| {
            bytes(name, &[self.rows, count, self.block / 2], &self.codes)
        })?;
        let ratios = given("/ratios", &|name| Tensor::floats(name, &of_blocks, &self.ratios))?;
        let zero_points = given("/zero_points", &|name| bytes(name, &of_blocks, &self.zero_points))?;
        let bits = given("/bits", &|name| bytes(name, &[], &[4]))?;
        let whole = |value: usize| i64::try_from(value).unwrap_or(i64::MAX);
        let ints = |values: Vec<i64>| move |name: &str| Tensor::int64s(name, &[values.len()], &values);
        let rows = given("/rows", &ints(vec![whole(self.rows), whole(count * self.block)]))?;
        let to = |element: ElementType| AttributeValue::Int(element.number());
        let mut nodes = Vec::new();
        let mut made = |op_type: &str, inputs: &[&str], attributes: &[(&str, AttributeValue)], names: &mut Names| {
            let name = names.fresh(base, "/unpacked");
            let node = Node::new(op_type, inputs, &[&name]);
            nodes.push(
                attributes
                    .iter()
                    .fold(node, |node, (key, value)| node.with(key, value.clone())),
            );
            name
        };
        let direction = |way: &'static str| [("direction", AttributeValue::String(way.into()))];
        let upper = made("BitShift", &[&codes, &bits], &direction("RIGHT"), names);
        let lifted = made("BitShift", &[&codes, &bits], &direction("LEFT"), names);
        let lower = made("BitShift", &[&lifted, &bits], &direction("RIGHT"), names);
        let both = made("Concat", &[&lower, &upper], &[("axis", AttributeValue::Int(2))], names);
        let codes = made("Cast", &[&both], &[("to", to(ElementType::Float))], names);
        let zeros = made("Cast", &[&zero_points], &[("to", to(ElementType::Float))], names);
        let steps = made("Sub", &[&codes, &zeros], &[], names);
        let scaled = made("Mul", &[&steps, &ratios], &[], names);
        let rounded = made("Round", &[&scaled], &[], names);
        let small = made("Cast", &[&rounded], &[("to", to(ElementType::Int8))], names);
        let mut matrix = made("Reshape", &[&small, &rows], &[], names);
        if count * self.block > self.length {
            let ends = [vec![0], vec![whole(self.length)], vec![1]];
            let [from, until, along] = ends.map(|values| {
                let name = names.fresh(base, "/cut");
                Tensor::int64s(&name, &[1], &values).map(|tensor| {
                    patch.add_tensor(tensor);
                    name
                })
            });
            matrix = made("Slice", &[&matrix, &from?, &until?, &along?], &[], names);
        }
        let last = if axis == 1 {
            Node::new("Transpose", &[&matrix], &[output]).with("perm", AttributeValue::Ints(vec![1, 0]))
        } else {
            let name = names.fresh(base, "/shape");
            let shape: Vec<i64> = dims.iter().map(|dim| whole(*dim)).collect();
            patch.add_tensor(Tensor::int64s(&name, &[shape.len()], &shape)?);
            Node::new("Reshape", &[&matrix, &name], &[output])
        };
        nodes.push(last);
        patch.add_constants(nodes);
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        onnx::{Graph, Limits, check, rewrite, to_bytes},
        passes::{Format, Mode, Quantize, Weights, quantize_blocks, quantize_dynamic, weights},
        testing::{Build, noise, relative_difference, run, run_optimized},
    };

    const GRID: Grid = Grid {
        granularity: Granularity::PerChannel,
        weights: Weights::Int8,
        four_bits: Some(32),
    };

    fn in_four_bits() -> Quantize {
        Quantize {
            mode: Mode::Dynamic,
            four_bits: Some(32),
            ..Quantize::default()
        }
    }

    /// What ONNX Runtime unpacks, beside what the quantizer says, for matrices and filters, whole blocks and cut ones.
    #[test]
    fn the_nodes_give_the_values_bit_for_bit() {
        for (dims, axis) in [
            (vec![96, 128], 1),
            (vec![70, 128], 1),
            (vec![100, 96], 0),
            (vec![64, 20, 3, 3], 0),
        ] {
            for grid in [
                GRID,
                Grid {
                    granularity: Granularity::PerTensor,
                    weights: Weights::Int7,
                    ..GRID
                },
            ] {
                let mut b = Build::opset(17);
                let weights = b.weights(&dims);
                let y = b.node("Identity", &[&weights]);
                let mut model = b.finish(&[&y]);
                let tensor = model.graph.initializers[0].clone();
                let quantized = quantize(&tensor, axis, 32, grid, |_| 0.0, None).unwrap();
                let kept = quantized.kept.clone().unwrap();
                rewrite(&mut model, |_| {
                    let (mut names, mut patch) = (Names::new(&Graph::default()), Patch::new("test"));
                    kept.unpack(&mut names, &mut patch, ("w", &dims, axis), "values")?;
                    patch.rewire(0, 0, "values");
                    Ok::<_, Error>(patch)
                })
                .unwrap();
                check(&model, &Limits::default()).unwrap();
                let output = run(&model, &[]).remove(0);
                let values: Vec<u8> = quantized.values.iter().map(|value| value.cast_unsigned()).collect();
                assert_eq!(
                    (output.dims.as_slice(), output.bytes()),
                    (dims.as_slice(), values.as_slice())
                );
                let most = grid.weights.largest() as i8;
                assert_eq!(
                    quantized.values.iter().map(|value| value.abs()).max(),
                    Some(most),
                    "all steps are used"
                );
                let floats = tensor.to_floats().unwrap();
                for (back, float) in quantized.floats(&dims, axis).iter().zip(floats) {
                    // Half a step of 15 in a block of values below 1, a clipped end, and half a step of what they are unpacked to.
                    assert!((back - float).abs() < 0.5, "{back} {float}");
                }
            }
        }
    }

    #[test]
    fn products_run_on_kernels_of_8_bits_and_take_half_the_bytes() {
        let mut b = Build::opset(17);
        let x = b.input("x", &[-1, 128]);
        let (first, second, third) = (b.weights(&[128, 256]), b.weights(&[128, 256]), b.weights(&[256, 96]));
        let [one, other] = [&first, &second].map(|w| b.node("MatMul", &[&x, w]));
        let sum = b.node("Add", &[&one, &other]);
        let relu = b.node("Relu", &[&sum]);
        let y = b.node("MatMul", &[&relu, &third]);
        let float = b.finish(&[&y]);
        let rows = [Tensor::floats("x", &[7, 128], &noise(5, 7 * 128)).unwrap()];
        let made = |settings: &Quantize| {
            let mut model = float.clone();
            let report = quantize_dynamic::apply(&mut model, settings).unwrap();
            check(&model, &Limits::default()).unwrap();
            assert_eq!(report.changed, 3);
            model
        };
        let eight = made(&Quantize {
            four_bits: None,
            ..in_four_bits()
        });
        for format in [Format::QOperator, Format::Qdq] {
            let four = made(&Quantize {
                format,
                ..in_four_bits()
            });
            let (outputs, operators) = run_optimized(&four, &rows);
            assert!(
                operators
                    .iter()
                    .all(|operator| !["BitShift", "Cast", "Round", "Concat"].contains(&operator.as_str())),
                "unpacked once, on loading: {operators:?}"
            );
            assert!(operators.iter().any(|operator| operator.contains("MatMul")));
            let difference = relative_difference(&run(&float, &rows), &outputs);
            assert!(difference < 0.2, "{format:?} {difference}");
            let [four, eight] = [&four, &eight].map(|model| to_bytes(model).len());
            assert!(4 * four < 3 * eight, "{four} {eight}");
        }
    }

    /// The table and the product that shares it stay one, and in blocks.
    #[test]
    fn what_an_embedding_shares_stays_one() {
        let mut b = Build::opset(17);
        let ids = b.typed_input("ids", ElementType::Int64, &[1, 5]);
        let (table, inner) = (b.weights(&[900, 64]), b.weights(&[64, 64]));
        let rows = b.node("Gather", &[&table, &ids]);
        let product = b.node("MatMul", &[&rows, &inner]);
        let wide = b.ints(&[5, 64]);
        let rows = b.node("Reshape", &[&product, &wide]);
        let y = b.node_with("Gemm", &[&rows, &table], &[("transB", AttributeValue::Int(1))]);
        let float = b.finish(&[&y]);
        let mut model = float.clone();
        let report = quantize_blocks::tables(&mut model, 32).unwrap();
        assert_eq!((report.changed, report.left_count), (2, 0));
        quantize_dynamic::apply(&mut model, &in_four_bits()).unwrap();
        check(&model, &Limits::default()).unwrap();
        let ids = [Tensor::int64s("ids", &[1, 5], &[0, 299, 7, 7, 31]).unwrap()];
        let (outputs, operators) = run_optimized(&model, &ids);
        assert!(
            operators.iter().any(|operator| operator == "MatMulNBits"),
            "{operators:?}"
        );
        assert!(relative_difference(&run(&float, &ids), &outputs) < 0.3);
        assert!(5 * to_bytes(&model).len() < to_bytes(&float).len());
    }

    #[test]
    fn what_would_not_be_smaller_stays_in_8_bits() {
        for (dims, axis, pays) in [
            (&[128, 128][..], 1, true),
            (&[16, 64], 1, false),
            (&[64, 1, 3, 3], 0, false),
            (&[32, 3, 3, 3], 0, false),
            (&[64, 64, 1, 1], 0, false),
            (&[64, 64, 3, 3], 0, true),
            (&[64, 64, 3, 3], 1, false),
        ] {
            let tensor = Tensor::floats("w", dims, &noise(1, dims.iter().product())).unwrap();
            let quantized = weights::quantize(&tensor, axis, GRID, |_| 0.0).unwrap();
            assert_eq!(quantized.kept.is_some(), pays, "{dims:?}");
        }
    }
}
