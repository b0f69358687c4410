//! What the measuring process and the processes that hold a model say to each other over pipes.
//!
//! One JSON object a line each way; scores follow their line as raw little-endian 32-bit floats. Decides the words and
//! their bounds. The reader does not trust the writer: a process with a model may have been taken over by it.

use std::io::{BufRead, Read as _, Write};
use std::path::PathBuf;

use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use crate::data::Input;
use crate::failure::Failure;
use crate::onnx::{Dim, ElementType};

/// Longest line.
const MAX_LINE: u64 = 1024 * 1024;

/// What a process needs to hold one model.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(super) struct Setup {
    /// The checked model file.
    pub(super) model: PathBuf,
    /// Folder of staged inputs.
    pub(super) data: PathBuf,
    /// What the model takes.
    pub(super) inputs: Vec<WireInput>,
    /// The output that is scored.
    pub(super) output: String,
    /// `CPU`, `CUDA` or `TensorRT`.
    pub(super) provider: String,
    /// Threads inside one operator.
    pub(super) threads: u32,
}

/// An input; dimensions that are free and have no name are `None`.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(super) struct WireInput {
    name: String,
    element: i64,
    dims: Option<Vec<Option<WireDim>>>,
}

#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(untagged)]
enum WireDim {
    Fixed(i64),
    Named(String),
}

impl From<&Input> for WireInput {
    fn from(input: &Input) -> Self {
        let size = |dim: &Dim| match dim {
            Dim::Fixed(size) => Some(WireDim::Fixed(*size)),
            Dim::Named(name) => Some(WireDim::Named(name.clone())),
            Dim::Unknown => None,
        };
        Self {
            name: input.name.clone(),
            element: input.element.number(),
            dims: input.dims.as_ref().map(|dims| dims.iter().map(size).collect()),
        }
    }
}

impl WireInput {
    /// Back to an input; none if the element type's number is unknown.
    pub(super) fn to_input(&self) -> Option<Input> {
        let dim = |dim: &Option<WireDim>| match dim {
            Some(WireDim::Fixed(size)) => Dim::Fixed(*size),
            Some(WireDim::Named(name)) => Dim::Named(name.clone()),
            None => Dim::Unknown,
        };
        Some(Input {
            name: self.name.clone(),
            element: ElementType::from_number(self.element)?,
            dims: self.dims.as_ref().map(|dims| dims.iter().map(dim).collect()),
        })
    }
}

/// What is asked.
#[derive(Clone, Copy, Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(super) enum Ask {
    /// Run single rows from `first` on (around the end to row 0) and time each.
    Time { first: u64, runs: u32 },
    /// Scores of `rows` rows from `first` on.
    Predict { first: u64, rows: u32 },
}

/// What is answered.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(super) enum Answer {
    /// The model is loaded on the provider that was asked for.
    Ready {
        onnxruntime: String,
        rows: u64,
        batch_limit: u64,
    },
    /// Wall time of each run, and processor time of all of them together.
    Timed { nanos: Vec<u64>, cpu_nanos: u64 },
    /// `rows * classes` floats follow.
    Scores { rows: u32, classes: u32 },
    /// It did not work.
    Failed(Failure),
}

/// Writes one line.
pub(super) fn say<T: Serialize>(out: &mut impl Write, message: &T) -> std::io::Result<()> {
    let mut line = serde_json::to_vec(message)?;
    line.push(b'\n');
    out.write_all(&line)?;
    out.flush()
}

/// Reads one line; none at the end of the stream.
pub(super) fn hear<T: DeserializeOwned>(input: &mut impl BufRead) -> std::io::Result<Option<T>> {
    let mut line = Vec::new();
    input.by_ref().take(MAX_LINE).read_until(b'\n', &mut line)?;
    match line.last() {
        None => Ok(None),
        Some(b'\n') => Ok(Some(serde_json::from_slice(&line)?)),
        Some(_) => Err(std::io::Error::new(
            std::io::ErrorKind::InvalidData,
            "a line is cut or too long",
        )),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_go_both_ways_and_are_bounded() {
        let mut pipe = Vec::new();
        say(&mut pipe, &Ask::Time { first: 3, runs: 2 }).unwrap();
        say(&mut pipe, &Ask::Predict { first: 0, rows: 8 }).unwrap();
        let mut input = &pipe[..];
        assert!(matches!(
            hear(&mut input).unwrap(),
            Some(Ask::Time { first: 3, runs: 2 })
        ));
        assert!(matches!(hear(&mut input).unwrap(), Some(Ask::Predict { .. })));
        assert!(hear::<Ask>(&mut input).unwrap().is_none());
        let endless = vec![b' '; 2 * 1024 * 1024];
        assert!(hear::<Ask>(&mut &endless[..]).is_err());
        assert!(hear::<Ask>(&mut &b"{\"time\":"[..]).is_err());
    }

    #[test]
    fn inputs_survive_the_wire() {
        let input = Input {
            name: "x".into(),
            element: ElementType::Int32,
            dims: Some(vec![Dim::Named("N".into()), Dim::Unknown, Dim::Fixed(2_048)]),
        };
        let mut pipe = Vec::new();
        say(&mut pipe, &WireInput::from(&input)).unwrap();
        let back: WireInput = hear(&mut &pipe[..]).unwrap().unwrap();
        assert_eq!(back.to_input().unwrap(), input);
    }
}
