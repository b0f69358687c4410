//! The protobuf wire format: fields out of bytes, and bytes out of fields. Knows nothing of ONNX.
//!
//! Reading borrows and never allocates. Writing keeps large payloads as shared slices, so that weights are not copied.

use super::error::Error;
use bytes::Bytes;

/// Payload of one field.
#[derive(Debug, Clone, Copy)]
pub(super) enum Value<'a> {
    Varint(u64),
    Fixed64(u64),
    Fixed32(u32),
    Bytes(&'a [u8]),
}

/// One field: its number, payload, and the exact bytes it was read from (tag included).
#[derive(Debug, Clone, Copy)]
pub(super) struct Field<'a> {
    pub(super) number: u32,
    pub(super) value: Value<'a>,
    pub(super) raw: &'a [u8],
    message: &'static str,
}

/// Iterates over the fields of one message.
#[derive(Debug, Clone)]
pub(super) struct Fields<'a> {
    rest: &'a [u8],
    message: &'static str,
}

impl<'a> Fields<'a> {
    /// `message` names the protobuf message in errors.
    pub(super) fn new(bytes: &'a [u8], message: &'static str) -> Self {
        Self { rest: bytes, message }
    }

    fn read(&mut self) -> Result<Field<'a>, Error> {
        let start = self.rest;
        let message = self.message;
        let tag = take_varint(&mut self.rest, message)?;
        let number = u32::try_from(tag >> 3).ok().filter(|n| (1..1 << 29).contains(n));
        let number = number.ok_or_else(|| Error::malformed(message, format!("field number {}", tag >> 3)))?;
        let value = match tag & 7 {
            0 => Value::Varint(take_varint(&mut self.rest, message)?),
            1 => Value::Fixed64(u64::from_le_bytes(take_array(&mut self.rest, message)?)),
            2 => Value::Bytes(take_bytes(&mut self.rest, message)?),
            5 => Value::Fixed32(u32::from_le_bytes(take_array(&mut self.rest, message)?)),
            other => {
                return Err(Error::malformed(
                    message,
                    format!("wire type {other} of field {number}"),
                ));
            }
        };
        let raw = &start[..start.len() - self.rest.len()];
        Ok(Field {
            number,
            value,
            raw,
            message,
        })
    }
}

impl<'a> Iterator for Fields<'a> {
    type Item = Result<Field<'a>, Error>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.rest.is_empty() {
            return None;
        }
        let field = self.read();
        if field.is_err() {
            self.rest = &[];
        }
        Some(field)
    }
}

impl<'a> Field<'a> {
    fn wrong_type(&self) -> Error {
        Error::malformed(self.message, format!("field {} has the wrong wire type", self.number))
    }

    pub(super) fn bytes(&self) -> Result<&'a [u8], Error> {
        match self.value {
            Value::Bytes(bytes) => Ok(bytes),
            _ => Err(self.wrong_type()),
        }
    }

    pub(super) fn text(&self) -> Result<&'a str, Error> {
        std::str::from_utf8(self.bytes()?)
            .map_err(|_| Error::malformed(self.message, format!("text of field {} is not UTF-8", self.number)))
    }

    pub(super) fn int64(&self) -> Result<i64, Error> {
        match self.value {
            Value::Varint(value) => Ok(value.cast_signed()),
            _ => Err(self.wrong_type()),
        }
    }

    /// An `int32` or enum: the low 32 bits, as protobuf does.
    pub(super) fn int32(&self) -> Result<i32, Error> {
        Ok(low_i32(self.int64()?))
    }

    pub(super) fn float(&self) -> Result<f32, Error> {
        match self.value {
            Value::Fixed32(bits) => Ok(f32::from_bits(bits)),
            _ => Err(self.wrong_type()),
        }
    }

    /// A repeated varint field, packed or not: calls `each` for every element.
    pub(super) fn varints(&self, mut each: impl FnMut(u64) -> Result<(), Error>) -> Result<(), Error> {
        match self.value {
            Value::Varint(value) => each(value),
            Value::Bytes(mut packed) => {
                while !packed.is_empty() {
                    each(take_varint(&mut packed, self.message)?)?;
                }
                Ok(())
            }
            _ => Err(self.wrong_type()),
        }
    }

    /// A repeated 4-byte field, packed or not: the little-endian bytes of its elements.
    pub(super) fn fixed32s(&self) -> Result<std::borrow::Cow<'a, [u8]>, Error> {
        match self.value {
            Value::Fixed32(bits) => Ok(bits.to_le_bytes().to_vec().into()),
            Value::Bytes(packed) if packed.len() % 4 == 0 => Ok(packed.into()),
            _ => Err(self.wrong_type()),
        }
    }

    /// A repeated 8-byte field, packed or not: the little-endian bytes of its elements.
    pub(super) fn fixed64s(&self) -> Result<std::borrow::Cow<'a, [u8]>, Error> {
        match self.value {
            Value::Fixed64(bits) => Ok(bits.to_le_bytes().to_vec().into()),
            Value::Bytes(packed) if packed.len() % 8 == 0 => Ok(packed.into()),
            _ => Err(self.wrong_type()),
        }
    }

    /// Refuses a second occurrence of a singular field: protobuf would merge them, and readers differ in how.
    pub(super) fn once(&self, seen: &mut u64) -> Result<(), Error> {
        let bit = 1_u64 << (self.number & 63);
        if *seen & bit != 0 {
            return Err(Error::malformed(
                self.message,
                format!("field {} appears twice", self.number),
            ));
        }
        *seen |= bit;
        Ok(())
    }
}

