//! Bytes a second of the worker's kernels, beside a plain copy of as many bytes: how far each is from what the memory gives.
//!
//! `cargo bench -p assayer-worker --features bench`. All lines count the bytes that are read. GPTQ and what it needs compute for each byte
//! as often as there are inputs, so for them the figure only compares one version with another.

use std::hint::black_box;

use assayer_worker::{
    calibrate::{Extent, Gram, Histogram, Rows as _},
    onnx::{ElementType, Tensor},
    passes::{Bits, Granularity, Grid, Weights, kernels},
};
use divan::{Bencher, counter::BytesCount};
use rayon::prelude::*;

/// Rows and inputs of a matrix of 64 MiB: more than caches hold.
const LARGE: (usize, usize) = (4096, 4096);
/// Rows and inputs of a matrix in an encoder, for kernels that are cubic.
const SMALL: (usize, usize) = (1536, 384);
/// Rows of activations that are summed.
const SEEN: usize = 4096;

fn main() {
    divan::main();
}

/// Numbers in -1 to 1 without a pattern, always the same.
fn noise(count: usize) -> Vec<f32> {
    let mut state = 1_u32;
    let next = || {
        state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        f32::from(u16::try_from(state >> 16).unwrap_or(0)) / 32_768.0 - 1.0
    };
    std::iter::repeat_with(next).take(count).collect()
}

fn little(values: &[f32]) -> Vec<[u8; 4]> {
    values.iter().map(|value| value.to_le_bytes()).collect()
}

fn size((rows, inputs): (usize, usize)) -> usize {
    rows * inputs
}

/// The line to compare with: one thread.
#[divan::bench]
fn copy_on_one_thread(bencher: Bencher) {
    let (from, mut to) = (noise(size(LARGE)), vec![0.0; size(LARGE)]);
    bencher
        .counter(BytesCount::of_slice(&from))
        .bench_local(|| to.copy_from_slice(black_box(&from)));
}

/// The line to compare with: all threads, as the kernels run.
#[divan::bench]
fn copy_on_all_threads(bencher: Bencher) {
    const PART: usize = 1 << 16;
    let (from, mut to) = (noise(size(LARGE)), vec![0.0; size(LARGE)]);
    bencher.counter(BytesCount::of_slice(&from)).bench_local(|| {
        let parts = to.par_chunks_mut(PART).zip(black_box(&from).par_chunks(PART));
        parts.for_each(|(to, from)| to.copy_from_slice(from));
    });
}

#[divan::bench]
fn extremes(bencher: Bencher) {
    let values = noise(size(LARGE));
    bencher
        .counter(BytesCount::of_slice(&values))
        .bench_local(|| Extent::of(black_box(&values)));
}

#[divan::bench]
fn histogram(bencher: Bencher) {
    let values = noise(size(LARGE));
    let extent = Extent::of(&values).unwrap_or_default();
    let mut histogram = Histogram::default();
    bencher
        .counter(BytesCount::of_slice(&values))
        .bench_local(|| histogram.add(black_box(&values), extent));
}

/// With a scale for each row, and for each column.
#[divan::bench(args = [0, 1])]
fn int8_by_axis(bencher: Bencher, axis: usize) {
    let values = noise(size(LARGE));
    let grid = Grid {
        granularity: Granularity::PerChannel,
        weights: Weights::Int8,
        four_bits: None,
    };
    let bytes = values.iter().flat_map(|value| value.to_le_bytes()).collect::<Vec<u8>>();
    let weights = Tensor::new("w", ElementType::Float, &[LARGE.0, LARGE.1], bytes);
    let Ok(weights) = weights else { return };
    bencher
        .counter(BytesCount::of_slice(&values))
        .bench_local(|| kernels::int8(black_box(&weights), axis, grid));
}

#[divan::bench(args = [32, 128])]
fn int8_blocks(bencher: Bencher, block: usize) {
    blocks(bencher, Bits::Eight, block);
}

/// Each block tries several ranges.
#[divan::bench(args = [32, 128], sample_count = 20)]
fn int4_blocks(bencher: Bencher, block: usize) {
    blocks(bencher, Bits::Four, block);
}

fn blocks(bencher: Bencher, bits: Bits, block: usize) {
    let weights = little(&noise(size(LARGE)));
    bencher
        .counter(BytesCount::of_slice(&weights))
        .bench_local(|| kernels::blocks(black_box(&weights), LARGE, bits, block, None));
}

#[divan::bench]
fn pack_int4(bencher: Bencher) {
    let codes: Vec<u8> = (0..size(LARGE))
        .map(|at| u8::try_from(at * 7 % 16).unwrap_or(0))
        .collect();
    let mut packed = vec![0; codes.len() / 2];
    bencher
        .counter(BytesCount::of_slice(&codes))
        .bench_local(|| kernels::pack(Bits::Four, black_box(&codes), &mut packed));
}

fn gram() -> Gram {
    let mut gram = Gram::new(SMALL.1);
    gram.add(&noise(SEEN * SMALL.1));
    gram.finish();
    gram
}

/// `X^T X` of the rows seen.
#[divan::bench(sample_count = 20)]
fn gptq_sums(bencher: Bencher) {
    let rows = noise(SEEN * SMALL.1);
    let mut gram = Gram::new(SMALL.1);
    bencher
        .counter(BytesCount::of_slice(&rows))
        .bench_local(|| gram.add(black_box(&rows)));
}

#[divan::bench(sample_count = 20)]
fn gptq_factor(bencher: Bencher) {
    let gram = gram();
    bencher
        .counter(BytesCount::of_many::<f32>(SMALL.1 * SMALL.1))
        .bench_local(|| kernels::Inputs::new(black_box(&gram)));
}

#[divan::bench(args = [32, 128], sample_count = 20)]
fn gptq_int4_blocks(bencher: Bencher, block: usize) {
    let weights = little(&noise(size(SMALL)));
    let inputs = kernels::Inputs::new(&gram());
    bencher
        .counter(BytesCount::of_slice(&weights))
        .bench_local(|| kernels::blocks(black_box(&weights), SMALL, Bits::Four, block, inputs.as_ref()));
}
