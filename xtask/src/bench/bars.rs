//! The bars: what must hold, the figure of this run, and whether it is met. A figure that is missing never meets a bar.

use serde::Serialize;

use super::{contestant::Contestant, task::Task};

mod convolutions;
mod effort;
mod language;
mod large;
mod minilm;

/// Differences up to this share are ties: no machine tells them apart.
const TIE: f64 = 0.03;

/// Which way a bound holds.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub(super) enum Bound {
    AtLeast(f64),
    AtMost(f64),
    /// Not above; what is above by no more than [`TIE`] is a tie.
    NotAbove(f64),
}

/// What became of a bar; the last one is the worst.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
pub(super) enum Verdict {
    Met,
    Tie,
    Missed,
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

    fn verdict(&self) -> Verdict {
        let met = |is_met| if is_met { Verdict::Met } else { Verdict::Missed };
        match (self.bound, self.figure) {
            (Bound::AtLeast(bound), Some(figure)) => met(figure >= bound),
            (Bound::NotAbove(bound), Some(figure)) if figure > bound && figure <= bound * (1.0 + TIE) => Verdict::Tie,
            (Bound::AtMost(bound) | Bound::NotAbove(bound), Some(figure)) => met(figure <= bound),
            (_, None) => Verdict::Missed,
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
    /// That of its worst condition.
    pub(super) verdict: Verdict,
}

impl Bar {
    pub(super) fn new(what: impl Into<String>, who: impl Into<String>, conditions: Vec<Condition>) -> Self {
        Self {
            what: what.into(),
            who: who.into(),
            verdict: conditions
                .iter()
                .map(Condition::verdict)
                .max()
                .unwrap_or(Verdict::Missed),
            conditions,
        }
    }

    /// Whether all that it asks for was measured.
    pub(super) fn has_all_figures(&self) -> bool {
        self.conditions.iter().all(|condition| condition.figure.is_some())
    }

    /// Each figure with its bound in one line; what misses or is a tie is marked.
    pub(super) fn figures(&self) -> String {
        let show = |condition: &Condition| {
            let (sign, bound) = match condition.bound {
                Bound::AtLeast(bound) => (">=", bound),
                Bound::AtMost(bound) | Bound::NotAbove(bound) => ("<=", bound),
            };
            let figure = condition.figure.map_or_else(|| "none".to_owned(), digits);
            let mark = match condition.verdict() {
                Verdict::Met => "",
                Verdict::Tie => "~",
                Verdict::Missed => "!",
            };
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
        Task::Tinylm => language::tinylm(all),
        Task::Large => large::bars(all, baseline_bytes),
    };
    bars.extend(effort::bars(task, all, baseline_bytes, samples));
    bars
}

/// The contestant of this name.
pub(super) fn find<'a>(all: &'a [Contestant], id: &str) -> Option<&'a Contestant> {
    all.iter().find(|one| one.id == id && one.broken().is_none())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn bar(bound: Bound, figures: &[Option<f64>]) -> Bar {
        let conditions = figures.iter().map(|figure| Condition::new("x", bound, *figure));
        Bar::new("a", "b", conditions.collect())
    }

    #[test]
    fn a_missing_figure_meets_nothing() {
        let at_most = |figures: &[Option<f64>]| bar(Bound::AtMost(1.0), figures).verdict;
        assert_eq!(at_most(&[Some(1.0)]), Verdict::Met);
        assert_eq!(at_most(&[Some(0.5), None]), Verdict::Missed);
        assert_eq!(at_most(&[Some(f64::NAN)]), Verdict::Missed);
        assert_eq!(at_most(&[]), Verdict::Missed);
        assert_eq!(bar(Bound::AtMost(1.0), &[Some(2.0)]).figures(), "!x 2.00 (<= 1.0000)");
    }

    #[test]
    fn a_tie_is_said_as_one() {
        let verdict = |figure| bar(Bound::NotAbove(1.0), &[figure]).verdict;
        assert_eq!(verdict(Some(1.0)), Verdict::Met);
        assert_eq!(verdict(Some(1.02)), Verdict::Tie);
        assert_eq!(verdict(Some(1.04)), Verdict::Missed);
        assert_eq!(verdict(Some(f64::NAN)), Verdict::Missed);
        assert_eq!(verdict(None), Verdict::Missed);
        assert_eq!(
            bar(Bound::NotAbove(1.0), &[Some(0.9), Some(1.02)]).figures(),
            "x 0.9000 (<= 1.0000); ~x 1.02 (<= 1.0000)"
        );
    }
}
