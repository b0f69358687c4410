//! Vectors as initializers, each written once: biases of products that share their weights stay one. Knows no graph.

use crate::onnx::{Patch, Tensor};
use std::collections::HashMap;

/// The vectors that a pass has written so far: what they belong to, their dimensions and their bytes.
#[derive(Debug, Default)]
pub(super) struct Vectors(HashMap<(String, Vec<usize>, Vec<u8>), String>);

impl Vectors {
    /// Adds `vector`, which belongs to the tensor `to`, to `patch`, unless an equal one is there; its name.
    pub(super) fn add(&mut self, to: &str, vector: Tensor, patch: &mut Patch) -> String {
        let key = (to.to_owned(), vector.dims.clone(), vector.bytes().to_vec());
        let name = self.0.entry(key).or_insert_with(|| {
            let name = vector.name.clone();
            patch.add_tensor(vector);
            name
        });
        name.clone()
    }
}
