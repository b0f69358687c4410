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
    Grid, Report,
    blocks::{self, Bits, Order},
    gptq::Factor,
    layout::Layout,
    site::{Kind, Site},
    weights::{self, QuantizedWeights},
};
use crate::onnx::{AttributeValue, ElementType, Error, Node, Tensor};
use rayon::prelude::*;

/// Shorter blocks cost more than they gain.
const SHORTEST: usize = 16;
/// A scale and a zero point.
const BYTES_PER_BLOCK: usize = 5;
/// What the nodes that unpack a tensor take in a file.
const NODES: usize = 1536;

/// Rows of weights in blocks of 4 bits; what a short last block lacks is the zero point.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Progressive {
    rows: usize,
    length: usize,
    /// Weights of a block.
    block: usize,
    /// `[blocks, block / 2, rows]`: a byte holds a weight of a block's first half in its lower bits and one of the second in its upper.
    codes: Vec<u8>,
    /// `[blocks, rows]`: steps of 8 bits in a step of 4.
    ratios: Vec<f32>,
    /// `[blocks, rows]`.
    zero_points: Vec<u8>,
}

/// Rows, their length, and where they lie, of weights of shape `dims` with channels along `axis`.
fn rows_of(dims: &[usize], axis: usize) -> Option<(usize, usize, Order)> {
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
    let (rows, length, _) = rows_of(&weights.dims, axis)?;
    grid.four_bits.filter(|size| pays(rows, length, *size))
}

