//! `assayer optimize`: the optimization half on one machine, without a cluster.
//!
//! The same plans, worker, checks, gates and evidence as in the cluster, one process a role. Decides where results go and what the exit
//! code is: 0 a candidate is selected, 1 failed, 2 wrong use, 3 no candidate passed its gates, 130 interrupted.

mod input;
mod job;
mod journey;
mod output;
mod verdicts;
mod worker;

use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::{Context as _, Result};
use clap::Args;

pub(crate) use self::worker::{WorkerArguments, worker};

use self::job::Jobs;
use self::journey::Outcome;
use crate::push::AccessOptions;
use crate::terminal;

/// Exit code when every candidate failed a gate.
const REJECTED: u8 = 3;
/// Exit code after Ctrl-C, as shells have it.
const INTERRUPTED: u8 = 130;

/// What to optimize, and where results go.
#[derive(Args)]
pub(crate) struct Options {
    /// Manifest of a ModelOptimization; - for stdin. Its relative paths start from its folder
    #[arg(short, long, value_name = "FILE")]
    file: PathBuf,
    /// Folder for models, evidence and the public key; replaced as a whole [default: spec.output.uri, where it is a path]
    #[arg(short, long, value_name = "DIR")]
    output: Option<PathBuf>,
    /// Private key (PKCS#8 PEM, P-256) to sign evidence with [default: one made for this run and not kept]
    #[arg(long, value_name = "FILE")]
    key: Option<PathBuf>,
    /// ONNX Runtime's library [default: ORT_DYLIB_PATH]
    #[arg(long, value_name = "FILE")]
    onnxruntime: Option<PathBuf>,
    /// Threads of a model [default: whole cores of the environment's CPU limit; else all]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=4096))]
    threads: Option<u32>,
    /// Print the result as JSON instead of a table
    #[arg(long)]
    json: bool,
    /// Keep the folder with plans, data and logs of the workers, and say where it is
    #[arg(long)]
    keep_work: bool,
    #[command(flatten)]
    access: AccessOptions,
}

/// Runs the optimization.
pub(crate) async fn run(options: &Options, verbose: bool) -> Result<ExitCode> {
    let input = input::read(&options.file, options.output.as_deref())?;
    let key = output::key(options.key.as_deref())?;
    let place = output::Place::prepare(&input.output)?;
    let library = worker::library(options.onnxruntime.as_deref())?;
    let mut jobs = Jobs::new(options, library, verbose)?;
    let found = journey::go(&input, &mut jobs).await;
    let folder = jobs.end(options.keep_work);
    if let Some(kept) = folder {
        terminal::note(&format!("work folder: {}", kept.display()));
    }
    let outcome = match found {
        Ok(outcome) => outcome,
        Err(error) if error.is::<job::Interrupted>() => {
            terminal::note("interrupted: nothing was written");
            return Ok(ExitCode::from(INTERRUPTED));
        }
        Err(error) => return Err(error),
    };
    todo!()
}
