//! Ranges of activations from real inputs: one pass, constant memory, nothing kept per sample.
//!
//! Taps are added to a copy of the graph as outputs; each tapped tensor is reduced inside the run that made it and
//! freed. Decides ranges, never which tensors are worth quantizing.

mod average;
mod channels;
mod entropy;
mod extremes;
mod gram;
mod histogram;
mod magnitudes;
mod means;
mod range;
mod seen;
mod squared_error;
mod sums;
mod table;

pub use self::{
    channels::{Channels, Ends},
    gram::Gram,
    histogram::Histogram,
    magnitudes::magnitudes,
    means::Means,
    range::{Extent, Range},
    sums::sums,
    table::{Key, Tables, Unused, load, save},
};

use self::seen::Seen;
use crate::{
    onnx::{self, Model, Tensor, ValueInfo, prune, shown},
    session::{self, Optimize, Options, Runtime},
};
use rayon::prelude::*;
use std::collections::{BTreeMap, BTreeSet};

/// How a range is chosen from what was seen.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Method {
    /// The smallest and the largest value.
    MinMax,
    /// The smallest and the largest value of a run, averaged over runs in their order: each moves the average by this share of its
    /// distance (above 0, at most 1).
    MovingAverage(f64),
    /// The threshold at which the quantized distribution keeps most of the information (Kullback-Leibler divergence).
    Entropy,
    /// The range that holds this share of all values, in percent (above 50, at most 100).
    Percentile(f64),
    /// The range with the least mean squared error of rounding to 8 bits and clipping.
    MeanSquaredError,
}

impl Method {
    /// Its name and its number, exactly.
    fn spelled(self) -> String {
        match self {
            Self::MinMax => "MinMax".to_owned(),
            // Before there were words behind the number, the average began with the first run instead of the mean of the first ones.
            Self::MovingAverage(constant) => format!("MovingAverage {constant} from the mean of the first runs"),
            Self::Entropy => "Entropy".to_owned(),
            Self::Percentile(percentile) => format!("Percentile {percentile}"),
            Self::MeanSquaredError => "MeanSquaredError".to_owned(),
        }
    }

    /// Refuses numbers outside their bounds.
    fn check(self) -> Result<(), Error> {
        match self {
            Self::Percentile(percentile) if !(percentile > 50.0 && percentile <= 100.0) => {
                Err(Error::Percentile(percentile))
            }
            Self::MovingAverage(constant) if !(constant > 0.0 && constant <= 1.0) => {
                Err(Error::AveragingConstant(constant))
            }
            _ => Ok(()),
        }
    }
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
    /// An averaging constant outside its bounds.
    #[error("averagingConstant {0} is outside 0 (excluded) to 1")]
    AveragingConstant(f64),
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

/// What calibration is to look at, by name.
#[derive(Debug)]
pub struct Wanted<'w> {
    /// Tensors that get a range.
    pub ranges: &'w [String],
    /// How ranges are chosen.
    pub method: Method,
    /// Tensors whose rows are kept in some form.
    pub rows: &'w [String],
    /// Tensors whose channels' means are kept.
    pub means: &'w [String],
}

/// What calibration learned, by name.
#[derive(Debug)]
pub struct Learned<T> {
    /// Of the tensors that get a range.
    pub ranges: BTreeMap<String, Observed>,
    /// Of rows.
    pub rows: BTreeMap<String, T>,
    /// Of channels.
    pub means: BTreeMap<String, Means>,
}

/// Runs `batches` through `model` once and gives what was learned of the tensors in `wanted`.
///
/// `progress` is told the number of batches done. Tensors are looked at side by side, each by one thread and in the order of the batches:
/// what is learned depends neither on threads nor on time.
pub fn observe<T: Rows + Send>(
    runtime: &Runtime,
    threads: usize,
    model: &Model,
    wanted: &Wanted<'_>,
    batches: Batches<'_>,
    progress: &mut dyn FnMut(u64),
) -> Result<Learned<T>, Error> {
    let method = wanted.method;
    method.check()?;
    let new = |name: &String| (name.clone(), Seen::new(method));
    let mut seen: BTreeMap<String, Seen> = wanted.ranges.iter().map(new).collect();
    let mut rows: BTreeMap<String, T> = BTreeMap::new();
    let mut means: BTreeMap<String, Means> = BTreeMap::new();
    let taps = wanted.ranges.iter().chain(wanted.rows).chain(wanted.means);
    let taps: BTreeSet<String> = taps.cloned().collect();
    let taps: Vec<String> = taps.into_iter().collect();
    each_run(runtime, threads, model, &taps, batches, progress, &mut |run| {
        side_by_side(&mut seen, run, |seen, tap| {
            seen.add(tap.dims.len(), tap.values)
                .map_err(|value| tap.not_finite(value))
        })?;
        for tap in run {
            let among = |wanted: &[String]| wanted.iter().any(|name| name == tap.name);
            if among(wanted.rows) && !rows.contains_key(tap.name) {
                rows.insert(tap.name.to_owned(), T::new(tap.row()));
            }
            if among(wanted.means) && !means.contains_key(tap.name) {
                means.insert(tap.name.to_owned(), Means::new(tap.channels()));
            }
        }
        side_by_side(&mut means, run, |means, tap| {
            means.add(tap.dims, tap.values).map_err(|value| tap.not_finite(value))
        })?;
        side_by_side(&mut rows, run, |rows, tap| {
            Extent::of(tap.values).map_err(|value| tap.not_finite(value))?;
            if rows.size() == tap.row() {
                rows.add(tap.values);
            }
            Ok(())
        })
    })?;
    rows.values_mut().for_each(Rows::finish);
    let ranges = seen.into_iter().map(|(name, seen)| match seen.observed(method) {
        Some(observed) => Ok((name, observed)),
        None => Err(Error::NeverSeen { name: shown(&name) }),
    });
    Ok(Learned {
        ranges: ranges.collect::<Result<_, Error>>()?,
        rows,
        means,
    })
}

