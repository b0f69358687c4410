//! The stages of a candidate: what may be done to a model, in the words of the schema and of the worker's plan alike.
//!
//! Decides names, defaults and limits; `order` decides what may follow what. Never touches a model.

mod order;

#[cfg(feature = "kube")]
use kube::KubeSchema;
#[cfg(feature = "kube")]
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

pub use order::{calibrating, out_of_order};

/// Most patterns in a list of nodes.
pub const MAX_PATTERNS: usize = 128;
/// Most characters of a pattern.
pub const MAX_PATTERN: usize = 256;

/// One step that changes the model. Exactly one technique is named.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[cfg_attr(feature = "kube", derive(KubeSchema))]
#[cfg_attr(feature = "kube", x_kube(validation = (
    "[has(self.simplify), has(self.quantize), has(self.recover)].filter(named, named).size() == 1",
    "a stage names exactly one technique: simplify, quantize or recover")))]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Stage {
    /// How the model is simplified before anything else; only as the first stage. Without it, every pass runs with its defaults. As the only
    /// stage, it makes a floating-point candidate.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub simplify: Option<Simplify>,
    /// Replace floating-point weights, and in static mode activations, by small integers.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub quantize: Option<Quantize>,
    /// Win back accuracy that a `quantize` stage loses, from calibration data.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub recover: Option<Recover>,
}

/// How a model is rewritten without changing what it computes.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "kube", derive(KubeSchema))]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Simplify {
    /// That no index of a one-hot product is ever outside of its table. The lookup that takes the place of the product then bounds no index:
    /// one outside fails the run, or counts from the table's end where it is negative, instead of giving zeros. Default false.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub assume_indices_in_bounds: bool,
    /// Passes that are left out, at most 16. Default none.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[cfg_attr(feature = "kube", schemars(length(max = 16)))]
    pub skip: Vec<SimplifyPass>,
}

/// A pass of `simplify`, in the order in which they run.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "kube", derive(JsonSchema))]
#[serde(rename_all = "kebab-case")]
pub enum SimplifyPass {
    /// Operators that only move or convert constants.
    FoldConstants,
    /// Shape arithmetic, and operators that change nothing.
    FoldShapes,
    /// Batch normalization behind convolutions.
    FoldBatchNorm,
    /// Layer normalization written out.
    FuseLayerNorm,
    /// GELU written out.
    FuseGelu,
    /// One-hot rows times a matrix.
    GatherOneHot,
    /// What follows a lookup in a constant table.
    FoldIntoTable,
    /// Constants added behind convolutions.
    FoldBias,
    /// Small matrix products that read the same value.
    MergeProjections,
}

impl SimplifyPass {
    /// Every pass, in the order in which they run.
    pub const ALL: [Self; 9] = [
        Self::FoldConstants,
        Self::FoldShapes,
        Self::FoldBatchNorm,
        Self::FuseLayerNorm,
        Self::FuseGelu,
        Self::GatherOneHot,
        Self::FoldIntoTable,
        Self::FoldBias,
        Self::MergeProjections,
    ];

    /// As manifests and reports spell it.
    pub fn name(self) -> &'static str {
        match self {
            Self::FoldConstants => "fold-constants",
            Self::FoldShapes => "fold-shapes",
            Self::FoldBatchNorm => "fold-batch-norm",
            Self::FuseLayerNorm => "fuse-layer-norm",
            Self::FuseGelu => "fuse-gelu",
            Self::GatherOneHot => "gather-one-hot",
            Self::FoldIntoTable => "fold-into-table",
            Self::FoldBias => "fold-bias",
            Self::MergeProjections => "merge-projections",
        }
    }
}

/// How the accuracy that a quantization loses is won back.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[cfg_attr(feature = "kube", derive(KubeSchema))]
#[cfg_attr(feature = "kube", x_kube(validation = (
    "!has(self.share) || self.method == 'RaisePrecision'",
    "share is for method RaisePrecision: remove it or set method: RaisePrecision")))]
#[cfg_attr(feature = "kube", x_kube(validation = (
    "!has(self.goal) || self.method == 'RaisePrecision'",
    "goal is for method RaisePrecision: remove it or set method: RaisePrecision")))]
