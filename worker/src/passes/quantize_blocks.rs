//! Block-wise weights of matrix products and embeddings; activations stay float in the file.
//!
//! Products become `MatMulNBits` at accuracy level 4, for which ONNX Runtime's CPU kernels quantize each row of the input to 8 bits as
//! they read it (level 0 unpacks the weights to floats first, which is 4 to 8 times slower). Embeddings become `GatherBlockQuantized`.
//! Convolutions stay as they are: there is no such kernel for them.

use super::{
    Error, Report,
    blocks::{self, Bits, Order},
    gptq::Factor,
    quantize_tables::table,
    site::{Kind, Site, sites},
};
use crate::calibrate::{Gram, Rows as _};
use crate::onnx::{
    AttributeValue, ElementType, Index, Model, Names, Node, Patch, Tensor, apply as apply_patch, prune, rename, shown,
};
use std::{collections::BTreeMap, rc::Rc};

const NAME: &str = "quantize-blocks";
/// Domain of ONNX Runtime's contributed operators.
const CONTRIBUTED: &str = "com.microsoft";
/// `accuracy_level` that lets ONNX Runtime compute with 8-bit integers.
const INTEGERS: i64 = 4;
/// Shorter blocks have no kernel.
const SHORTEST: usize = 16;

/// How weights are cut and kept.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Blocks {
    /// Bits of a weight.
    pub bits: Bits,
    /// Weights that share a scale and a zero point: a power of two, at least 16.
    pub size: usize,
    /// How weights are rounded.
    pub rounding: Rounding,
}

/// How a weight becomes one of the values that its block has.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Rounding {
    /// Each to the nearest.
    Nearest,
    /// So that the errors of a product make each other good, on inputs as in the calibration data.
    Gptq,
}

/// Quantizes the weights of every matrix product and of every embedding; products whose input is in `grams` by GPTQ, all else to
/// the nearest step.
pub fn apply(model: &mut Model, settings: &Blocks, grams: &BTreeMap<String, Gram>) -> Result<Report, Error> {
    if !settings.size.is_power_of_two() || !(SHORTEST..=256).contains(&settings.size) {
        return Err(Error::Setting {
            pass: NAME,
            field: "block",
            value: settings.size.to_string(),
            hint: "use 16, 32, 64, 128 or 256",
        });
    }
    let mut report = Report::new(NAME);
    let patch = {
        let index = Index::new(&model.graph);
        let mut rewrite = Rewrite {
            settings,
            grams,
            last: None,
            recovered: 0,
            names: Names::new(&model.graph),
            patch: Patch::new(NAME),
        };
        for site in sites(&index, &mut report) {
            match site.kind {
                Kind::Conv => report.leave(site.node, "there is no convolution with block-wise weights"),
                Kind::MatMul | Kind::Gemm { .. } => {
                    rewrite.product(&index, &site)?;
                    report.changed += 1;
                }
            }
        }
        for (position, node) in index.graph.nodes.iter().enumerate() {
            let Some(table) = table(&index, node).filter(|table| table.dims[0] >= SHORTEST) else {
                continue;
            };
            match rewrite.block_of(table.dims[1]) {
                Some(size) => {
                    rewrite.embedding(position, node, table, size)?;
                    report.changed += 1;
                }
                None => report.leave(
                    node,
                    format!("its rows of {} can't be cut into blocks of 16 or more", table.dims[1]),
                ),
            }
        }
        if settings.rounding == Rounding::Gptq && rewrite.recovered == 0 {
            return Err(Error::NoEffect {
                pass: "gptq",
                why: "no matrix product has inputs that calibration data says anything about".to_owned(),
            });
        }
        rewrite.patch
    };
    let report = super::require_effect(report)?;
    apply_patch(&mut model.graph, patch)?;
    model.import(CONTRIBUTED, 1);
    prune(&mut model.graph);
    rename(model);
    Ok(report)
}

struct Rewrite<'s> {
    settings: &'s Blocks,
    grams: &'s BTreeMap<String, Gram>,
    /// Of the last input: products that share one follow each other, and a factor is as large as the weights.
    last: Option<(String, Option<Rc<Factor>>)>,
    /// Products that were rounded by GPTQ.
    recovered: usize,
    names: Names,
    patch: Patch,
}