/// The ranges of `taps` alone.
pub fn calibrate(
    runtime: &Runtime,
    threads: usize,
    model: &Model,
    taps: &[String],
    method: Method,
    batches: Batches<'_>,
    progress: &mut dyn FnMut(u64),
) -> Result<BTreeMap<String, Observed>, Error> {
    let wanted = Wanted {
        ranges: taps,
        method,
        rows: &[],
        means: &[],
    };
    observe::<Channels>(runtime, threads, model, &wanted, batches, progress).map(|learned| learned.ranges)
}

/// What `T` keeps of the rows of `taps` alone.
pub fn rows<T: Rows + Send>(
    runtime: &Runtime,
    threads: usize,
    model: &Model,
    taps: &[String],
    batches: Batches<'_>,
    progress: &mut dyn FnMut(u64),
) -> Result<BTreeMap<String, T>, Error> {
    let wanted = Wanted {
        ranges: &[],
        method: Method::MinMax,
        rows: taps,
        means: &[],
    };
    observe(runtime, threads, model, &wanted, batches, progress).map(|learned| learned.rows)
}

/// Adds what a run gave to what is kept of each tensor. The error is that of the first name, whichever thread was first.
fn side_by_side<K: Send>(
    kept: &mut BTreeMap<String, K>,
    run: &[Tap<'_>],
    add: impl Fn(&mut K, &Tap<'_>) -> Result<(), Error> + Sync,
) -> Result<(), Error> {
    let run: BTreeMap<&str, &Tap<'_>> = run.iter().map(|tap| (tap.name, tap)).collect();
    let pairs: Vec<(&mut K, &Tap<'_>)> = kept
        .iter_mut()
        .filter_map(|(name, kept)| Some((kept, *run.get(name.as_str())?)))
        .collect();
    let results: Vec<Result<(), Error>> = pairs.into_par_iter().map(|(kept, tap)| add(kept, tap)).collect();
    results.into_iter().collect()
}

/// A tapped tensor as one batch gave it.
struct Tap<'t> {
    name: &'t str,
    dims: &'t [usize],
    values: &'t [f32],
    batch: u64,
}

impl Tap<'_> {
    /// Elements of a row.
    fn row(&self) -> usize {
        self.dims.last().copied().unwrap_or(1)
    }

    /// Channels of an image.
    fn channels(&self) -> usize {
        self.dims.get(1).copied().unwrap_or(0)
    }

    fn not_finite(&self, value: f32) -> Error {
        Error::NotFinite {
            name: shown(self.name),
            value,
            batch: self.batch,
        }
    }
}

/// Shows the tapped tensors of every batch to `visit`, inside the run that made them: those that the model is given, then those that it
/// computes.
fn each_run(
    runtime: &Runtime,
    threads: usize,
    model: &Model,
    taps: &[String],
    batches: Batches<'_>,
    progress: &mut dyn FnMut(u64),
    visit: &mut dyn FnMut(&[Tap<'_>]) -> Result<(), Error>,
) -> Result<(), Error> {
    let mut session = tapped(runtime, threads, model, taps)?;
    let mut done = 0_u64;
    for batch in batches {
        let batch = batch.map_err(Error::Data)?;
        let not_float = |name: &str| Error::NotFloat { name: shown(name) };
        let mut given = Vec::new();
        for tensor in batch.iter().filter(|tensor| taps.contains(&tensor.name)) {
            given.push((tensor, tensor.to_floats().ok_or_else(|| not_float(&tensor.name))?));
        }
        let given: Vec<Tap<'_>> = given
            .iter()
            .map(|(tensor, values)| Tap {
                name: &tensor.name,
                dims: &tensor.dims,
                values,
                batch: done,
            })
            .collect();
        visit(&given)?;
        if let Some(session) = &mut session {
            let wanted = session.inputs();
            let inputs: Vec<Tensor> = batch
                .iter()
                .filter(|tensor| wanted.contains(&tensor.name.as_str()))
                .cloned()
                .collect();
            session.run_whole(&inputs, |outputs| {
                let mut computed = Vec::with_capacity(outputs.len());
                for output in &outputs {
                    computed.push(Tap {
                        name: output.name,
                        dims: &output.shape,
                        values: output.floats().ok_or_else(|| not_float(output.name))?,
                        batch: done,
                    });
                }
                visit(&computed)
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