#[cfg_attr(feature = "kube", x_kube(validation = (
    "!has(self.nodes) || (self.method == 'RaisePrecision' && !has(self.share) && !has(self.goal))",
    "nodes is for method RaisePrecision, in the place of share and goal: remove it or them")))]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Recover {
    /// `SmoothQuant` evens out the inputs of matrix products (arXiv:2211.10438); it goes right before mode `Static` or `Dynamic`.
    /// `Equalization` evens out channels between neighbouring layers (arXiv:1906.04721); it needs no data and goes before `SmoothQuant` and
    /// mode `Static` or `Dynamic` with `granularity: PerTensor`. The others go after any `quantize`, in any order: `GPTQ` rounds each weight
    /// of matrix products so that the errors of a product make each other good (arXiv:2210.17323); `BiasCorrection` moves the mean error of
    /// each output of products and convolutions into its bias (arXiv:1906.04721); `RaisePrecision` keeps what loses most more precise: matrix
    /// products in 8-bit blocks, or in floats where those do not reach the goal; after mode `Static`, convolutions and what lies between them
    /// in floats; after modes `Static` and `Dynamic` with `weights: Int4`, products and convolutions with weights of 8 bits before that.
    pub method: RecoverMethod,
    /// Share of the weights of all matrix products and convolutions that `RaisePrecision` may raise, 0.01 to 0.99. More is more accurate, and
    /// slower after modes `Static` and `Dynamic`, larger after `Int4`. Default 0.2.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[cfg_attr(
        feature = "kube",
        schemars(length(max = 4), regex(pattern = r"^0\.(0[1-9]|[1-9][0-9]?)$"))
    )]
    pub share: Option<String>,
    /// Likeness to the baseline, 0.5 to 0.999999, at which `RaisePrecision` stops: the mean over calibration samples of the cosine between
    /// the outputs of candidate and baseline, of the least alike output. It then raises no more than needed, and keeps the most alike where the
    /// goal is missed. Without it, all of `share` is raised, but for convolutions of which 8 bits take less than 1 % of the output's power.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[cfg_attr(
        feature = "kube",
        schemars(length(max = 8), regex(pattern = r"^0\.[5-9][0-9]{0,5}$"))
    )]
    pub goal: Option<String>,
    /// Matrix products that `RaisePrecision` raises to 8-bit blocks, whatever they lose: what a recipe has in the place of `share` and
    /// `goal`. After modes `Static` and `Dynamic` with `weights: Int4`, products and convolutions whose weights keep 8 bits. In the same words
    /// as `quantize.only`, 1 to 128 entries; one that matches none of them is refused. Needs no calibration data. Default: those that lose most.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[cfg_attr(
        feature = "kube",
        schemars(length(min = 1, max = MAX_PATTERNS), inner(length(min = 1, max = MAX_PATTERN)))
    )]
    pub nodes: Vec<String>,
}

/// Method of winning accuracy back.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "kube", derive(JsonSchema))]
pub enum RecoverMethod {
    /// Even inputs, the difference moved into the weights.
    SmoothQuant,
    /// Even channels from layer to layer.
    Equalization,
    /// Rounding by what inputs have in common.
    GPTQ,
    /// The mean error of each output, moved into its bias.
    BiasCorrection,
    /// Mixed precision by sensitivity: 8-bit blocks for what loses most.
    RaisePrecision,
}

impl RecoverMethod {
    /// As manifests spell it.
    pub fn name(self) -> &'static str {
        match self {
            Self::SmoothQuant => "SmoothQuant",
            Self::Equalization => "Equalization",
            Self::GPTQ => "GPTQ",
            Self::BiasCorrection => "BiasCorrection",
            Self::RaisePrecision => "RaisePrecision",
        }
    }
}

/// How a model is quantized to small integers.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[cfg_attr(feature = "kube", derive(KubeSchema))]
#[cfg_attr(feature = "kube", x_kube(validation = (
    "!has(self.calibration) || self.mode == 'Static'",
    "calibration is for mode Static; dynamic quantization measures ranges while it runs: remove calibration or set mode: Static")))]
#[cfg_attr(feature = "kube", x_kube(validation = (
    "self.mode == 'Static' || !has(self.activations) || self.activations == 'UInt8'",
    "activations: Int8 is for mode Static; other modes make UInt8 at run time: remove activations or set mode: Static")))]
#[cfg_attr(feature = "kube", x_kube(validation = (
    "!has(self.weights) || self.weights != 'Int7' || self.mode in ['Static', 'Dynamic']",
    "weights: Int7 is for modes Static and Dynamic, whose integer products may overflow: remove weights or set mode: Static or Dynamic")))]
#[cfg_attr(feature = "kube", x_kube(validation = (
    "!has(self.block) || ((self.mode == 'WeightOnly' || (has(self.weights) && self.weights == 'Int4')) && self.block in [16, 32, 64, 128, 256])",
    "block is 16, 32, 64, 128 or 256, and for mode WeightOnly or weights: Int4; 8 bits have a scale for each channel: remove block or set one of these")))]
