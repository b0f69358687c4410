//! Rows without the padding that a mask marks at their end.
//!
//! Decides how many positions of a row are data, and along which dimension of which inputs it is cut there. What is left is what
//! the model is given where nobody pads; nothing is ever masked inside a row.

use super::{Bound, Feed, binding, shape};
use crate::data::number::{self, Values};
use crate::data::{Error, Number};
use crate::failure::Failure;
use crate::onnx::Dim;

impl Feed {
    /// Cuts every row where `mask` says that padding begins: an input of shape `[rows, length]` with 1 for each position that is data
    /// and, behind these, 0 for padding.
    ///
    /// Cut are the mask and the inputs that share its free dimension: by its name or, where either has no name, by its size in every
    /// row. Padding before or amid data is refused: positions would move. So is padding that the model's declared sizes ask for.
    pub fn without_padding(mut self, mask: &str) -> Result<Self, Failure> {
        let Some(masking) = self.bound.iter().find(|bound| bound.input.name == mask) else {
            let source = self.staged.header.inputs.iter().find(|source| source.input == mask);
            return Err(Error::Binding {
                input: mask.to_owned(),
                column: source.map_or("-", |source| &source.column).to_owned(),
                problem: "it is the padding mask, but the model has no such input".to_owned(),
            }
            .into());
        };
        let rows = 0..self.rows();
        let found: Result<Vec<(usize, usize)>, Error> = rows.map(|row| self.length_of(masking, row)).collect();
        let lengths = found?;
        let Some(padded) = lengths.iter().position(|(length, width)| length < width) else {
            return Ok(self);
        };
        let axes: Result<Vec<Option<usize>>, Error> = self
            .bound
            .iter()
            .map(|bound| self.axis(bound, masking, padded))
            .collect();
        for (bound, axis) in self.bound.iter_mut().zip(axes?) {
            bound.axis = axis;
        }
        let rows = lengths.iter().filter(|(length, width)| length < width).count();
        tracing::info!(rows, "padding is cut off");
        self.lengths = lengths.into_iter().map(|(length, _)| length).collect();
        Ok(self)
    }

    /// Positions of `row` that are no padding.
    pub(super) fn length(&self, row: u64) -> usize {
        let length = usize::try_from(row).ok().and_then(|row| self.lengths.get(row));
        length.copied().unwrap_or(0)
    }

    /// How many positions of a row the mask says are data, and how many there are.
    fn length_of(&self, mask: &Bound, row: u64) -> Result<(usize, usize), Error> {
        let source = &self.staged.header.inputs[mask.index];
        let dims = self.dims(mask, row)?;
        let &[_, width] = dims.as_slice() else {
            let problem = format!("a padding mask has shape [rows, length], and this one {dims:?}");
            return Err(binding(source, problem));
        };
        let wrong = |problem: String| Error::Value {
            column: source.column.clone(),
            row,
            problem,
        };
        let bytes = self.staged.rows(mask.index, &[row])?;
        let marks = marks(source.number, &bytes).map_err(|value| {
            wrong(format!(
                "{value} in a padding mask, which has 1 for data and 0 for padding"
            ))
        })?;
        let length = marks.iter().take_while(|data| **data).count();
        if marks.iter().skip(length).any(|data| *data) {
            return Err(wrong(
                "the padding mask has 0 before 1, and only padding behind the data can be cut off: pad at the end, or give rows \
                 without padding"
                    .to_owned(),
            ));
        }
        if length == 0 {
            return Err(wrong(
                "the padding mask has no 1, so nothing of the row is data: drop it".to_owned(),
            ));
        }
        Ok((length, width))
    }

    /// The dimension of an input that `mask` is about, if it has one. `padded` is a row with padding.
    fn axis(&self, bound: &Bound, mask: &Bound, padded: usize) -> Result<Option<usize>, Error> {
        let source = &self.staged.header.inputs[bound.index];
        if bound.index == mask.index && !matches!(free(mask).as_slice(), [(1, _)]) {
            let problem = format!(
                "row {padded} has padding, and the model declares its length as fixed, so that it can't be cut off: export the model \
                 with a free length, or leave paddingMask out to calibrate with the padding"
            );
            return Err(binding(source, problem));
        }
        let Some(axis) = self.shared(bound, mask)? else {
            return Ok(None);
        };
        let own = free(bound);
        let name = own.iter().find(|(at, _)| *at == axis).and_then(|(_, name)| *name);
        if name.is_some() && own.iter().filter(|(_, own)| *own == name).count() > 1 {
            let problem = "it has the dimension of the padding mask more than once, and padding is cut off from one: give rows without padding, \
                           or leave paddingMask out to calibrate with the padding";
            return Err(binding(source, problem.to_owned()));
        }
        if source.given {
            let problem =
                "its rows have one given shape, and those of the padding mask are cut to their length: remove shape";
            return Err(binding(source, problem.to_owned()));
        }
        Ok(Some(axis))
    }

