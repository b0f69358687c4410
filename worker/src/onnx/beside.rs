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
/// Runtimes read elements where they lie, so they must lie where the widest of them may.
const ALIGNMENT: u64 = 8;

/// The files beside a model that its weights were mapped from.
#[derive(Debug, Clone, Default)]
pub struct Beside {
    folder: PathBuf,
    files: BTreeMap<String, Bytes>,
}

/// Where weights lie says nothing about what they are: equal models may lie in different files.
impl PartialEq for Beside {
    fn eq(&self, _: &Self) -> bool {
        true
    }
}

impl Beside {
    pub(super) fn new(folder: PathBuf, files: BTreeMap<String, Bytes>) -> Self {
        Self { folder, files }
    }

    /// The folder of the files; none where the model has no such files.
    pub fn folder(&self) -> Option<&Path> {
        (!self.files.is_empty()).then_some(self.folder.as_path())
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
        self.files.iter().find_map(|(name, file)| {
            let whole = file.as_ptr_range();
            let inside = whole.start <= range.start && range.end <= whole.end;
            let offset = range.start.addr().wrapping_sub(whole.start.addr()) as u64;
            (inside && offset.is_multiple_of(ALIGNMENT)).then(|| (name.clone(), offset))
        })
    }
}
