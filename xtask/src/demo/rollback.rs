//! A second candidate that was measured and approved, and whose server can't become ready: the former model comes back.

use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use assayer_crds::ModelPromotion;
use k8s_openapi::api::apps::v1::Deployment;
use kube::Api;

use super::optimize::read as example;
use super::promote::{self, Live, PROMOTION, WORKLOAD};
use super::world::{NAMESPACE, Person, World};
use crate::progress::Progress;

const WITHIN: Duration = Duration::from_mins(2);

/// Promotes the re-exported model, whose output has another name than the server asks for.
pub(super) async fn of_a_server_that_cannot_become_ready(
    world: &World,
    live: &Live,
    progress: &Progress,
) -> Result<()> {
    let said = world.apply(Person::Erin, &example("modelpromotion-reexport.yaml")?)?;
    progress.say(&format!("{}: {}", Person::Erin.name(), said.trim()));
    let waiting = promote::reach(world, "AwaitingApproval", progress).await?;
    let still = waiting.status.as_ref().and_then(|status| status.live.as_ref());
    ensure!(
        still.is_some_and(|still| still.artifact == live.status.artifact),
        "the live model must stay in status while another attempt waits"
    );
    promote::approve(world, &promote::request_digest(&waiting)?, progress).await?;
    let rolled_back = wait_for_rollback(world, progress).await?;
    let status = rolled_back.status.clone().unwrap_or_default();
    let attempt = status.attempt.context("no attempt in status")?;
    progress.say(&format!("{}: {}", promote::name_of(&rolled_back), attempt.message));
    let live_now = status.live.context("the former model is no longer in status.live")?;
    ensure!(
        live_now.artifact == live.status.artifact,
        "another model is live after the rollback"
    );
    ensure!(
        !status.rolled_back.is_empty(),
        "the digest that was rolled back is not remembered"
    );
    let deployment = Api::<Deployment>::namespaced(world.client.clone(), NAMESPACE)
        .get(WORKLOAD)
        .await?;
    let reference = promote::reference(&deployment).unwrap_or_default();
    ensure!(
        reference.ends_with(&live.status.artifact.artifact_digest),
        "the Deployment names {reference}"
    );
    promote::classify(world, progress).await
}

async fn wait_for_rollback(world: &World, progress: &Progress) -> Result<ModelPromotion> {
    let step = progress.step(format!("{PROMOTION}: RolledBack"));
    let api: Api<ModelPromotion> = Api::namespaced(world.client.clone(), NAMESPACE);
    let until = Instant::now() + WITHIN;
    loop {
        let found = api.get(PROMOTION).await?;
        let status = found.status.clone().unwrap_or_default();
        if status.phase == "RolledBack" {
            step.done(promote::message_of(&found, "Ready")?);
            return Ok(found);
        }
        ensure!(
            status.phase != "Live" || status.live.is_some(),
            "live without status.live"
        );
        ensure!(
            Instant::now() < until,
            "still {} after {} s",
            status.phase,
            WITHIN.as_secs()
        );
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
}
