//! Block-wise weights of matrix products and embeddings; activations stay float in the file.
//!
//! Products become `MatMulNBits`, embeddings `GatherBlockQuantized`. Convolutions stay as they are: there is no such kernel for them.

use super::{
    Error, Report,
    blocks::{Bits, Order},
    nbits::{self, Known, Rewrite, whole},
    quantize_lstm,
    quantize_tables::table,
    recovery::{Recovering, Recovery},
    site::{Kind, Site, sites},
};
use crate::onnx::{AttributeValue, Index, Model, Names, Node, Patch, Tensor, rewrite};
use std::collections::BTreeMap;

const NAME: &str = "quantize-blocks";
/// Shorter blocks have no kernel.
const SHORTEST: usize = 16;

/// How weights are cut and kept.
#[derive(Debug, Clone, PartialEq)]
pub struct Blocks {
    /// Bits of a weight.
    pub bits: Bits,
    /// Weights that share a scale and a zero point: a power of two, at least 16.
    pub size: usize,
    /// How accuracy is won back.
    pub recovery: Recovery,
}

/// Quantizes the weights of every matrix product and of every embedding; products with the help of `recovering`, embeddings to the
/// nearest step.
pub fn apply(model: &mut Model, settings: &Blocks, recovering: &mut Recovering<'_>) -> Result<Report, Error> {
    super::require_effect(quantize(model, settings, true, recovering)?)
}

/// Quantizes the weights of every embedding, and of the products that share them, to the nearest step of 4 bits.
pub fn tables(model: &mut Model, size: usize) -> Result<Report, Error> {
    let settings = Blocks {
        bits: Bits::Four,
        size,
        recovery: Recovery::default(),
    };
    quantize(model, &settings, false, &mut Recovering::default())
}

/// `products`: those that share their weights with no embedding, too.
fn quantize(
    model: &mut Model,
    settings: &Blocks,
    products: bool,
    recovering: &mut Recovering<'_>,
) -> Result<Report, Error> {
    if !settings.size.is_power_of_two() || !(SHORTEST..=256).contains(&settings.size) {
        return Err(Error::Setting {
            pass: NAME,
            field: "block",
            value: settings.size.to_string(),
            hint: "use 16, 32, 64, 128 or 256",
        });
    }
    let mut report = Report::new(NAME);
    let mut names = Names::new(&model.graph);
    let mut known = Known::default();
    let mut changed = 0;
    rewrite(model, |index| {
        let mut rewrite = Rewrite {
            index,
            names: &mut names,
            known: &mut known,
            patch: Patch::new(NAME),
        };
        let tables = index.graph.nodes.iter().filter_map(|node| embedded(index, node));
        let tables = tables.filter(|table| block_of(settings.size, table.dims[1]) == Some(settings.size));
        let tables: BTreeMap<&str, &Tensor> = tables.map(|table| (table.name.as_str(), table)).collect();
        // What a quantizer of products leaves is for it to say.
        let mut others = Report::new(NAME);
        let left = if products { &mut report } else { &mut others };
        for mut site in sites(index, left) {
            let of_head = products
                .then(|| tables.values().find(|table| turned(&site, table)))
                .flatten();
            if let Some(table) = of_head {
                site.weights = table;
                site.kind = Kind::Gemm { transposed: true };
            }
            match site.kind {
                Kind::Conv | Kind::ConvTranspose => {
                    left.leave(site.node, "there is no convolution with block-wise weights");
                }
                Kind::MatMul | Kind::Gemm { .. } => {
                    let tied = site.channel_axis() == 0 && tables.contains_key(site.weights.name.as_str());
                    if !(tied || products) {
                        continue;
                    }
                    rewrite.product(&site, tied, settings.bits, settings.size, recovering)?;
                    changed += 1;
                }
            }
        }
        for node in index.graph.nodes.iter().filter(|node| quantize_lstm::recurrent(node)) {
            left.leave(node, "there is no recurrent operator with block-wise weights");
        }
        for (position, node) in index.graph.nodes.iter().enumerate() {
            let Some(table) = embedded(index, node) else {
                continue;
            };
            if let Some(why) = node.pinned {
                report.leave(node, why);
                continue;
            }
            // Rows that can't be cut evenly are for `quantize_tables`.
            if let Some(size) = block_of(settings.size, table.dims[1]) {
                embedding(&mut rewrite, position, node, table, settings.bits, size)?;
                changed += 1;
            }
        }
        Ok::<_, Error>(rewrite.patch)
    })?;
    if changed > 0 {
        model.import(nbits::DOMAIN, 1);
    }
    report.changed = changed;
    Ok(report)
}

/// The table of an embedding that can have blocks.
fn embedded<'g>(index: &Index<'g>, node: &Node) -> Option<&'g Tensor> {
    table(index, node).filter(|table| table.dims[0] >= SHORTEST)
}

/// Whether the product `site` has the values of `table` for weights, turned: as exporters write a head that an embedding shares, where they
/// fold its `Transpose`, or leave that to simplification.
fn turned(site: &Site<'_>, table: &Tensor) -> bool {
    let [rows, length] = table.dims[..] else {
        return false;
    };
    if site.is_convolution() || site.channel_axis() != 1 || site.weights.dims != [length, rows] {
        return false;
    }
    let (Some(weights), Some(table)) = (site.weights.float_bytes(), table.float_bytes()) else {
        return false;
    };
    let mut inputs = weights.chunks_exact(rows).enumerate();
    inputs.all(|(input, values)| table.iter().skip(input).step_by(length).eq(values))
}

