//! Models and data sets that can't be used, in the journey's own registry. Each is wrong in one way only.

use std::{
    fs::{self, File},
    path::{Path, PathBuf},
};

use anyhow::{Context as _, Result};
use assayer_worker::onnx::{self, Limits};
use assayer_worker::storage::{self, Access, Location};
use parquet::arrow::{ArrowWriter, arrow_reader::ParquetRecordBatchReaderBuilder};
use xtask::{demo::World, example};

/// By digest, as they stand in a spec.
pub(super) struct Inputs {
    /// Bytes that are no model.
    pub(super) no_model: String,
    /// The example's model with an operator that nobody knows.
    pub(super) unknown_operator: String,
    /// A data set with the right columns and no row.
    pub(super) empty: String,
    /// A model of which the registry has other bytes than its digest says.
    pub(super) damaged: String,
    _damage: Damage,
}

/// Bytes that are put back in the end: the registry is kept from run to run.
struct Damage {
    path: PathBuf,
    former: Vec<u8>,
}

impl Drop for Damage {
    fn drop(&mut self) {
        if let Err(error) = fs::write(&self.path, &self.former) {
            panic!("put {} back: {error}", self.path.display());
        }
    }
}

/// The operator that nobody knows.
pub(super) const UNKNOWN: &str = "Frobnicate";

impl Inputs {
    pub(super) async fn make(world: &World) -> Result<Self> {
        let folder = tempfile::tempdir()?;
        let at = |name: &str| folder.path().join(name);
        let example = example::default_folder();

        let (no_model, unknown_operator, empty, damaged) = (
            at("no-model.onnx"),
            at("unknown.onnx"),
            at("empty.parquet"),
            at("damaged.onnx"),
        );
        fs::write(&no_model, "These bytes are no model.")?;
        let mut model = onnx::read(&example.join("magika.onnx"), &Limits::default())?;
        let node = model.graph.nodes.first_mut().context("the model has no node")?;
        UNKNOWN.clone_into(&mut node.op_type);
        fs::write(&unknown_operator, onnx::to_bytes(&model))?;
        without_rows(&example.join("evaluation.parquet"), &empty)?;
        fs::write(&damaged, "These bytes are damaged on their way.")?;

        let (damaged, damage) = damage(world, &damaged).await?;
        Ok(Self {
            no_model: push(world, &no_model).await?.0,
            unknown_operator: push(world, &unknown_operator).await?.0,
            empty: push(world, &empty).await?.0,
            damaged,
            _damage: damage,
        })
    }
}

/// The same columns, and no row.
fn without_rows(like: &Path, path: &Path) -> Result<()> {
    let schema = ParquetRecordBatchReaderBuilder::try_new(File::open(like)?)?
        .schema()
        .clone();
    ArrowWriter::try_new(File::create(path)?, schema, None)?.close()?;
    Ok(())
}

/// Pushes a file; gives its URI and the digest of its one layer.
async fn push(world: &World, path: &Path) -> Result<(String, String)> {
    let packed = storage::pack(path)?;
    let host = world.registry.host().to_owned();
    let location = Location::parse(&format!("oci://{}/trials/inputs", world.registry.prefix))?;
    let access = Access {
        plain_http: vec![host],
        ..Access::default()
    };
    let tag = path
        .file_stem()
        .and_then(|stem| stem.to_str())
        .context("the file has no name")?;
    let pushed = storage::push(&packed, &location, tag, &access).await?;
    Ok((pushed.uri, packed.layer_digest.hex().to_owned()))
}

/// Pushes a file, then changes one byte of its layer where the registry keeps it.
async fn damage(world: &World, path: &Path) -> Result<(String, Damage)> {
    let (uri, layer) = push(world, path).await?;
    let cluster = world.cluster().context("the journey has a cluster of its own")?;
    let blob = cluster
        .registry_storage()
        .join("docker/registry/v2/blobs/sha256")
        .join(&layer[..2])
        .join(&layer)
        .join("data");
    let former = fs::read(&blob).with_context(|| format!("read {}", blob.display()))?;
    let mut changed = former.clone();
    let last = changed.last_mut().context("the layer is empty")?;
    *last ^= 1;
    fs::write(&blob, changed)?;
    Ok((uri, Damage { path: blob, former }))
}
