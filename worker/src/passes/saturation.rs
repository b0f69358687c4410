//! How low and how high a value needs to be told apart, given what reads it.
//!
//! A maximum picks the rare largest values out, so what it reads is never cut at the top, whatever the calibration method.
//! GELU is zero to four digits below -4: a quantizer that spends levels on what lies below wastes them, and these tails
//! are long in practice. The range of a convolution's output is cut there when a GELU alone reads it.

use crate::onnx::Index;

/// `|gelu(x)| < 1.3e-4` from here down, below half a step of any 8-bit range that begins here.
const GELU_FLOOR: f32 = -4.0;
/// Operators between the value and its reader.
const MOST_STEPS: usize = 8;

/// The lowest value that matters to whatever reads `value`; negative infinity where every one may.
pub(super) fn floor(index: &Index<'_>, value: &str) -> f32 {
    let mut value = value;
    for _ in 0..MOST_STEPS {
        let Some((_, node)) = index.only_use(value) else { break };
        let first = node.input(0) == Some(value);
        match (node.domain.as_str(), node.op_type.as_str()) {
            ("com.microsoft", "FastGelu" | "Gelu") if first && node.input(1).is_none() => return GELU_FLOOR,
            ("", "Slice" | "Squeeze" | "Unsqueeze" | "Reshape" | "Transpose" | "Identity" | "Flatten") if first => {
                value = node.output();
            }
            _ => break,
        }
    }
    f32::NEG_INFINITY
}

/// Whether a maximum over positions reads `value`, directly or behind functions that keep large values in order.
pub(super) fn feeds_maximum(index: &Index<'_>, value: &str) -> bool {
    let mut value = value;
    for _ in 0..MOST_STEPS {
        let Some((_, node)) = index.only_use(value) else { break };
        match (node.domain.as_str(), node.op_type.as_str()) {
            ("", "GlobalMaxPool" | "MaxPool" | "ReduceMax") => return true,
            (
                "",
                "Slice" | "Squeeze" | "Unsqueeze" | "Reshape" | "Transpose" | "Identity" | "Flatten" | "Relu"
                | "LeakyRelu" | "Elu" | "HardSwish",
            )
            | ("com.microsoft", "FastGelu" | "Gelu" | "QuickGelu")
                if node.input(0) == Some(value) =>
            {
                value = node.output();
            }
            _ => break,
        }
    }
    false
}
