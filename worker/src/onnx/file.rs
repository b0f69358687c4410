//! Models in files: read within limits, written whole or not at all.

use super::{
    decode::{self, Context},
    encode::{self, Placement},
    error::Error,
    external::Folder,
    limits::{Budget, Limits},
    model::{Data, Model},
};
use crate::mapped;
use bytes::Bytes;
use rayon::prelude::*;
use rustix::fs::{Mode, OFlags};
use sha2::{Digest as _, Sha256};
use std::{
    fs::File,
    io::{self, Write as _},
    os::unix::fs::FileExt as _,
    path::{Path, PathBuf},
};

/// Bytes of weights from which they are written beside the protobuf, which itself cannot exceed 2 GiB.
const EXTERNAL_ABOVE: u64 = 1 << 30;
/// Tensors smaller than this always stay in the protobuf.
const EXTERNAL_TENSOR: usize = 1024;
/// Offsets of external tensors are multiples of this, so that runtimes can map them.
const ALIGNMENT: u64 = 4096;
/// Bytes that are written at once.
const PART: usize = 4 << 20;

/// What was written.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Written {
    /// The protobuf file.
    pub model: PathBuf,
    /// The external data file, where the weights did not fit.
    pub external: Option<PathBuf>,
    /// Bytes of both.
    pub bytes: u64,
}

/// Decodes a model from bytes; external data is refused.
pub fn from_bytes(bytes: &Bytes, limits: &Limits) -> Result<Model, Error> {
    within(bytes.len() as u64, limits)?;
    let budget = Budget::new(limits, bytes.len());
    decode::model(
        &mut Context {
            source: bytes,
            folder: None,
            budget,
        },
        bytes,
    )
}

/// Reads a model file and the external data beside it. The file must be regular; a link is refused.
pub fn read(path: &Path, limits: &Limits) -> Result<Model, Error> {
    let parent = path.parent().filter(|parent| !parent.as_os_str().is_empty());
    // A runtime is told of the folder and of the file by name.
    let own = path.to_str().and_then(|_| path.file_name()?.to_str());
    read_within(path, parent.unwrap_or(Path::new(".")), own, limits)
}

/// The same for a file that is soon removed, and whose external data lies in `folder`.
pub fn read_beside(path: &Path, folder: &Path, limits: &Limits) -> Result<Model, Error> {
    read_within(path, folder, None, limits)
}

fn read_within(path: &Path, folder: &Path, own: Option<&str>, limits: &Limits) -> Result<Model, Error> {
    let io = |action, source| Error::Io {
        action,
        path: path.to_owned(),
        source,
    };
    let flags = OFlags::RDONLY | OFlags::CLOEXEC | OFlags::NOFOLLOW | OFlags::NONBLOCK;
    let file = rustix::fs::open(path, flags, Mode::empty()).map_err(|errno| io("open", errno.into()))?;
    let file = File::from(file);
    let metadata = file.metadata().map_err(|source| io("read", source))?;
    if !metadata.is_file() {
        return Err(io(
            "read",
            io::Error::new(io::ErrorKind::InvalidInput, "not a regular file"),
        ));
    }
    within(metadata.len(), limits)?;
    let bytes = mapped::map(&file).map_err(|source| io("read", source))?;
    let mut folder = Folder::open(folder, limits.external_bytes, limits.external_files)?;
    let budget = Budget::new(limits, bytes.len());
    let mut model = decode::model(
        &mut Context {
            source: &bytes,
            folder: Some(&mut folder),
            budget,
        },
        &bytes,
    )?;
    model.beside = folder.into_beside(own.map(|name| (name, bytes)));
    Ok(model)
}

fn within(value: u64, limits: &Limits) -> Result<(), Error> {
    if value > limits.file_bytes {
        return Err(Error::Limit {
            what: "size of the model file in bytes",
            value,
            limit: limits.file_bytes,
        });
    }
    Ok(())
}

/// Encodes a model into one piece of memory, weights included.
pub fn to_bytes(model: &Model) -> Vec<u8> {
    encode::model(model, &Placement::new()).to_vec()
}

/// SHA-256 of a model's bytes with all weights inside, wherever they lie. Equal models have equal ones.
pub fn sha256(model: &Model) -> [u8; 32] {
    let mut hash = Sha256::new();
    encode::model(model, &Placement::new())
        .chunks()
        .for_each(|chunk| hash.update(chunk));
    hash.finalize().into()
}