    /// The dimension of an input that is the mask's too, by name or by size.
    fn shared(&self, bound: &Bound, mask: &Bound) -> Result<Option<usize>, Error> {
        let name = free(mask).first().and_then(|(_, name)| *name);
        let own = free(bound);
        let namesake = own.iter().find(|(_, own)| own.is_some() && *own == name);
        let axis = match (namesake, own.as_slice()) {
            (Some((axis, _)), _) => *axis,
            (None, &[(axis, own)]) if name.is_none() || own.is_none() => axis,
            _ => return Ok(None),
        };
        for row in 0..self.rows() {
            let (size, masked) = (self.dims(bound, row)?, self.dims(mask, row)?);
            if size.get(axis) == masked.get(1) {
                continue;
            }
            if namesake.is_none() {
                return Ok(None);
            }
            let source = &self.staged.header.inputs[bound.index];
            return Err(Error::Value {
                column: source.column.clone(),
                row,
                problem: format!("it has shape {size:?}, and its padding mask {masked:?}: they share a dimension"),
            });
        }
        Ok(Some(axis))
    }

    /// The shape in which `row` was staged, as one row.
    pub(super) fn dims(&self, bound: &Bound, row: u64) -> Result<Vec<usize>, Error> {
        let source = &self.staged.header.inputs[bound.index];
        let width = self.staged.width(bound.index, row);
        shape(&bound.input, source, width, 1).map_err(|problem| binding(source, problem))
    }

    /// Shape and bytes of rows of one length, without what lies behind it along `axis`.
    pub(super) fn cut(&self, bound: &Bound, axis: usize, rows: &[u64]) -> Result<(Vec<usize>, Vec<u8>), Error> {
        let number = self.staged.header.inputs[bound.index].number;
        let first = rows.first().copied().unwrap_or(0);
        let length = self.length(first);
        let mut shape = self.dims(bound, first)?;
        let step = shape.iter().skip(axis + 1).product::<usize>() * number.bytes();
        let mut cut = Vec::new();
        for &row in rows {
            let stride = step * self.dims(bound, row)?.get(axis).copied().unwrap_or(0);
            let bytes = self.staged.rows(bound.index, &[row])?;
            for whole in bytes.chunks_exact(stride.max(1)) {
                cut.extend_from_slice(whole.get(..step * length).unwrap_or(whole));
            }
        }
        for (at, size) in shape.iter_mut().enumerate() {
            *size = match at {
                0 => rows.len(),
                at if at == axis => length,
                _ => *size,
            };
        }
        Ok((shape, cut))
    }
}

/// Bits of the two numbers in a mask.
const ONE: u64 = 1.0_f64.to_bits();
const ZERO: u64 = 0.0_f64.to_bits();

/// Whether each number of a mask marks data; the spelling of the first that is neither 0 nor 1.
fn marks(number: Number, bytes: &[u8]) -> Result<Vec<bool>, String> {
    let mark = |value: f64| match value.to_bits() {
        ONE => Ok(true),
        ZERO => Ok(false),
        _ => Err(value.to_string()),
    };
    match number::values(number, bytes) {
        Values::Integers(integers) => integers
            .map(|value| i32::try_from(value).map_or_else(|_| Err(value.to_string()), |value| mark(value.into())))
            .collect(),
        Values::Floats(floats) => floats.map(mark).collect(),
    }
}

/// The free dimensions of a row, with their names where they have one.
fn free(bound: &Bound) -> Vec<(usize, Option<&str>)> {
    let Some(dims) = &bound.input.dims else {
        return vec![(1, None)];
    };
    let dims = dims.iter().enumerate().skip(1);
    dims.filter_map(|(axis, dim)| match dim {
        Dim::Named(name) => Some((axis, Some(name.as_str()))),
        Dim::Unknown => Some((axis, None)),
        Dim::Fixed(_) => None,
    })
    .collect()
}

#[cfg(test)]
#[path = "padding_tests.rs"]
mod tests;
