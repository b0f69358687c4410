//! Techniques, one file each: a matcher reads the graph, a patch says what changes, the model is checked afterwards.
//!
//! Every pass reports how many nodes it changed and why it left the others. A stage that the user asked for and that
//! changes nothing is an error, never a silent success.

mod blocks;
pub mod choice;
mod convolution;
pub mod damage;
pub mod equalize;
mod even;
pub mod float16;
pub mod fold_batch_norm;
pub mod fold_bias;
pub mod fold_constants;
pub mod fold_shapes;
pub mod fold_table;
pub mod gelu;
mod gptq;
pub mod integer_ends;
#[cfg(feature = "bench")]
pub mod kernels;
pub mod layer_norm;
mod layout;
mod logarithm;
mod loss;
pub mod merge_projections;
mod moments;
mod nbits;
pub mod one_hot;
mod parts;
mod polynomial;
mod product;
mod progressive;
pub mod quantize_blocks;
pub mod quantize_dynamic;
mod quantize_lstm;
pub mod quantize_static;
pub mod quantize_tables;
pub mod raise_precision;
mod recovery;
mod region;
mod saturation;
mod shared;
mod site;
pub mod smooth;
mod static_plan;
mod transposed;
mod value_path;
mod vectors;
mod weights;
mod windows;

pub use blocks::Bits;
pub use choice::Choice;
pub use quantize_blocks::Blocks;
pub use recovery::{Inputs, Raise, Recovering, Recovery};
pub use site::{convolution_inputs, product_inputs};
pub use smooth::Smoothing;

use crate::{
    calibrate::Method,
    onnx::{self, shown},
};

/// Most nodes that a report lists; the rest is counted.
const MOST_LISTED: usize = 64;

/// What one pass did.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Report {
    /// Name of the pass.
    pub name: &'static str,
    /// Nodes changed.
    pub changed: usize,
    /// Nodes that the pass looked at and left, with the reason; at most 64 are listed.
    pub left: Vec<Left>,
    /// Nodes left, the unlisted ones included.
    pub left_count: usize,
    /// Nodes kept more precise than the others, with the reason; at most 64 are listed.
    pub raised: Vec<Left>,
    /// What the pass found out, for people.
    pub note: String,
}

/// A node that a pass left as it was, or kept more precise than it might have.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Left {
    /// Escaped name of the node.
    pub node: String,
    /// Why.
    pub why: String,
}

impl Report {
    fn new(name: &'static str) -> Self {
        Self {
            name,
            ..Self::default()
        }
    }

    /// Adds to the note.
    pub(crate) fn tell(&mut self, words: &str) {
        if !(self.note.is_empty() || words.is_empty()) {
            self.note.push_str("; ");
        }
        self.note.push_str(words);
    }

    fn raise(&mut self, node: &onnx::Node, why: impl Into<String>) {
        if self.raised.len() < MOST_LISTED {
            self.raised.push(Left {
                node: shown(node.label()),
                why: why.into(),
            });
        }
    }

    /// The same for a node that may be listed already.
    pub(crate) fn leave_once(&mut self, node: &onnx::Node, why: &str) {
        let label = shown(node.label());
        if self.left.iter().all(|left| left.node != label) {
            self.leave(node, why);
        }
    }

    fn leave(&mut self, node: &onnx::Node, why: impl Into<String>) {
        self.left_count += 1;
        if self.left.len() < MOST_LISTED {
            self.left.push(Left {
                node: shown(node.label()),
                why: why.into(),
            });
        }
    }
}

/// Why a pass failed.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The graph refused the rewrite.
    #[error(transparent)]
    Graph(#[from] onnx::Error),
    /// A stage that was asked for changes nothing.
    #[error("{pass} changed nothing: {why}")]
    NoEffect {
        /// The pass.
        pass: &'static str,
        /// What was missing, or the first reasons why nodes were left.
        why: String,
    },
    /// A setting that this mode cannot honour.
    #[error("{field} {value} is not possible with {pass}: {hint}")]
    Setting {
        /// The pass.
        pass: &'static str,
        /// The field.
        field: &'static str,
        /// Its value.
        value: String,
        /// The way out.
        hint: &'static str,
    },
    /// A pattern that chooses nothing.
    #[error(
        "{field}: no {what} of the simplified model matches {pattern}; a pattern is the name of a node, of its first output, or an operator \
         type, with * for any characters; there are {known}"
    )]
    Pattern {
        /// The field.
        field: &'static str,
        /// What it should have chosen.
        what: &'static str,
        /// Escaped pattern.
        pattern: String,
        /// Escaped: what could be chosen.
        known: String,
    },
    /// Inputs and outputs can't be bytes.
    #[error(
        "quantize.integerInputsOutputs needs a model that computes with integers throughout, and {count} of its nodes and ends do not: {first}; \
         remove it, or try format: QDQ and without only and except"
    )]
    Floats {
        /// How many.
        count: usize,
        /// The first of them, each with the reason.
        first: String,
    },
    /// A weight holds NaN or infinity.
    #[error("weight {name} holds a value that is not finite; it cannot be quantized")]
    NotFinite {
        /// Escaped name.
        name: String,
    },
}