/// Encodes a model into one piece of memory, without the weights that still lie in the files beside it: a runtime finds them there.
///
/// # Errors
///
/// More than 1 GiB of other weights: they fit neither there nor safely into one protobuf.
pub fn to_bytes_beside(model: &Model) -> Result<Vec<u8>, Error> {
    let placement = model.beside.placement(&model.graph);
    let inside = model
        .graph
        .initializers
        .iter()
        .filter(|tensor| !placement.contains_key(&tensor.name));
    let value = inside.map(|tensor| tensor.bytes().len() as u64).sum();
    if value > EXTERNAL_ABOVE {
        return Err(Error::Limit {
            what: "bytes of weights that a stage changed before another one calibrates",
            value,
            limit: EXTERNAL_ABOVE,
        });
    }
    Ok(encode::model(model, &placement).to_vec())
}

/// Writes a model to `path`, and its weights to `path` + `.data` where they are too many for one protobuf.
///
/// Both files appear under their names only when complete. Equal models give equal bytes. Nothing waits for the disk: whoever keeps the files sees to that.
pub fn write(model: &Model, path: &Path) -> Result<Written, Error> {
    write_with(model, path, EXTERNAL_ABOVE)
}

fn write_with(model: &Model, path: &Path, external_above: u64) -> Result<Written, Error> {
    let total: u64 = model
        .graph
        .initializers
        .iter()
        .map(|tensor| tensor.bytes().len() as u64)
        .sum();
    let (mut placement, mut external, mut bytes) = (Placement::new(), None, 0);
    if total > external_above {
        let data_path = path.with_added_extension("data");
        placement = place(model, &data_path);
        bytes += replace(&data_path, |file| write_external(&parts(model, &placement), file))?;
        external = Some(data_path);
    }
    let rope = encode::model(model, &placement);
    bytes += replace(path, |file| {
        let mut out = io::BufWriter::with_capacity(1 << 16, file);
        for piece in rope.chunks().flat_map(|chunk| chunk.chunks(PART)) {
            out.write_all(piece)?;
            // Unchanged weights, which were only mapped to be written.
            mapped::release(piece);
        }
        out.flush()?;
        Ok(rope.len() as u64)
    })?;
    Ok(Written {
        model: path.to_owned(),
        external,
        bytes,
    })
}

fn place(model: &Model, data_path: &Path) -> Placement {
    let file = data_path.file_name().unwrap_or_default().to_string_lossy().into_owned();
    let mut offset = 0_u64;
    let mut placement = Placement::new();
    for tensor in &model.graph.initializers {
        let Data::Raw(bytes) = &tensor.data else { continue };
        if bytes.len() >= EXTERNAL_TENSOR {
            offset = offset.next_multiple_of(ALIGNMENT);
            placement.insert(tensor.name.clone(), (file.clone(), offset));
            offset += bytes.len() as u64;
        }
    }
    placement
}

/// What is placed, with its offset.
fn parts(model: &Model, placement: &Placement) -> Vec<(u64, Bytes)> {
    let placed = model.graph.initializers.iter().filter_map(|tensor| match &tensor.data {
        Data::Raw(bytes) => Some((placement.get(&tensor.name)?.1, bytes.clone())),
        Data::Strings(_) => None,
    });
    placed.collect()
}

/// Writes side by side, each part where it belongs; what was written is no longer needed in memory. Gaps are zeros.
fn write_external(parts: &[(u64, Bytes)], file: &File) -> io::Result<u64> {
    let pieces: Vec<(u64, &[u8])> = parts
        .iter()
        .flat_map(|(offset, bytes)| (*offset..).step_by(PART).zip(bytes.chunks(PART)))
        .collect();
    pieces.par_iter().try_for_each(|&(offset, piece)| {
        file.write_all_at(piece, offset)?;
        mapped::release(piece);
        Ok::<_, io::Error>(())
    })?;
    Ok(pieces.last().map_or(0, |(offset, piece)| offset + piece.len() as u64))
}

