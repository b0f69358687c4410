//! Numbers as people write them in manifests: decimal strings, durations and quantities.
//!
//! Decides what a spelling means and refuses the others with the way out. Never uses floats for spec values.

/// A value that can't be read, with what was expected.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("`{value}` is not {expected}")]
pub struct InvalidUnit {
    /// What was written.
    pub value: String,
    /// What would have been right, with an example.
    pub expected: &'static str,
}

/// Schema pattern of a ratio or share: digits with an optional fraction.
pub const DECIMAL: &str = r"^[0-9]{1,6}(\.[0-9]{1,9})?$";
/// Schema pattern of a duration: one number and one unit.
pub const DURATION: &str = r"^[0-9]{1,9}(\.[0-9]{1,6})?(us|ms|s|m|h|d)$";
/// Schema pattern of a quantity of bytes.
pub const QUANTITY: &str = r"^[0-9]{1,15}(\.[0-9]{1,6})?(k|M|G|T|Ki|Mi|Gi|Ti)?$";

fn invalid(value: &str, expected: &'static str) -> InvalidUnit {
    InvalidUnit {
        value: value.chars().take(64).collect(),
        expected,
    }
}

fn plain_decimal(text: &str) -> Option<f64> {
    let digits = text.bytes().all(|b| b.is_ascii_digit() || b == b'.');
    let value = text.parse::<f64>().ok()?;
    (digits && text.starts_with(|c: char| c.is_ascii_digit()) && !text.ends_with('.') && value.is_finite())
        .then_some(value)
}

/// A ratio or share such as `0.80`.
///
/// # Errors
/// When it is not digits with an optional fraction.
pub fn decimal(text: &str) -> Result<f64, InvalidUnit> {
    plain_decimal(text).ok_or_else(|| invalid(text, "a decimal number such as 0.80"))
}

/// Seconds of a duration such as `5ms`, `10m` or `720h`.
///
/// # Errors
/// When there is no number or no unit out of us, ms, s, m, h, d.
pub fn seconds(text: &str) -> Result<f64, InvalidUnit> {
    let wrong = || invalid(text, "a duration such as 5ms, 30s, 10m, 2h or 30d");
    let at = text.find(|c: char| c.is_ascii_alphabetic()).ok_or_else(wrong)?;
    let (number, unit) = text.split_at(at);
    let factor = match unit {
        "us" => 1e-6,
        "ms" => 1e-3,
        "s" => 1.0,
        "m" => 60.0,
        "h" => 3_600.0,
        "d" => 86_400.0,
        _ => return Err(wrong()),
    };
    Ok(plain_decimal(number).ok_or_else(wrong)? * factor)
}

/// Bytes of a quantity such as `300Mi` or `2G`.
///
/// # Errors
/// When there is no number, or the suffix is not one of k, M, G, T, Ki, Mi, Gi, Ti.
pub fn bytes(text: &str) -> Result<f64, InvalidUnit> {
    let wrong = || invalid(text, "a quantity such as 300Mi or 2G");
    let at = text.find(|c: char| c.is_ascii_alphabetic()).unwrap_or(text.len());
    let (number, suffix) = text.split_at(at);
    let factor = match suffix {
        "" => 1.0,
        "k" => 1e3,
        "M" => 1e6,
        "G" => 1e9,
        "T" => 1e12,
        "Ki" => 1_024.0,
        "Mi" => 1_048_576.0,
        "Gi" => 1_073_741_824.0,
        "Ti" => 1_099_511_627_776.0,
        _ => return Err(wrong()),
    };
    Ok(plain_decimal(number).ok_or_else(wrong)? * factor)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn spellings_that_people_use() {
        assert_eq!(decimal("0.80"), Ok(0.8));
        assert_eq!(seconds("5ms"), Ok(0.005));
        assert_eq!(seconds("2h"), Ok(7_200.0));
        assert_eq!(bytes("300Mi"), Ok(314_572_800.0));
        assert_eq!(bytes("12"), Ok(12.0));
    }

    #[test]
    fn everything_else_is_refused() {
        for text in ["", "-1", "1e3", "nan", "inf", ".5", "5.", "0x1", "1,5"] {
            assert!(decimal(text).is_err(), "{text}");
        }
        for text in ["5", "ms", "5 ms", "-5ms", "5y", "1e3s"] {
            assert!(seconds(text).is_err(), "{text}");
        }
        for text in ["Mi", "5mi", "5 Mi", "-5Mi"] {
            assert!(bytes(text).is_err(), "{text}");
        }
    }
}
