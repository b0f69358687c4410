//! What ONNX Runtime's integer convolution is slow at, and what helps. Figures are of its kernels, measured at one thread with VNNI.
//!
//! Windows are gathered into rows for an integer product. Where a row is short and no multiple of four bytes, the product takes twice as
//! long: channels of zeros fill it up. Groups are convolved one after the other, unless each has one channel, which has its own kernel.

use super::{
    Error,
    layout::{Layout, Packed},
    site::Site,
};
use crate::onnx::{Node, Tensor};

/// Bytes that the kernel multiplies at once.
const LANE: usize = 4;
/// Rows from this length on gain nothing from filling up.
const LONG_ROW: usize = 128;
/// Groups with fewer input channels are up to 11 times slower than floats, with 32 and more 1.3 times faster.
const FEWEST_GROUPED: usize = 32;

/// Why a convolution is slower with integers, if it is.
pub(super) fn slow(site: &Site<'_>) -> Option<&'static str> {
    let groups = usize::try_from(site.node.int("group", 1).unwrap_or(1)).unwrap_or(1);
    let (outputs, channels) = (site.weights.dims[0], site.weights.dims[1]);
    let depthwise = channels == 1 && outputs == groups;
    (groups > 1 && !depthwise && channels < FEWEST_GROUPED)
        .then_some("it has groups of few channels, which ONNX Runtime convolves one by one and slower than floats")
}

/// The weights `[outputs, channels, taps...]` with as many channels of zeros more as make rows a multiple of four; none where that
/// gains nothing.
pub(super) fn widened(site: &Site<'_>) -> Result<Option<Tensor>, Error> {
    let dims = &site.weights.dims;
    let taps: usize = dims[2..].iter().product();
    let row = dims[1] * taps;
    let wide = dims[1].next_multiple_of(LANE);
    if site.node.int("group", 1) != Some(1) || row.is_multiple_of(LANE) || row >= LONG_ROW || wide == dims[1] {
        return Ok(None);
    }
    let Some(floats) = site.weights.to_floats() else {
        return Ok(None);
    };
    let mut values = vec![0.0; dims[0] * wide * taps];
    for (filled, narrow) in values.chunks_exact_mut(wide * taps).zip(floats.chunks_exact(row)) {
        filled[..row].copy_from_slice(narrow);
    }
    let dims: Vec<usize> = [dims[0], wide].iter().chain(&dims[2..]).copied().collect();
    Ok(Some(Tensor::floats(&site.weights.name, &dims, &values)?))
}

/// A node that gives a quantized input as many channels of zeros as `wide` has more than `narrow`, and the name of what it makes.
pub(super) fn widen(
    layout: &mut Layout,
    input: &Packed,
    narrow: &Tensor,
    wide: &Tensor,
) -> Result<(Node, String), Error> {
    let rank = narrow.dims.len();
    let mut pads = vec![0; 2 * rank];
    pads[rank + 1] = i64::try_from(wide.dims[1] - narrow.dims[1]).unwrap_or(0);
    let name = layout.names.fresh(&input.values, "/pads");
    let pads = layout.add(Tensor::int64s(&name, &[pads.len()], &pads)?);
    let values = layout.names.fresh(&input.values, "/wide");
    let node = Node::new("Pad", &[&input.values, &pads, &input.zero_point], &[&values]);
    Ok((node, values))
}
