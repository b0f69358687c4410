//! The bars of models with convolutions: speed against FP32 where nothing is specified, size, and what remains of the answers.

use super::{Bar, Bound, Condition, find};
use crate::bench::contestant::Contestant;

/// What nothing but `mode: Static` gives.
const STATIC: &str = "ours minmax";
/// ONNX Runtime's static quantization with its own list of operators.
const WHOLE_LIST: &str = "ort minmax";

/// Times as fast as FP32, at an input and a number of threads.
fn speed(one: Option<&Contestant>, case: &str, least: f64) -> Condition {
    let figure = one.and_then(|one| one.ratio(case)).map(|ratio| 1.0 / ratio);
    Condition::new(format!("speed {case}"), Bound::AtLeast(least), figure)
}

fn megabytes(one: Option<&Contestant>, most: f64) -> Condition {
    Condition::new("MB", Bound::AtMost(most), one.and_then(Contestant::megabytes))
}

pub(super) fn magika(all: &[Contestant]) -> Vec<Bar> {
    let one = find(all, STATIC);
    let conditions = vec![
        speed(one, "2048@1", 2.6),
        speed(one, "2048@2", 2.0),
        megabytes(one, 0.84),
        Condition::new(
            "agreement",
            Bound::AtLeast(0.99),
            one.and_then(|one| one.quality("agreement")),
        ),
    ];
    vec![Bar::new("INT8 static, nothing specified", STATIC, conditions)]
}

pub(super) fn centerface(all: &[Contestant]) -> Vec<Bar> {
    const CASE: &str = "3x480x640@1";
    let one = find(all, STATIC);
    let conditions = vec![speed(one, CASE, 1.85), megabytes(one, 2.17)];
    let peer = find(all, WHOLE_LIST);
    let slower = |case: &str| Some(one?.ratio(case)? / peer?.ratio(case)?);
    let cases = ["3x480x640@1", "3x480x640@2"];
    let conditions_to_peer =
        cases.map(|case| Condition::new(format!("latency {case}"), Bound::NotAbove(1.0), slower(case)));
    vec![
        Bar::new("INT8 static, the file as shipped", STATIC, conditions),
        Bar::new(
            "never slower than ONNX Runtime's whole list on the repaired file",
            STATIC,
            conditions_to_peer.into(),
        ),
    ]
}
