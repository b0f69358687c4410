//! Where things lie: under `/assayer` in a pod, under a private folder in a local run.
//!
//! Decides paths and what a plan must look like to be read at all. Never looks into models or data.

use std::fs::File;
use std::io::Read as _;
use std::path::{Path, PathBuf};

use assayer_crds::contract::{CONTRACT_VERSION, ROOT, WorkerPlan, paths};
use assayer_crds::digest::Digest;
use serde::Serialize;
use serde::de::DeserializeOwned;

use crate::failure::{Result, bug, disk, reasons, refused};

/// Most bytes of a plan (the contract's annotation is smaller by far).
const MAX_PLAN_BYTES: u64 = 128 * 1024;
/// Most bytes of a note that one container leaves for the next.
const MAX_NOTE_BYTES: u64 = 4 * 1024 * 1024;

/// Name of the folder of calibration tables.
const TABLES: &str = "tables";

/// The folders that the containers of one job share.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Layout {
    /// Root of everything; `/assayer` in a pod.
    pub root: PathBuf,
}

impl Layout {
    /// The layout of a worker pod.
    pub fn pod() -> Self {
        Self { root: ROOT.into() }
    }

    /// A private folder on the user's own machine; only there may URIs be paths.
    pub fn local(root: impl Into<PathBuf>) -> Self {
        Self { root: root.into() }
    }

    /// Whether this is a local run. In a pod a path would read the node's or the image's files, so it is refused.
    pub fn is_local(&self) -> bool {
        self.root != Path::new(ROOT)
    }

    /// The plan.
    pub fn plan(&self) -> PathBuf {
        self.root.join(paths::PLAN)
    }

    /// The baseline's files.
    pub fn baseline(&self) -> PathBuf {
        self.root.join(paths::BASELINE)
    }

    /// The candidate's files in a measure job.
    pub fn candidate(&self) -> PathBuf {
        self.root.join(paths::CANDIDATE)
    }

    /// Inputs without labels.
    pub fn inputs(&self) -> PathBuf {
        self.root.join(paths::INPUTS)
    }

    /// Labels, and what `stage` tells `score`.
    pub fn labels(&self) -> PathBuf {
        self.root.join(paths::LABELS)
    }

    /// The optimized model and the optimizer's notes.
    pub fn out(&self) -> PathBuf {
        self.root.join(paths::OUT)
    }

    /// Calibration tables from earlier runs, and for later ones; only where a local run put the folder there.
    pub fn tables(&self) -> PathBuf {
        self.root.join(TABLES)
    }

    /// Predictions and timings.
    pub fn predictions(&self) -> PathBuf {
        self.root.join(paths::PREDICTIONS)
    }

    /// Credentials for pulling.
    pub fn pull_secret(&self) -> PathBuf {
        self.root.join(paths::PULL_SECRET)
    }

    /// Credentials for pushing.
    pub fn push_secret(&self) -> PathBuf {
        self.root.join(paths::PUSH_SECRET)
    }
}

/// A plan and the digest of its bytes as they were mounted.
#[derive(Clone, Debug, PartialEq)]
pub struct MountedPlan {
    /// What is asked.
    pub plan: WorkerPlan,
    /// sha256 of the file.
    pub sha256: Digest,
}

/// Reads and checks the plan.
pub fn read_plan(layout: &Layout) -> Result<MountedPlan> {
    let path = layout.plan();
    let invalid = |why: String| refused(reasons::PLAN_INVALID, format!("plan {}: {why}", path.display()));
    let bytes = read_capped(&path, MAX_PLAN_BYTES).map_err(invalid)?;
    // The version is read first, so that another version is named as such and not as an unknown field.
    let version = serde_json::from_slice::<serde_json::Value>(&bytes)
        .map_err(|error| invalid(error.to_string()))?
        .get("v")
        .and_then(serde_json::Value::as_u64);
    if version != Some(u64::from(CONTRACT_VERSION)) {
        let found = version.map_or_else(|| "none".to_owned(), |v| v.to_string());
        return Err(invalid(format!(
            "contract version is {found}, this worker speaks {CONTRACT_VERSION}: use the worker image of the operator's release"
        )));
    }
    let plan: WorkerPlan = serde_json::from_slice(&bytes).map_err(|error| invalid(error.to_string()))?;
    let hex = |b: u8| b.is_ascii_digit() || (b'a'..=b'f').contains(&b);
    if plan.nonce.len() != 32 || !plan.nonce.bytes().all(hex) {
        return Err(invalid("nonce is not 32 lower-case hex digits".into()));
    }
    if plan.deadline_seconds == 0 {
        return Err(invalid("deadlineSeconds is 0: give at least 1".into()));
    }
    Ok(MountedPlan {
        plan,
        sha256: Digest::of(&bytes),
    })
}