#[cfg_attr(feature = "kube", x_kube(validation = (
    "!has(self.format) || self.mode in ['Static', 'Dynamic']",
    "format is for modes Static and Dynamic; other modes have one form: remove format or set mode: Static or Dynamic")))]
#[cfg_attr(feature = "kube", x_kube(validation = (
    "!has(self.weights) || self.mode != 'Float16'",
    "weights is not for mode Float16, which keeps 16-bit floats: remove weights or set another mode")))]
#[cfg_attr(feature = "kube", x_kube(validation = (
    "!has(self.integerInputsOutputs) || !self.integerInputsOutputs || self.mode == 'Static'",
    "integerInputsOutputs is for mode Static, which knows ranges beforehand: remove it or set mode: Static")))]
#[cfg_attr(feature = "kube", x_kube(validation = (
    "!has(self.integerInputsOutputs) || !self.integerInputsOutputs || !has(self.activations) || self.activations == 'UInt8'",
    "integerInputsOutputs is for activations: UInt8; behind signed inputs ONNX Runtime computes with floats: remove one of them")))]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Quantize {
    /// `Dynamic` computes activation ranges at run time and needs no data; `Static` fixes them from calibration data; `WeightOnly` keeps
    /// the weights of matrix products and embeddings in blocks of 8 or 4 bits, needs no data, and is the smallest; `Float16` keeps weights, and
    /// computes, in 16-bit floats, which halves the file, is no faster on CPUs, and leaves in 32 bits what comes near 65504 on the
    /// calibration data, or on made-up inputs where there is none. BF16 and FP8 are not offered: ONNX Runtime has no kernel for them on CPUs.
    pub mode: QuantizeMode,
    /// Type of the weights.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub weights: Option<WeightType>,
    /// Type of the activations. Default `UInt8` (asymmetric). 16 bits are not offered: without an integer kernel on CPUs, all between two of
    /// their nodes is computed with floats, slower than before.
    #[serde(default)]
    pub activations: ActivationType,
    /// One scale for each output channel of a weight, or one for the whole tensor. Default `PerChannel`. Not used by mode `WeightOnly`.
    #[serde(default)]
    pub granularity: Granularity,
    /// Neighbouring weights that share a scale and a zero point in mode `WeightOnly` and with `weights: Int4`: 16, 32, 64, 128 or 256.
    /// Smaller blocks are more accurate and larger in the file. Default 32.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[cfg_attr(feature = "kube", schemars(with = "Option<i32>", range(min = 16, max = 256)))]
    pub block: Option<u32>,
    /// Whose operators it is written in.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub format: Option<Format>,
    /// How activation ranges are found in mode `Static`. Default: method `MinMax`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub calibration: Option<CalibrationMethod>,
    /// Whether float inputs and outputs of the model become unsigned bytes, in mode `Static` with `activations: UInt8`. Their scale and
    /// zero point are in the report and in the file's metadata (`assayer.dev/quantized/<name>`: scale, zero point, `uint8`); callers quantize
    /// and dequantize by them, and so does the worker when it measures. Refused, with the names, where anything is left that computes with
    /// floats. Default false.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub integer_inputs_outputs: bool,
    /// Nodes that may change; operators between two of them count, too. Each entry is the name of a node, the name of its first output, or
    /// an operator type; `*` stands for any characters. At most 128 entries. One that matches no node of the simplified model is refused.
    /// Default: what pays; in mode `Static`, also by what ONNX Runtime is seen to fuse and by measured time.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[cfg_attr(feature = "kube", schemars(length(max = MAX_PATTERNS), inner(length(min = 1, max = MAX_PATTERN))))]
    pub only: Vec<String>,
    /// Nodes that stay as they are, in the same words as `only`, and stronger. Default: none.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[cfg_attr(feature = "kube", schemars(length(max = MAX_PATTERNS), inner(length(min = 1, max = MAX_PATTERN))))]
    pub except: Vec<String>,
}

/// When activation ranges are known.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "kube", derive(JsonSchema))]
pub enum QuantizeMode {
    /// At run time, anew for every input.
    Dynamic,
    /// Before, from calibration data.
    Static,
    /// Never in the file: only weights are quantized.
    WeightOnly,
    /// Not needed: activations are 16-bit floats.
    Float16,
}