/// An error if no pass changed anything.
pub fn require_simpler(reports: &[Report]) -> Result<(), Error> {
    if reports.iter().any(|report| report.changed > 0) {
        return Ok(());
    }
    Err(Error::NoEffect {
        pass: "simplify",
        why: "the model is as simple as its passes make it; add a stage that quantizes".to_owned(),
    })
}

/// An error if nothing changed, with the first reasons.
fn require_effect(report: Report) -> Result<Report, Error> {
    if report.changed > 0 {
        return Ok(report);
    }
    let reasons: Vec<String> = report
        .left
        .iter()
        .take(3)
        .map(|left| format!("{}: {}", left.node, left.why))
        .collect();
    let why = if reasons.is_empty() {
        "the model has no node of a kind that this pass quantizes".to_owned()
    } else {
        reasons.join("; ")
    };
    Err(Error::NoEffect { pass: report.name, why })
}

/// The `quantize` stage.
#[derive(Debug, Clone, PartialEq)]
pub struct Quantize {
    /// Whether activations get their ranges at run time or from calibration data.
    pub mode: Mode,
    /// In whose operators it is written.
    pub format: Format,
    /// Type of the activations.
    pub activations: Activations,
    /// How many scales a weight has.
    pub granularity: Granularity,
    /// How far weights reach.
    pub weights: Weights,
    /// The block in which weights are kept in 4 bits; none keeps all of them in 8.
    pub four_bits: Option<usize>,
    /// The instruction set by which that was chosen; none where it was asked for.
    pub chosen_for: Option<&'static str>,
    /// Whether float inputs and outputs become bytes, which nothing must compute with floats for; only for [`Mode::Static`].
    pub integer_ends: bool,
    /// How ranges are chosen; only for [`Mode::Static`].
    pub calibration: Method,
    /// How accuracy is won back.
    pub recovery: Recovery,
}

impl Default for Quantize {
    fn default() -> Self {
        Self {
            mode: Mode::Static,
            format: Format::QOperator,
            activations: Activations::UInt8,
            granularity: Granularity::PerChannel,
            weights: Weights::Int8,
            four_bits: None,
            chosen_for: None,
            integer_ends: false,
            calibration: Method::MinMax,
            recovery: Recovery::default(),
        }
    }
}

impl Quantize {
    /// How its weights are laid out.
    pub fn grid(&self) -> Grid {
        Grid {
            granularity: self.granularity,
            weights: self.weights,
            four_bits: self.four_bits,
        }
    }

    /// Why weights reach as far as they do, where nobody asked for it.
    fn note(&self, report: &mut Report) {
        let Some(set) = self.chosen_for else { return };
        let (kept, way_out) = match self.four_bits {
            None => (String::new(), "; set weights: Int8 for machines with VNNI"),
            Some(size) => (format!("Int4 in blocks of {size}, unpacked on loading to "), ""),
        };
        report.note = match self.weights {
            Weights::Int8 => {
                format!("weights: {kept}Int8, because kernels of {set} sum products of 8 bits without loss")
            }
            Weights::Int7 => format!(
                "weights: {kept}Int7, because kernels of {set} sum two products in 16 bits, which weights of 8 bits would \
                 overflow{way_out}"
            ),
        };
    }
}

/// How weights are laid out.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Grid {
    /// How many scales a weight has.
    pub granularity: Granularity,
    /// How far they reach.
    pub weights: Weights,
    /// The block in which they are kept in 4 bits, if they are.
    pub four_bits: Option<usize>,
}

