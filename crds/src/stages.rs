//! The stages of a candidate: what may be done to a model, in the words of the schema and of the worker's plan alike.
//!
//! Decides names, defaults and limits. Never touches a model.

#[cfg(feature = "kube")]
use kube::KubeSchema;
#[cfg(feature = "kube")]
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// One step that changes the model. Exactly one technique is named.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[cfg_attr(feature = "kube", derive(KubeSchema))]
#[cfg_attr(feature = "kube", x_kube(validation = (
    "[has(self.quantize), has(self.recover)].filter(named, named).size() == 1",
    "a stage names exactly one technique: quantize or recover")))]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Stage {
    /// Replace floating-point weights, and in static mode activations, by small integers.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub quantize: Option<Quantize>,
    /// Win back accuracy that the `quantize` stage before it loses, from calibration data.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub recover: Option<Recover>,
}

/// How the accuracy that a quantization loses is won back.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[cfg_attr(feature = "kube", derive(KubeSchema))]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Recover {
    /// `GPTQ` rounds each weight so that the errors of a product make each other good (arXiv:2210.17323); for mode `WeightOnly`.
    pub method: RecoverMethod,
}

/// Method of winning accuracy back.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "kube", derive(JsonSchema))]
pub enum RecoverMethod {
    /// Rounding by the inverse of what inputs have in common.
    GPTQ,
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
    "self.mode == 'WeightOnly' || !has(self.weights) || self.weights == 'Int8'",
    "weights: Int4 is for mode WeightOnly; there is no 4-bit kernel for other modes: set mode: WeightOnly or weights: Int8")))]
#[cfg_attr(feature = "kube", x_kube(validation = (
    "!has(self.block) || (self.mode == 'WeightOnly' && self.block in [16, 32, 64, 128, 256])",
    "block is 16, 32, 64, 128 or 256, and for mode WeightOnly; the other modes have a scale for each channel: remove block or set mode: WeightOnly")))]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Quantize {
    /// `Dynamic` computes activation ranges at run time and needs no data; `Static` fixes them from calibration data; `WeightOnly` keeps
    /// the weights of matrix products and embeddings in blocks of 8 or 4 bits, needs no data, and is the smallest.
    pub mode: QuantizeMode,
    /// Type of the weights. Default `Int8`. `Int4` is for mode `WeightOnly`.
    #[serde(default)]
    pub weights: WeightType,
    /// Type of the activations. Default `UInt8` (asymmetric).
    #[serde(default)]
    pub activations: ActivationType,
    /// One scale for each output channel of a weight, or one for the whole tensor. Default `PerChannel`. Not used by mode `WeightOnly`.
    #[serde(default)]
    pub granularity: Granularity,
    /// Neighbouring weights that share a scale and a zero point in mode `WeightOnly`: 16, 32, 64, 128 or 256. Smaller blocks are more
    /// accurate and larger in the file. Default 32.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[cfg_attr(feature = "kube", schemars(with = "Option<i32>", range(min = 16, max = 256)))]
    pub block: Option<u32>,
    /// How activation ranges are found in mode `Static`. Default: method `MinMax`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub calibration: Option<CalibrationMethod>,
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
}

/// Integer type of quantized weights.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "kube", derive(JsonSchema))]
pub enum WeightType {
    /// 8 bits.
    #[default]
    Int8,
    /// 4 bits.
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
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct CalibrationMethod {
    /// `MinMax` keeps everything seen; `Entropy` clips where the Kullback-Leibler divergence is least; `Percentile` clips the tails.
    pub method: CalibrationKind,
    /// Share of values, in percent, that stays inside the range with method `Percentile`. Default 99.999.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[cfg_attr(
        feature = "kube",
        schemars(length(max = 16), regex(pattern = r"^(100(\.0{1,9})?|[5-9][0-9](\.[0-9]{1,9})?)$"))
    )]
    pub percentile: Option<String>,
}

/// Method of choosing activation ranges.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "kube", derive(JsonSchema))]
pub enum CalibrationKind {
    /// Smallest and largest value seen.
    #[default]
    MinMax,
    /// Least divergence between the float and the quantized distribution.
    Entropy,
    /// Symmetric share of the distribution.
    Percentile,
}
