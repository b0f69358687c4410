//! The bench's tables: a row a model with medians, and a row a bar. Decides looks only.

use comfy_table::Table;

use super::{
    bars::{Bar, Verdict},
    contestant::Contestant,
    task::Task,
};

/// Longest words of what failed; all of them are in the JSON file.
const WORDS: usize = 90;

fn empty() -> Table {
    let mut table = Table::new();
    table.load_style(comfy_table::presets::NOTHING);
    table
}

/// One row a model, FP32 first.
pub(super) fn models(task: Task, contestants: &[Contestant]) -> Table {
    let mut table = empty();
    let cases: Vec<&String> = contestants
        .iter()
        .find(|one| one.id == task.reference())
        .map(|one| one.evaluation.latency.keys().collect())
        .unwrap_or_default();
    let mut header = vec![format!("{}, latency to {}", task.name(), task.reference())];
    header.extend(task.columns().iter().map(|name| (*name).to_owned()));
    header.extend(cases.iter().map(|case| (*case).clone()));
    header.extend(["mean", "p50 ms", "MB", "made in s", "peak MiB", ""].map(str::to_owned));
    table.set_header(header);
    for one in contestants {
        let mut row = vec![
            one.broken()
                .map_or_else(|| one.id.clone(), |why| format!("{}: {why}", one.id)),
        ];
        row.extend(task.columns().iter().map(|name| show(one.quality(name), 5)));
        row.extend(cases.iter().map(|case| show(one.ratio(case), 2)));
        let first = cases.first().and_then(|case| one.evaluation.latency.get(*case));
        row.extend([
            show(one.mean_ratio(), 3),
            show(first.map(|latency| latency.p50 * 1e3), 2),
            show(one.megabytes(), 2),
            show(one.seconds(), 2),
            show(one.peak_mebibytes(), 0),
            one.broken().unwrap_or_default().chars().take(WORDS).collect(),
        ]);
        table.add_row(row);
    }
    table
}

/// One row a bar.
pub(super) fn bars(bars: &[Bar]) -> Table {
    let mut table = empty();
    table.set_header(["bar", "candidate", "figures (bounds)", ""]);
    for bar in bars {
        let verdict = match bar.verdict {
            Verdict::Met => "met",
            Verdict::Tie => "tie",
            Verdict::Missed => "missed",
        };
        let who = bar.who.chars().take(WORDS).collect::<String>();
        table.add_row([bar.what.as_str(), &who, &bar.figures(), verdict]);
    }
    table
}

/// Nothing known is a dash.
fn show(value: Option<f64>, digits: usize) -> String {
    value.map_or_else(|| "-".to_owned(), |value| format!("{value:.digits$}"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::bench::contestant::{BASELINE, Method};

    #[test]
    fn what_failed_is_a_row_with_its_words() {
        let mut one = Contestant::ours("a", Method::Own, false, Vec::new());
        one.failure = Some("NoEffect: nothing".to_owned());
        let table = models(Task::Minilm, &[one]).to_string();
        assert!(table.contains("NoEffect: nothing"), "{table}");
        assert!(!table.contains(BASELINE));
    }
}
