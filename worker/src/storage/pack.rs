//! Files to an image-shaped artifact: one uncompressed layer, sorted, times and owners zero.
//!
//! Decides every byte of layer, config and manifest, so that equal files, with equal annotations, give equal digests everywhere. containerd mounts
//! exactly this shape as a volume; raw and ModelPack-shaped artifacts it mounts as an empty folder. Sends nothing.

use std::collections::VecDeque;
use std::fs::File;
use std::io::{self, Read as _};
use std::path::{Path, PathBuf};

use assayer_crds::digest::{Digest, ModelFile, canonical, model_digest};
use bytes::Bytes;
use serde_json::{Value, json};
use sha2::{Digest as _, Sha256};

use super::Error;
use super::files;
use super::unpack::{Limits, relative};

/// Media type of configs that containerd unpacks.
pub(super) const CONFIG_TYPE: &str = "application/vnd.oci.image.config.v1+json";
/// Media type of manifests.
pub(super) const MANIFEST_TYPE: &str = "application/vnd.oci.image.manifest.v1+json";
/// Media type of layers as they are written.
pub(super) const LAYER_TYPE: &str = "application/vnd.oci.image.layer.v1.tar";

const BLOCK: u64 = 512;
const CHUNK: usize = 1024 * 1024;

/// An artifact, ready to be sent.
#[derive(Clone, Debug)]
pub struct Packed {
    /// Folder that `files` are relative to.
    pub folder: PathBuf,
    /// The files, sorted.
    pub files: Vec<ModelFile>,
    /// Digest over the files.
    pub model_digest: Digest,
    /// Digest of the layer.
    pub layer_digest: Digest,
    /// Bytes of the layer.
    pub layer_bytes: u64,
    /// The image config.
    pub config: Vec<u8>,
    /// The manifest.
    pub manifest: Vec<u8>,
    /// Digest of the manifest: what pods name.
    pub artifact_digest: Digest,
}

/// Packs a folder.
pub fn folder(path: &Path) -> Result<Packed, Error> {
    pack(path, files::list(path, Limits::default())?)
}

/// Packs one file under its own name.
pub fn file(path: &Path) -> Result<Packed, Error> {
    let name = path.file_name().and_then(|name| name.to_str()).unwrap_or_default();
    let parent = path.parent().unwrap_or(Path::new(""));
    pack(parent, vec![files::hash(path, name.to_owned())?])
}

fn pack(folder: &Path, files: Vec<ModelFile>) -> Result<Packed, Error> {
    let refused = |reason: String| Error::Refused {
        uri: folder.display().to_string(),
        reason,
    };
    if files.is_empty() {
        return Err(refused("there is no file to publish".into()));
    }
    for file in &files {
        relative(file.path.as_bytes()).map_err(|why| refused(format!("the name `{}` {why}", file.path)))?;
    }
    let mut hash = Sha256::new();
    let mut layer_bytes = 0;
    for chunk in Layer::new(folder, &files) {
        let chunk = chunk.map_err(Error::disk("pack", folder))?;
        hash.update(&chunk);
        layer_bytes += chunk.len() as u64;
    }
    let layer_digest = Digest::from_hash(hash.finalize().into());
    let json = |value| canonical(&value).map_err(|error| refused(error.to_string()));
    // Models run on every architecture; the field is required and containerd ignores it when it mounts a volume.
    let config = json(json!({
        "architecture": "amd64",
        "os": "linux",
        "config": {},
        "rootfs": {"type": "layers", "diff_ids": [layer_digest]},
    }))?;
    let manifest = json(manifest(&config, &layer_digest, layer_bytes))?;
    Ok(Packed {
        folder: folder.to_owned(),
        model_digest: model_digest(&files),
        files,
        layer_digest,
        layer_bytes,
        artifact_digest: Digest::of(&manifest),
        config,
        manifest,
    })
}

fn manifest(config: &[u8], layer_digest: &Digest, layer_bytes: u64) -> Value {
    json!({
        "schemaVersion": 2,
        "mediaType": MANIFEST_TYPE,
        "config": {"mediaType": CONFIG_TYPE, "digest": Digest::of(config), "size": config.len()},
        "layers": [{"mediaType": LAYER_TYPE, "digest": layer_digest, "size": layer_bytes}],
    })
}

impl Packed {
    /// The same with one annotation on the manifest, and therefore another artifact digest.
    pub fn annotated(self, key: &str, value: &str) -> Result<Self, Error> {
        let mut manifest = manifest(&self.config, &self.layer_digest, self.layer_bytes);
        manifest["annotations"] = json!({key: value});
        let manifest = canonical(&manifest).map_err(|error| Error::Refused {
            uri: self.folder.display().to_string(),
            reason: error.to_string(),
        })?;
        Ok(Self {
            artifact_digest: Digest::of(&manifest),
            manifest,
            ..self
        })
    }

    /// The layer's bytes, made anew from the files: nothing is kept in memory or written twice.
    pub fn layer(&self) -> Layer {
        Layer::new(&self.folder, &self.files)
    }

