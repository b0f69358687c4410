//! Staged rows to the tensors that a model takes.
//!
//! Decides how rows become batches of a model's declared shape and refuses what does not fit, naming both sides. Rows of
//! different lengths are never padded: a batch is of rows of one length.

mod batches;
mod padding;

use std::path::Path;

use super::staged::{Staged, StagedInput};
use super::{Error, number};
use crate::failure::Failure;
use crate::onnx::{Dim, ElementType, Model, Tensor, shown};

/// What a model takes.
#[derive(Clone, Debug, PartialEq)]
pub struct Input {
    /// Name.
    pub name: String,
    /// Type of the elements.
    pub element: ElementType,
    /// Dimensions, where declared.
    pub dims: Option<Vec<Dim>>,
}

/// The inputs that a model needs: those of its graph that have no initial value.
pub fn inputs_of(model: &Model) -> Result<Vec<Input>, Failure> {
    let initialized = |name: &str| model.graph.initializers.iter().any(|tensor| tensor.name == name);
    let mut inputs = Vec::new();
    for info in model.graph.inputs.iter().filter(|info| !initialized(&info.name)) {
        let declared = info
            .tensor_type()
            .ok_or_else(|| unusable(&info.name, "it is no tensor of a declared type"))?;
        inputs.push(Input {
            name: info.name.clone(),
            element: declared.element,
            dims: declared.shape,
        });
    }
    Ok(inputs)
}

fn unusable(input: &str, problem: &str) -> Failure {
    Error::Binding {
        input: input.to_owned(),
        column: "-".into(),
        problem: problem.to_owned(),
    }
    .into()
}

/// Staged rows, bound to a model's inputs.
#[derive(Debug)]
pub struct Feed {
    staged: Staged,
    bound: Vec<Bound>,
    most: usize,
    /// Positions of each row that are no padding; empty where rows are fed whole.
    lengths: Vec<usize>,
}

/// An input and the column that feeds it.
#[derive(Debug)]
struct Bound {
    input: Input,
    /// Number of the staged column.
    index: usize,
    /// Dimension along which rows are cut to their lengths, if they are.
    axis: Option<usize>,
}

impl Feed {
    /// Binds the staged inputs in `folder` to what a model takes: each input one column, no column left over.
    pub fn open(folder: &Path, inputs: Vec<Input>) -> Result<Self, Failure> {
        let staged = Staged::open(folder)?;
        let mut most = usize::MAX;
        let mut bound = Vec::new();
        for input in inputs {
            let found = staged
                .header
                .inputs
                .iter()
                .position(|staged| staged.input == input.name);
            let index = found.ok_or_else(|| Error::Binding {
                input: input.name.clone(),
                column: "-".into(),
                problem: "the model needs it, but data.inputs binds no column to it".into(),
            })?;
            let source = &staged.header.inputs[index];
            most = most.min(batch_limit(&input, source)?);
            bound.push(Bound {
                input,
                index,
                axis: None,
            });
        }
        if let Some(extra) = staged
            .header
            .inputs
            .iter()
            .find(|source| !bound.iter().any(|bound| bound.input.name == source.input))
        {
            let names: Vec<&str> = bound.iter().map(|bound| bound.input.name.as_str()).collect();
            return Err(binding(
                extra,
                format!("the model has no such input; it takes {}", names.join(", ")),
            )
            .into());
        }
        let feed = Self {
            staged,
            bound,
            most,
            lengths: Vec::new(),
        };
        feed.check_rows()?;
        Ok(feed)
    }

