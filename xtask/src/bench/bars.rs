//! The bars: what must hold, the figure of this run, and whether it is met. A figure that is missing never meets a bar.

use serde::Serialize;

use super::{
    contestant::{Contestant, Method, mebibytes},
    task::Task,
};

mod convolutions;
mod minilm;

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

/// Which way a bound holds.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub(super) enum Bound {
    AtLeast(f64),
    AtMost(f64),
}

/// One figure with its bound.
#[derive(Clone, Debug, Serialize)]
pub(super) struct Condition {
    pub(super) what: String,
    pub(super) bound: Bound,
    pub(super) figure: Option<f64>,
}

impl Condition {
    pub(super) fn new(what: impl Into<String>, bound: Bound, figure: Option<f64>) -> Self {
        Self {
            what: what.into(),
            bound,
            figure,
        }
    }

    fn is_met(&self) -> bool {
        match (self.bound, self.figure) {
            (Bound::AtLeast(bound), Some(figure)) => figure >= bound,
            (Bound::AtMost(bound), Some(figure)) => figure <= bound,
            (_, None) => false,
        }
    }
}

/// Several conditions that must hold at once for one candidate.
#[derive(Clone, Debug, Serialize)]
pub(super) struct Bar {
    /// What it is about.
    pub(super) what: String,
    /// Whose figures they are.
    pub(super) who: String,
    pub(super) conditions: Vec<Condition>,
    pub(super) met: bool,
}

impl Bar {
    pub(super) fn new(what: impl Into<String>, who: impl Into<String>, conditions: Vec<Condition>) -> Self {
        Self {
            what: what.into(),
            who: who.into(),
            met: conditions.iter().all(Condition::is_met),
            conditions,
        }
    }

    /// Each figure with its bound in one line; what misses is marked.
    pub(super) fn figures(&self) -> String {
        let show = |condition: &Condition| {
            let (sign, bound) = match condition.bound {
                Bound::AtLeast(bound) => (">=", bound),
                Bound::AtMost(bound) => ("<=", bound),
            };
            let figure = condition.figure.map_or_else(|| "none".to_owned(), digits);
            let mark = if condition.is_met() { "" } else { "!" };
            format!("{mark}{} {figure} ({sign} {})", condition.what, digits(bound))
        };
        self.conditions.iter().map(show).collect::<Vec<_>>().join("; ")
    }
}

/// Four significant digits or a little more.
fn digits(value: f64) -> String {
    match value.abs() {
        0.0 => "0".to_owned(),
        small if small < 0.01 => format!("{value:.2e}"),
        // Cosines and shares differ in the fourth digit.
        share if share <= 1.0 => format!("{value:.4}"),
        middle if middle < 100.0 => format!("{value:.2}"),
        _ => format!("{value:.0}"),
    }
}

/// All bars of a task, from what this run found.
pub(super) fn of(task: Task, all: &[Contestant], baseline_bytes: u64, samples: u32) -> Vec<Bar> {
    let mut bars = match task {
        Task::Minilm => minilm::bars(all),
        Task::Magika => convolutions::magika(all),
        Task::Centerface => convolutions::centerface(all),
    };
    for method in Method::COMMON {
        bars.extend(wall(task, all, method));
        bars.extend(memory(all, method));
    }
    bars.push(weight_only(all, baseline_bytes));
    bars.push(constant(all, samples));
    bars.push(failures(all));
    bars
}

/// The contestant of this name.
pub(super) fn find<'a>(all: &'a [Contestant], id: &str) -> Option<&'a Contestant> {
    all.iter().find(|one| one.id == id && one.broken().is_none())
}

fn working(all: &[Contestant], method: Method, ours: bool) -> impl Iterator<Item = &Contestant> {
    all.iter()
        .filter(move |one| one.method == method && one.is_ours() == ours && one.broken().is_none())
}

/// Our fastest with at least the quality of the fastest peer, of those peers that one of ours equals.
fn wall(task: Task, all: &[Contestant], method: Method) -> Option<Bar> {
    working(all, method, true).next()?;
    let peer = working(all, method, false).min_by(|one, other| by(one.seconds(), other.seconds()))?;
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

/// The heaviest of ours that read no data.
fn weight_only(all: &[Contestant], baseline_bytes: u64) -> Bar {
    let mine = all
        .iter()
        .filter(|one| one.is_ours() && !one.calibrated && one.broken().is_none())
        .max_by(|one, other| by(one.peak_mebibytes(), other.peak_mebibytes()));
    let most = mebibytes(baseline_bytes) * WEIGHT_ONLY.0 + WEIGHT_ONLY.1;
    Bar::new(
        "memory without data: 1.2 times the model and 64 MiB",
        mine.map_or("none", |mine| &mine.id),
        vec![Condition::new(
            "MiB",
            Bound::AtMost(most),
            mine.and_then(Contestant::peak_mebibytes),
        )],
    )
}

/// The one whose memory grows most with samples.
fn constant(all: &[Contestant], samples: u32) -> Bar {
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
    Bar::new(
        format!("memory with {more} samples to that with {samples}"),
        worst.as_ref().map_or("none", |(_, one)| &one.id),
        vec![Condition::new(
            "times",
            Bound::AtMost(CONSTANT),
            worst.as_ref().map(|((times, _), _)| *times),
        )],
    )
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_missing_figure_meets_nothing() {
        let condition = |figure| Condition::new("x", Bound::AtMost(1.0), figure);
        assert!(Bar::new("a", "b", vec![condition(Some(1.0))]).met);
        assert!(!Bar::new("a", "b", vec![condition(Some(0.5)), condition(None)]).met);
        assert!(!Bar::new("a", "b", vec![condition(Some(f64::NAN))]).met);
        let missed = Bar::new("a", "b", vec![condition(Some(2.0))]);
        assert_eq!(missed.figures(), "!x 2.00 (<= 1.0000)");
    }
}
