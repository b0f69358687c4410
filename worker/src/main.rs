//! The worker of Assayer's jobs: one sub-command a container.
//!
//! Decides nothing: reads arguments, sends logs to stderr, and executes. stdout belongs to the report.

use std::process::ExitCode;

use assayer_worker::command::{Command, execute};
use clap::Parser as _;
use tracing_subscriber::EnvFilter;

/// Makes and measures optimized ONNX models for Assayer
#[derive(clap::Parser)]
#[command(version)]
struct Arguments {
    #[command(subcommand)]
    command: Command,
}

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    let filter = EnvFilter::try_from_default_env().unwrap_or_else(|_| EnvFilter::new("info"));
    tracing_subscriber::fmt()
        .json()
        .with_env_filter(filter)
        .with_writer(std::io::stderr)
        .init();
    execute(&arguments.command, &[])
}