/// Type of the weights. `Int7` (-63 to 63, stored as 8 bits) is for modes `Static` and `Dynamic` on x86 without VNNI, whose kernels sum two
/// products in 16 bits. `Int4` is the smallest: mode `WeightOnly` computes with the 4 bits; modes `Static` and `Dynamic` keep weights so and
/// unpack them to 8 bits (7, where `Int7` would be the default) when the model is loaded, which is faster for many rows at once and takes the
/// memory of `Int8`; what 4 bits would not make smaller stays in 8. Default `Int8`, but for modes `Static` and `Dynamic` where the worker
/// that makes the candidate runs on x86 without VNNI: there `Int7`, and the report says so.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "kube", derive(JsonSchema))]
pub enum WeightType {
    /// 8 bits.
    Int8,
    /// 8 bits, of which 7 are used.
    Int7,
    /// 4 bits, in blocks.
    Int4,
}

/// Integer type of quantized activations.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "kube", derive(JsonSchema))]
pub enum ActivationType {
    /// Unsigned 8 bits, asymmetric.
    #[default]
    UInt8,
    /// Signed 8 bits.
    Int8,
}

/// Whose operators modes `Static` and `Dynamic` write. `QOperator`, the default, uses ONNX Runtime's own for matrix products, which take their
/// bias along: the fastest, and the file runs in ONNX Runtime only. `QDQ` uses ONNX's own (operator set 17) and none else, for other runtimes
/// and compilers.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "kube", derive(JsonSchema))]
pub enum Format {
    /// ONNX Runtime's own.
    QOperator,
    /// ONNX's own.
    QDQ,
}

/// How many scales a weight has.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "kube", derive(JsonSchema))]
pub enum Granularity {
    /// One for each output channel.
    #[default]
    PerChannel,
    /// One for the tensor.
    PerTensor,
}

/// How activation ranges are chosen from what calibration data shows.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[cfg_attr(feature = "kube", derive(KubeSchema))]
#[cfg_attr(feature = "kube", x_kube(validation = (
    "!has(self.percentile) || self.method == 'Percentile'",
    "percentile is for method Percentile: remove it or set method: Percentile")))]
#[cfg_attr(feature = "kube", x_kube(validation = (
    "!has(self.averagingConstant) || self.method == 'MovingAverage'",
    "averagingConstant is for method MovingAverage: remove it or set method: MovingAverage")))]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct CalibrationMethod {
    /// `MinMax` keeps everything seen; `MovingAverage` the average of the extremes of runs of up to 2 rows, in the order of the rows;
    /// `Entropy` clips where the Kullback-Leibler divergence is least; `Percentile` clips the tails; `MeanSquaredError` clips where rounding
    /// and clipping together lose least.
    pub method: CalibrationKind,
    /// Share of values, in percent, that stays inside the range with method `Percentile`. Default 99.999.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[cfg_attr(
        feature = "kube",
        schemars(length(max = 16), regex(pattern = r"^(100(\.0{1,9})?|[5-9][0-9](\.[0-9]{1,9})?)$"))
    )]
    pub percentile: Option<String>,
    /// Share of its distance by which each run moves the average with method `MovingAverage`, 0.0001 to 1; the first runs by more, so that
    /// it is their mean. Default 0.01.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[cfg_attr(
        feature = "kube",
        schemars(length(max = 9), regex(pattern = r"^(1(\.0{1,4})?|0\.0{0,3}[1-9][0-9]{0,3})$"))
    )]
    pub averaging_constant: Option<String>,
}

/// Method of choosing activation ranges.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "kube", derive(JsonSchema))]
pub enum CalibrationKind {
    /// Smallest and largest value seen.
    #[default]
    MinMax,
    /// Smallest and largest value of a run, averaged over runs.
    MovingAverage,
    /// Least divergence between the float and the quantized distribution.
    Entropy,
    /// Symmetric share of the distribution.
    Percentile,
    /// Least mean squared error of rounding and clipping.
    MeanSquaredError,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn passes_are_named_as_manifests_spell_them() {
        for pass in SimplifyPass::ALL {
            assert_eq!(serde_json::to_value(pass).unwrap(), pass.name());
        }
        let unknown = serde_json::from_str::<Stage>(r#"{"simplify": {"skip": ["fuse-all"]}}"#).unwrap_err();
        assert!(
            unknown.to_string().contains("expected one of `fold-constants`"),
            "{unknown}"
        );
        let plain = serde_json::to_value(Simplify::default()).unwrap();
        assert_eq!(plain, serde_json::json!({}), "defaults keep the digests of plans");
    }
}
