//! The bars of minilm: an encoder's cosine, latency to ONNX Runtime's dynamic quantization, and size.

use super::{Bar, Bound, Condition, find};
use crate::bench::contestant::Contestant;

/// Names the candidate, and what is asked of its cosine, mean and worst latency ratio, and size in MB.
struct Wanted {
    what: &'static str,
    who: &'static str,
    cosine: f64,
    mean_ratio: Option<f64>,
    worst_ratio: Option<f64>,
    megabytes: f64,
}

const WANTED: &[Wanted] = &[
    Wanted {
        what: "INT8 dynamic",
        who: "ours dynamic best",
        cosine: 0.9988,
        mean_ratio: Some(1.08),
        worst_ratio: Some(1.15),
        megabytes: 24.0,
    },
    Wanted {
        what: "INT8 dynamic, the second candidate",
        who: "ours dynamic raised",
        cosine: 0.9994,
        mean_ratio: Some(1.30),
        worst_ratio: None,
        megabytes: 24.0,
    },
    Wanted {
        what: "INT8 static",
        who: "ours static best",
        cosine: 0.9985,
        mean_ratio: Some(1.12),
        worst_ratio: None,
        megabytes: 24.0,
    },
    Wanted {
        what: "INT4 with embedding",
        who: "ours int4 32 gptq",
        cosine: 0.990,
        mean_ratio: None,
        worst_ratio: None,
        megabytes: 14.9,
    },
];

/// Smaller INT4: cosine, MB, and latency to the peer's INT4 with a quantized embedding.
const SMALL: (&str, f64, f64, f64) = ("ours dynamic int4 64 best", 0.985, 13.6, 0.62);
const SMALL_PEER: &str = "olive int4";
/// What rounding by GPTQ must reach at 4 bits, and together with bias correction add at 8 bits.
const PRODUCTS: &str = "ours int4 32 products gptq";
const GPTQ: f64 = 0.991;
const GPTQ_GAIN: f64 = 0.0004;

fn cosine(one: Option<&Contestant>) -> Option<f64> {
    one?.quality("cosine")
}

pub(super) fn bars(all: &[Contestant]) -> Vec<Bar> {
    let mut bars: Vec<Bar> = WANTED
        .iter()
        .map(|wanted| {
            let one = find(all, wanted.who);
            let mut conditions = vec![
                Condition::new("cosine", Bound::AtLeast(wanted.cosine), cosine(one)),
                Condition::new(
                    "MB",
                    Bound::AtMost(wanted.megabytes),
                    one.and_then(Contestant::megabytes),
                ),
            ];
            if let Some(most) = wanted.mean_ratio {
                let figure = one.and_then(Contestant::mean_ratio);
                conditions.push(Condition::new("latency", Bound::AtMost(most), figure));
            }
            if let Some(most) = wanted.worst_ratio {
                let figure = one.and_then(Contestant::worst_ratio);
                conditions.push(Condition::new("worst latency", Bound::AtMost(most), figure));
            }
            Bar::new(wanted.what, wanted.who, conditions)
        })
        .collect();
    let (who, least, megabytes, share) = SMALL;
    let one = find(all, who);
    let peer = find(all, SMALL_PEER).and_then(Contestant::mean_ratio);
    bars.push(Bar::new(
        "INT4, smaller; latency to Olive's (--all-peers)",
        who,
        vec![
            Condition::new("cosine", Bound::AtLeast(least), cosine(one)),
            Condition::new("MB", Bound::AtMost(megabytes), one.and_then(Contestant::megabytes)),
            Condition::new(
                "latency",
                Bound::AtMost(share),
                one.and_then(Contestant::mean_ratio)
                    .zip(peer)
                    .map(|(mine, its)| mine / its),
            ),
        ],
    ));
    bars.push(Bar::new(
        "ablation: GPTQ at INT4, products alone",
        PRODUCTS,
        vec![Condition::new(
            "cosine",
            Bound::AtLeast(GPTQ),
            cosine(find(all, PRODUCTS)),
        )],
    ));
    let [best, nearest] = ["ours dynamic best", "ours smooth dynamic"].map(|id| cosine(find(all, id)));
    bars.push(Bar::new(
        "ablation: GPTQ and bias correction at INT8",
        "ours dynamic best",
        vec![Condition::new(
            "gain",
            Bound::AtLeast(GPTQ_GAIN),
            best.zip(nearest).map(|(best, nearest)| best - nearest),
        )],
    ));
    bars
}