    /// Sum of the files' sizes.
    pub fn bytes(&self) -> u64 {
        self.files.iter().map(|file| file.size).sum()
    }
}

/// The bytes of a layer, chunk by chunk.
pub struct Layer {
    folder: PathBuf,
    files: VecDeque<ModelFile>,
    state: State,
}

enum State {
    Between,
    Inside { file: File, left: u64, padding: u64 },
    Padding(u64),
    End,
}

impl Layer {
    fn new(folder: &Path, files: &[ModelFile]) -> Self {
        Self {
            folder: folder.to_owned(),
            files: files.iter().cloned().collect(),
            state: State::Between,
        }
    }

    fn step(&mut self) -> io::Result<Option<Bytes>> {
        loop {
            match &mut self.state {
                State::End => return Ok(None),
                State::Between => {
                    let Some(next) = self.files.pop_front() else {
                        self.state = State::End;
                        return Ok(Some(Bytes::from_static(&[0; 1024])));
                    };
                    let file = File::open(self.folder.join(&next.path))?;
                    let padding = (BLOCK - next.size % BLOCK) % BLOCK;
                    self.state = State::Inside {
                        file,
                        left: next.size,
                        padding,
                    };
                    return Ok(Some(Bytes::copy_from_slice(header(&next)?.as_bytes())));
                }
                State::Inside { left: 0, padding, .. } => self.state = State::Padding(*padding),
                State::Inside { file, left, .. } => {
                    let wanted = usize::try_from(*left).unwrap_or(CHUNK).min(CHUNK);
                    let mut chunk = vec![0; wanted];
                    file.read_exact(&mut chunk)?;
                    *left -= wanted as u64;
                    return Ok(Some(chunk.into()));
                }
                State::Padding(padding) => {
                    let zeros = vec![0; usize::try_from(*padding).unwrap_or(0)];
                    self.state = State::Between;
                    if !zeros.is_empty() {
                        return Ok(Some(zeros.into()));
                    }
                }
            }
        }
    }
}

impl Iterator for Layer {
    type Item = io::Result<Bytes>;

    fn next(&mut self) -> Option<Self::Item> {
        let step = self.step();
        if step.is_err() {
            self.state = State::End;
        }
        step.transpose()
    }
}

fn header(file: &ModelFile) -> io::Result<tar::Header> {
    let mut header = tar::Header::new_ustar();
    header.set_path(&file.path)?;
    header.set_size(file.size);
    header.set_mode(0o644);
    header.set_uid(0);
    header.set_gid(0);
    header.set_mtime(0);
    header.set_entry_type(tar::EntryType::Regular);
    header.set_cksum();
    Ok(header)
}

#[cfg(test)]
mod tests {
    use super::super::unpack::Unpacker;
    use super::*;

    #[test]
    fn what_is_packed_unpacks_to_the_same_files_and_depends_on_nothing_else() {
        let one = tempfile::tempdir().unwrap();
        let two = tempfile::tempdir().unwrap();
        for (folder, order) in [(&one, ["sub/w.bin", "model.onnx"]), (&two, ["model.onnx", "sub/w.bin"])] {
            std::fs::create_dir(folder.path().join("sub")).unwrap();
            for name in order {
                std::fs::write(folder.path().join(name), name.repeat(100)).unwrap();
            }
        }
        let packed = super::folder(one.path()).unwrap();
        assert_eq!(
            packed.artifact_digest,
            super::folder(two.path()).unwrap().artifact_digest
        );
        let layer: Vec<u8> = packed.layer().flat_map(|chunk| chunk.unwrap()).collect();
        assert_eq!(
            (layer.len() as u64, Digest::of(&layer)),
            (packed.layer_bytes, packed.layer_digest.clone())
        );
        let out = tempfile::tempdir().unwrap();
        Unpacker::new("u", out.path(), Limits::default())
            .layer(&layer[..], false)
            .unwrap();
        assert_eq!(files::list(out.path(), Limits::default()).unwrap(), packed.files);
        let annotated = packed.clone().annotated("a", "1").unwrap();
        assert_ne!(annotated.artifact_digest, packed.artifact_digest);
        assert_eq!(
            (&annotated.model_digest, &annotated.config),
            (&packed.model_digest, &packed.config)
        );
        let manifest: Value = serde_json::from_slice(&annotated.manifest).unwrap();
        assert_eq!(manifest["annotations"], json!({"a": "1"}));
        std::fs::write(one.path().join("model.onnx"), "changed").unwrap();
        assert_ne!(
            packed.artifact_digest,
            super::folder(one.path()).unwrap().artifact_digest
        );
    }

    #[test]
    fn a_file_that_shrinks_while_it_is_sent_is_an_error() {
        let folder = tempfile::tempdir().unwrap();
        std::fs::write(folder.path().join("m.onnx"), "long enough").unwrap();
        let packed = file(&folder.path().join("m.onnx")).unwrap();
        std::fs::write(folder.path().join("m.onnx"), "x").unwrap();
        assert!(packed.layer().any(|chunk| chunk.is_err()));
        assert!(
            super::folder(tempfile::tempdir().unwrap().path()).is_err(),
            "nothing to publish"
        );
    }
}