/// The low 32 bits of a varint, as protobuf reads an `int32`.
#[allow(
    clippy::cast_possible_truncation,
    reason = "protobuf defines int32 as the low 32 bits"
)]
pub(super) fn low_i32(value: i64) -> i32 {
    value as i32
}

fn take_varint(rest: &mut &[u8], message: &'static str) -> Result<u64, Error> {
    let mut value = 0_u64;
    for (index, &byte) in rest.iter().take(10).enumerate() {
        value |= u64::from(byte & 0x7f) << (7 * index);
        if byte < 0x80 {
            *rest = &rest[index + 1..];
            return Ok(value);
        }
    }
    Err(Error::malformed(
        message,
        if rest.len() < 10 {
            "truncated number"
        } else {
            "number of more than 10 bytes"
        },
    ))
}

fn take_array<const N: usize>(rest: &mut &[u8], message: &'static str) -> Result<[u8; N], Error> {
    let (head, tail) = rest
        .split_first_chunk::<N>()
        .ok_or_else(|| Error::malformed(message, "truncated number"))?;
    *rest = tail;
    Ok(*head)
}

fn take_bytes<'a>(rest: &mut &'a [u8], message: &'static str) -> Result<&'a [u8], Error> {
    let length = take_varint(rest, message)?;
    let split = usize::try_from(length)
        .ok()
        .and_then(|length| rest.split_at_checked(length));
    let (head, tail) = split
        .ok_or_else(|| Error::malformed(message, format!("length {length} where {} bytes are left", rest.len())))?;
    *rest = tail;
    Ok(head)
}

/// Bytes being written: small fields in owned memory, payloads of [`SHARED`] bytes and more as shared slices.
#[derive(Debug, Default)]
pub(super) struct Rope {
    chunks: Vec<Bytes>,
    tail: Vec<u8>,
    shared: usize,
}

/// Payloads from this size on are shared instead of copied.
const SHARED: usize = 4096;

impl Rope {
    /// Length in bytes.
    pub(super) fn len(&self) -> usize {
        self.shared + self.tail.len()
    }

    /// Whether nothing was written.
    pub(super) fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// The pieces, in order.
    pub(super) fn chunks(&self) -> impl Iterator<Item = &[u8]> {
        self.chunks
            .iter()
            .map(Bytes::as_ref)
            .chain(std::iter::once(self.tail.as_slice()))
    }

    /// All bytes in one piece.
    pub(super) fn to_vec(&self) -> Vec<u8> {
        let mut bytes = Vec::with_capacity(self.len());
        self.chunks().for_each(|chunk| bytes.extend_from_slice(chunk));
        bytes
    }

    fn flush(&mut self) {
        if !self.tail.is_empty() {
            let tail = std::mem::take(&mut self.tail);
            self.shared += tail.len();
            self.chunks.push(tail.into());
        }
    }

    fn varint(&mut self, mut value: u64) {
        while value >= 0x80 {
            self.tail.push(low_byte(value) | 0x80);
            value >>= 7;
        }
        self.tail.push(low_byte(value));
    }

    fn tag(&mut self, number: u32, wire_type: u64) {
        self.varint(u64::from(number) << 3 | wire_type);
    }

    pub(super) fn int(&mut self, number: u32, value: i64) {
        self.tag(number, 0);
        self.varint(value.cast_unsigned());
    }

    pub(super) fn float(&mut self, number: u32, value: f32) {
        self.tag(number, 5);
        self.tail.extend_from_slice(&value.to_le_bytes());
    }

    pub(super) fn slice(&mut self, number: u32, bytes: &[u8]) {
        self.tag(number, 2);
        self.varint(bytes.len() as u64);
        self.tail.extend_from_slice(bytes);
    }

    pub(super) fn text(&mut self, number: u32, text: &str) {
        if !text.is_empty() {
            self.slice(number, text.as_bytes());
        }
    }

    pub(super) fn payload(&mut self, number: u32, bytes: &Bytes) {
        if bytes.len() < SHARED {
            return self.slice(number, bytes);
        }
        self.tag(number, 2);
        self.varint(bytes.len() as u64);
        self.flush();
        self.shared += bytes.len();
        self.chunks.push(bytes.clone());
    }

    pub(super) fn packed_ints(&mut self, number: u32, values: impl IntoIterator<Item = i64>) {
        let mut packed = Self::default();
        values
            .into_iter()
            .for_each(|value| packed.varint(value.cast_unsigned()));
        if !packed.is_empty() {
            self.slice(number, &packed.tail);
        }
    }

    /// A nested message.
    pub(super) fn message(&mut self, number: u32, inner: Rope) {
        self.tag(number, 2);
        self.varint(inner.len() as u64);
        if !inner.chunks.is_empty() {
            self.flush();
            self.shared += inner.shared;
            self.chunks.extend(inner.chunks);
        }
        self.tail.extend_from_slice(&inner.tail);
    }

    /// Fields that are already encoded.
    pub(super) fn raw(&mut self, fields: &[u8]) {
        self.tail.extend_from_slice(fields);
    }
}

#[allow(clippy::cast_possible_truncation, reason = "the low byte is what is meant")]
fn low_byte(value: u64) -> u8 {
    value as u8
}
