//! Ranges of activations from real inputs: one pass, constant memory, nothing kept per sample.
//!
//! Taps are added to a copy of the graph as outputs; each tapped tensor is reduced inside the run that made it and
//! freed. Decides ranges, never which tensors are worth quantizing.

mod channels;
mod entropy;
mod extremes;
mod gram;
mod histogram;
mod range;

pub use self::{
    channels::{Channels, Ends},
    gram::Gram,
    histogram::Histogram,
    range::{Extent, Range},
};

use self::extremes::Extremes;
use crate::{
    onnx::{self, Model, Tensor, ValueInfo, prune, shown},
    session::{self, Optimize, Options, Runtime},
};
use std::collections::BTreeMap;

/// How a range is chosen from what was seen.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Method {
    /// The smallest and the largest value.
    MinMax,
    /// The threshold at which the quantized distribution keeps most of the information (Kullback-Leibler divergence).
    Entropy,
    /// The range that holds this share of all values, in percent (above 50, at most 100).
    Percentile(f64),
}

/// Why calibration failed.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The graph could not be tapped.
    #[error(transparent)]
    Graph(#[from] onnx::Error),
    /// ONNX Runtime refused the tapped model or a run.
    #[error("calibration: {0}")]
    Session(#[from] session::Error),
    /// The batches ended with an error.
    #[error("calibration data: {0}")]
    Data(#[source] Box<dyn std::error::Error + Send + Sync>),
    /// There was no batch.
    #[error("calibration data is empty: at least one sample is needed")]
    Empty,
    /// A percentile outside its bounds.
    #[error("percentile {0} is outside 50 (excluded) to 100")]
    Percentile(f64),
    /// A value that has no place in a range.
    #[error(
        "tensor {name} has the value {value} in batch {batch}: a range needs finite values; clean the calibration data"
    )]
    NotFinite {
        /// Escaped name.
        name: String,
        /// The value.
        value: f32,
        /// Number of the batch, from 0.
        batch: u64,
    },
    /// A tap on something else than 32-bit floats.
    #[error("tensor {name} is not a tensor of 32-bit floats")]
    NotFloat {
        /// Escaped name.
        name: String,
    },
    /// A tapped tensor never had an element.
    #[error("tensor {name} was empty in every batch, so it has no range")]
    NeverSeen {
        /// Escaped name.
        name: String,
    },
}

/// Error type of batches.
pub type DataError = Box<dyn std::error::Error + Send + Sync>;
/// Batches: per batch, one tensor for every input of the model, by name.
pub type Batches<'b> = &'b mut dyn Iterator<Item = Result<Vec<Tensor>, DataError>>;
/// Opens the batches from the first one on; as often as it is called, the same.
pub type Samples<'s> = &'s dyn Fn() -> Box<dyn Iterator<Item = Result<Vec<Tensor>, DataError>> + 's>;

/// What calibration learned of one tensor.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Observed {
    /// Values to keep apart.
    pub range: Range,
    /// Everything that was seen.
    pub full: Range,
    /// The range, and at least as far as samples to come will reach: for what must not be cut off.
    pub reach: Range,
    /// Number of dimensions, where it was the same in every batch.
    pub rank: Option<usize>,
}

/// Runs `batches` through `model` and gives what was observed of every tensor in `taps`, by name.
///
/// `progress` is told the number of batches done.
pub fn calibrate(
    runtime: &Runtime,
    threads: usize,
    model: &Model,
    taps: &[String],
    method: Method,
    batches: Batches<'_>,
    progress: &mut dyn FnMut(u64),
) -> Result<BTreeMap<String, Observed>, Error> {
    if let Method::Percentile(percentile) = method
        && !(percentile > 50.0 && percentile <= 100.0)
    {
        return Err(Error::Percentile(percentile));
    }
    let mut seen: BTreeMap<&str, Seen> = taps.iter().map(|name| (name.as_str(), Seen::new(method))).collect();
    each_tap(runtime, threads, model, taps, batches, progress, &mut |tap| {
        let Some(seen) = seen.get_mut(tap.name) else {
            return Ok(());
        };
        let rank = tap.dims.len();
        seen.rank_varies |= seen.rank.replace(rank).is_some_and(|before| before != rank);
        seen.add(tap.values).map_err(|value| tap.not_finite(value))
    })?;
    seen.into_iter()
        .map(|(name, seen)| {
            let rank = seen.rank.filter(|_| !seen.rank_varies);
            let range = seen.range(name, method)?;
            let full = seen.extent.range().unwrap_or(range);
            let reach = seen.extremes.reach(range);
            Ok((
                name.to_owned(),
                Observed {
                    range,
                    full,
                    reach,
                    rank,
                },
            ))
        })
        .collect()
}

