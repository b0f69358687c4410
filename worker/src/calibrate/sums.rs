//! Sums of what a model computes, element by element, over all samples. Keeps one number for each element, and judges none.

use super::{Batches, Error, each_run};
use crate::{onnx::Model, session::Runtime};
use std::collections::BTreeMap;

/// Runs `batches` through `model`; gives the sum of each of `taps`, whose sizes are the same for every batch.
///
/// `progress` is told the number of batches done. What is not finite makes the sum so.
pub fn sums(
    runtime: &Runtime,
    threads: usize,
    model: &Model,
    taps: &[String],
    batches: Batches<'_>,
    progress: &mut dyn FnMut(u64),
) -> Result<BTreeMap<String, Vec<f64>>, Error> {
    let mut sums: BTreeMap<String, Vec<f64>> = BTreeMap::new();
    each_run(runtime, threads, model, taps, batches, progress, &mut |run| {
        for tap in run {
            let sum = sums
                .entry(tap.name.to_owned())
                .or_insert_with(|| vec![0.0; tap.values.len()]);
            for (sum, value) in sum.iter_mut().zip(tap.values) {
                *sum += f64::from(*value);
            }
        }
        Ok(())
    })?;
    Ok(sums)
}
