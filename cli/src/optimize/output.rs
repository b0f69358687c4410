//! Where results go: models, signed evidence, recipes and the public key, all at once or not at all.
//!
//! Decides names of files, and that nothing is replaced which an earlier run did not make. Never judges.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result, ensure};
use assayer_crds::contract::Recipe;
use assayer_crds::digest::Digest;
use assayer_crds::evidence::OptimizationReference;
use assayer_crds::names;
use assayer_operator::evidence::dsse;
use assayer_operator::evidence::keys::{PUBLIC, SigningKey};
use assayer_operator::evidence::statement::{self, Claim, Runner};
use assayer_operator::optimization::steps::candidate_key;
use assayer_worker::storage;
use jiff::Timestamp;
use rustix::fs::{CWD, RenameFlags, renameat_with};
use tempfile::TempDir;

use super::input::Input;
use super::journey::{Judged, Model, Outcome};

/// The folder that results go to.
pub(super) struct Place {
    /// As the user named it: what messages and evidence say.
    named: PathBuf,
    folder: PathBuf,
    parent: PathBuf,
}

/// Evidence that was written.
pub(super) struct Recorded {
    pub(super) candidate: String,
    pub(super) digest: Digest,
}

/// The key to sign with; one for this run where none was named.
pub(super) fn key(file: Option<&Path>) -> Result<SigningKey> {
    let Some(file) = file else {
        return Ok(SigningKey::generate()?);
    };
    let pem = fs::read_to_string(file).with_context(|| format!("read {}", file.display()))?;
    SigningKey::from_pem(&pem).with_context(|| format!("{}: expected PKCS#8 PEM, P-256", file.display()))
}

impl Place {
    /// Before any work is done: whether results can go there.
    pub(super) fn prepare(named: &Path) -> Result<Self> {
        let folder = std::path::absolute(named)?;
        let parent = folder
            .parent()
            .with_context(|| format!("{} can't be a result folder", folder.display()))?
            .to_owned();
        if folder.exists() {
            ensure!(
                folder.is_dir(),
                "{} is no folder: choose another one with --output",
                folder.display()
            );
            let mut entries = fs::read_dir(&folder).with_context(|| format!("read {}", folder.display()))?;
            ensure!(
                entries.next().is_none() || folder.join(PUBLIC).is_file(),
                "{} holds other things than an earlier result (it has no {PUBLIC}): choose another folder with --output",
                folder.display()
            );
        }
        writable(&parent)?;
        Ok(Self {
            named: named.to_owned(),
            folder,
            parent,
        })
    }

    /// Where a candidate's files will lie.
    pub(super) fn of(&self, candidate: &str) -> PathBuf {
        self.named.join(candidate)
    }

    /// The public key.
    pub(super) fn public(&self) -> PathBuf {
        self.named.join(PUBLIC)
    }

    /// Writes everything beside the place, then puts it there in one move. Where no model was made, what is there stays.
    pub(super) fn write(&self, input: &Input, outcome: &Outcome, key: &SigningKey) -> Result<Vec<Recorded>> {
        if outcome.candidates.iter().all(|judged| judged.model.is_none()) {
            return Ok(Vec::new());
        }
        fs::create_dir_all(&self.parent).with_context(|| format!("create {}", self.parent.display()))?;
        let aside = tempfile::Builder::new().prefix(".assayer-").tempdir_in(&self.parent);
        let aside = aside.with_context(|| format!("write to {}", self.parent.display()))?;
        input.unchanged()?;
        let now = now();
        let mut recorded = Vec::new();
        for judged in &outcome.candidates {
            if let Some(model) = &judged.model {
                let folder = aside.path().join(&judged.candidate.name);
                copy(model, &folder)?;
                let claim = Self::claim(input, outcome, judged, model, now);
                let (envelope, digest) = dsse::sign(&statement::compose(claim)?, key)?;
                let file = folder.join(names::EVIDENCE_KEY);
                fs::write(&file, envelope).with_context(|| format!("write {}", file.display()))?;
                if let Some(recipe) = &model.made.recipe {
                    let file = folder.join(names::RECIPE_FILE);
                    fs::write(&file, written(recipe)?).with_context(|| format!("write {}", file.display()))?;
                }
                recorded.push(Recorded {
                    candidate: judged.candidate.name.clone(),
                    digest,
                });
            }
        }
        fs::write(aside.path().join(PUBLIC), key.public().pem())?;
        self.replace(aside)?;
        Ok(recorded)
    }

