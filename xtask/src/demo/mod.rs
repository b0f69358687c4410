//! `cargo xtask demo`: the whole journey on real parts, from an FP32 model to an approved INT8 model in production and back.
//!
//! Also the first part of the end-to-end test: it succeeds only if everything that it promises was seen. Decides what is shown and
//! in which order; every step is done as a user would, with `kubectl`, `helm` and `assayer`.

mod answer;
mod install;
mod journey;
mod optimize;
mod promote;
mod rollback;
mod world;

use std::path::PathBuf;

use anyhow::{Result, bail};
use clap::Args;

pub use world::{Person, World};

use crate::{interrupt, progress::Progress};

/// Where the journey runs, and what is left.
#[derive(Debug, Clone, Default, Args)]
pub struct Options {
    /// Leave the cluster up at the end, and print how to use it; Ctrl-C then stops it
    #[arg(long)]
    pub keep: bool,
    /// Use this cluster (1.35 or newer) instead of starting one; approvers are impersonated
    #[arg(long, value_name = "FILE", requires = "registry")]
    pub kubeconfig: Option<PathBuf>,
    /// Registry that this machine and the cluster's nodes reach: HOST[:PORT][/PREFIX]
    #[arg(long, value_name = "HOST", requires = "kubeconfig")]
    pub registry: Option<String>,
    /// Talk to that registry without TLS
    #[arg(long, requires = "registry")]
    pub plain_http: bool,
}

/// Goes the whole way and gives the world as it is then; an error names the first thing that was not as promised.
pub async fn travel(options: &Options, progress: &Progress) -> Result<World> {
    interrupt::or_interrupted(Box::pin(journey::run(options, progress))).await
}

/// Shows the journey to a person.
pub async fn run(options: &Options, progress: &Progress) -> Result<()> {
    let world = travel(options, progress).await?;
    if options.keep {
        world.say_how_to_use(progress);
        if world.owns_cluster() {
            interrupt::requested().await?;
        }
        return Ok(());
    }
    let step = progress.step("clean up");
    let left = world.clean_up();
    match left {
        Ok(()) => step.done(""),
        Err(error) => bail!("the journey succeeded, but cleaning up failed: {error:#}"),
    }
    Ok(())
}
