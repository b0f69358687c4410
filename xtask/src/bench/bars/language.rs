//! The bars of the language model: perplexity and divergence of the next token's distribution from FP32's, size and latency.

use super::{Bar, Bound, Condition, find};
use crate::bench::contestant::{BASELINE, Contestant};

/// What the best INT8 candidate may cost: perplexity on top of FP32's, divergence in nats a token, MB, and latency to ONNX Runtime's dynamic
/// quantization.
const INT8: (&str, f64, f64, f64, f64) = ("ours dynamic best", 0.02, 2e-4, 6.1, 1.05);
/// INT4 candidates with the divergence and the MB of each.
const INT4: [(&str, f64, f64); 2] = [("ours int4 32 gptq", 1.7e-3, 4.2), ("ours int4 128 gptq", 2.1e-3, 3.65)];

fn divergence(one: Option<&Contestant>, most: f64) -> Condition {
    Condition::new("KL", Bound::AtMost(most), one.and_then(|one| one.quality("KL")))
}

fn megabytes(one: Option<&Contestant>, most: f64) -> Condition {
    Condition::new("MB", Bound::AtMost(most), one.and_then(Contestant::megabytes))
}

pub(super) fn tinylm(all: &[Contestant]) -> Vec<Bar> {
    let (who, perplexity, most, size, latency) = INT8;
    let one = find(all, who);
    let of = |one: Option<&Contestant>| one?.quality("perplexity");
    let above = of(one).zip(of(find(all, BASELINE))).map(|(its, float)| its - float);
    let mut bars = vec![Bar::new(
        "INT8",
        who,
        vec![
            Condition::new("perplexity above FP32's", Bound::AtMost(perplexity), above),
            divergence(one, most),
            megabytes(one, size),
            Condition::new("latency", Bound::AtMost(latency), one.and_then(Contestant::mean_ratio)),
        ],
    )];
    bars.extend(INT4.map(|(who, most, size)| {
        let one = find(all, who);
        Bar::new("INT4", who, vec![divergence(one, most), megabytes(one, size)])
    }));
    bars
}
