//! The journey's order: what must have been seen before the next thing is tried. What does not need each other goes on at once.

use std::thread;

use anyhow::{Result, anyhow};

use super::{Options, answer, install, optimize, promote, rollback, world::World};
use crate::{
    images::{self, Ours},
    progress::Progress,
};

pub(super) async fn run(options: &Options, progress: &Progress) -> Result<World> {
    let building = tokio::task::spawn_blocking({
        let progress = progress.clone();
        move || images::build(&Ours::ALL, &progress)
    });
    let (world, built) = tokio::try_join!(World::open(options, progress), async { building.await? })?;
    let pushed = install::push(&world, &built, progress)?;
    let assayer = built.programs.path("assayer")?;
    let pinned = thread::scope(|scope| {
        let publishing = scope.spawn(|| optimize::publish_example(&world, assayer, progress));
        let installed = install::chart(&world, &pushed, progress);
        let pinned = publishing
            .join()
            .unwrap_or_else(|_| Err(anyhow!("publishing the example panicked")));
        installed.and(pinned)
    })?;
    let optimized = optimize::watch(&world, &pinned, progress).await?;
    let live = promote::to_production(&world, &pushed.scanner, &optimized, progress).await?;
    let rolling_back = rollback::of_a_server_that_cannot_become_ready(&world, &live, progress);
    let (watching, ()) = tokio::try_join!(answer::watch(&world), rolling_back)?;
    answer::what_is_live(&watching, &live, progress).await?;
    Ok(world)
}