    fn claim<'a>(
        input: &'a Input,
        outcome: &'a Outcome,
        judged: &'a Judged,
        model: &'a Model,
        now: Timestamp,
    ) -> Claim<'a> {
        Claim {
            recorded_at: now,
            optimization: OptimizationReference {
                name: input.name.clone(),
                generation: 1,
                ..OptimizationReference::default()
            },
            spec: &input.stated,
            candidate: &judged.candidate,
            plan_digest: candidate_key(&input.stated, &judged.candidate, ""),
            made: &model.made,
            made_by: &model.runtime,
            baseline: outcome.baseline.iter().map(|taken| &taken.measured).collect(),
            measured: judged
                .measured
                .iter()
                .map(|taken| (&taken.measured, &taken.runtime))
                .collect(),
            verdicts: judged.verdicts.clone(),
            worker_image: "",
            runner: Runner::Local,
        }
    }

    fn replace(&self, aside: TempDir) -> Result<()> {
        let failed = || format!("put results into {}", self.folder.display());
        readable(aside.path())?;
        if self.folder.exists() {
            // Both names exist at any time; what was there before goes with the temporary name.
            renameat_with(CWD, aside.path(), CWD, &self.folder, RenameFlags::EXCHANGE).with_context(failed)?;
            return aside.close().context("remove the earlier results");
        }
        fs::rename(aside.path(), &self.folder).with_context(failed)?;
        // It has moved: there is nothing left to remove.
        let _moved = aside.keep();
        Ok(())
    }
}

/// A recipe for people, whose stages can be pasted into a manifest.
fn written(recipe: &Recipe) -> Result<String> {
    let yaml = serde_saphyr::to_string(recipe).context("write the recipe as YAML")?;
    Ok(format!(
        "# As `stages` of a candidate, these stages give the same bytes wherever the rest is as below.\n{yaml}"
    ))
}

/// Before minutes of work: whether `folder` can be made or written, by trying. Nothing stays.
fn writable(folder: &Path) -> Result<()> {
    let there = folder.ancestors().find(|ancestor| ancestor.exists());
    let there = there.with_context(|| format!("{} is in no folder", folder.display()))?;
    tempfile::tempdir_in(there).and_then(TempDir::close).with_context(|| {
        format!(
            "results can't be written to {}: choose another place with --output",
            there.display()
        )
    })
}

/// A temporary folder is for its owner only; results have the rights of any new folder.
fn readable(folder: &Path) -> Result<()> {
    use std::os::unix::fs::PermissionsExt as _;
    let probe = folder.join(".rights");
    fs::create_dir(&probe)?;
    let rights = fs::metadata(&probe)?.permissions().mode();
    fs::remove_dir(&probe)?;
    fs::set_permissions(folder, fs::Permissions::from_mode(rights))?;
    Ok(())
}

#[expect(
    clippy::disallowed_methods,
    reason = "the command line is the shell that reads the clock"
)]
fn now() -> Timestamp {
    Timestamp::now()
}

/// Copies a model and reads it back: evidence is about these very files.
fn copy(model: &Model, folder: &Path) -> Result<()> {
    for file in &model.made.files {
        let target = folder.join(&file.path);
        if let Some(parent) = target.parent() {
            fs::create_dir_all(parent).with_context(|| format!("create {}", parent.display()))?;
        }
        let copied = fs::copy(model.folder.join(&file.path), &target).and_then(|_| fs::File::open(&target)?.sync_all());
        copied.with_context(|| format!("write {}", target.display()))?;
    }
    let written = storage::pack(folder)?.model_digest;
    let expected = &model.made.model_digest;
    ensure!(
        written == *expected,
        "{}: the files have model digest {written}, expected {expected}",
        folder.display()
    );
    Ok(())
}
