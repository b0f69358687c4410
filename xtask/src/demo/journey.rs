//! The journey's order: what must have been seen before the next thing is tried.

use anyhow::Result;

use super::{Options, answer, install, optimize, promote, rollback, world::World};
use crate::progress::Progress;

pub(super) async fn run(options: &Options, progress: &Progress) -> Result<World> {
    let world = World::open(options, progress).await?;
    let programs = install::images_and_chart(&world, progress)?;
    let pinned = optimize::publish_example(&world, programs.path("assayer")?, progress)?;
    let optimized = optimize::watch(&world, &pinned, progress).await?;
    let live = promote::to_production(&world, &optimized, progress).await?;
    rollback::of_a_server_that_cannot_become_ready(&world, &live, progress).await?;
    answer::what_is_live(&world, &live, progress).await?;
    Ok(world)
}
