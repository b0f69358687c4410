//! Which stages may follow which, and what they need.
//!
//! Decides from their names alone, in words for people. Never touches a model.

use super::{Format, Granularity, QuantizeMode, Recover, RecoverMethod, Stage, WeightType};

const TWO_TECHNIQUES: &str = "it has a stage that names no technique, or two: name simplify, quantize or recover";

/// Why `stages` can't be carried out in this order, for people; none if they can.
pub fn out_of_order(stages: &[Stage]) -> Option<String> {
    if stages.is_empty() {
        return Some("it has no stages: name at least one".to_owned());
    }
    for (position, stage) in stages.iter().enumerate() {
        if stage.simplify.is_some() && stage.quantize.is_none() && stage.recover.is_none() {
            if position > 0 {
                return Some("simplify is not its first stage; put it there, once".to_owned());
            }
            continue;
        }
        match (&stage.quantize, &stage.recover) {
            _ if stage.simplify.is_some() => return Some(TWO_TECHNIQUES.to_owned()),
            (Some(_), None) => {}
            (None, Some(recover)) if recover.method == RecoverMethod::SmoothQuant => {
                let next = stages
                    .get(position + 1)
                    .and_then(|next| Some(next.quantize.as_ref()?.mode));
                if !matches!(next, Some(QuantizeMode::Static | QuantizeMode::Dynamic)) {
                    return Some(
                        "recover with method: SmoothQuant is not followed by quantize with mode: Static or Dynamic; put it right before such a stage".to_owned(),
                    );
                }
            }
            (None, Some(recover)) if recover.method == RecoverMethod::Equalization => {
                if let Some(problem) = not_equalized(&stages[position + 1..]) {
                    return Some(problem);
                }
            }
            (None, Some(recover)) => {
                if let Some(problem) = misplaced(recover, &stages[..position]) {
                    return Some(problem);
                }
            }
            _ => return Some(TWO_TECHNIQUES.to_owned()),
        }
    }
    None
}

/// Why evening out channels can't help the stages `behind` it.
fn not_equalized(behind: &[Stage]) -> Option<String> {
    let smooths =
        |stage: &&Stage| matches!(&stage.recover, Some(recover) if recover.method == RecoverMethod::SmoothQuant);
    let next = behind
        .iter()
        .find(|stage| !smooths(stage))
        .and_then(|stage| stage.quantize.as_ref());
    let next = next.filter(|next| matches!(next.mode, QuantizeMode::Static | QuantizeMode::Dynamic));
    match next {
        None => Some(
            "recover with method: Equalization is not followed by quantize with mode: Static or Dynamic; put it before such a stage".to_owned(),
        ),
        Some(next) if next.granularity == Granularity::PerChannel => Some(
            "recover with method: Equalization is followed by quantize with granularity: PerChannel, where every channel has a scale of its own and \
             nothing to gain; remove it or set granularity: PerTensor"
                .to_owned(),
        ),
        Some(_) => None,
    }
}

/// Why `recover` can't help the `quantize` that `before` ends with, but for other methods that help it, too.
fn misplaced(recover: &Recover, before: &[Stage]) -> Option<String> {
    let (method, name) = (recover.method, recover.method.name());
    for stage in before.iter().rev() {
        match (&stage.quantize, &stage.recover) {
            (Some(quantize), _) if quantize.mode == QuantizeMode::Float16 => {
                return Some(format!(
                    "recover with method: {name} follows quantize with mode: Float16, where there is nothing to win back; remove one of them"
                ));
            }
            (Some(quantize), _)
                if !recover.nodes.is_empty()
                    && quantize.format == Some(Format::QDQ)
                    && quantize.weights != Some(WeightType::Int4) =>
            {
                return Some(
                    "recover.nodes gives products 8-bit blocks, and follows quantize with format: QDQ, but ONNX itself has none; name them in \
                     quantize.except, where they stay floats, or set format: QOperator"
                        .to_owned(),
                );
            }
            (Some(quantize), _) if method == RecoverMethod::RaisePrecision => {
                let raised = quantize.mode == QuantizeMode::WeightOnly && quantize.weights != Some(WeightType::Int4);
                return raised.then(|| {
                    "recover with method: RaisePrecision follows quantize with mode: WeightOnly and weights: Int8, which has 8-bit blocks \
                     everywhere; remove it, set weights: Int4, or use mode: Static or Dynamic"
                        .to_owned()
                });
            }
            (Some(_), _) => return None,
            (None, Some(recover)) if recover.method == method => {
                return Some(format!(
                    "recover with method: {name} follows the same quantize twice; remove one of them"
                ));
            }
            (None, Some(recover)) if recover.method != RecoverMethod::SmoothQuant => {}
            _ => break,
        }
    }
    Some(format!(
        "recover with method: {name} does not follow quantize; put it right after such a stage"
    ))
}