/// What is kept of the rows of a tensor: vectors along its last dimension.
pub trait Rows {
    /// Of rows of `size` elements, none seen yet.
    fn new(size: usize) -> Self;
    /// Elements of a row.
    fn size(&self) -> usize;
    /// Adds rows, one after another.
    fn add(&mut self, rows: &[f32]);
    /// Called once, after the last row.
    fn finish(&mut self) {}
}

/// Runs `batches` through `model` and gives what `T` keeps of the rows of every tensor in `taps`, by name.
pub fn rows<T: Rows>(
    runtime: &Runtime,
    threads: usize,
    model: &Model,
    taps: &[String],
    batches: Batches<'_>,
    progress: &mut dyn FnMut(u64),
) -> Result<BTreeMap<String, T>, Error> {
    let mut kept: BTreeMap<String, T> = BTreeMap::new();
    each_tap(runtime, threads, model, taps, batches, progress, &mut |tap| {
        Extent::of(tap.values).map_err(|value| tap.not_finite(value))?;
        let size = tap.dims.last().copied().unwrap_or(1);
        let seen = kept.entry(tap.name.to_owned()).or_insert_with(|| T::new(size));
        if seen.size() == size {
            seen.add(tap.values);
        }
        Ok(())
    })?;
    kept.values_mut().for_each(Rows::finish);
    Ok(kept)
}

/// A tapped tensor as one batch gave it.
struct Tap<'t> {
    name: &'t str,
    dims: &'t [usize],
    values: &'t [f32],
    batch: u64,
}

impl Tap<'_> {
    fn not_finite(&self, value: f32) -> Error {
        Error::NotFinite {
            name: shown(self.name),
            value,
            batch: self.batch,
        }
    }
}

