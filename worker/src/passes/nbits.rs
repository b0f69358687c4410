//! Matrix products with block-wise weights, spelled as ONNX Runtime's `MatMulNBits`. Decides neither which nor how many bits.
//!
//! At accuracy level 4 its CPU kernels quantize each row of the input to 8 bits, block by block, as they read it; level 0 unpacks the
//! weights to floats first, which is 4 to 8 times slower.

use super::{
    Error,
    blocks::{self, Bits, Blocked, Order},
    gptq::Factor,
    recovery::{self, Recovering},
    site::Site,
    vectors::Vectors,
};
use crate::onnx::{AttributeValue, ElementType, Index, Names, Node, Patch, Tensor, shown};
use std::collections::HashMap;

/// Domain of ONNX Runtime's contributed operators.
pub(super) const DOMAIN: &str = "com.microsoft";
/// `accuracy_level` that lets ONNX Runtime compute with 8-bit integers.
const INTEGERS: i64 = 4;

/// What block-wise weights are made of, their blocks, whether they were rounded by GPTQ, and dimensions of the codes.
type Key = (String, Order, Bits, usize, bool, Vec<usize>);

/// What was written so far; any graph may read it.
#[derive(Debug, Default)]
pub(super) struct Known {
    weights: HashMap<Key, Written>,
    biases: Vectors,
}

/// Names of codes, scales and zero points, and these, packed.
#[derive(Debug)]
struct Written {
    names: [String; 3],
    zero_points: Vec<u8>,
}

/// Block-wise nodes of one graph under construction.
pub(super) struct Rewrite<'i, 'g> {
    pub(super) index: &'i Index<'g>,
    pub(super) names: &'i mut Names,
    pub(super) known: &'i mut Known,
    pub(super) patch: Patch,
}

impl Rewrite<'_, '_> {
    /// Replaces the product `site`, and the sum behind it where one can be taken over. `tied`: an embedding with the same blocks shares its
    /// weights.
    pub(super) fn product(
        &mut self,
        site: &Site<'_>,
        tied: bool,
        bits: Bits,
        block: usize,
        recovering: &mut Recovering<'_>,
    ) -> Result<(), Error> {
        let axis = site.channel_axis();
        let (columns, inner) = (site.weights.dims[axis], site.weights.dims[1 - axis]);
        let order = if axis == 0 { Order::Rows } else { Order::Columns };
        let count = inner.div_ceil(block);
        let dims = [
            &[columns, count, bits.bytes(block)][..],
            &[columns * count],
            &[columns * bits.bytes(count)],
        ];
        let ([codes, scales, zero_points], correction) = if recovering.calibrates(site) {
            let factor = if tied {
                recovering.tied(site)
            } else {
                recovering.factor(site)
            };
            let blocked = quantize(site.weights, (columns, inner), order, bits, block, factor.as_deref())?;
            let correction = recovering.correction(site, site.weights, axis, || {
                let rows = blocks::unpack(&blocked, (columns, inner), bits, block);
                match order {
                    Order::Rows => rows,
                    Order::Columns => (0..inner * columns)
                        .map(|at| rows[at % columns * inner + at / columns])
                        .collect(),
                }
            });
            let rounded = factor.is_some();
            let key = (site.weights.name.clone(), order, bits, block, rounded, dims[0].to_vec());
            (self.tensors(key, blocked, dims)?, correction)
        } else {
            (
                self.nearest(site.weights, (columns, inner), order, bits, block, dims)?,
                None,
            )
        };
        let mut inputs = vec![site.input().to_owned(), codes, scales, zero_points];
        let mut output = site.node.output();
        let vector = match (site.bias, site.sum) {
            (Some(given), _) => Some(given),
            (None, Some((position, vector))) if vector.dims.len() == 1 => {
                output = self.index.graph.nodes[position].output();
                self.patch.remove(position);
                Some(vector)
            }
            _ => None,
        };
        if let Some(values) = recovery::corrected(vector, correction)? {
            let name = self.names.fresh(vector.map_or(output, |vector| &vector.name), "/bias");
            let values = Tensor::floats(&name, &[columns], &values)?;
            let name = self.known.biases.add(&site.weights.name, values, &mut self.patch);
            inputs.extend([String::new(), name]);
        }
        let inputs: Vec<&str> = inputs.iter().map(String::as_str).collect();
        let node = Node::new("MatMulNBits", &inputs, &[output])
            .in_domain(DOMAIN)
            .with("K", whole(inner))
            .with("N", whole(columns))
            .with("bits", whole(bits.number()))
            .with("block_size", whole(block))
            .with("accuracy_level", AttributeValue::Int(INTEGERS));
        self.patch.replace(site.position, vec![node]);
        Ok(())
    }

