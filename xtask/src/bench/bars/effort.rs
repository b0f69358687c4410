//! The bars of making: wall time and memory beside peers' of the same method, and that nothing of ours fails.

use super::{Bar, Bound, Condition};
use crate::bench::{
    contestant::{Contestant, Method, mebibytes},
    task::Task,
};

/// Times as fast as the fastest peer of the same method and no better quality.
const FASTER: f64 = 5.0;
/// The same for methods that others do slowly.
const MUCH_FASTER: [(Method, f64); 3] = [
    (Method::Entropy, 10.0),
    (Method::Percentile, 10.0),
    (Method::Int4Gptq, 15.0),
];
/// Most memory of calibrated methods, to the lightest peer's of the same method.
const LIGHTER: f64 = 0.5;
/// Most memory of methods without data: times the model, and MiB on top.
const WEIGHT_ONLY: (f64, f64) = (1.2, 64.0);
/// Memory with the samples of quality to that with those of time: as good as constant.
const CONSTANT: f64 = 1.05;

pub(super) fn bars(task: Task, all: &[Contestant], baseline_bytes: u64, samples: u32) -> Vec<Bar> {
    let mut bars = Vec::new();
    for method in Method::COMMON {
        bars.extend(wall(task, all, method));
        bars.extend(memory(all, method));
    }
    bars.extend(weight_only(all, baseline_bytes));
    bars.extend(constant(all, samples));
    bars.push(failures(all));
    bars
}

fn working(all: &[Contestant], method: Method, ours: bool) -> impl Iterator<Item = &Contestant> {
    all.iter()
        .filter(move |one| one.method == method && one.is_ours() == ours && one.broken().is_none())
}

/// Our fastest that is at least as good as the fastest peer. Peers are ranked if their model runs and is of use ([`Task::is_of_use`]): one
/// that gives quality up is fast at something else.
fn wall(task: Task, all: &[Contestant], method: Method) -> Option<Bar> {
    working(all, method, true).next()?;
    let peer = working(all, method, false)
        .filter(|one| task.is_of_use(one))
        .min_by(|one, other| by(one.seconds(), other.seconds()))?;
    let mine = working(all, method, true).filter(|one| task.at_least_as_good(one, peer));
    let mine = mine.min_by(|one, other| by(one.seconds(), other.seconds()));
    let factor = MUCH_FASTER
        .iter()
        .find(|(known, _)| *known == method)
        .map_or(FASTER, |(_, factor)| *factor);
    let figure = mine.and_then(|mine| Some(peer.seconds()? / mine.seconds()?));
    Some(Bar::new(
        format!("wall, {method:?}: times as fast as {}", peer.id),
        mine.map_or("none of ours is as good", |mine| &mine.id),
        vec![Condition::new("times", Bound::AtLeast(factor), figure)],
    ))
}

fn memory(all: &[Contestant], method: Method) -> Option<Bar> {
    let peer = working(all, method, false)
        .filter(|one| one.calibrated)
        .min_by(|one, other| by(one.peak_mebibytes(), other.peak_mebibytes()))?;
    let mine = working(all, method, true).max_by(|one, other| by(one.peak_mebibytes(), other.peak_mebibytes()))?;
    let figure = mine
        .peak_mebibytes()
        .zip(peer.peak_mebibytes())
        .map(|(mine, peer)| mine / peer);
    Some(Bar::new(
        format!("memory, {method:?}: share of {}", peer.id),
        &mine.id,
        vec![Condition::new("share", Bound::AtMost(LIGHTER), figure)],
    ))
}

/// Most MiB that a method without data may take.
pub(super) fn most_without_data(baseline_bytes: u64) -> f64 {
    mebibytes(baseline_bytes) * WEIGHT_ONLY.0 + WEIGHT_ONLY.1
}

/// The heaviest of ours that read no data; none where all do.
fn weight_only(all: &[Contestant], baseline_bytes: u64) -> Option<Bar> {
    let mut mine = all.iter().filter(|one| one.is_ours() && !one.calibrated).peekable();
    mine.peek()?;
    let mine = mine
        .filter(|one| one.broken().is_none())
        .max_by(|one, other| by(one.peak_mebibytes(), other.peak_mebibytes()));
    Some(Bar::new(
        "memory without data: 1.2 times the model and 64 MiB",
        mine.map_or("none", |mine| &mine.id),
        vec![Condition::new(
            "MiB",
            Bound::AtMost(most_without_data(baseline_bytes)),
            mine.and_then(Contestant::peak_mebibytes),
        )],
    ))
}

/// The one whose memory grows most with samples; none where no candidate reads any.
fn constant(all: &[Contestant], samples: u32) -> Option<Bar> {
    all.iter().find(|one| one.is_ours() && one.calibrated)?;
    let growth = |one: &Contestant| {
        let more = one.for_quality?;
        Some((mebibytes(more.peak_bytes) / one.peak_mebibytes()?, more.samples))
    };
    let grown = all
        .iter()
        .filter(|one| one.is_ours())
        .filter_map(|one| Some((growth(one)?, one)));
    let worst = grown.max_by(|one, other| one.0.0.total_cmp(&other.0.0));
    let more = worst.as_ref().map_or(0, |((_, more), _)| *more);
    Some(Bar::new(
        format!("memory with {more} samples to that with {samples}"),
        worst.as_ref().map_or("none", |(_, one)| &one.id),
        vec![Condition::new(
            "times",
            Bound::AtMost(CONSTANT),
            worst.as_ref().map(|((times, _), _)| *times),
        )],
    ))
}

fn failures(all: &[Contestant]) -> Bar {
    let broken: Vec<&str> = all
        .iter()
        .filter(|one| one.is_ours() && one.broken().is_some())
        .map(|one| one.id.as_str())
        .collect();
    #[expect(clippy::cast_precision_loss, reason = "a handful")]
    let count = broken.len() as f64;
    Bar::new(
        "failures of ours",
        broken.join(", "),
        vec![Condition::new("count", Bound::AtMost(0.0), Some(count))],
    )
}

/// Unknown is last.
fn by(one: Option<f64>, other: Option<f64>) -> std::cmp::Ordering {
    one.unwrap_or(f64::INFINITY).total_cmp(&other.unwrap_or(f64::INFINITY))
}