/// Shows every tapped tensor of every batch to `visit`, inside the run that made it.
fn each_tap(
    runtime: &Runtime,
    threads: usize,
    model: &Model,
    taps: &[String],
    batches: Batches<'_>,
    progress: &mut dyn FnMut(u64),
    visit: &mut dyn FnMut(&Tap<'_>) -> Result<(), Error>,
) -> Result<(), Error> {
    let mut session = tapped(runtime, threads, model, taps)?;
    let mut done = 0_u64;
    for batch in batches {
        let batch = batch.map_err(Error::Data)?;
        for tensor in batch.iter().filter(|tensor| taps.contains(&tensor.name)) {
            let values = tensor.to_floats().ok_or_else(|| Error::NotFloat {
                name: shown(&tensor.name),
            })?;
            visit(&Tap {
                name: &tensor.name,
                dims: &tensor.dims,
                values: &values,
                batch: done,
            })?;
        }
        if let Some(session) = &mut session {
            let wanted = session.inputs();
            let inputs: Vec<Tensor> = batch
                .into_iter()
                .filter(|tensor| wanted.contains(&tensor.name.as_str()))
                .collect();
            session.run(&inputs, |output| {
                let values = output.floats().ok_or_else(|| Error::NotFloat {
                    name: shown(output.name),
                })?;
                visit(&Tap {
                    name: output.name,
                    dims: &output.shape,
                    values,
                    batch: done,
                })
            })?;
        }
        done += 1;
        progress(done);
    }
    if done == 0 {
        return Err(Error::Empty);
    }
    Ok(())
}

/// A session on the part of the model that the taps need; none where they are all inputs.
fn tapped(
    runtime: &Runtime,
    threads: usize,
    model: &Model,
    taps: &[String],
) -> Result<Option<session::Session>, Error> {
    let mut tapped = model.clone();
    let computed = taps
        .iter()
        .filter(|name| !model.graph.inputs.iter().any(|input| input.name == **name));
    tapped.graph.outputs = computed.map(|name| ValueInfo::untyped(name)).collect();
    if tapped.graph.outputs.is_empty() {
        return Ok(None);
    }
    prune(&mut tapped.graph);
    let used: std::collections::HashSet<&str> = tapped
        .graph
        .nodes
        .iter()
        .flat_map(|node| node.inputs.iter().map(String::as_str).chain(onnx::captured(node)))
        .collect();
    tapped.graph.inputs.retain(|input| used.contains(input.name.as_str()));
    // Optimized as in production: outputs keep their names and stay, and float kernels are several times faster.
    let options = Options {
        threads,
        optimize: Optimize::Everything,
        ..Options::default()
    };
    Ok(Some(runtime.open_model(&tapped, &options)?))
}

/// What is kept of one tensor.
struct Seen {
    extent: Extent,
    extremes: Extremes,
    histogram: Option<Histogram>,
    rank: Option<usize>,
    rank_varies: bool,
}

impl Seen {
    fn new(method: Method) -> Self {
        let histogram = (method != Method::MinMax).then(Histogram::default);
        Self {
            extent: Extent::default(),
            extremes: Extremes::default(),
            histogram,
            rank: None,
            rank_varies: false,
        }
    }

    /// Errors with the first value that is not finite.
    fn add(&mut self, values: &[f32]) -> Result<(), f32> {
        let extent = Extent::of(values)?;
        self.extent.merge(extent);
        self.extremes.add(extent);
        if let Some(histogram) = &mut self.histogram {
            histogram.add(values, extent);
        }
        Ok(())
    }

    fn range(&self, name: &str, method: Method) -> Result<Range, Error> {
        let full = self
            .extent
            .range()
            .ok_or_else(|| Error::NeverSeen { name: shown(name) })?;
        let chosen = match (&self.histogram, method) {
            (Some(histogram), Method::Percentile(percentile)) => histogram.percentile(percentile),
            (Some(histogram), Method::Entropy) => entropy::range(histogram, full),
            _ => return Ok(full),
        };
        Ok(chosen.intersect(full))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn range(method: Method, parts: &[&[f32]]) -> Range {
        let mut seen = Seen::new(method);
        for part in parts {
            seen.add(part).unwrap();
        }
        seen.range("x", method).unwrap()
    }

    #[test]
    fn every_method_survives_degenerate_values() {
        for method in [Method::MinMax, Method::Entropy, Method::Percentile(99.99)] {
            assert_eq!(range(method, &[&[0.0; 100]]), Range { min: 0.0, max: 0.0 });
            let constant = range(method, &[&[3.5; 100]]);
            assert!(
                constant.min >= 0.0 && (constant.max - 3.5).abs() < 0.01,
                "{method:?} {constant:?}"
            );
            let tiny = range(method, &[&[1e-38, -1e-38]]);
            assert!(
                tiny.min < 0.0 && tiny.max > 0.0 && tiny.max <= 1e-38,
                "{method:?} {tiny:?}"
            );
            let wide = range(method, &[&[f32::MAX, f32::MIN, 0.0]]);
            assert!(wide.min.is_finite() && wide.max.is_finite());
        }
    }

    #[test]
    fn what_is_not_finite_is_refused() {
        for bad in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY] {
            let mut values = vec![0.5; 37];
            values[20] = bad;
            assert!(Seen::new(Method::MinMax).add(&values).is_err());
        }
    }

    #[test]
    fn a_tensor_never_seen_has_no_range() {
        let mut seen = Seen::new(Method::Entropy);
        seen.add(&[]).unwrap();
        assert!(matches!(seen.range("x", Method::Entropy), Err(Error::NeverSeen { .. })));
    }
}
