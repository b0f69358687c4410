//! Rows by what they say, to find those that two data sets share.
//!
//! Decides when two rows are the same: equal numbers in the bound columns, whatever integer or float type stores them.

use std::collections::HashSet;

use sha2::{Digest as _, Sha256};

use super::Number;
use super::number::{Values, values};

/// Fingerprints of rows.
pub type Fingerprints = HashSet<[u8; 32]>;

/// The fingerprint of one row.
#[derive(Default)]
pub(super) struct Fingerprint(Sha256);

impl Fingerprint {
    /// Adds one column's numbers.
    pub(super) fn add(&mut self, number: Number, row: &[u8]) {
        self.0.update((row.len() / number.bytes()).to_le_bytes());
        match values(number, row) {
            Values::Integers(integers) => integers.for_each(|value| self.integer(value)),
            Values::Floats(floats) => floats.for_each(|value| self.float(value)),
        }
    }

    fn integer(&mut self, value: i64) {
        self.0.update([b'i']);
        self.0.update(value.to_le_bytes());
    }

    #[allow(clippy::cast_possible_truncation, reason = "whole and below 2^53, so exact")]
    fn float(&mut self, value: f64) {
        const EXACT: f64 = 9_007_199_254_740_992.0;
        if value.fract() == 0.0 && value.abs() <= EXACT {
            self.integer(value as i64);
        } else {
            self.0.update([b'f']);
            self.0.update(value.to_le_bytes());
        }
    }

    pub(super) fn finish(self) -> [u8; 32] {
        self.0.finalize().into()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn print(number: Number, row: &[u8]) -> [u8; 32] {
        let mut print = Fingerprint::default();
        print.add(number, row);
        print.finish()
    }

    #[test]
    fn the_same_numbers_in_other_types_are_the_same_row() {
        let int8 = print(Number::Int8, &[7, 0xff]);
        let int64 = print(Number::Int64, &[7_i64.to_le_bytes(), (-1_i64).to_le_bytes()].concat());
        let float32 = print(Number::Float32, &[7_f32.to_le_bytes(), (-1_f32).to_le_bytes()].concat());
        assert_eq!(int8, int64);
        assert_eq!(int8, float32);
        assert_ne!(int8, print(Number::UInt8, &[7, 0xff]));
        assert_ne!(
            print(Number::Float32, &0.1_f32.to_le_bytes()),
            print(Number::Float32, &0.2_f32.to_le_bytes())
        );
        assert_ne!(print(Number::Int8, &[1]), print(Number::Int8, &[1, 1]));
    }
}
