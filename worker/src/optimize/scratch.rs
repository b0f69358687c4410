//! Weights of a model in a file of their own, for as long as the model is worked on. Decides nothing about the model.
//!
//! Inside one protobuf they lie at any offset, and ONNX Runtime copies them for every session. Aligned and beside it they are mapped.

use crate::onnx::{self, Limits, Model};
use std::path::{Path, PathBuf};

/// Bytes of weights from which they are brought into a file: less is copied sooner than written.
const SMALLEST: usize = 8 << 20;

/// Files that are removed when the work is over.
#[derive(Debug)]
pub(super) struct Scratch(Vec<PathBuf>);

impl Scratch {
    /// Lets `model` lie beside `output`, unless its weights have a file already or are small.
    pub(super) fn of(model: &mut Model, output: &Path, limits: &Limits) -> Result<Self, onnx::Error> {
        let weights: usize = model.graph.initializers.iter().map(|tensor| tensor.bytes().len()).sum();
        if model.beside.folder().is_some() || weights < SMALLEST {
            return Ok(Self(Vec::new()));
        }
        let path = output.with_added_extension("baseline");
        let written = onnx::write_scratch(model, &path)?;
        let scratch = Self(std::iter::once(written.model).chain(written.external).collect());
        *model = onnx::read(&path, limits)?;
        Ok(scratch)
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        for file in &self.0 {
            if let Err(error) = std::fs::remove_file(file) {
                tracing::warn!("cannot remove {}: {error}", file.display());
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::Build;

    #[test]
    fn large_weights_lie_beside_the_model_until_the_work_is_over() {
        let folder = tempfile::tempdir().unwrap();
        let output = folder.path().join("candidate.onnx");
        let files = || std::fs::read_dir(folder.path()).unwrap().count();
        for (columns, large) in [(10, false), (SMALLEST / 4 / 256, true)] {
            let mut b = Build::opset(17);
            let (x, weights) = (b.input("x", &[-1, 256]), b.weights(&[256, columns]));
            let y = b.node("MatMul", &[&x, &weights]);
            let before = b.finish(&[&y]);
            let mut model = before.clone();
            let scratch = Scratch::of(&mut model, &output, &Limits::default()).unwrap();
            assert_eq!(model, before);
            assert_eq!(model.beside.folder().is_some(), large);
            assert_eq!(files(), if large { 2 } else { 0 });
            drop(scratch);
            assert_eq!(files(), 0);
        }
    }
}
