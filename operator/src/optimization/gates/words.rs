//! Numbers as people read them: `18.7 ms`, `843 KiB`, `0.9257`.
//!
//! Pure. Never used for comparing: a rounded number must not look as if it held a bound that it misses.

use assayer_crds::contract::metrics;

/// Three significant digits.
fn short(value: f64) -> String {
    if value >= 99.95 {
        format!("{value:.0}")
    } else if value >= 9.995 {
        format!("{value:.1}")
    } else {
        format!("{value:.2}")
    }
}

fn scaled(value: f64, units: &[(f64, &str)]) -> String {
    let fits = units.iter().find(|(size, _)| value >= *size * 0.9995);
    let (size, unit) = fits.or(units.last()).copied().unwrap_or((1.0, ""));
    format!("{} {unit}", short(value / size))
}

/// The value of metric `name` with its unit.
pub fn value(name: &str, value: f64) -> String {
    match name {
        metrics::LATENCY_P50 | metrics::LATENCY_P99 => scaled(value, &[(1.0, "s"), (1e-3, "ms"), (1e-6, "us")]),
        metrics::PEAK_MEMORY | metrics::ARTIFACT_SIZE => scaled(
            value,
            &[
                (1_073_741_824.0, "GiB"),
                (1_048_576.0, "MiB"),
                (1_024.0, "KiB"),
                (1.0, "B"),
            ],
        ),
        metrics::ACCURACY | metrics::AGREEMENT => format!("{value:.4}"),
        _ => format!("{value:.3}"),
    }
}

/// A ratio, with as many digits as it takes to be told from `limit`.
pub(super) fn ratio(ratio: f64, limit: f64) -> String {
    for digits in 2..=9 {
        let text = format!("{ratio:.digits$}");
        let rounded = text.parse::<f64>().unwrap_or(ratio);
        if (rounded <= limit) == (ratio <= limit) {
            return text;
        }
    }
    format!("{ratio}")
}

/// A drop or a gain of a share.
pub(super) fn drop(drop: f64) -> String {
    if drop > 0.0 {
        format!("{drop:.4} below the baseline")
    } else if drop < 0.0 {
        format!("{:.4} above the baseline", -drop)
    } else {
        "the same as the baseline".to_owned()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_read_well() {
        for (name, number, words) in [
            (metrics::LATENCY_P99, 0.0187, "18.7 ms"),
            (metrics::LATENCY_P99, 0.000_25, "250 us"),
            (metrics::LATENCY_P50, 2.0, "2.00 s"),
            (metrics::ARTIFACT_SIZE, 863_232.0, "843 KiB"),
            (metrics::PEAK_MEMORY, 314_572_800.0, "300 MiB"),
            (metrics::ARTIFACT_SIZE, 12.0, "12.0 B"),
            (metrics::ACCURACY, 0.92567, "0.9257"),
        ] {
            assert_eq!(value(name, number), words);
        }
    }

    #[test]
    fn a_missed_bound_never_looks_held() {
        assert_eq!(ratio(0.800_4, 0.80), "0.8004");
        assert_eq!(ratio(4.71, 0.80), "4.71");
        assert_eq!(ratio(0.799_9, 0.80), "0.80");
    }
}
