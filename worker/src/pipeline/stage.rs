//! `stage`: fetches models and data by digest, checks them, and splits inputs from labels.
//!
//! Has the credentials for pulling and sees everything, so it never loads a model. What it leaves for the others is
//! complete or not there.

use std::os::unix::fs::MetadataExt as _;
use std::path::Path;

use assayer_crds::contract::{MakePlan, MeasurePlan, ModelSource};
use assayer_crds::digest::Digest;

use super::block_on;
use crate::data::{self, Fingerprints, Split};
use crate::deadline::Start;
use crate::failure::{Failure, Result, disk};
use crate::layout::{Layout, clear, write_note};
use crate::score::{STAGED, StagedModel, StagedModels};
use crate::storage::{self, Access, Error, Fetched};
use crate::threads::joined;

/// Where data sets lie until they are split.
const SCRATCH: &str = "fetched";
/// Beside the staged calibration rows: the digest over the files that they came from.
pub(super) const CALIBRATION: &str = "calibration.json";
/// The model as delivered; people know it as `model.uri`.
const BASELINE: &str = "baseline";
/// Its digest, for `optimize`: taken by the one role that never loads a model.
pub(super) const DIGEST: &str = "baseline.json";

/// Stages a make job: the baseline, and calibration rows without labels.
pub(super) fn make(plan: &MakePlan, layout: &Layout, access: &Access) -> Result<()> {
    let start = Start::now();
    let inputs = layout.inputs();
    clear(&inputs)?;
    let baseline = model(&plan.baseline, BASELINE, &layout.baseline(), layout, access)?;
    if let Some(calibration) = &plan.calibration {
        let into = inputs.as_path();
        let (rows, digest) = with_data(&calibration.uri, into, layout, access, |parquet| {
            let most = Some(u64::from(calibration.samples));
            data::split(
                parquet,
                &Split {
                    inputs: &plan.inputs,
                    label: None,
                    most,
                    forbidden: None,
                    into,
                },
            )
        })
        .map_err(|failure| about("data.calibration", &failure))?;
        tracing::info!(rows, %digest, "calibration data is staged");
        write_note(&inputs.join(CALIBRATION), &digest)?;
    }
    write_note(&inputs.join(DIGEST), &baseline.model_digest)?;
    start.leave(&inputs)
}

/// Stages a measure job: both models, evaluation inputs for `run` and labels for `score`.
pub(super) fn measure(plan: &MeasurePlan, layout: &Layout, access: &Access) -> Result<()> {
    let start = Start::now();
    let (inputs, labels) = (layout.inputs(), layout.labels());
    clear(&inputs)?;
    clear(&labels)?;
    let baseline = model(&plan.baseline, BASELINE, &layout.baseline(), layout, access)?;
    let candidate = plan.candidate.as_ref();
    let candidate = candidate
        .map(|source| model(source, "candidate", &layout.candidate(), layout, access))
        .transpose()?;
    // Data with labels is never put into a folder that `run` sees, not even for a moment.
    let forbidden: Option<Fingerprints> = match &plan.disjoint_from {
        Some(uri) => {
            let found = with_data(uri, &labels, layout, access, |parquet| {
                data::fingerprints(parquet, &plan.inputs)
            });
            let (found, _) = found.map_err(|failure| about("data.calibration", &failure))?;
            Some(found)
        }
        None => None,
    };
    let (rows, _) = with_data(&plan.evaluation, &labels, layout, access, |parquet| {
        let split = Split {
            inputs: &plan.inputs,
            label: Some((&plan.label, &labels)),
            most: None,
            forbidden: forbidden.as_ref(),
            into: &inputs,
        };
        data::split(parquet, &split)
    })
    .map_err(|failure| about("data.evaluation", &failure))?;
    tracing::info!(rows, "evaluation data is staged");
    write_note(
        &labels.join(STAGED),
        &StagedModels {
            baseline,
            candidate,
            rows,
        },
    )?;
    start.leave(&labels)?;
    start.leave(&inputs)
}