    /// Weights rounded to the nearest step, once for all that read them; names as [`Self::tensors`] gives them.
    pub(super) fn nearest(
        &mut self,
        weights: &Tensor,
        shape: (usize, usize),
        order: Order,
        bits: Bits,
        block: usize,
        dims: [&[usize]; 3],
    ) -> Result<[String; 3], Error> {
        let key = (weights.name.clone(), order, bits, block, false, dims[0].to_vec());
        if let Some(written) = self.known.weights.get(&key) {
            return Ok(written.names.clone());
        }
        let blocked = quantize(weights, shape, order, bits, block, None)?;
        self.tensors(key, blocked, dims)
    }

    /// Codes, scales and zero points as initializers of the given dimensions, once for each key; their names.
    fn tensors(&mut self, key: Key, blocked: Blocked, dims: [&[usize]; 3]) -> Result<[String; 3], Error> {
        if let Some(written) = self.known.weights.get(&key) {
            return Ok(written.names.clone());
        }
        let names = ["/q", "/scales", "/zero_points"].map(|suffix| self.names.fresh(&key.0, suffix));
        let bytes = |name: &str, dims: &[usize], bytes| Tensor::new(name, ElementType::Uint8, dims, bytes);
        self.patch.add_tensor(bytes(&names[0], dims[0], blocked.codes)?);
        self.patch
            .add_tensor(Tensor::floats(&names[1], dims[1], &blocked.scales)?);
        self.patch
            .add_tensor(bytes(&names[2], dims[2], blocked.zero_points.clone())?);
        let written = Written {
            names: names.clone(),
            zero_points: blocked.zero_points,
        };
        self.known.weights.insert(key, written);
        Ok(names)
    }

    /// What a product with the weights `table`, turned, has written of its rows, for an embedding: codes and scales of `[rows, blocks, _]`, and
    /// zero points of their own, which are packed otherwise. `None` where there is no such product.
    pub(super) fn tied(&mut self, table: &Tensor, bits: Bits, block: usize) -> Result<Option<[String; 3]>, Error> {
        let (rows, count) = (table.dims[0], table.dims[1].div_ceil(block));
        let dims = vec![rows, count, bits.bytes(block)];
        let key = (table.name.clone(), Order::Rows, bits, block, false, dims);
        let Some(written) = self.known.weights.get(&key) else {
            return Ok(None);
        };
        let [codes, flat, _] = &written.names;
        let each = (0..rows * count).map(|at| {
            let of_row = &written.zero_points[at / count * bits.bytes(count)..];
            bits.code(of_row, at % count)
        });
        let mut fresh = |suffix| self.names.fresh(&table.name, suffix);
        let (scales, zero_points, shape) = (fresh("/scales"), fresh("/zero_points"), fresh("/blocks"));
        let of_blocks = [rows, count, 1];
        let whole = of_blocks.map(|size| i64::try_from(size).unwrap_or(i64::MAX));
        let points = Tensor::new(&zero_points, ElementType::Uint8, &of_blocks, each.collect::<Vec<u8>>())?;
        self.patch.add_tensor(points);
        self.patch.add_tensor(Tensor::int64s(&shape, &[whole.len()], &whole)?);
        self.patch
            .add_constants([Node::new("Reshape", &[flat, &shape], &[&scales])]);
        Ok(Some([codes.clone(), scales, zero_points]))
    }
}

/// The blocks of `weights`, or which of them can't be cut.
fn quantize(
    weights: &Tensor,
    shape: (usize, usize),
    order: Order,
    bits: Bits,
    size: usize,
    factor: Option<&Factor>,
) -> Result<Blocked, Error> {
    let floats = weights.float_bytes().unwrap_or_default();
    let blocked = blocks::quantize(floats, shape, order, bits, size, factor).ok_or_else(|| Error::NotFinite {
        name: shown(&weights.name),
    })?;
    weights.release();
    Ok(blocked)
}

/// A whole number as an attribute.
pub(super) fn whole(number: usize) -> AttributeValue {
    AttributeValue::Int(i64::try_from(number).unwrap_or(i64::MAX))
}