    /// Every row fits its input, and inputs that share a free dimension agree on its size.
    fn check_rows(&self) -> Result<(), Error> {
        for Bound { input, index, .. } in &self.bound {
            let source = &self.staged.header.inputs[*index];
            if source.shape.is_some() {
                shape(input, source, self.staged.width(*index, 0), 1).map_err(|problem| binding(source, problem))?;
                continue;
            }
            let own_free = free(input);
            let partner = self.bound.iter().find_map(|bound| {
                let other = &bound.input;
                let (name, axis) = free(other).filter(|_| other.name != input.name)?;
                (own_free?.0 == name).then_some((other, axis, bound.index))
            });
            for row in 0..self.rows() {
                let wrong = |problem| Error::Value {
                    column: source.column.clone(),
                    row,
                    problem,
                };
                let width = self.staged.width(*index, row);
                let own = shape(input, source, width, 1).map_err(wrong)?;
                let (Some((name, axis)), Some((other, other_axis, other_index))) = (own_free, partner) else {
                    continue;
                };
                let other_source = &self.staged.header.inputs[other_index];
                let other_width = self.staged.width(other_index, row);
                let theirs =
                    shape(other, other_source, other_width, 1).map_err(|problem| binding(other_source, problem))?;
                if own.get(axis) != theirs.get(other_axis) {
                    return Err(wrong(format!(
                        "{width} numbers, but column `{}` has {other_width}: inputs {} and {} share the dimension {}",
                        other_source.column,
                        shown(&input.name),
                        shown(&other.name),
                        shown(name),
                    )));
                }
            }
        }
        Ok(())
    }

    /// Number of rows.
    pub fn rows(&self) -> u64 {
        self.staged.header.rows
    }

    /// Most rows that the model takes at once.
    pub fn batch_limit(&self) -> usize {
        self.most
    }

    /// The tensors of some rows, which must be of one length.
    pub fn tensors(&self, rows: impl IntoIterator<Item = u64>) -> Result<Vec<Tensor>, Error> {
        let rows: Vec<u64> = rows.into_iter().collect();
        let first = rows.first().copied().unwrap_or(0);
        let mut tensors = Vec::with_capacity(self.bound.len());
        for bound in &self.bound {
            let Bound { input, index, .. } = bound;
            let source = &self.staged.header.inputs[*index];
            let (dims, bytes) = match bound.axis {
                None => {
                    let dims = shape(input, source, self.staged.width(*index, first), rows.len());
                    let dims = dims.map_err(|problem| binding(source, problem))?;
                    (dims, self.staged.rows(*index, &rows)?)
                }
                Some(axis) => self.cut(bound, axis, &rows)?,
            };
            let width = dims.iter().product::<usize>() / rows.len().max(1);
            let bytes = number::convert(source.number, bytes, input.element).map_err(|(at, value)| Error::Value {
                column: source.column.clone(),
                row: rows.get(at / width.max(1)).copied().unwrap_or(first),
                problem: format!(
                    "{value} ({}) can't be given exactly to input `{}` ({:?}): convert the column",
                    source.number.name(),
                    input.name,
                    input.element
                ),
            })?;
            let tensor = Tensor::new(&input.name, input.element, &dims, bytes);
            tensors.push(tensor.map_err(|error| binding(source, error.to_string()))?);
        }
        Ok(tensors)
    }
}

fn binding(source: &StagedInput, problem: String) -> Error {
    Error::Binding {
        input: source.input.clone(),
        column: source.column.clone(),
        problem,
    }
}

/// The shape of an input that has no dimension for rows: a scalar, or what is given with as many sizes as the model declares, as for
/// states of recurrent models. Each run takes one row.
fn whole<'s>(input: &Input, source: &'s StagedInput) -> Option<&'s [usize]> {
    let row = source.shape.as_deref()?;
    let declared = input.dims.as_deref()?;
    (row.len() == declared.len() && (source.given || row.is_empty())).then_some(row)
}

fn batch_limit(input: &Input, source: &StagedInput) -> Result<usize, Error> {
    match input.dims.as_deref() {
        _ if whole(input, source).is_some() => Ok(1),
        Some([]) => Err(binding(
            source,
            "it is a scalar: the column must have one number, and no list, in each row".into(),
        )),
        Some([Dim::Fixed(1), ..]) => Ok(1),
        Some([Dim::Fixed(fixed), ..]) => Err(binding(
            source,
            format!(
                "its first dimension is fixed at {fixed}, which rows can't fill one at a time: give the shape of a row in \
                 data.inputs[].shape, which frees it, or the whole shape, {fixed} included, where it counts no rows"
            ),
        )),
        _ if source.given => Ok(1),
        _ => Ok(usize::MAX),
    }
}