impl Rewrite<'_> {
    /// The largest allowed size that cuts a row evenly: embeddings have no short blocks.
    fn block_of(&self, length: usize) -> Option<usize> {
        let mut size = self.settings.size;
        while size >= SHORTEST && !length.is_multiple_of(size) {
            size /= 2;
        }
        (size >= SHORTEST).then_some(size)
    }

    fn factor(&mut self, input: &str, size: usize) -> Option<Rc<Factor>> {
        if let Some((_, known)) = self.last.as_ref().filter(|(last, _)| last == input) {
            return known.clone();
        }
        let gram = self.grams.get(input).filter(|gram| gram.size() == size);
        let factor = gram.and_then(Factor::new).map(Rc::new);
        self.last = Some((input.to_owned(), factor.clone()));
        factor
    }

    fn product(&mut self, index: &Index<'_>, site: &Site<'_>) -> Result<(), Error> {
        let Blocks { bits, size, .. } = *self.settings;
        let axis = site.channel_axis();
        let (columns, inner) = (site.weights.dims[axis], site.weights.dims[1 - axis]);
        let order = if axis == 0 { Order::Rows } else { Order::Columns };
        let count = inner.div_ceil(size);
        let dims = [
            &[columns, count, bits.bytes(size)][..],
            &[columns * count],
            &[columns * bits.bytes(count)],
        ];
        let factor = self.factor(site.input(), inner);
        self.recovered += usize::from(factor.is_some());
        let [codes, scales, zero_points] =
            self.tensors(site.weights, (columns, inner), order, size, dims, factor.as_deref())?;
        let mut inputs = vec![site.input().to_owned(), codes, scales, zero_points];
        let mut output = site.node.output();
        let bias = match (site.bias, site.sum) {
            (Some(bias), _) => Some(bias),
            (None, Some((position, vector))) if vector.dims.len() == 1 => {
                output = index.graph.nodes[position].output();
                self.patch.remove(position);
                Some(vector)
            }
            _ => None,
        };
        if let Some(bias) = bias {
            let name = self.names.fresh(&bias.name, "/bias");
            let values = bias.to_floats().unwrap_or_default();
            self.patch.add_tensor(Tensor::floats(&name, &[columns], &values)?);
            inputs.extend([String::new(), name]);
        }
        let inputs: Vec<&str> = inputs.iter().map(String::as_str).collect();
        let node = Node::new("MatMulNBits", &inputs, &[output])
            .in_domain(CONTRIBUTED)
            .with("K", whole(inner))
            .with("N", whole(columns))
            .with("bits", whole(bits.number()))
            .with("block_size", whole(size))
            .with("accuracy_level", AttributeValue::Int(INTEGERS));
        self.patch.replace(site.position, vec![node]);
        Ok(())
    }

    fn embedding(&mut self, position: usize, node: &Node, table: &Tensor, size: usize) -> Result<(), Error> {
        let bits = self.settings.bits;
        let (rows, length) = (table.dims[0], table.dims[1]);
        let count = length / size;
        let dims = [
            &[rows, bits.bytes(length)][..],
            &[rows, count],
            &[rows, bits.bytes(count)],
        ];
        let [codes, scales, zero_points] = self.tensors(table, (rows, length), Order::Rows, size, dims, None)?;
        let inputs = [codes.as_str(), node.input(1).unwrap_or(""), &scales, &zero_points];
        let node = Node::new("GatherBlockQuantized", &inputs, &[node.output()])
            .in_domain(CONTRIBUTED)
            .with("gather_axis", AttributeValue::Int(0))
            .with("quantize_axis", AttributeValue::Int(1))
            .with("block_size", whole(size))
            .with("bits", whole(bits.number()));
        self.patch.replace(position, vec![node]);
        Ok(())
    }

    /// Codes, scales and zero points of `weights` as initializers of the given dimensions; their names.
    fn tensors(
        &mut self,
        weights: &Tensor,
        shape: (usize, usize),
        order: Order,
        size: usize,
        dims: [&[usize]; 3],
        factor: Option<&Factor>,
    ) -> Result<[String; 3], Error> {
        let floats = weights.float_bytes().unwrap_or_default();
        let blocked = blocks::quantize(floats, shape, order, self.settings.bits, size, factor).ok_or_else(|| {
            Error::NotFinite {
                name: shown(&weights.name),
            }
        })?;
        weights.release();
        let names = ["/q", "/scales", "/zero_points"].map(|suffix| self.names.fresh(&weights.name, suffix));
        self.patch
            .add_tensor(Tensor::new(&names[0], ElementType::Uint8, dims[0], blocked.codes)?);
        self.patch
            .add_tensor(Tensor::floats(&names[1], dims[1], &blocked.scales)?);
        self.patch.add_tensor(Tensor::new(
            &names[2],
            ElementType::Uint8,
            dims[2],
            blocked.zero_points,
        )?);
        Ok(names)
    }
}