/// Writes a neighbour of `path` and renames it into place.
fn replace(path: &Path, fill: impl FnOnce(&File) -> io::Result<u64>) -> Result<u64, Error> {
    let failed = |source| Error::Io {
        action: "write",
        path: path.to_owned(),
        source,
    };
    let partial = path.with_added_extension("partial");
    let write = || -> io::Result<u64> {
        let bytes = fill(&File::create(&partial)?)?;
        std::fs::rename(&partial, path)?;
        Ok(bytes)
    };
    write().map_err(failed)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        onnx::{Graph, Tensor},
        session::{self, Options, Session},
        testing::{Build, noise, runtime},
    };

    fn values(session: Result<Session, session::Error>, input: &[Tensor]) -> Vec<f32> {
        let mut values = Vec::new();
        let run = session.unwrap().run(input, |output| {
            values.extend(output.floats().unwrap_or_default());
            Ok::<_, session::Error>(())
        });
        run.unwrap();
        values
    }

    #[test]
    fn external_weights_round_trip() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("m.onnx");
        let values: Vec<f32> = (0..5000_u16).map(f32::from).collect();
        let initializers = vec![
            Tensor::floats("a", &[5000], &values).unwrap(),
            Tensor::floats("b", &[2], &[1.0, 2.0]).unwrap(),
            Tensor::floats("c", &[50, 100], &values).unwrap(),
        ];
        let model = Model {
            ir_version: 8,
            graph: Graph {
                initializers,
                ..Graph::default()
            },
            ..Model::default()
        };
        let written = write_with(&model, &path, 1000).unwrap();
        assert_eq!(
            written.external.as_deref(),
            Some(folder.path().join("m.onnx.data").as_path())
        );
        assert_eq!(read(&path, &Limits::default()).unwrap(), model);
        assert!(from_bytes(&std::fs::read(&path).unwrap().into(), &Limits::default()).is_err());
    }

    #[test]
    fn a_session_reads_weights_inside_the_models_own_file_at_any_offset() {
        let mut b = Build::opset(17);
        let (x, weights) = (b.input("x", &[2, 40]), b.weights(&[40, 50]));
        let y = b.node("MatMul", &[&x, &weights]);
        let mut model = b.finish(&[&y]);
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("m.onnx");
        let input = vec![Tensor::floats("x", &[2, 40], &noise(1, 80)).unwrap()];
        let options = Options::default();
        let expected = values(runtime().open_bytes(&to_bytes(&model), &options), &input);
        let mut places = std::collections::BTreeSet::new();
        for length in 1..=4 {
            model.graph.name = "g".repeat(length);
            write(&model, &path).unwrap();
            let model = read(&path, &Limits::default()).unwrap();
            places.extend(model.beside.placement(&model.graph).into_values().map(|(_, at)| at % 4));
            assert!(to_bytes_beside(&model).unwrap().len() < 1000);
            assert_eq!(values(runtime().open_model(&model, &options), &input), expected);
        }
        assert_eq!(places.len(), 4);
    }

    #[test]
    fn a_session_maps_weights_from_where_they_lie() {
        let mut b = Build::opset(17);
        let (x, kept) = (b.input("x", &[2, 40]), b.weights(&[40, 40]));
        let changed = b.weights(&[40, 30]);
        let y = b.node("MatMul", &[&x, &kept]);
        let z = b.node("MatMul", &[&y, &changed]);
        let whole = b.finish(&[&z]);
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("m.onnx");
        write_with(&whole, &path, 1000).unwrap();
        let mut model = read(&path, &Limits::default()).unwrap();
        assert_eq!(model.beside.folder(), Some(folder.path()));
        assert!(to_bytes_beside(&model).unwrap().len() < 1000);
        // A weight that a pass has changed is no longer in the file.
        let position = model
            .graph
            .initializers
            .iter()
            .position(|tensor| tensor.name == changed)
            .unwrap();
        let tensor = &mut model.graph.initializers[position];
        let twice: Vec<f32> = tensor.to_floats().unwrap().iter().map(|value| value * 2.0).collect();
        *tensor = Tensor::floats(&changed, &[40, 30], &twice).unwrap();
        let inside = to_bytes_beside(&model).unwrap().len();
        assert!((40 * 30 * 4..40 * 30 * 4 + 1000).contains(&inside), "{inside}");
        let input = vec![Tensor::floats("x", &[2, 40], &noise(1, 80)).unwrap()];
        let options = Options::default();
        let mapped = values(runtime().open_model(&model, &options), &input);
        let copied = values(runtime().open_bytes(&to_bytes(&model), &options), &input);
        assert_eq!(mapped.len(), 60);
        assert!(
            mapped.iter().zip(&copied).all(|(a, b)| (a - b).abs() <= 1e-5),
            "packed weights may sum in another order"
        );
    }
}