/// The declared shape with `count` rows of `width` numbers: dimensions behind the first must hold exactly a row. Errors with
/// what does not fit.
fn shape(input: &Input, source: &StagedInput, width: usize, count: usize) -> Result<Vec<usize>, String> {
    if let Some((whole, declared)) = whole(input, source).zip(input.dims.as_deref()) {
        return if fit(whole, declared) {
            Ok(whole.to_vec())
        } else {
            Err(format!(
                "a row has the shape {whole:?}, the model takes [{}]",
                sizes(declared)
            ))
        };
    }
    let mut shape = vec![count];
    let Some(dims) = input.dims.as_deref().map(|dims| dims.get(1..).unwrap_or_default()) else {
        shape.extend(source.shape.as_deref().unwrap_or(&[width]));
        return Ok(shape);
    };
    if let Some(row) = source.shape.as_deref().filter(|row| fit(row, dims)) {
        shape.extend(row);
        return Ok(shape);
    }
    let mut fixed = 1_usize;
    let mut free = Vec::new();
    for dim in dims {
        match dim {
            Dim::Fixed(size) => fixed = fixed.saturating_mul(usize::try_from(*size).unwrap_or(0)),
            dim => free.push(dim),
        }
    }
    let size = match free.as_slice() {
        [] => (fixed == width).then_some(1),
        _ if fixed == 0 || !width.is_multiple_of(fixed) => None,
        [_] => Some(width / fixed),
        // As many positions as there are, each with each.
        [first @ Dim::Named(_), others @ ..] if others.iter().all(|other| other == first) => {
            root(width / fixed, free.len())
        }
        _ => None,
    };
    let Some(size) = size else {
        let way_out = if free.len() > 1 {
            ": give the shape of a row in data.inputs[].shape"
        } else {
            ""
        };
        return Err(format!(
            "a row has {width} numbers, the model takes [{}] a row{way_out}",
            sizes(dims)
        ));
    };
    for dim in dims {
        shape.push(match dim {
            Dim::Fixed(size) => usize::try_from(*size).unwrap_or(0),
            _ => size,
        });
    }
    Ok(shape)
}

/// The size of which `count` dimensions hold `elements`, if there is one.
fn root(elements: usize, count: usize) -> Option<usize> {
    let power = u32::try_from(count).ok()?;
    let holds = |size: &usize| size.checked_pow(power).unwrap_or(usize::MAX);
    let size = (0..=elements).find(|size| holds(size) >= elements)?;
    (holds(&size) == elements).then_some(size)
}

/// What is declared, for people.
fn sizes(dims: &[Dim]) -> String {
    let words = dims.iter().map(|dim| match dim {
        Dim::Fixed(size) => size.to_string(),
        Dim::Named(name) => crate::failure::cut(name, 30),
        Dim::Unknown => "?".into(),
    });
    words.collect::<Vec<_>>().join(", ")
}

/// Whether a row's shape is, size by size, what is declared.
fn fit(row: &[usize], dims: &[Dim]) -> bool {
    let fits = |(size, dim): (&usize, &Dim)| match dim {
        Dim::Fixed(fixed) => usize::try_from(*fixed) == Ok(*size),
        Dim::Named(_) | Dim::Unknown => true,
    };
    row.len() == dims.len() && row.iter().zip(dims).all(fits)
}

/// The name of the free dimension of a row, and where it is; none where there is no name.
fn free(input: &Input) -> Option<(&str, usize)> {
    let mut dims = input.dims.iter().flatten().enumerate().skip(1);
    dims.find_map(|(axis, dim)| match dim {
        Dim::Named(name) => Some((name.as_str(), axis)),
        Dim::Fixed(_) | Dim::Unknown => None,
    })
}

#[cfg(test)]
#[path = "feed_tests.rs"]
mod tests;
