//! The arithmetic behind the passes, opened to `benches/` by the feature `bench` and to nothing else: numbers in, numbers out. Knows no
//! graph, and adds nothing of its own.

use super::{
    Bits, Grid,
    blocks::{self, Order},
    gptq::{Errors, Factor},
    weights,
};
use crate::{calibrate::Gram, onnx::Tensor};

/// What GPTQ knows of a product's inputs.
#[derive(Debug)]
pub struct Inputs(Factor);

impl Inputs {
    /// Factorizes what calibration has summed; `None` where the inputs hold nothing to go by.
    pub fn new(gram: &Gram) -> Option<Self> {
        Factor::new(gram, Errors::All).map(Self)
    }
}

/// Codes of `rows` runs of `length` weights (little-endian floats, row by row) in blocks of `block`: rounded to the nearest, or by GPTQ.
/// `None` if a weight is not finite.
pub fn blocks(
    weights: &[[u8; 4]],
    (rows, length): (usize, usize),
    bits: Bits,
    block: usize,
    inputs: Option<&Inputs>,
) -> Option<Vec<u8>> {
    let factor = inputs.map(|inputs| &inputs.0);
    let blocked = blocks::quantize(weights, (rows, length), Order::Rows, bits, block, factor)?;
    Some(blocked.codes)
}

/// Packs codes of `bits` into bytes.
pub fn pack(bits: Bits, codes: &[u8], packed: &mut [u8]) {
    bits.pack(codes, packed);
}

/// Weights in 8 bits with one scale for each index of `axis`. `None` if one is not finite.
pub fn int8(weights: &Tensor, axis: usize, grid: Grid) -> Option<Vec<i8>> {
    Some(weights::quantize(weights, axis, grid, |_| 0.0)?.values)
}
