//! Numbers from one type to another, exactly or not at all.
//!
//! Decides whether a value survives: there is no rounding, clamping or wrapping anywhere.

use super::Number;
use crate::onnx::ElementType;

/// The numbers of a row.
pub(super) enum Values<'a> {
    /// Integers of up to 64 bits.
    Integers(Box<dyn Iterator<Item = i64> + 'a>),
    /// Floats; 32-bit ones are exact as 64-bit ones.
    Floats(Box<dyn Iterator<Item = f64> + 'a>),
}

/// Decodes little-endian numbers.
pub(super) fn values(number: Number, bytes: &[u8]) -> Values<'_> {
    match number {
        Number::Int8 => Values::Integers(Box::new(bytes.iter().map(|&byte| i64::from(i8::from_le_bytes([byte]))))),
        Number::UInt8 => Values::Integers(Box::new(bytes.iter().map(|&byte| i64::from(byte)))),
        Number::Int16 => Values::Integers(Box::new(chunks(bytes).map(|b| i64::from(i16::from_le_bytes(b))))),
        Number::Int32 => Values::Integers(Box::new(chunks(bytes).map(|b| i64::from(i32::from_le_bytes(b))))),
        Number::Int64 => Values::Integers(Box::new(chunks(bytes).map(i64::from_le_bytes))),
        Number::Float32 => Values::Floats(Box::new(chunks(bytes).map(|b| f64::from(f32::from_le_bytes(b))))),
        Number::Float64 => Values::Floats(Box::new(chunks(bytes).map(f64::from_le_bytes))),
    }
}

fn chunks<const N: usize>(bytes: &[u8]) -> impl Iterator<Item = [u8; N]> + '_ {
    bytes.as_chunks::<N>().0.iter().copied()
}

/// `bytes` as elements of `target`. The error is the position and the spelling of the first value that would change.
pub(super) fn convert(number: Number, bytes: Vec<u8>, target: ElementType) -> Result<Vec<u8>, (usize, String)> {
    if same(number, target) {
        return Ok(bytes);
    }
    // Pictures: bytes are exact as floats.
    if (number, target) == (Number::UInt8, ElementType::Float) {
        return Ok(bytes.iter().flat_map(|&byte| f32::from(byte).to_le_bytes()).collect());
    }
    let mut out = Vec::with_capacity(bytes.len());
    match values(number, &bytes) {
        Values::Integers(integers) => {
            for (at, value) in integers.enumerate() {
                integer(value, target, &mut out).ok_or_else(|| (at, value.to_string()))?;
            }
        }
        Values::Floats(floats) => {
            for (at, value) in floats.enumerate() {
                float(value, target, &mut out).ok_or_else(|| (at, value.to_string()))?;
            }
        }
    }
    Ok(out)
}

fn same(number: Number, target: ElementType) -> bool {
    matches!(
        (number, target),
        (Number::Int8, ElementType::Int8)
            | (Number::Int16, ElementType::Int16)
            | (Number::Int32, ElementType::Int32)
            | (Number::Int64, ElementType::Int64)
            | (Number::UInt8, ElementType::Uint8)
            | (Number::Float32, ElementType::Float)
            | (Number::Float64, ElementType::Double)
    )
}

#[allow(
    clippy::cast_precision_loss,
    clippy::cast_possible_truncation,
    reason = "checked by converting back"
)]
fn integer(value: i64, target: ElementType, out: &mut Vec<u8>) -> Option<()> {
    match target {
        ElementType::Int8 => out.extend(i8::try_from(value).ok()?.to_le_bytes()),
        ElementType::Int16 => out.extend(i16::try_from(value).ok()?.to_le_bytes()),
        ElementType::Int32 => out.extend(i32::try_from(value).ok()?.to_le_bytes()),
        ElementType::Int64 => out.extend(value.to_le_bytes()),
        ElementType::Uint8 => out.extend(u8::try_from(value).ok()?.to_le_bytes()),
        ElementType::Uint16 => out.extend(u16::try_from(value).ok()?.to_le_bytes()),
        ElementType::Uint32 => out.extend(u32::try_from(value).ok()?.to_le_bytes()),
        ElementType::Uint64 => out.extend(u64::try_from(value).ok()?.to_le_bytes()),
        ElementType::Bool if value == 0 || value == 1 => out.push(u8::from(value == 1)),
        ElementType::Float => {
            let float = value as f32;
            // i128: i64::MAX as f32 is 2^63, which would saturate back to i64::MAX.
            (float as i128 == i128::from(value)).then(|| out.extend(float.to_le_bytes()))?;
        }
        ElementType::Double => {
            let float = value as f64;
            (float as i128 == i128::from(value)).then(|| out.extend(float.to_le_bytes()))?;
        }
        _ => return None,
    }
    Some(())
}

#[allow(
    clippy::cast_possible_truncation,
    clippy::cast_precision_loss,
    clippy::float_cmp,
    reason = "exactness is the question"
)]
fn float(value: f64, target: ElementType, out: &mut Vec<u8>) -> Option<()> {
    match target {
        ElementType::Float => {
            let narrow = value as f32;
            (f64::from(narrow) == value).then(|| out.extend(narrow.to_le_bytes()))
        }
        ElementType::Double => {
            out.extend(value.to_le_bytes());
            Some(())
        }
        _ => {
            let whole = value as i128;
            let fits = value.fract() == 0.0 && whole as f64 == value;
            integer(fits.then(|| i64::try_from(whole).ok())??, target, out)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_that_fit_are_converted_and_others_are_named() {
        let wide = |values: &[i64]| values.iter().flat_map(|v| v.to_le_bytes()).collect::<Vec<u8>>();
        assert_eq!(
            convert(Number::Int64, wide(&[1, -1]), ElementType::Int8).unwrap(),
            [1, 255]
        );
        assert_eq!(
            convert(Number::Int64, wide(&[1, 300]), ElementType::Uint8).unwrap_err(),
            (1, "300".into())
        );
        assert_eq!(
            convert(Number::Int64, wide(&[(1 << 24) + 1]), ElementType::Float)
                .unwrap_err()
                .0,
            0
        );
        assert!(convert(Number::Int64, wide(&[i64::MAX]), ElementType::Float).is_err());
        assert!(convert(Number::Int64, wide(&[i64::MIN]), ElementType::Double).is_ok());
        assert_eq!(
            convert(Number::UInt8, vec![2], ElementType::Int32).unwrap(),
            [2, 0, 0, 0]
        );
        assert_eq!(
            convert(Number::UInt8, vec![2], ElementType::Bool).unwrap_err(),
            (0, "2".into())
        );
        assert!(convert(Number::UInt8, vec![2], ElementType::String).is_err());
        let floats = |values: &[f64]| values.iter().flat_map(|v| v.to_le_bytes()).collect::<Vec<u8>>();
        assert!(convert(Number::Float64, floats(&[0.5]), ElementType::Float).is_ok());
        assert_eq!(
            convert(Number::Float64, floats(&[0.1]), ElementType::Float).unwrap_err(),
            (0, "0.1".into())
        );
        assert_eq!(
            convert(Number::Float64, floats(&[3.0]), ElementType::Int32).unwrap(),
            [3, 0, 0, 0]
        );
        assert!(convert(Number::Float64, floats(&[3.5]), ElementType::Int32).is_err());
        assert!(convert(Number::Float64, floats(&[1e300]), ElementType::Int64).is_err());
    }
}