fn whole(number: usize) -> AttributeValue {
    AttributeValue::Int(i64::try_from(number).unwrap_or(i64::MAX))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        onnx::Limits,
        testing::{Build, noise, relative_difference, run_optimized},
    };

    /// Embedding - `MatMul` - Add - Gemm with turned weights, and a product whose inner dimension is no multiple of a block.
    fn language() -> Model {
        let mut b = Build::opset(17);
        let ids = b.typed_input("ids", ElementType::Int64, &[2, 5]);
        let (table, w1, b1, w2) = (
            b.weights(&[50, 64]),
            b.weights(&[64, 100]),
            b.weights(&[100]),
            b.weights(&[100, 24]),
        );
        let rows = b.node("Gather", &[&table, &ids]);
        let product = b.node("MatMul", &[&rows, &w1]);
        let sum = b.node("Add", &[&product, &b1]);
        let wide = b.node("MatMul", &[&sum, &w2]);
        let shape = b.ints(&[10, 24]);
        let flat = b.node("Reshape", &[&wide, &shape]);
        let (w3, b3) = (b.weights(&[48, 24]), b.weights(&[48]));
        let y = b.node_with("Gemm", &[&flat, &w3, &b3], &[("transB", AttributeValue::Int(1))]);
        b.finish(&[&y])
    }

    fn ids() -> Vec<Tensor> {
        vec![Tensor::int64s("ids", &[2, 5], &[0, 7, 49, 3, 3, 12, 30, 1, 25, 44]).unwrap()]
    }

    #[test]
    fn products_and_embeddings_run_from_blocks_and_stay_close() {
        let float = language();
        let (before, _) = run_optimized(&float, &ids());
        // Three products in a row, each of which also rounds its input to 8 bits while it runs.
        for (bits, size, bound) in [
            (Bits::Eight, 32, 0.03),
            (Bits::Eight, 128, 0.03),
            (Bits::Four, 16, 0.15),
            (Bits::Four, 32, 0.2),
        ] {
            let mut model = float.clone();
            let report = apply(
                &mut model,
                &Blocks {
                    bits,
                    size,
                    rounding: Rounding::Nearest,
                },
                &BTreeMap::new(),
            )
            .unwrap();
            crate::onnx::check(&model, &Limits::default()).unwrap();
            assert_eq!(report.changed, 4);
            let (after, operators) = run_optimized(&model, &ids());
            for float in ["Gather", "MatMul", "Gemm", "Add"] {
                assert!(
                    !operators.iter().any(|operator| operator == float),
                    "{float} is left: {operators:?}"
                );
            }
            let difference = relative_difference(&before, &after);
            assert!(difference < bound, "{bits:?} {size}: {difference}");
        }
    }

    #[test]
    fn convolutions_are_left_and_a_model_of_nothing_else_is_refused() {
        let mut b = Build::opset(17);
        let x = b.input("x", &[1, 8, 12, 12]);
        let w = b.weights(&[16, 8, 3, 3]);
        let y = b.node("Conv", &[&x, &w]);
        let mut model = b.finish(&[&y]);
        let settings = Blocks {
            bits: Bits::Eight,
            size: 32,
            rounding: Rounding::Nearest,
        };
        let error = apply(&mut model, &settings, &BTreeMap::new()).unwrap_err().to_string();
        assert!(error.contains("no convolution with block-wise weights"), "{error}");
        let error = apply(&mut language(), &Blocks { size: 48, ..settings }, &BTreeMap::new())
            .unwrap_err()
            .to_string();
        assert!(error.contains("block 48") && error.contains("16, 32"), "{error}");
    }

    #[test]
    fn gptq_without_inputs_to_go_by_says_so() {
        let settings = Blocks {
            bits: Bits::Four,
            size: 32,
            rounding: Rounding::Gptq,
        };
        let error = apply(&mut language(), &settings, &BTreeMap::new())
            .unwrap_err()
            .to_string();
        assert!(error.contains("gptq changed nothing"), "{error}");
    }

    #[test]
    fn a_weight_that_is_not_finite_is_named() {
        let mut b = Build::opset(17);
        let x = b.input("x", &[4, 64]);
        let mut values = noise(3, 64 * 32);
        values[9] = f32::NAN;
        let w = b.floats(&[64, 32], &values);
        let y = b.node("MatMul", &[&x, &w]);
        let settings = Blocks {
            bits: Bits::Four,
            size: 32,
            rounding: Rounding::Nearest,
        };
        let error = apply(&mut b.finish(&[&y]), &settings, &BTreeMap::new())
            .unwrap_err()
            .to_string();
        assert!(error.contains(&w) && error.contains("not finite"), "{error}");
    }
}