/// The largest size, not above `size`, that cuts a row evenly: embeddings have no short blocks.
fn block_of(mut size: usize, length: usize) -> Option<usize> {
    while size >= SHORTEST && !length.is_multiple_of(size) {
        size /= 2;
    }
    (size >= SHORTEST).then_some(size)
}

/// An embedding, from the codes of the product that shares its table, if there is one.
fn embedding(
    rewrite: &mut Rewrite<'_, '_>,
    position: usize,
    node: &Node,
    table: &Tensor,
    bits: Bits,
    size: usize,
) -> Result<(), Error> {
    let (rows, length) = (table.dims[0], table.dims[1]);
    let indices = node.input(1).unwrap_or("");
    let gather = |[codes, scales, zero_points]: [String; 3], axis, output: &str| {
        Node::new(
            "GatherBlockQuantized",
            &[&codes, indices, &scales, &zero_points],
            &[output],
        )
        .in_domain(nbits::DOMAIN)
        .with("gather_axis", AttributeValue::Int(0))
        .with("quantize_axis", AttributeValue::Int(axis))
        .with("block_size", whole(size))
        .with("bits", whole(bits.number()))
    };
    let output = node.output();
    let nodes = if let Some(names) = rewrite.tied(table, bits, size)? {
        let mut fresh = |suffix| rewrite.names.fresh(output, suffix);
        let (blocks, shape, width, whole_shape) = (fresh("/rows"), fresh("/of"), fresh("/width"), fresh("/shape"));
        let values = i64::try_from(length).unwrap_or(i64::MAX);
        rewrite.patch.add_tensor(Tensor::int64s(&width, &[1], &[values])?);
        vec![
            gather(names, 2, &blocks),
            Node::new("Shape", &[indices], &[&shape]),
            Node::new("Concat", &[&shape, &width], &[&whole_shape]).with("axis", AttributeValue::Int(0)),
            Node::new("Reshape", &[&blocks, &whole_shape], &[output]),
        ]
    } else {
        let count = length / size;
        let dims = [
            &[rows, bits.bytes(length)][..],
            &[rows, count],
            &[rows, bits.bytes(count)],
        ];
        vec![gather(
            rewrite.nearest(table, (rows, length), Order::Rows, bits, size, dims)?,
            1,
            output,
        )]
    };
    rewrite.patch.replace(position, nodes);
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::passes::Inputs;
    use crate::{
        onnx::{ElementType, Limits},
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
                    recovery: Recovery::default(),
                },
                &mut Recovering::default(),
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

    /// A head that reads the embedding's table turned, by a `Transpose` that was folded: in three dimensions, so that no Gemm can say it.
    #[test]
    fn a_product_with_the_turned_table_shares_its_blocks() {
        let (rows, length) = (320, 64);
        let values = noise(9, rows * length);
        let turned: Vec<f32> = (0..rows * length)
            .map(|at| values[at % rows * length + at / rows])
            .collect();
        let made = |turned: &[f32]| {
            let mut b = Build::opset(17);
            let ids = b.typed_input("ids", ElementType::Int64, &[2, 5]);
            let (table, head) = (b.floats(&[rows, length], &values), b.floats(&[length, rows], turned));
            let gathered = b.node("Gather", &[&table, &ids]);
            let y = b.node("MatMul", &[&gathered, &head]);
            b.finish(&[&y])
        };
        let float = made(&turned);
        for bits in [Bits::Four, Bits::Eight] {
            let bytes = |float: &Model| {
                let mut model = float.clone();
                let settings = Blocks {
                    bits,
                    size: 32,
                    recovery: Recovery::default(),
                };
                assert_eq!(
                    apply(&mut model, &settings, &mut Recovering::default())
                        .unwrap()
                        .changed,
                    2
                );
                crate::onnx::check(&model, &Limits::default()).unwrap();
                let (after, operators) = run_optimized(&model, &ids());
                assert!(
                    operators.iter().any(|operator| operator == "MatMulNBits"),
                    "{operators:?}"
                );
                let (before, _) = run_optimized(float, &ids());
                assert!(relative_difference(&before, &after) < 0.2, "{bits:?}");
                crate::onnx::to_bytes(&model).len()
            };
            let mut other = turned.clone();
            other[rows * length - 1] += 0.5;
            let (shared, apart) = (bytes(&float), bytes(&made(&other)));
            assert!(3 * shared < 2 * apart, "{shared} {apart}");
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
            recovery: Recovery::default(),
        };
        let error = apply(&mut model, &settings, &mut Recovering::default())
            .unwrap_err()
            .to_string();
        assert!(error.contains("no convolution with block-wise weights"), "{error}");
        let error = apply(
            &mut language(),
            &Blocks { size: 48, ..settings },
            &mut Recovering::default(),
        )
        .unwrap_err()
        .to_string();
        assert!(error.contains("block 48") && error.contains("16, 32"), "{error}");
    }

    #[test]
    fn gptq_without_inputs_to_go_by_says_so() {
        let recovery = Recovery {
            gptq: true,
            ..Recovery::default()
        };
        let none = Inputs::default();
        let mut model = language();
        let mut recovering = Recovering::new(&recovery, &none, &model);
        let settings = Blocks {
            bits: Bits::Four,
            size: 32,
            recovery,
        };
        apply(&mut model, &settings, &mut recovering).unwrap();
        let error = recovering.finish().unwrap_err().to_string();
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
            recovery: Recovery::default(),
        };
        let error = apply(&mut b.finish(&[&y]), &settings, &mut Recovering::default())
            .unwrap_err()
            .to_string();
        assert!(error.contains(&w) && error.contains("not finite"), "{error}");
    }
}