/// Tells of a site that is quantized whether its weights stay in 8 bits although 4 were asked for.
pub(super) fn tell(site: &Site<'_>, grid: Grid, report: &mut Report) {
    let Some(block) = grid.four_bits.filter(|_| !site.node.eight_bits) else {
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

/// Rounds `matrix` to 4 bits in blocks of `size`, by `factor` if there is one. Gives the values of 8 bits that they stand for, in the order
/// of the floats, with scales as `grid` says; `None` if a value is not finite. `least` gives, for a channel, the smallest scale that it may
/// have.
pub(super) fn quantize(
    matrix: &Tensor,
    axis: usize,
    size: usize,
    grid: Grid,
    least: impl Fn(usize) -> f32,
    factor: Option<&Factor>,
) -> Option<QuantizedWeights> {
    let (rows, length, order) = rows_of(&matrix.dims, axis)?;
    let block = block_of(size, length);
    let floats = matrix.float_bytes()?;
    let blocked = blocks::quantize(floats, (rows, length), order, Bits::Four, block, factor)?;
    matrix.release();
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
    let largest: Vec<f32> = (0..rows)
        .into_par_iter()
        .map(|row| (row * count..(row + 1) * count).map(reach).fold(0.0, f32::max))
        .collect();
    let scales = weights::scales(&largest, grid, least);
    let of_row = |row: usize| scales[if scales.len() == 1 { 0 } else { row }];
    let ratios: Vec<f32> = (0..rows * count)
        .map(|at| blocked.scales[at] / of_row(at / count))
        .collect();
    // As the nodes have them: whole blocks of all rows side by side.
    let mut codes = vec![0_u8; blocked.codes.len()];
    let mut lines = vec![0_i8; count * block * rows];
    codes
        .par_chunks_mut(bytes * rows)
        .zip(lines.par_chunks_mut(block * rows))
        .enumerate()
        .for_each(|(index, (codes, lines))| {
            for row in 0..rows {
                let at = row * count + index;
                let packed = &blocked.codes[at * bytes..(at + 1) * bytes];
                for position in 0..block {
                    let code = Bits::Four.code(packed, position);
                    codes[position % bytes * rows + row] |= code << (4 * (position / bytes));
                    lines[position * rows + row] = (steps(at, code) * ratios[at]).round_ties_even() as i8;
                }
            }
        });
    lines.truncate(length * rows);
    let values = match order {
        Order::Columns => lines,
        Order::Rows => (0..rows)
            .flat_map(|row| lines.iter().skip(row).step_by(rows).copied())
            .collect(),
    };
    let aside = |index: usize| (0..rows).map(move |row| row * count + index);
    let progressive = Progressive {
        rows,
        length,
        block,
        codes,
        ratios: (0..count).flat_map(aside).map(|at| ratios[at]).collect(),
        zero_points: (0..count).flat_map(aside).map(|at| zero_points[at]).collect(),
    };
    Some(QuantizedWeights {
        values,
        scales,
        kept: Some(progressive),
    })
}

impl Progressive {
    /// Nodes over constants that give the values of 8 bits as `output`, in the shape `dims` with channels along `axis`.
    ///
    /// Scaling each block's codes is a product with the identity, of a kernel that has a scale and a zero point for each of its columns: what
    /// is made on the way is never wider than a byte, so that loading takes 5 bytes for a weight rather than 20 with floats between.
    pub(super) fn unpack(
        &self,
        layout: &mut Layout,
        (base, dims, axis): (&str, &[usize], usize),
        output: &str,
    ) -> Result<(), Error> {
        let (rows, block, count) = (self.rows, self.block, self.length.div_ceil(self.block));
        let whole = |sizes: &[usize]| -> Vec<u8> {
            let sizes = sizes.iter().map(|size| i64::try_from(*size).unwrap_or(i64::MAX));
            sizes.flat_map(i64::to_le_bytes).collect()
        };
        let own = |layout: &mut Layout, suffix, element, dims: &[usize], bytes: Vec<u8>| {
            let tensor = Tensor::new(&layout.names.fresh(base, suffix), element, dims, bytes)?;
            Ok::<_, Error>(layout.add(tensor))
        };
        let ratios = self.ratios.iter().flat_map(|ratio| ratio.to_le_bytes()).collect();
        let points = self.zero_points.clone();
        let codes = own(
            layout,
            "/q4",
            ElementType::Uint8,
            &[count, block / 2, rows],
            self.codes.clone(),
        )?;
        let ratios = own(layout, "/ratios", ElementType::Float, &[count, 1, rows], ratios)?;
        let points = own(layout, "/zero_points", ElementType::Int8, &[count, 1, rows], points)?;
        let bits = layout.constant("unpack/bits", ElementType::Uint8, &[], vec![4])?;
        let one = layout.constant("unpack/one", ElementType::Float, &[], 1.0_f32.to_le_bytes().to_vec())?;
        let zero = layout.constant("unpack/zero", ElementType::Int8, &[], vec![0])?;
        let identity = (0..block * block)
            .map(|at| u8::from(at / block == at % block))
            .collect();
        let identity = layout.constant("unpack/identity", ElementType::Int8, &[block, block], identity)?;
        let lines = layout.constant("unpack/lines", ElementType::Int64, &[2], whole(&[count * block, rows]))?;

        let mut nodes = Vec::new();
        let mut made = |layout: &mut Layout, node: Node| {
            let name = layout.names.fresh(base, "/unpacked");
            nodes.push(Node {
                outputs: vec![name.clone()],
                ..node
            });
            name
        };
        let shift = |of: &str, way: &'static str| {
            Node::new("BitShift", &[of, &bits], &[]).with("direction", AttributeValue::String(way.into()))
        };
        let upper = made(layout, shift(&codes, "RIGHT"));
        let lifted = made(layout, shift(&codes, "LEFT"));
        let lower = made(layout, shift(&lifted, "RIGHT"));
        let both = Node::new("Concat", &[&lower, &upper], &[]).with("axis", AttributeValue::Int(1));
        let both = made(layout, both);
        let signed = AttributeValue::Int(ElementType::Int8.number());
        let signed = made(layout, Node::new("Cast", &[&both], &[]).with("to", signed));
        let scaled = [identity.as_str(), &one, &zero, &signed, &ratios, &points, &one, &zero];
        let scaled = made(layout, Node::new("QLinearMatMul", &scaled, &[]));
        let mut matrix = made(layout, Node::new("Reshape", &[&scaled, &lines], &[]));
        if count * block > self.length {
            let cut = [("unpack/from", 0), ("unpack/until", self.length), ("unpack/along", 0)];
            let mut inputs = vec![matrix];
            for (role, size) in cut {
                inputs.push(layout.constant(role, ElementType::Int64, &[1], whole(&[size]))?);
            }
            let inputs: Vec<&str> = inputs.iter().map(String::as_str).collect();
            matrix = made(layout, Node::new("Slice", &inputs, &[]));
        }
        if axis == 0 {
            let turned = AttributeValue::Ints(vec![1, 0]);
            let turned = made(layout, Node::new("Transpose", &[&matrix], &[]).with("perm", turned));
            let shape = layout.constant("unpack/shape", ElementType::Int64, &[dims.len()], whole(dims))?;
            made(layout, Node::new("Reshape", &[&turned, &shape], &[]));
        }
        if let Some(last) = nodes.last_mut() {
            last.outputs = vec![output.to_owned()];
        }
        layout.patch.add_constants(nodes);
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        onnx::{Graph, Limits, Names, Patch, check, rewrite, to_bytes},
        passes::{Format, Granularity, Mode, Quantize, Weights, quantize_blocks, quantize_dynamic},
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
                    let mut layout = Layout::new(Patch::new("test"), Names::new(&Graph::default()));
                    kept.unpack(&mut layout, ("w", &dims, axis), "values")?;
                    layout.patch.rewire(0, 0, "values");
                    Ok::<_, Error>(layout.patch)
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
                    .all(|operator| !["BitShift", "QLinearMatMul", "Concat"].contains(&operator.as_str())),
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
