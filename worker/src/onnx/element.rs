//! Element types of tensors and how many bits each takes.

/// `TensorProto.DataType`, as numbered by ONNX.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[repr(u8)]
#[allow(missing_docs, reason = "the names are ONNX's own")]
pub enum ElementType {
    Float = 1,
    Uint8 = 2,
    Int8 = 3,
    Uint16 = 4,
    Int16 = 5,
    Int32 = 6,
    Int64 = 7,
    String = 8,
    Bool = 9,
    Float16 = 10,
    Double = 11,
    Uint32 = 12,
    Uint64 = 13,
    Complex64 = 14,
    Complex128 = 15,
    Bfloat16 = 16,
    Float8E4M3Fn = 17,
    Float8E4M3Fnuz = 18,
    Float8E5M2 = 19,
    Float8E5M2Fnuz = 20,
    Uint4 = 21,
    Int4 = 22,
    Float4E2M1 = 23,
    Float8E8M0 = 24,
    Uint2 = 25,
    Int2 = 26,
}

use ElementType as T;

const ALL: [ElementType; 26] = [
    T::Float,
    T::Uint8,
    T::Int8,
    T::Uint16,
    T::Int16,
    T::Int32,
    T::Int64,
    T::String,
    T::Bool,
    T::Float16,
    T::Double,
    T::Uint32,
    T::Uint64,
    T::Complex64,
    T::Complex128,
    T::Bfloat16,
    T::Float8E4M3Fn,
    T::Float8E4M3Fnuz,
    T::Float8E5M2,
    T::Float8E5M2Fnuz,
    T::Uint4,
    T::Int4,
    T::Float4E2M1,
    T::Float8E8M0,
    T::Uint2,
    T::Int2,
];

impl ElementType {
    /// The type with ONNX's number, if it is one.
    pub fn from_number(number: i64) -> Option<Self> {
        let index = usize::try_from(number).ok()?.checked_sub(1)?;
        ALL.get(index).copied()
    }

    /// ONNX's number.
    pub fn number(self) -> i64 {
        self as i64
    }

    /// Bits of one element; strings have none.
    pub fn bits(self) -> Option<u64> {
        Some(match self {
            T::String => return None,
            T::Uint2 | T::Int2 => 2,
            T::Uint4 | T::Int4 | T::Float4E2M1 => 4,
            T::Uint8
            | T::Int8
            | T::Bool
            | T::Float8E4M3Fn
            | T::Float8E4M3Fnuz
            | T::Float8E5M2
            | T::Float8E5M2Fnuz
            | T::Float8E8M0 => 8,
            T::Uint16 | T::Int16 | T::Float16 | T::Bfloat16 => 16,
            T::Float | T::Int32 | T::Uint32 => 32,
            T::Int64 | T::Double | T::Uint64 | T::Complex64 => 64,
            T::Complex128 => 128,
        })
    }

    /// Bytes that `count` elements take in `raw_data`; none for strings and on overflow.
    pub fn bytes_for(self, count: u64) -> Option<u64> {
        Some(count.checked_mul(self.bits()?)?.div_ceil(8))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_round_trip() {
        for number in 1..=26 {
            assert_eq!(ElementType::from_number(number).unwrap().number(), number);
        }
        assert!(
            [-1, 0, 27, i64::MAX, i64::MIN]
                .iter()
                .all(|&n| ElementType::from_number(n).is_none())
        );
    }
}