/// Leaves `note` as JSON at `path` for the next container.
pub fn write_note<T: Serialize>(path: &Path, note: &T) -> Result<()> {
    let bytes = serde_json::to_vec(note).map_err(|error| bug(format!("note {}: {error}", path.display())))?;
    std::fs::write(path, bytes).map_err(|error| disk("write", path, &error))
}

/// Reads what the container before left at `path`.
pub fn read_note<T: DeserializeOwned>(path: &Path) -> Result<T> {
    let bytes = read_capped(path, MAX_NOTE_BYTES).map_err(|why| bug(format!("note {}: {why}", path.display())))?;
    serde_json::from_slice(&bytes).map_err(|error| bug(format!("note {}: {error}", path.display())))
}

/// Makes `folder` exist and be empty (it may be a mount point, so it is not replaced).
pub fn clear(folder: &Path) -> Result<()> {
    let failed = |error: std::io::Error| disk("clear", folder, &error);
    std::fs::create_dir_all(folder).map_err(failed)?;
    for entry in std::fs::read_dir(folder).map_err(failed)? {
        let entry = entry.map_err(failed)?;
        if entry.file_type().map_err(failed)?.is_dir() {
            std::fs::remove_dir_all(entry.path()).map_err(failed)?;
        } else {
            std::fs::remove_file(entry.path()).map_err(failed)?;
        }
    }
    Ok(())
}

fn read_capped(path: &Path, limit: u64) -> Result<Vec<u8>, String> {
    let mut bytes = Vec::new();
    let file = File::open(path).map_err(|error| error.to_string())?;
    file.take(limit + 1)
        .read_to_end(&mut bytes)
        .map_err(|error| error.to_string())?;
    if bytes.len() as u64 > limit {
        return Err(format!("more than {limit} bytes"));
    }
    Ok(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn plan_with(text: &str) -> Result<MountedPlan> {
        let folder = tempfile::tempdir().unwrap();
        let layout = Layout::local(folder.path());
        std::fs::create_dir_all(layout.plan().parent().unwrap()).unwrap();
        std::fs::write(layout.plan(), text).unwrap();
        read_plan(&layout)
    }

    const GOOD: &str = r#"{"v":1,"nonce":"00112233445566778899aabbccddeeff","deadlineSeconds":60,"work":{"make":
        {"baseline":{"uri":"m"},"candidate":"c","stages":[],"inputs":[],"output":"o"}}}"#;

    #[test]
    fn a_plan_is_read_with_the_digest_of_its_bytes() {
        let read = plan_with(GOOD).unwrap();
        assert_eq!(read.sha256, Digest::of(GOOD.as_bytes()));
        assert_eq!(read.plan.deadline_seconds, 60);
    }

    #[test]
    fn odd_plans_are_refused_and_say_why() {
        for (text, why) in [
            ("", "EOF"),
            ("[]", "contract version is none"),
            (&GOOD.replace("\"v\":1", "\"v\":2"), "contract version is 2"),
            (&GOOD.replace("00112233", "0011223"), "nonce"),
            (&GOOD.replace(":60", ":0"), "deadlineSeconds"),
            (
                &GOOD.replace("\"work\"", "\"hostPath\":\"/\",\"work\""),
                "unknown field",
            ),
            (&" ".repeat(140_000), "more than 131072 bytes"),
        ] {
            let failure = plan_with(text).unwrap_err();
            assert_eq!(failure.reason, reasons::PLAN_INVALID);
            assert!(failure.message.contains(why), "{why}: {}", failure.message);
        }
    }

    #[test]
    fn clearing_keeps_the_folder_and_removes_what_is_in_it() {
        let folder = tempfile::tempdir().unwrap();
        std::fs::create_dir_all(folder.path().join("a/b")).unwrap();
        std::fs::write(folder.path().join("c"), "x").unwrap();
        clear(folder.path()).unwrap();
        assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 0);
    }
}
