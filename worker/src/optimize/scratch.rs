//! Weights of a model in a file of their own, for as long as the model is worked on. Decides nothing about the model.
//!
//! Inside one protobuf they lie at any offset, and ONNX Runtime copies them for every session. Aligned and beside it they are mapped.

use crate::onnx::{self, Aside, Model};
use std::path::{Path, PathBuf};

/// Bytes of weights from which they are brought into a file: less is copied sooner than written.
const SMALLEST: usize = 8 << 20;

/// A file that is removed when the work is over.
#[derive(Debug)]
pub(super) struct Scratch {
    aside: Option<Aside>,
    file: Option<PathBuf>,
}

impl Scratch {
    /// Lets the weights of `model` lie beside `output`, unless they have a file already or are few.
    pub(super) fn of(model: &mut Model, output: &Path) -> Self {
        let weights: usize = model.graph.initializers.iter().map(|tensor| tensor.bytes().len()).sum();
        let inside = model.beside.folder().is_none() && weights >= SMALLEST;
        let aside = inside.then(|| onnx::lay_aside(model, &output.with_added_extension("baseline")));
        let file = aside.as_ref().map(|aside| aside.path().to_owned());
        Self { aside, file }
    }

    /// What must be written before the first session, once.
    pub(super) fn aside(&mut self) -> Option<Aside> {
        self.aside.take()
    }

    /// Removes the file.
    pub(super) fn remove(&mut self) {
        let Some(file) = self.file.take() else { return };
        match std::fs::remove_file(&file) {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
                tracing::warn!("cannot remove {}: {error}", file.display());
            }
            // Written or not, it is not there any more.
            _ => {}
        }
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        self.remove();
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
            let mut scratch = Scratch::of(&mut model, &output);
            assert_eq!(model, before);
            assert_eq!(model.beside.folder().is_some(), large);
            scratch.aside().inspect(|aside| aside.write().unwrap());
            assert_eq!(files(), usize::from(large));
            drop(scratch);
            assert_eq!(files(), 0);
        }
    }
}
