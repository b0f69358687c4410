//! What is asked: the manifest, checked as a cluster would check it, with its local files found and named by digest.
//!
//! Decides which form of the spec goes where: `runnable` to the workers, `stated` into the evidence. Never parses models or data.

use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result, bail, ensure};
use assayer_crds::digest::Digest;
use assayer_crds::optimization::Environment;
use assayer_crds::{ModelOptimization, ModelOptimizationSpec};
use assayer_worker::storage;
use kube::ResourceExt as _;

use crate::manifest::{Manifest, OCI, URIS, dotted, there};

/// A manifest that can be carried out.
#[derive(Debug)]
pub(super) struct Input {
    /// The object's name.
    pub(super) name: String,
    /// The spec with absolute paths: what workers are asked with. Its output is set by whoever runs them, where that is local.
    pub(super) runnable: ModelOptimizationSpec,
    /// The spec with every local file named by digest: what evidence states.
    pub(super) stated: ModelOptimizationSpec,
    /// Digest of the baseline, where it is local.
    pub(super) baseline: Option<Digest>,
    /// Where results go on this machine.
    pub(super) output: PathBuf,
    /// Whether candidates are also pushed.
    pub(super) pushes: bool,
    local: Vec<LocalFile>,
}

/// A file or folder of this machine, as it was when the run began.
#[derive(Debug)]
struct LocalFile {
    field: &'static str,
    path: PathBuf,
    digest: Digest,
}

/// Reads, checks and resolves a manifest.
pub(super) fn read(file: &Path, output: Option<&Path>) -> Result<Input> {
    let manifest = Manifest::read(file)?;
    let optimization = manifest.checked(|uri| !uri.starts_with(OCI))?;
    let name = optimization.name_any();
    ensure!(!name.is_empty(), "{}: metadata.name is missing", manifest.name);
    ensure!(
        !optimization.spec.suspend,
        "{}: spec.suspend is true: remove it to start the work",
        manifest.name
    );
    resolve(&manifest, optimization, name, output)
}

fn resolve(manifest: &Manifest, optimization: ModelOptimization, name: String, output: Option<&Path>) -> Result<Input> {
    let (mut runnable, mut stated) = (optimization.spec.clone(), optimization.spec);
    let mut local = Vec::new();
    let mut baseline = None;
    for (index, field) in URIS[..3].iter().enumerate() {
        let (Some(run), Some(state)) = (uri(&mut runnable, index), uri(&mut stated, index)) else {
            continue;
        };
        if run.starts_with(OCI) {
            continue;
        }
        let path = std::path::absolute(manifest.local(run))?;
        let digest = digest(field, &path)?;
        *state = format!("{state}@{digest}");
        let text = path.to_str();
        text.with_context(|| format!("{}: {} is not UTF-8", dotted(field), path.display()))?
            .clone_into(run);
        if index == 0 {
            baseline = Some(digest.clone());
        }
        local.push(LocalFile { field, path, digest });
    }
    let pushes = runnable.output.uri.starts_with(OCI);
    let output = match output {
        Some(folder) => folder.to_owned(),
        None if pushes => bail!(
            "spec.output.uri is {}: say where evidence goes on this machine with --output DIR",
            runnable.output.uri
        ),
        None => manifest.local(&runnable.output.uri),
    };
    Ok(Input {
        name,
        runnable,
        stated,
        baseline,
        output,
        pushes,
        local,
    })
}

fn uri(spec: &mut ModelOptimizationSpec, index: usize) -> Option<&mut String> {
    match index {
        0 => Some(&mut spec.model.uri),
        1 => spec.data.calibration.as_mut().map(|calibration| &mut calibration.uri),
        _ => Some(&mut spec.data.evaluation.uri),
    }
}

fn digest(field: &str, path: &Path) -> Result<Digest> {
    there(field, path)?;
    Ok(storage::pack(path)
        .with_context(|| format!("{}: {}", dotted(field), path.display()))?
        .model_digest)
}

impl Input {
    /// Refuses when a local file is not what it was when the run began: evidence names it by its digest.
    pub(super) fn unchanged(&self) -> Result<()> {
        for file in &self.local {
            let now = digest(file.field, &file.path)?;
            ensure!(
                now == file.digest,
                "{} changed while the run went on ({} then, {now} now): run again",
                file.path.display(),
                file.digest
            );
        }
        Ok(())
    }
}

/// Whole cores of an environment's CPU limit, at least one; none where it has no limit.
pub(super) fn cores(environment: &Environment) -> Option<u32> {
    let limit = environment.pod.as_ref()?.resources.as_ref()?.limits.get("cpu")?;
    let cores = match limit.0.strip_suffix('m') {
        Some(thousandths) => thousandths.parse::<f64>().ok()? / 1000.0,
        None => limit.0.parse().ok()?,
    };
    #[expect(
        clippy::cast_possible_truncation,
        clippy::cast_sign_loss,
        reason = "clamped to small positive numbers"
    )]
    let whole = cores.floor().clamp(1.0, 4096.0) as u32;
    Some(whole)
}
