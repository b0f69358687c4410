//! `publish`: the candidate's files to a registry by digest, or to a folder in a local run.
//!
//! Has the credentials for pushing and never parses a model. What it says it published it has read back.

use std::path::{Path, PathBuf};

use assayer_crds::contract::{Made, MakePlan, Runtime};
use assayer_crds::digest::canonical;
use assayer_crds::names;

use super::block_on;
use super::optimize::{MODEL, NOTE, OptimizeNote};
use crate::failure::{Result, bug, disk, reasons, refused};
use crate::layout::{Layout, clear, read_note};
use crate::storage::{self, Access, Location, Packed, candidate_tag};

/// Publishes what `optimize` left.
pub(super) fn publish(plan: &MakePlan, layout: &Layout, access: &Access) -> Result<(Runtime, Made)> {
    let note: OptimizeNote = read_note(&layout.out().join(NOTE))?;
    let mut packed = storage::pack_folder(&layout.out().join(MODEL))?;
    if packed.model_digest != note.model_digest {
        return Err(bug(format!(
            "the candidate changed between optimize ({}) and publish ({})",
            note.model_digest, packed.model_digest
        )));
    }
    let (uri, tag) = if layout.is_local() && !plan.output.contains("://") {
        let tag = candidate_tag(&plan.candidate, &packed.artifact_digest);
        let folder = copy(&packed, Path::new(&plan.output), &tag)?;
        (folder.display().to_string(), tag)
    } else {
        let location = Location::parse(&plan.output)?;
        if location.tag.is_some() || location.digest.is_some() {
            let message = format!(
                "output.uri `{}` names a tag or digest: name the repository only",
                plan.output
            );
            return Err(refused(reasons::PLAN_INVALID, message));
        }
        let recipe = canonical(&note.recipe).map_err(|error| bug(format!("the recipe is no JSON: {error}")))?;
        packed = packed.annotated(names::RECIPE, &String::from_utf8_lossy(&recipe))?;
        let tag = candidate_tag(&plan.candidate, &packed.artifact_digest);
        (block_on(storage::push(&packed, &location, &tag, access))?.uri, tag)
    };
    tracing::info!(%uri, %tag, "candidate is published");
    let made = Made {
        uri,
        tag,
        artifact_digest: packed.artifact_digest.clone(),
        model_digest: packed.model_digest.clone(),
        baseline_digest: note.baseline_digest,
        bytes: packed.bytes(),
        files: packed.files,
        opset: note.opset,
        passes: note.passes,
        calibration_rows: note.calibration_rows,
        seconds: note.seconds,
        peak_memory_bytes: note.peak_memory_bytes,
        recipe: Some(note.recipe),
    };
    Ok((note.runtime, made))
}

/// Copies the candidate into a folder of its own below `output`.
fn copy(packed: &Packed, output: &Path, tag: &str) -> Result<PathBuf> {
    let folder = output.join(tag);
    clear(&folder)?;
    for file in &packed.files {
        let target = folder.join(&file.path);
        if let Some(parent) = target.parent() {
            std::fs::create_dir_all(parent).map_err(|error| disk("create", parent, &error))?;
        }
        std::fs::copy(packed.folder.join(&file.path), &target).map_err(|error| disk("write", &target, &error))?;
    }
    Ok(folder)
}
