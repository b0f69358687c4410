//! Staged rows to the tensors that a model takes.
//!
//! Decides how rows become batches of a model's declared shape and refuses what does not fit, naming both sides.

use std::ops::Range;
use std::path::Path;

use super::staged::{Staged, StagedInput};
use super::{Error, number};
use crate::failure::Failure;
use crate::onnx::{Dim, ElementType, Model, Tensor};

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
    bound: Vec<(Input, usize)>,
    most: usize,
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
            shape(&input, source, 1)?;
            bound.push((input, index));
        }
        if let Some(extra) = staged
            .header
            .inputs
            .iter()
            .find(|source| !bound.iter().any(|(input, _)| input.name == source.input))
        {
            let names: Vec<&str> = bound.iter().map(|(input, _)| input.name.as_str()).collect();
            return Err(binding(
                extra,
                format!("the model has no such input; it takes {}", names.join(", ")),
            )
            .into());
        }
        Ok(Self { staged, bound, most })
    }

    /// Number of rows.
    pub fn rows(&self) -> u64 {
        self.staged.header.rows
    }

    /// Most rows that the model takes at once.
    pub fn batch_limit(&self) -> usize {
        self.most
    }

    /// The tensors of a range of rows.
    pub fn tensors(&self, rows: Range<u64>) -> Result<Vec<Tensor>, Error> {
        let count = usize::try_from(rows.end - rows.start).unwrap_or(0);
        let mut tensors = Vec::with_capacity(self.bound.len());
        for (input, index) in &self.bound {
            let source = &self.staged.header.inputs[*index];
            let bytes = self.staged.rows(*index, rows.start, count)?;
            let bytes = number::convert(source.number, bytes, input.element).map_err(|(at, value)| Error::Value {
                column: source.column.clone(),
                row: rows.start + (at / source.shape.iter().product::<usize>().max(1)) as u64,
                problem: format!(
                    "{value} ({}) can't be given exactly to input `{}` ({:?}): convert the column",
                    source.number.name(),
                    input.name,
                    input.element
                ),
            })?;
            let tensor = Tensor::new(&input.name, input.element, &shape(input, source, count)?, bytes);
            tensors.push(tensor.map_err(|error| binding(source, error.to_string()))?);
        }
        Ok(tensors)
    }

    /// The first row alone, which is what a model is tried on, and then batches of at most `size` rows, in order.
    pub fn batches(&self, size: usize) -> impl Iterator<Item = Result<Vec<Tensor>, Error>> + '_ {
        let size = size.clamp(1, self.most) as u64;
        let rows = self.rows();
        let first = (rows > 0).then_some(0..1);
        let rest = (1..rows).step_by(usize::try_from(size).unwrap_or(usize::MAX));
        let rest = rest.map(move |from| from..(from + size).min(rows));
        first.into_iter().chain(rest).map(|rows| self.tensors(rows))
    }
}

fn binding(source: &StagedInput, problem: String) -> Error {
    Error::Binding {
        input: source.input.clone(),
        column: source.column.clone(),
        problem,
    }
}

fn batch_limit(input: &Input, source: &StagedInput) -> Result<usize, Error> {
    match input.dims.as_deref() {
        Some([]) => Err(binding(source, "it is a scalar, so it can't be fed row by row".into())),
        Some([Dim::Fixed(1), ..]) => Ok(1),
        Some([Dim::Fixed(fixed), ..]) => Err(binding(
            source,
            format!("its first dimension is fixed at {fixed}: export the model with a free batch dimension"),
        )),
        _ => Ok(usize::MAX),
    }
}

/// The declared shape with `count` rows: dimensions behind the first must hold exactly a row.
fn shape(input: &Input, source: &StagedInput, count: usize) -> Result<Vec<usize>, Error> {
    let row: usize = source.shape.iter().product();
    let mut shape = vec![count];
    let Some(dims) = input.dims.as_deref().map(|dims| dims.get(1..).unwrap_or_default()) else {
        shape.extend(&source.shape);
        return Ok(shape);
    };
    let mut fixed = 1_usize;
    let mut free = 0;
    for dim in dims {
        match dim {
            Dim::Fixed(size) => fixed = fixed.saturating_mul(usize::try_from(*size).unwrap_or(0)),
            _ => free += 1,
        }
    }
    let fits = match free {
        0 => fixed == row,
        1 => fixed > 0 && row.is_multiple_of(fixed),
        _ => false,
    };
    if !fits {
        let declared: Vec<String> = dims
            .iter()
            .map(|dim| match dim {
                Dim::Fixed(size) => size.to_string(),
                Dim::Named(name) => crate::failure::cut(name, 30),
                Dim::Unknown => "?".into(),
            })
            .collect();
        return Err(binding(
            source,
            format!(
                "a row has {row} numbers, the model takes [{}] a row",
                declared.join(", ")
            ),
        ));
    }
    for dim in dims {
        shape.push(match dim {
            Dim::Fixed(size) => usize::try_from(*size).unwrap_or(0),
            _ => row / fixed,
        });
    }
    Ok(shape)
}

#[cfg(test)]
#[path = "feed_tests.rs"]
mod tests;
