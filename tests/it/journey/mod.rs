//! The journey end to end, on a whole node: first the very function that `cargo xtask demo` runs, then what goes wrong on a real
//! kubelet, then what all of it left behind. One test, because a node is started once; each scene fails by its own name.

mod bad_input;
mod half_way;
mod held;
mod inputs;
mod pretended_gpu;
mod queue;
mod stage;

use std::sync::Arc;

use anyhow::{Context as _, Result, bail, ensure};
use futures::future::{BoxFuture, join_all};
use xtask::demo;
use xtask::progress::Progress;

use crate::{conformance, rights};
use inputs::Inputs;
use stage::Stage;

#[tokio::test(flavor = "multi_thread")]
async fn a_model_is_optimized_approved_rolled_out_rolled_back_and_seen_live_and_bad_input_is_refused() {
    if let Err(error) = Box::pin(whole(&Progress::stderr())).await {
        panic!("{error:#}");
    }
}

async fn whole(progress: &Progress) -> Result<()> {
    let world = demo::travel(&demo::Options::default(), progress).await?;
    let stage = Stage::set(&world).await.context("set the stage")?;
    let inputs = Arc::new(Inputs::make(&world).await.context("make inputs that can't be used")?);
    let mut scenes = bad_input::scenes(&stage, &inputs)?;
    scenes.push(("deleted half way", Box::pin(half_way::leaves_nothing(&stage))));
    scenes.push(("a GPU that is none", Box::pin(pretended_gpu::is_an_error(&stage))));
    scenes.push((
        "queued, then gone from the registry",
        Box::pin(queue::runs_when_admitted(&stage)),
    ));
    play(scenes, progress).await?;
    // Nothing else runs now: these need workers whose image is not there.
    play(held::scenes(&stage)?, progress).await?;
    stage.is_untouched().await?;

    let written = conformance::check(&world.client).await?;
    ensure!(written > 20, "only {written} objects have a status");
    let cluster = world.cluster().context("the journey has a cluster of its own")?;
    rights::check(&cluster.audit_log())?;
    world.clean_up()
}

/// Its name, and what was said in it.
type Scene<'a> = (&'static str, BoxFuture<'a, Result<String>>);

/// Plays scenes at the same time; each mostly waits. An error names all that failed.
async fn play(scenes: Vec<Scene<'_>>, progress: &Progress) -> Result<()> {
    let step = progress.step(format!("{} scenes at once", scenes.len()));
    let played = scenes.into_iter().map(|(name, scene)| async move {
        let ended = scene.await;
        match &ended {
            Ok(said) => progress.say(&format!("seen: {name}: {said}")),
            Err(error) => progress.say(&format!("NOT seen: {name}: {error:#}")),
        }
        ended.err().map(|error| format!("{name}: {error:#}"))
    });
    let failed: Vec<String> = join_all(played).await.into_iter().flatten().collect();
    if failed.is_empty() {
        step.done("");
        return Ok(());
    }
    bail!("{}", failed.join("\n"))
}
