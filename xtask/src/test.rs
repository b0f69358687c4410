//! `cargo xtask test`: everything that must hold before a change goes in, on a clean checkout of a bare machine. Decides
//! what is run and in which order; never what counts as passed, which is each command's own exit status.

use std::{ffi::OsString, thread};

use anyhow::{Context, Result, anyhow, bail};

use crate::{
    cache,
    cluster::{Prometheus, Registry},
    process,
    progress::Progress,
    tools::{debian, go, pypi},
};

/// One cargo command, with its output for the reader.
struct Check {
    name: &'static str,
    arguments: &'static [&'static str],
}

const FORMAT: Check = Check {
    name: "format",
    arguments: &["fmt", "--all", "--check"],
};
const COMPILE: Check = Check {
    name: "compile the tests",
    arguments: &["test", "--workspace", "--no-run"],
};
const LINTS: Check = Check {
    name: "lints",
    // With the benchmarks of kernels, which nothing else compiles.
    arguments: &[
        "clippy",
        "--workspace",
        "--all-targets",
        "--features",
        "assayer-worker/bench",
        "--",
        "-D",
        "warnings",
    ],
};
const TESTS: Check = Check {
    name: "tests",
    arguments: &["test", "--workspace", "--no-fail-fast", "--", "--skip", JOURNEY_TEST],
};
/// Alone: it measures latencies on a whole node, and must neither disturb the other tests nor be disturbed by them.
const JOURNEY: Check = Check {
    name: "journey",
    arguments: &["test", "--workspace", "--test", "it", "--", JOURNEY_TEST],
};
const JOURNEY_TEST: &str = "journey::a_model_is_optimized";

/// Gets what the tests need, then runs all checks, also after one has failed. An error names those that did.
pub fn run(progress: &Progress) -> Result<()> {
    // Cargo writes to the same terminal.
    let progress = &progress.plain();
    // Compiling and installing use different locks: both go on at once.
    let (prerequisites, compiled) = thread::scope(|scope| {
        let getting = scope.spawn(|| prerequisites(progress));
        let compiled = COMPILE.run(&[], progress);
        let prerequisites = getting
            .join()
            .unwrap_or_else(|_| Err(anyhow!("getting prerequisites panicked")));
        (prerequisites, compiled)
    });
    prerequisites.context("get what the tests need")?;
    let parts = parts()?;
    let mut failed = Vec::new();
    for (check, result) in [
        (&COMPILE, compiled),
        (&FORMAT, FORMAT.run(&[], progress)),
        (&LINTS, LINTS.run(&[], progress)),
    ] {
        note(check, result, progress, &mut failed);
    }
    // A test that does not compile is in the list already.
    if !failed.contains(&COMPILE.name) {
        note(&TESTS, TESTS.run(&parts, progress), progress, &mut failed);
        note(&JOURNEY, JOURNEY.run(&parts, progress), progress, &mut failed);
    }
    if failed.is_empty() {
        progress.say("all checks passed");
        return Ok(());
    }
    bail!("failed: {}", failed.join(", "))
}

fn prerequisites(progress: &Progress) -> Result<()> {
    debian::ensure(&debian::TO_BUILD, progress)?;
    debian::ensure(&debian::TO_RUN_A_NODE, progress)?;
    debian::ensure(&debian::TO_VERIFY, progress)?;
    Registry::ensure(progress)?;
    Prometheus::ensure(progress)?;
    pypi::ensure(&pypi::ONNX_RUNTIME, progress)?;
    pypi::ensure(&pypi::MAGIKA, progress)?;
    pypi::ensure(&pypi::SILERO, progress)?;
    pypi::ensure(&pypi::RAPIDOCR, progress)?;
    go::ensure(&go::all().collect::<Vec<_>>(), progress)
}

fn note(check: &Check, result: Result<()>, progress: &Progress, failed: &mut Vec<&'static str>) {
    if let Err(error) = result {
        progress.say(&format!("{}: {error:#}", check.name));
        failed.push(check.name);
    }
}

impl Check {
    /// `environment` is what tests need to find; what only compiles needs none of it, and begins before it is there.
    fn run(&self, environment: &[(&str, OsString)], progress: &Progress) -> Result<()> {
        let step = progress.step(self.name);
        progress.say(&format!("     {} ...", self.name));
        let mut cargo = process::cargo();
        cargo.envs(environment.iter().map(|(name, value)| (name, value)));
        // No test may find somebody's real cluster by accident.
        cargo.env_remove("KUBECONFIG");
        let status = cargo.args(self.arguments).status().context("run cargo")?;
        if !status.success() {
            bail!("`cargo {}` failed ({status})", self.arguments.join(" "));
        }
        step.done("");
        Ok(())
    }
}

/// Where tests find the parts that [`prerequisites`] has fetched and built.
fn parts() -> Result<Vec<(&'static str, OsString)>> {
    Ok(vec![
        (cache::CACHE_VARIABLE, cache::root()?.into()),
        ("ORT_DYLIB_PATH", pypi::onnx_runtime_path()?.into()),
        ("ORT_DISABLE_TELEMETRY", "1".into()),
        ("ASSAYER_ORT", pypi::onnx_runtime_path()?.into()),
        ("ASSAYER_MAGIKA", pypi::magika_model_path()?.into()),
        ("ASSAYER_SILERO", pypi::silero_path()?.into()),
        ("ASSAYER_OCR", pypi::rapidocr_path()?.into()),
        ("ASSAYER_CRANE", go::path("crane")?.into()),
        // Snapshots are compared, never rewritten.
        ("INSTA_UPDATE", "no".into()),
    ])
}