/// How far symmetric weights in `int8` reach.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Weights {
    /// -127 to 127.
    Int8,
    /// -63 to 63: two products with an unsigned byte then fit 16 bits, into which x86 without VNNI sums them.
    Int7,
}

impl Weights {
    /// What suits kernels of an instruction set, as [`crate::run`] names them.
    pub fn suiting(instruction_set: &str) -> Self {
        match instruction_set {
            "sse" | "avx2" | "avx512" => Self::Int7,
            _ => Self::Int8,
        }
    }

    /// The largest value.
    fn largest(self) -> f32 {
        match self {
            Self::Int8 => 127.0,
            Self::Int7 => 63.0,
        }
    }
}

/// In whose operators a quantized model is written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Format {
    /// ONNX Runtime's own integer products: the file runs there and nowhere else.
    QOperator,
    /// ONNX's own: Quantize and Dequantize around float operators, integer products where ranges are found at run time.
    Qdq,
}

/// When ranges of activations are found.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Mode {
    /// From calibration data, once.
    Static,
    /// At run time, for every input.
    Dynamic,
}

/// Type of quantized activations. Weights are always symmetric and stored as `int8`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Activations {
    /// Unsigned 8 bits.
    UInt8,
    /// Signed 8 bits.
    Int8,
}

/// How many scales a weight has.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Granularity {
    /// One for every output channel.
    PerChannel,
    /// One.
    PerTensor,
}

/// The `simplify` stage, which runs before every other.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Simplify {
    /// Names of passes that are left out.
    pub skip: Vec<&'static str>,
    /// That indices of one-hot products are never outside of their table.
    pub indices_in_bounds: bool,
    /// That weights stay floats: what one node reads as it is and another turned, as tied embeddings are, is then not written twice.
    pub keep_tied: bool,
}

type Pass = fn(&mut onnx::Model, &Simplify) -> Result<Report, Error>;

/// Passes in order. Shapes first: they prove what the others ask. Normalizations next: they prove the rank by which a GELU is recognised, as
/// does its bias, which is why biases come last.
const SIMPLIFYING: [(&str, Pass); 9] = [
    (fold_constants::NAME, |model, settings| {
        fold_constants::apply(model, settings.keep_tied)
    }),
    (fold_shapes::NAME, |model, _| fold_shapes::apply(model)),
    (fold_batch_norm::NAME, |model, _| fold_batch_norm::apply(model)),
    (layer_norm::NAME, |model, _| layer_norm::apply(model)),
    (gelu::NAME, |model, _| gelu::apply(model)),
    (one_hot::NAME, |model, settings| {
        one_hot::apply(model, settings.indices_in_bounds)
    }),
    (fold_table::NAME, |model, _| fold_table::apply(model)),
    (fold_bias::NAME, |model, _| fold_bias::apply(model)),
    (merge_projections::NAME, |model, _| merge_projections::apply(model)),
];

/// Passes that write operators which are not ONNX's own.
pub(crate) const NOT_STANDARD: [&str; 2] = [layer_norm::NAME, gelu::NAME];

/// Rounds of all passes: what one leaves to do is another's to find, such as a normalization behind a bias that became the convolution's.
const MOST_ROUNDS: usize = 8;

/// Rewrites the float model without changing what it computes, until nothing is left to rewrite; every pass is checked.
pub fn simplify(model: &mut onnx::Model, settings: &Simplify, limits: &onnx::Limits) -> Result<Vec<Report>, Error> {
    let mut reports: Vec<Report> = Vec::new();
    for _ in 0..MOST_ROUNDS {
        let mut round = Vec::new();
        for (name, pass) in SIMPLIFYING {
            if !settings.skip.contains(&name) {
                round.push(pass(model, settings)?);
                onnx::check(model, limits)?;
            }
        }
        let changed = round.iter().any(|report| report.changed > 0);
        // What is left is what the last round left; what was changed adds up.
        for (report, before) in round.iter_mut().zip(&reports) {
            report.changed += before.changed;
        }
        reports = round;
        if !changed {
            break;
        }
    }
    Ok(reports)
}

#[cfg(test)]
mod body_tests;
#[cfg(test)]
mod property_tests;
#[cfg(test)]
mod recovery_tests;
#[cfg(test)]
mod region_tests;
#[cfg(test)]
mod shared_tests;
#[cfg(test)]
mod simplify_tests;
#[cfg(test)]
mod tests;
