//! `assayer verify`: whether an evidence file is signed by a key, and whether a model is the one that it speaks of. Without a cluster.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result, ensure};
use assayer_crds::digest::{Digest, model_digest};
use assayer_crds::evidence::Statement;
use assayer_crds::names;
use assayer_operator::evidence::dsse::{self, Verified};
use assayer_operator::evidence::keys::PublicKey;
use assayer_worker::storage;
use clap::Args;

use crate::terminal;

/// What to check against what.
#[derive(Args)]
pub(crate) struct Options {
    /// DSSE envelope: a file, or the key `evidence.dsse.json` of an evidence config map
    evidence: PathBuf,
    /// Public key (PEM) that must have signed it: `signing.pub` of the operator's Secret
    #[arg(long, value_name = "FILE")]
    key: PathBuf,
    /// Model file or folder that must be the one that the evidence speaks of
    #[arg(long, value_name = "PATH")]
    model: Option<PathBuf>,
    /// Digest of the evidence that is expected, as in an approval's request
    #[arg(long, value_name = "DIGEST")]
    digest: Option<String>,
}

/// Verifies and prints what is claimed.
pub(crate) fn run(options: &Options) -> Result<()> {
    let read = |path: &Path| fs::read_to_string(path).with_context(|| format!("read {}", path.display()));
    let key = PublicKey::from_pem(&read(&options.key)?)?;
    let verified = dsse::verify(&read(&options.evidence)?, &key)?;
    if let Some(expected) = &options.digest {
        ensure!(
            verified.digest.as_str() == expected,
            "the evidence has digest {}, expected {expected}",
            verified.digest
        );
    }
    if let Some(path) = &options.model {
        check_model(&verified.statement, path)?;
    }
    let model = options
        .model
        .as_ref()
        .map(|path| format!("; {} is its model", path.display()));
    let holds = format!("holds for key {:.12}{}", key.id(), model.unwrap_or_default());
    terminal::print(&summary(&verified, &holds));
    Ok(())
}

fn check_model(statement: &Statement, path: &Path) -> Result<()> {
    let found = if path.is_dir() {
        folder_digest(path)?
    } else {
        storage::pack(path)?.model_digest
    };
    let expected = &statement.predicate.made.model_digest;
    ensure!(
        &found == expected,
        "{} has model digest {found}, the evidence speaks of {expected}",
        path.display()
    );
    Ok(())
}

/// Digest of a folder's model; `optimize` puts evidence and recipe beside it, which are no part of it.
fn folder_digest(path: &Path) -> Result<Digest> {
    let mut files = storage::list(path, storage::Limits::default())?;
    files.retain(|file| ![names::EVIDENCE_KEY, names::RECIPE_FILE].contains(&file.path.as_str()));
    Ok(model_digest(&files))
}

/// The evidence for people: what, how, every gate, who ran it; `signature` says what is known about the signature.
pub(crate) fn summary(verified: &Verified, signature: &str) -> String {
    let evidence = &verified.statement.predicate;
    let rows = evidence.verdicts.iter().map(|verdict| {
        vec![
            verdict.verdict.clone(),
            verdict.gate.clone(),
            verdict.severity.clone(),
            verdict.message.clone(),
        ]
    });
    format!(
        "evidence  {}\nsignature {signature}\nmodel     {} {} ({}, owner {})\ncandidate {} ({})\nartifact  {}\nrecorded  {} by {}\n{}",
        verified.digest,
        evidence.model.name,
        evidence.model.version,
        evidence.influences.join(", "),
        evidence.owner.group,
        evidence.candidate,
        evidence.technique,
        evidence.made.uri,
        evidence.recorded_at,
        evidence.runner,
        terminal::table(&["verdict", "gate", "severity", "measured"], rows),
    )
}
