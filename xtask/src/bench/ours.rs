//! Our candidates for each model: what the bars ask for, what pairs with other tools' methods, and steps between. Decides stages only.

use anyhow::{Context, Result};
use assayer_crds::stages::{self, Stage};

use super::{
    contestant::{Contestant, Method},
    task::Task,
};

type Entry = (&'static str, Method, &'static str);

const DYNAMIC: Entry = ("dynamic", Method::Dynamic, "[quantize: {mode: Dynamic}]");
const SMOOTH_DYNAMIC: Entry = (
    "smooth dynamic",
    Method::Own,
    "[recover: {method: SmoothQuant}, quantize: {mode: Dynamic}]",
);
/// Nothing is specified.
const MIN_MAX: Entry = ("minmax", Method::MinMax, "[quantize: {mode: Static}]");
const ENTROPY: Entry = (
    "entropy",
    Method::Entropy,
    "[quantize: {mode: Static, calibration: {method: Entropy}}]",
);
const PERCENTILE: Entry = (
    "percentile",
    Method::Percentile,
    "[quantize: {mode: Static, calibration: {method: Percentile}}]",
);
const SMOOTH_QUANT: Entry = (
    "smoothquant",
    Method::SmoothQuant,
    "[recover: {method: SmoothQuant}, quantize: {mode: Static}]",
);
const INT8_BLOCKS: Entry = ("int8 blocks 32", Method::Int8Blocks, "[quantize: {mode: WeightOnly}]");
const INT4: Entry = (
    "int4 32",
    Method::Int4Blocks,
    "[quantize: {mode: WeightOnly, weights: Int4}]",
);
const INT4_GPTQ: Entry = (
    "int4 32 gptq",
    Method::Int4Gptq,
    "[quantize: {mode: WeightOnly, weights: Int4}, recover: {method: GPTQ}]",
);
const INT4_GPTQ_LONG: Entry = (
    "int4 128 gptq",
    Method::Int4Gptq,
    "[quantize: {mode: WeightOnly, weights: Int4, block: 128}, recover: {method: GPTQ}]",
);
/// Without embeddings, as all other tools but Olive do it.
const INT4_PRODUCTS: Entry = (
    "int4 32 products",
    Method::Int4Blocks,
    "[quantize: {mode: WeightOnly, weights: Int4, except: [Gather]}]",
);
const INT4_PRODUCTS_GPTQ: Entry = (
    "int4 32 products gptq",
    Method::Int4Gptq,
    "[quantize: {mode: WeightOnly, weights: Int4, except: [Gather]}, recover: {method: GPTQ}]",
);
const BEST_DYNAMIC: Entry = (
    "dynamic best",
    Method::Own,
    "[recover: {method: SmoothQuant}, quantize: {mode: Dynamic}, recover: {method: GPTQ}, recover: {method: BiasCorrection}]",
);

const MINILM: &[Entry] = &[
    DYNAMIC,
    SMOOTH_DYNAMIC,
    (
        "smooth dynamic gptq",
        Method::Own,
        "[recover: {method: SmoothQuant}, quantize: {mode: Dynamic}, recover: {method: GPTQ}]",
    ),
    BEST_DYNAMIC,
    (
        "dynamic raised",
        Method::Own,
        "[recover: {method: SmoothQuant}, quantize: {mode: Dynamic}, recover: {method: GPTQ}, recover: {method: BiasCorrection}, \
         recover: {method: RaisePrecision, share: '0.35'}]",
    ),
    MIN_MAX,
    ENTROPY,
    PERCENTILE,
    SMOOTH_QUANT,
    (
        "static best",
        Method::Own,
        "[recover: {method: SmoothQuant}, quantize: {mode: Static, calibration: {method: Percentile}}, recover: {method: GPTQ}, \
         recover: {method: BiasCorrection}]",
    ),
    INT8_BLOCKS,
    INT4,
    INT4_GPTQ,
    INT4_GPTQ_LONG,
    (
        "int4 128 best",
        Method::Own,
        "[quantize: {mode: WeightOnly, weights: Int4, block: 128}, recover: {method: GPTQ}, recover: {method: BiasCorrection}]",
    ),
    (
        "dynamic int4 64 best",
        Method::Own,
        "[recover: {method: SmoothQuant}, quantize: {mode: Dynamic, weights: Int4, block: 64}, recover: {method: GPTQ}, \
         recover: {method: BiasCorrection}]",
    ),
    INT4_PRODUCTS,
    INT4_PRODUCTS_GPTQ,
];

const MAGIKA: &[Entry] = &[DYNAMIC, MIN_MAX, ENTROPY, PERCENTILE, INT8_BLOCKS, INT4];

const CENTERFACE: &[Entry] = &[
    MIN_MAX,
    (
        "minmax bias",
        Method::Own,
        "[quantize: {mode: Static}, recover: {method: BiasCorrection}]",
    ),
    ENTROPY,
    PERCENTILE,
];

const TINYLM: &[Entry] = &[
    DYNAMIC,
    SMOOTH_DYNAMIC,
    (
        "dynamic gptq",
        Method::Own,
        "[quantize: {mode: Dynamic}, recover: {method: GPTQ}]",
    ),
    BEST_DYNAMIC,
    MIN_MAX,
    ENTROPY,
    PERCENTILE,
    SMOOTH_QUANT,
    INT8_BLOCKS,
    INT4,
    INT4_GPTQ,
    INT4_GPTQ_LONG,
    (
        "dynamic int4 64 gptq",
        Method::Own,
        "[quantize: {mode: Dynamic, weights: Int4, block: 64}, recover: {method: GPTQ}]",
    ),
    INT4_PRODUCTS,
    INT4_PRODUCTS_GPTQ,
];

/// All methods that read no data.
const LARGE: &[Entry] = &[
    DYNAMIC,
    INT8_BLOCKS,
    (
        "int8 blocks 128",
        Method::Int8Blocks,
        "[quantize: {mode: WeightOnly, block: 128}]",
    ),
    INT4,
    (
        "int4 128",
        Method::Int4Blocks,
        "[quantize: {mode: WeightOnly, weights: Int4, block: 128}]",
    ),
    ("float16", Method::Own, "[quantize: {mode: Float16}]"),
];

/// Our candidates.
pub(super) fn of(task: Task) -> Result<Vec<Contestant>> {
    let entries = match task {
        Task::Minilm => MINILM,
        Task::Magika => MAGIKA,
        Task::Centerface => CENTERFACE,
        Task::Tinylm => TINYLM,
        Task::Large => LARGE,
    };
    let made = entries.iter().map(|(name, method, written)| {
        let stages = parse(written).with_context(|| format!("the stages of `{name}`"))?;
        let calibrated = stages::calibrating(&stages).is_some();
        Ok(Contestant::ours(name, *method, calibrated, stages))
    });
    made.collect()
}

/// As in a manifest, in one line: a list whose items need no braces of their own.
fn parse(written: &str) -> Result<Vec<Stage>> {
    Ok(serde_saphyr::from_str(written)?)
}

#[cfg(test)]
mod tests {
    use clap::ValueEnum as _;

    use super::*;

    #[test]
    fn all_stages_are_in_an_order_that_the_worker_takes() {
        for task in Task::value_variants() {
            for one in of(*task).unwrap() {
                let super::super::contestant::Way::Stages(stages) = &one.way else {
                    unreachable!("ours have stages")
                };
                assert!(!stages.is_empty());
                assert_eq!(stages::out_of_order(stages), None, "{}", one.id);
            }
        }
    }
}