/// What in `stages` needs calibration data, for people; none if nothing does.
pub fn calibrating(stages: &[Stage]) -> Option<&'static str> {
    stages.iter().find_map(|stage| match (&stage.quantize, &stage.recover) {
        (Some(quantize), _) => (quantize.mode == QuantizeMode::Static).then_some("quantizes with mode: Static"),
        (None, Some(recover)) => {
            let told = recover.method == RecoverMethod::Equalization || !recover.nodes.is_empty();
            (!told).then_some("recovers accuracy")
        }
        (None, None) => None,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_recovers_stands_beside_what_it_recovers() {
        let stages = |text: &str| serde_json::from_str::<Vec<Stage>>(text).unwrap();
        let smooth = r#"{"recover": {"method": "SmoothQuant"}}"#;
        let gptq = r#"{"recover": {"method": "GPTQ"}}"#;
        let bias = r#"{"recover": {"method": "BiasCorrection"}}"#;
        let raise = r#"{"recover": {"method": "RaisePrecision", "share": "0.3"}}"#;
        let named = r#"{"recover": {"method": "RaisePrecision", "nodes": ["/layer.0/*"]}}"#;
        let dynamic = r#"{"quantize": {"mode": "Dynamic"}}"#;
        let blocks = r#"{"quantize": {"mode": "WeightOnly", "weights": "Int4"}}"#;
        let even = r#"{"recover": {"method": "Equalization"}}"#;
        let tensor = r#"{"quantize": {"mode": "Dynamic", "granularity": "PerTensor"}}"#;
        let simplify = r#"{"simplify": {"skip": ["fuse-gelu"], "assumeIndicesInBounds": true}}"#;
        for good in [
            format!("[{dynamic}]"),
            format!("[{simplify}]"),
            format!("[{simplify}, {smooth}, {dynamic}, {gptq}]"),
            format!("[{smooth}, {dynamic}]"),
            format!("[{even}, {tensor}]"),
            format!("[{even}, {smooth}, {tensor}, {gptq}]"),
            format!("[{blocks}, {gptq}]"),
            format!(r#"[{{"quantize": {{"mode": "Static", "weights": "Int4", "format": "QDQ"}}}}, {named}]"#),
            format!("[{smooth}, {dynamic}, {gptq}, {bias}]"),
            format!("[{dynamic}, {bias}, {raise}, {gptq}]"),
            format!("[{blocks}, {raise}]"),
            format!(r#"[{{"quantize": {{"mode": "Dynamic", "format": "QDQ"}}}}, {raise}]"#),
        ] {
            assert_eq!(out_of_order(&stages(&good)), None, "{good}");
        }
        for (bad, words) in [
            ("[]".to_owned(), "no stages"),
            ("[{}]".to_owned(), "no technique"),
            (
                r#"[{"simplify": {}, "quantize": {"mode": "Dynamic"}}]"#.to_owned(),
                "or two",
            ),
            (format!("[{dynamic}, {simplify}]"), "not its first stage"),
            (format!("[{simplify}, {simplify}]"), "not its first stage"),
            (format!("[{simplify}, {gptq}]"), "GPTQ does not follow"),
            (format!("[{smooth}]"), "SmoothQuant is not followed"),
            (format!("[{even}, {dynamic}]"), "granularity: PerChannel"),
            (format!("[{even}, {blocks}]"), "Equalization is not followed"),
            (format!("[{tensor}, {even}]"), "Equalization is not followed"),
            (format!("[{smooth}, {even}, {tensor}]"), "SmoothQuant is not followed"),
            (format!("[{smooth}, {blocks}]"), "SmoothQuant is not followed"),
            (format!("[{gptq}, {blocks}]"), "GPTQ does not follow"),
            (format!("[{bias}]"), "BiasCorrection does not follow"),
            (format!("[{smooth}, {gptq}, {dynamic}]"), "SmoothQuant is not followed"),
            (
                format!("[{blocks}, {gptq}, {bias}, {gptq}]"),
                "GPTQ follows the same quantize twice",
            ),
            (
                format!(r#"[{{"quantize": {{"mode": "Float16"}}}}, {gptq}]"#),
                "mode: Float16",
            ),
            (
                format!(r#"[{{"quantize": {{"mode": "Dynamic", "format": "QDQ"}}}}, {named}]"#),
                "quantize.except",
            ),
            (
                format!(r#"[{{"quantize": {{"mode": "WeightOnly"}}}}, {raise}]"#),
                "8-bit blocks everywhere",
            ),
        ] {
            let said = out_of_order(&stages(&bad)).unwrap_or_default();
            assert!(said.contains(words), "{bad}: {said}");
        }
        assert_eq!(calibrating(&stages(&format!("[{dynamic}]"))), None);
        assert_eq!(calibrating(&stages(&format!("[{even}, {tensor}]"))), None);
        assert_eq!(calibrating(&stages(&format!("[{dynamic}, {named}]"))), None);
        assert_eq!(
            calibrating(&stages(&format!("[{smooth}, {dynamic}]"))),
            Some("recovers accuracy")
        );
    }
}
