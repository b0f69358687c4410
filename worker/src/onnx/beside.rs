//! Where weights lie in files beside a model, so that a runtime can map the same bytes instead of being handed copies.
//!
//! Knows only files that were checked and mapped while the model was read; decides nothing about what to do with them.

use super::{
    encode::Placement,
    model::{Data, Graph},
};
use bytes::Bytes;
use std::{
    collections::BTreeMap,
    path::{Path, PathBuf},
};

/// Tensors smaller than this stay in the protobuf: many of them are read while a session is built.
const SMALLEST: usize = 1024;

/// The files that a model's weights lie in: those beside it, and its own. Inside that one they lie at any offset, as they do in files of
/// external data that were written one tensor after another; ONNX Runtime's kernels read them there all the same.
#[derive(Debug, Clone, Default)]
pub struct Beside {
    folder: PathBuf,
    /// By the address of the first byte in memory.
    places: BTreeMap<usize, Place>,
}

/// A file in memory.
#[derive(Debug, Clone)]
struct Place {
    bytes: Bytes,
    file: String,
}

/// Where weights lie says nothing about what they are: equal models may lie in different files.
impl PartialEq for Beside {
    fn eq(&self, _: &Self) -> bool {
        true
    }
}

impl Beside {
    /// Whole files of `folder`, mapped.
    pub(super) fn mapped(folder: PathBuf, files: BTreeMap<String, Bytes>) -> Self {
        let places = files.into_iter().map(|(file, bytes)| Place { bytes, file });
        let places = places.map(|place| (place.bytes.as_ptr().addr(), place)).collect();
        Self { folder, places }
    }

    /// The folder of the files; none where the model has no such files.
    pub fn folder(&self) -> Option<&Path> {
        (!self.places.is_empty()).then_some(self.folder.as_path())
    }

    /// The initializers whose bytes still lie in one of the files, each with file and offset.
    pub(super) fn placement(&self, graph: &Graph) -> Placement {
        let mut placement = Placement::new();
        for tensor in &graph.initializers {
            let Data::Raw(bytes) = &tensor.data else { continue };
            if bytes.len() >= SMALLEST
                && let Some(place) = self.locate(bytes)
            {
                placement.insert(tensor.name.clone(), place);
            }
        }
        placement
    }

    /// The file that `bytes` are a part of, by where they are in memory.
    fn locate(&self, bytes: &Bytes) -> Option<(String, u64)> {
        let range = bytes.as_ptr_range();
        let (first, place) = self.places.range(..=range.start.addr()).next_back()?;
        let inside = range.end <= place.bytes.as_ptr_range().end;
        inside.then(|| (place.file.clone(), (range.start.addr() - first) as u64))
    }
}
