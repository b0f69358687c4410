//! `cargo xtask`: the developer commands. Parses arguments and hands over; decides nothing itself.

use std::{io::Write as _, path::PathBuf, process::ExitCode};

use anyhow::{Context, Result};
use clap::{Args, Parser, Subcommand};
use xtask::{
    bench,
    cluster::{self, ControlPlane, ControlPlaneOptions},
    commands::{self, ClusterCommand},
    demo, example,
    images::{self, Ours},
    interrupt,
    progress::Progress,
    test,
    tools::{debian, go, pypi},
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
    /// The local one-node Kubernetes: real pods, real images, needs root
    #[command(subcommand)]
    Cluster(ClusterCommand),
    /// Everything that must hold before a change goes in: format, lints, all tests
    Test,
    /// Build our images without a container engine, and push them
    Images(ImagesArguments),
    /// Make the model and the data sets of examples/magika from a package and this machine's files
    ExampleData {
        /// Folder to write to [default: examples/magika/files]
        #[arg(long)]
        out: Option<PathBuf>,
        /// Rows of the calibration and of the evaluation set
        #[arg(long, default_value_t = example::ROWS)]
        rows: usize,
    },
    /// Figures of the worker on this machine, and of its peers beside it; nothing is asserted
    #[command(subcommand)]
    Bench(bench::Bench),
    /// The whole journey: optimize, validate, approve, roll out, roll back, and see what is live
    Demo(demo::Options),
}

#[derive(Args)]
struct ImagesArguments {
    /// Which images; all if none is named
    #[arg(value_enum, default_values_t = Ours::ALL)]
    only: Vec<Ours>,
    /// Where to push: HOST[:PORT][/PREFIX]; the local cluster's registry if none is given
    #[arg(long, value_name = "HOST")]
    registry: Option<String>,
    /// Talk to the registry without TLS (as the local cluster's always)
    #[arg(long)]
    plain_http: bool,
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
        Command::ControlPlane => control_plane(progress).await,
        Command::Cluster(command) => commands::run(&command, progress).await,
        Command::Test => test::run(progress),
        Command::Images(arguments) => push_images(&arguments, progress),
        Command::ExampleData { out, rows } => {
            example::make(&out.unwrap_or_else(example::default_folder), rows, progress)?;
            // For `eval "$(cargo xtask example-data)"`.
            tell(&format!(
                "export ORT_DYLIB_PATH='{}'",
                pypi::onnx_runtime(progress)?.display()
            ))
        }
        Command::Bench(bench) => {
            let progress = progress.clone();
            interrupt::or_interrupted_thread(move || bench::run(&bench, &progress)).await
        }
        Command::Demo(options) => Box::pin(demo::run(&options, progress)).await,
    }
}

async fn control_plane(progress: &Progress) -> Result<()> {
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

fn push_images(arguments: &ImagesArguments, progress: &Progress) -> Result<()> {
    let registry = if let Some(prefix) = &arguments.registry {
        images::Registry {
            prefix: prefix.clone(),
            plain_http: arguments.plain_http,
        }
    } else {
        let running = cluster::running()?;
        let running = running.context("no local cluster runs: start one, or name a registry with --registry")?;
        images::Registry {
            prefix: running.registry,
            plain_http: true,
        }
    };
    go::ensure(&["crane"], progress)?;
    for (ours, image) in images::build(&arguments.only, progress)?.images {
        let step = progress.step(format!("push {}", ours.name()));
        let reference = images::push(&image, &registry, ours.name())?;
        step.done(&reference);
        tell(&reference)?;
    }
    Ok(())
}

/// A result for whoever reads our output; all else goes to stderr.
fn tell(line: &str) -> Result<()> {
    Ok(writeln!(std::io::stdout().lock(), "{line}")?)
}
