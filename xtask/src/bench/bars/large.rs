//! The bars of a model that no protobuf can hold: every method without data makes one that runs and resembles it, in little more memory
//! than the model's own.

use super::{Bar, Bound, Condition, effort};
use crate::bench::contestant::Contestant;

/// Cosine of the outputs with FP32's. Weights at random lose most: of blocks of 128 in 4 bits, rounded to the nearest, 0.94 is left.
const ALIKE: f64 = 0.9;

pub(super) fn bars(all: &[Contestant], baseline_bytes: u64) -> Vec<Bar> {
    let most = Bound::AtMost(effort::most_without_data(baseline_bytes));
    let ours = all.iter().filter(|one| one.is_ours() && one.broken().is_none());
    ours.map(|one| {
        let conditions = vec![
            Condition::new("MiB", most, one.peak_mebibytes()),
            Condition::new("cosine", Bound::AtLeast(ALIKE), one.quality("cosine")),
        ];
        Bar::new("over 2 GB: 1.2 times the model and 64 MiB", &one.id, conditions)
    })
    .collect()
}
