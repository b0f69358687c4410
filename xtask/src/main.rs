//! `cargo xtask`: the developer commands. Parses arguments and hands over; decides nothing itself.

use std::{path::PathBuf, process::ExitCode};

use anyhow::Result;
use clap::{Parser, Subcommand};
use xtask::{
    cluster::{ControlPlane, ControlPlaneOptions},
    example, interrupt,
    progress::Progress,
    tools::{debian, go},
};

#[derive(Parser)]
#[command(
    name = "cargo xtask",
    about = "Developer commands of Assayer",
    disable_help_subcommand = true
)]
struct Arguments {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Build the programs of the local cluster that are not in the cache yet
    Tools,
    /// Run etcd, API server and controller manager in the foreground, without a node and without root
    ControlPlane,
    /// Make the model and the data sets of examples/magika from a package and this machine's files
    ExampleData {
        /// Folder to write to [default: examples/magika/files]
        #[arg(long)]
        out: Option<PathBuf>,
        /// Rows of the calibration and of the evaluation set
        #[arg(long, default_value_t = example::ROWS)]
        rows: usize,
    },
}

#[tokio::main]
async fn main() -> ExitCode {
    let progress = Progress::stderr();
    match run(Arguments::parse().command, &progress).await {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            progress.say(&format!("error: {error:#}"));
            ExitCode::FAILURE
        }
    }
}

async fn run(command: Command, progress: &Progress) -> Result<()> {
    match command {
        Command::Tools => {
            debian::ensure(&debian::TO_BUILD, progress)?;
            go::ensure(&go::all().collect::<Vec<_>>(), progress)
        }
        Command::ExampleData { out, rows } => {
            example::make(&out.unwrap_or_else(example::default_folder), rows, progress).map(|_| ())
        }
        Command::ControlPlane => {
            go::ensure(&go::CONTROL_PLANE, progress)?;
            let step = progress.step("start etcd, API server and controller manager");
            let options = ControlPlaneOptions {
                controller_manager: true,
                ..Default::default()
            };
            let control_plane = interrupt::or_interrupted(ControlPlane::start(&options)).await?;
            step.done(control_plane.server());
            progress.say(&format!("export KUBECONFIG={}", control_plane.kubeconfig().display()));
            progress.say("Ctrl-C stops it and removes everything");
            let signal = interrupt::requested().await?;
            progress.say(&format!("{signal}: stopping"));
            Ok(())
        }
    }
}
