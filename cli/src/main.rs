//! `assayer`: local runs, pinning, pushing, verifying and approving; also found by kubectl as `kubectl assayer`.
//!
//! Parses arguments and hands over. Decides only exit codes: 0 done, 1 refused or failed, 2 wrong use, 3 no candidate passed its gates.

mod approve;
#[cfg(test)]
mod documented;
mod manifest;
mod optimize;
mod pin;
mod progress;
mod push;
mod schema;
mod terminal;
mod verify;

use std::path::PathBuf;
use std::process::ExitCode;

use clap::{CommandFactory as _, FromArgMatches as _, Parser, Subcommand};

/// Change control for optimized models: optimize, validate, approve, and know what is live.
#[derive(Parser)]
#[command(name = "assayer", version, disable_help_subcommand = true)]
struct Arguments {
    #[command(subcommand)]
    command: Command,
    /// More log lines on stderr; twice for all
    #[arg(short, long, action = clap::ArgAction::Count, global = true, display_order = 900)]
    verbose: u8,
}

#[derive(Subcommand)]
enum Command {
    /// Make, measure and judge the candidates of a manifest on this machine, without a cluster
    Optimize(optimize::Options),
    /// Print a manifest with every tag resolved to a digest, and local files pushed where --push says
    Pin(pin::Options),
    /// Push a model or data set as an artifact that Kubernetes can mount, and print its digest
    Push(push::Options),
    /// Check the signature of an evidence file, and that a model is the one that it speaks of
    Verify(verify::Options),
    /// Show the evidence of a waiting promotion, and approve or reject it in the cluster
    Approve(approve::Options),
    /// Print the completion script of a shell
    Completion {
        /// Which shell
        shell: clap_complete::Shell,
    },
    /// One step of a worker (used by `optimize` itself)
    #[command(hide = true, disable_help_flag = true)]
    Worker(optimize::WorkerArguments),
}

fn main() -> ExitCode {
    let arguments = arguments();
    if let Command::Worker(arguments) = &arguments.command {
        // A worker is a process of its own, without our threads: it gives up rights for all it has.
        return optimize::worker(arguments);
    }
    // Whoever links us may have chosen already; both choices are the same.
    drop(rustls::crypto::ring::default_provider().install_default());
    let level = match arguments.verbose {
        0 => "warn",
        1 => "info",
        _ => "debug",
    };
    tracing_subscriber::fmt()
        .with_writer(std::io::stderr)
        .with_env_filter(level)
        .with_ansi(terminal::colours())
        .init();
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build();
    let done = match runtime {
        Ok(runtime) => runtime.block_on(run(&arguments)),
        Err(error) => Err(anyhow::Error::new(error).context("start the async runtime")),
    };
    done.unwrap_or_else(|error| {
        terminal::error(&format!("{error:#}"));
        ExitCode::FAILURE
    })
}

/// Reads the command line, under the name by which it was called: usage lines of a plugin begin with `kubectl assayer`.
fn arguments() -> Arguments {
    let name = std::env::args_os().next().map(PathBuf::from);
    let plugin = name.is_some_and(|name| name.file_name() == Some("kubectl-assayer".as_ref()));
    let mut command = Arguments::command();
    if plugin {
        command = command.bin_name("kubectl assayer");
    }
    Arguments::from_arg_matches(&command.get_matches()).unwrap_or_else(|error| error.exit())
}

/// The commands that are for people: completion offers hidden ones too.
fn visible() -> clap::Command {
    let whole = Arguments::command();
    let for_people = whole.get_subcommands().filter(|command| !command.is_hide_set());
    clap::Command::new("assayer")
        .version(env!("CARGO_PKG_VERSION"))
        .disable_help_subcommand(true)
        .args(whole.get_arguments())
        .subcommands(for_people)
}

async fn run(arguments: &Arguments) -> anyhow::Result<ExitCode> {
    let verbose = arguments.verbose > 0;
    match &arguments.command {
        Command::Optimize(options) => return optimize::run(options, verbose).await,
        Command::Pin(options) => pin::run(options).await?,
        Command::Push(options) => push::run(options).await?,
        Command::Verify(options) => verify::run(options)?,
        Command::Approve(options) => approve::run(options).await?,
        Command::Completion { shell } => {
            clap_complete::generate(*shell, &mut visible(), "assayer", &mut std::io::stdout());
        }
        Command::Worker(_) => return Ok(ExitCode::from(2)),
    }
    Ok(ExitCode::SUCCESS)
}
