//! The worker inside this program: what a pod's container does, as a child process of `assayer optimize`.
//!
//! Decides how many processors a child may use, and that it never outlives its parent.

use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::{Result, bail, ensure};
use assayer_worker::command::{Command, execute};
use clap::{Args, Parser};
use rustix::process::{Signal, set_parent_process_death_signal};
use rustix::thread::{CpuSet, sched_getaffinity, sched_setaffinity};
use tracing_subscriber::EnvFilter;

use crate::terminal;

/// The sub-command that leads to the worker's own.
pub(crate) const WORKER: &str = "worker";

/// Arguments of the hidden sub-command.
#[derive(Args)]
pub(crate) struct WorkerArguments {
    /// Processors that it may use [default: all that this process may]
    #[arg(long)]
    cpus: Option<u32>,
    /// Arguments of assayer-worker
    #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
    arguments: Vec<OsString>,
}

#[derive(Parser)]
#[command(name = "assayer worker", disable_help_subcommand = true)]
struct Worker {
    #[command(subcommand)]
    command: Command,
}

/// Does what one container of a worker pod does.
pub(crate) fn worker(arguments: &WorkerArguments) -> ExitCode {
    let words = std::iter::once(OsString::from(WORKER)).chain(arguments.arguments.iter().cloned());
    let worker = match Worker::try_parse_from(words) {
        Ok(worker) => worker,
        Err(error) => {
            terminal::note(&error.to_string());
            return ExitCode::from(2);
        }
    };
    let filter = EnvFilter::try_from_default_env().unwrap_or_else(|_| EnvFilter::new("info"));
    tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(std::io::stderr)
        .with_ansi(false)
        .init();
    if let Err(error) = confine(arguments.cpus) {
        terminal::error(&format!("the worker can't be confined: {error}"));
        return ExitCode::FAILURE;
    }
    execute(&worker.command, &[WORKER])
}

fn confine(cpus: Option<u32>) -> rustix::io::Result<()> {
    set_parent_process_death_signal(Some(Signal::KILL))?;
    let Some(most) = cpus else { return Ok(()) };
    let allowed = sched_getaffinity(None)?;
    let mut chosen = CpuSet::new();
    let first = (0..CpuSet::MAX_CPU)
        .filter(|cpu| allowed.is_set(*cpu))
        .take(most as usize);
    first.for_each(|cpu| chosen.set(cpu));
    sched_setaffinity(None, &chosen)
}

/// The library of ONNX Runtime: what was asked for, or what the environment names.
pub(super) fn library(asked: Option<&Path>) -> Result<PathBuf> {
    let named = std::env::var_os("ORT_DYLIB_PATH")
        .filter(|value| !value.is_empty())
        .map(PathBuf::from);
    let (path, from) = match (asked, named) {
        (Some(path), _) => (path.to_owned(), "--onnxruntime"),
        (None, Some(path)) => (path, "ORT_DYLIB_PATH"),
        (None, None) => bail!(
            "no ONNX Runtime library: name it with --onnxruntime FILE or in ORT_DYLIB_PATH. The Python package `onnxruntime` holds it \
             (`pip download --no-deps onnxruntime==1.32.0`, then unzip: onnxruntime/capi/libonnxruntime.so.1.32.0); in a checkout, `cargo \
             xtask example-data` gets it and says where it is"
        ),
    };
    ensure!(path.is_file(), "{from}: {} is no file", path.display());
    // Workers run in folders of their own.
    Ok(std::path::absolute(path)?)
}
