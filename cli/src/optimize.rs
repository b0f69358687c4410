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

use anyhow::Result;
use clap::Args;

pub(crate) use self::worker::{WorkerArguments, worker};

use self::job::Jobs;
use self::journey::{Outcome, State};
use self::output::{Place, Recorded};
use crate::push::AccessOptions;
use crate::terminal;

/// Exit code when every candidate failed a gate.
const REJECTED: u8 = 3;
/// Exit code after Ctrl-C, as shells have it.
const INTERRUPTED: u8 = 130;

/// What to optimize, and where results go.
#[derive(Args)]
pub(crate) struct Options {
    /// Manifest of a `ModelOptimization`; - for stdin. Its relative paths start from its folder
    #[arg(short, long, value_name = "FILE")]
    file: PathBuf,
    /// Folder for models, evidence and the public key; replaced as a whole [default: spec.output.uri, where it is a path]
    #[arg(short, long, value_name = "DIR")]
    output: Option<PathBuf>,
    /// Private key (PKCS#8 PEM, P-256) to sign evidence with [default: one made for this run and not kept]
    #[arg(long, value_name = "FILE")]
    key: Option<PathBuf>,
    /// ONNX Runtime's library [default: `ORT_DYLIB_PATH`]
    #[arg(long, value_name = "FILE")]
    onnxruntime: Option<PathBuf>,
    /// Threads of a model [default: whole cores of the environment's CPU limit; else all]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=4096))]
    threads: Option<u32>,
    /// Folder where ranges found by calibration are kept, and found again by a run with the same model, data and settings; made if missing
    #[arg(long, value_name = "DIR")]
    calibration_tables: Option<PathBuf>,
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
    let place = Place::prepare(&input.output)?;
    let library = worker::library(options.onnxruntime.as_deref())?;
    let mut jobs = Jobs::new(options, library, verbose)?;
    let outcome = journey::go(&input, &place, &mut jobs).await;
    let written = outcome.and_then(|outcome| {
        let recorded = place.write(&input, &outcome, &key)?;
        Ok((outcome, recorded))
    });
    if let Some(kept) = jobs.end(options.keep_work) {
        terminal::note(&format!("work folder: {}", kept.display()));
    }
    match written {
        Ok((outcome, recorded)) => Ok(tell(options, &place, &outcome, &recorded)),
        Err(error) if error.is::<job::Interrupted>() => {
            terminal::note(&if input.pushes {
                format!(
                    "interrupted: no evidence was written; candidates that were made may lie in {}",
                    input.runnable.output.uri
                )
            } else {
                "interrupted: nothing was written".to_owned()
            });
            Ok(ExitCode::from(INTERRUPTED))
        }
        Err(error) => Err(error),
    }
}

fn tell(options: &Options, place: &Place, outcome: &Outcome, recorded: &[Recorded]) -> ExitCode {
    if !recorded.is_empty() {
        let by = if options.key.is_some() {
            ""
        } else {
            " by a key made for this run, which is not kept"
        };
        terminal::note(&format!(
            "evidence of {} candidates is signed{by}; public key: {}",
            recorded.len(),
            place.public().display()
        ));
    }
    if outcome.baseline.is_empty() && !options.json {
        // Every candidate and every gate says the same.
        let why = outcome
            .candidates
            .first()
            .map(|judged| judged.message.as_str())
            .unwrap_or_default();
        terminal::error(&format!(
            "nothing was made, because the baseline could not be measured: {why}"
        ));
        return ExitCode::FAILURE;
    }
    for judged in outcome.candidates.iter().filter(|judged| judged.state != State::Passed) {
        terminal::note(&format!(
            "{} {}: {}",
            judged.candidate.name,
            judged.state.as_str(),
            judged.message
        ));
    }
    let selected = match &outcome.selected {
        Some(name) => format!("selected: {name}, in {}", place.of(name).display()),
        None => "selected: none".to_owned(),
    };
    if options.json {
        terminal::print(&format!("{:#}", verdicts::json(outcome, recorded, place)));
    } else {
        terminal::print(&format!("{}\n{selected}", verdicts::tables(outcome)));
    }
    match &outcome.selected {
        Some(_) => ExitCode::SUCCESS,
        None if outcome.candidates.iter().any(|judged| judged.state == State::Rejected) => ExitCode::from(REJECTED),
        None => {
            terminal::error("no candidate could be made and measured");
            ExitCode::FAILURE
        }
    }
}
