//! The bench's table: median, minimum and maximum of each figure. Decides looks only.

use assayer_crds::contract::{Measured, metrics};
use comfy_table::Table;

use super::Contestant;

/// One row a model, FP32 first.
pub(super) fn table(contestants: &[Contestant]) -> Table {
    let mut table = Table::new();
    table.load_style(comfy_table::presets::UTF8_HORIZONTAL_ONLY);
    table.set_header([
        "model",
        "accuracy",
        "p50 ms",
        "p99 ms",
        "times as fast (p50)",
        "KiB",
        "made in s",
        "peak MiB",
    ]);
    let of = |measured: &[Measured], name: &str, scale: f64, baseline: bool| {
        let side = |one: &Measured| {
            if baseline {
                Some(one.baseline.clone())
            } else {
                one.candidate.clone()
            }
        };
        let values = measured
            .iter()
            .filter_map(|one| side(one)?.get(name).map(|taken| taken.value * scale));
        values.collect::<Vec<f64>>()
    };
    let mut row = |name: &str, measured: &[Measured], baseline: bool, made: [String; 2]| {
        let cell = |metric: &str, scale: f64, digits: usize| spread(&of(measured, metric, scale, baseline), digits);
        let [base, own] = [true, baseline].map(|side| of(measured, metrics::LATENCY_P50, 1e3, side));
        let speed: Vec<f64> = base.iter().zip(&own).map(|(base, own)| base / own).collect();
        let [seconds, memory] = made;
        table.add_row([
            name.to_owned(),
            cell(metrics::ACCURACY, 1.0, 4),
            cell(metrics::LATENCY_P50, 1e3, 2),
            cell(metrics::LATENCY_P99, 1e3, 2),
            spread(&speed, 2),
            cell(metrics::ARTIFACT_SIZE, 1.0 / 1024.0, 0),
            seconds,
            memory,
        ]);
    };
    let all: Vec<Measured> = contestants
        .iter()
        .flat_map(|contestant| contestant.measured.clone())
        .collect();
    row("FP32", &all, true, Default::default());
    for one in contestants {
        let name = one
            .failed
            .as_ref()
            .map(|error| format!("{}: no model ({error})", one.name));
        row(
            name.as_deref().unwrap_or(&one.name),
            &one.measured,
            false,
            [spread(&one.seconds, 2), spread(&one.memory, 0)],
        );
    }
    table
}

/// Median with minimum and maximum; one number where all are alike.
fn spread(values: &[f64], digits: usize) -> String {
    let mut sorted = values.to_vec();
    sorted.sort_by(f64::total_cmp);
    let [Some(least), Some(middle), Some(most)] = [sorted.first(), sorted.get(sorted.len() / 2), sorted.last()] else {
        return "-".to_owned();
    };
    let [least, middle, most] = [least, middle, most].map(|value| format!("{value:.digits$}"));
    if least == most {
        middle
    } else {
        format!("{middle} [{least}, {most}]")
    }
}

#[cfg(test)]
mod tests {
    use super::spread;

    #[test]
    fn a_spread_shows_the_median_between_the_ends() {
        assert_eq!(spread(&[3.0, 1.0, 2.04], 1), "2.0 [1.0, 3.0]");
        assert_eq!(spread(&[1.0, 1.0], 0), "1");
        assert_eq!(spread(&[], 0), "-");
    }
}