/// Fetches a model and checks that it is the one that was asked for.
fn model(source: &ModelSource, name: &str, into: &Path, layout: &Layout, access: &Access) -> Result<StagedModel> {
    clear(into)?;
    let field = if name == BASELINE { "model.uri" } else { name };
    let fetched = fetch(&source.uri, into, layout, access).map_err(|failure| about(field, &failure))?;
    storage::single(into, "onnx", fetched.names(), &source.uri).map_err(|error| about(field, &error.into()))?;
    if let Some(expected) = source
        .model_digest
        .as_ref()
        .filter(|expected| **expected != fetched.model_digest)
    {
        let mismatch = Error::DigestMismatch {
            what: format!("model digest of the {name}, {}", source.uri),
            expected: expected.to_string(),
            actual: fetched.model_digest.to_string(),
        };
        return Err(mismatch.into());
    }
    let bytes = fetched.files.iter().map(|file| file.size).sum();
    tracing::info!(name, digest = %fetched.model_digest, bytes, "model is staged");
    Ok(StagedModel {
        model_digest: fetched.model_digest,
        files: fetched.files.len() as u64,
        bytes,
    })
}

/// Reads a data set, with the digest over its files. A local file is read where it lies; what else there is, is fetched into a folder inside
/// `beside` and removed again.
fn with_data<T>(
    uri: &str,
    beside: &Path,
    layout: &Layout,
    access: &Access,
    read: impl FnOnce(&Path) -> Result<T, Failure>,
) -> Result<(T, Digest)> {
    if let Some(file) = storage::local_file(uri, layout.is_local())? {
        return in_place(uri, &file, read);
    }
    let scratch = beside.join(SCRATCH);
    clear(&scratch)?;
    let fetched = fetch(uri, &scratch, layout, access)?;
    let parquet = storage::single(&scratch, "parquet", fetched.names(), uri)?;
    let result = read(&parquet);
    std::fs::remove_dir_all(&scratch).map_err(|error| disk("remove", &scratch, &error))?;
    Ok((result?, fetched.model_digest))
}

/// Reads a file while a second thread takes its digest. A file that changes meanwhile is refused: the digest could be another's.
fn in_place<T>(uri: &str, file: &Path, read: impl FnOnce(&Path) -> Result<T, Failure>) -> Result<(T, Digest)> {
    let name = file.file_name().and_then(|name| name.to_str());
    storage::single(file.parent().unwrap_or(file), "parquet", name, uri)?;
    let stamp = || {
        let found = std::fs::metadata(file).map_err(|error| disk("inspect", file, &error))?;
        let (modified, changed) = ((found.mtime(), found.mtime_nsec()), (found.ctime(), found.ctime_nsec()));
        Ok::<_, Failure>((found.dev(), found.ino(), found.len(), modified, changed))
    };
    let before = stamp()?;
    let (result, described) = std::thread::scope(|scope| {
        let described = scope.spawn(|| storage::describe(file));
        let result = read(file);
        (result, joined(described))
    });
    let (result, described) = (result?, described?);
    if stamp()? != before {
        let reason = "it changed while it was read: try again once nothing writes to it".to_owned();
        return Err(Error::Refused {
            uri: uri.to_owned(),
            reason,
        }
        .into());
    }
    Ok((result, described.model_digest))
}

fn fetch(uri: &str, into: &Path, layout: &Layout, access: &Access) -> Result<Fetched> {
    block_on(storage::fetch(uri, into, layout.is_local(), access))
}

/// Says which field of the plan a failure is about.
fn about(what: &str, failure: &Failure) -> Failure {
    crate::failure::failure(failure.class, &failure.reason, format!("{what}: {}", failure.message))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_that_changes_while_it_is_read_is_refused() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("rows.parquet");
        std::fs::write(&file, "rows").unwrap();
        let (read, digest) = in_place("u", &file, |file| Ok(std::fs::read(file).unwrap())).unwrap();
        assert_eq!(
            (read.as_slice(), &digest),
            (&b"rows"[..], &storage::describe(&file).unwrap().model_digest)
        );
        let changed = in_place("u", &file, |file| {
            std::fs::write(file, "more rows").unwrap();
            Ok(())
        });
        assert!(changed.unwrap_err().message.contains("it changed while it was read"));
        let other = folder.path().join("rows.csv");
        std::fs::write(&other, "rows").unwrap();
        let refused = in_place("u", &other, |_| Ok(())).unwrap_err();
        assert!(refused.message.contains("no *.parquet"), "{}", refused.message);
    }
}
