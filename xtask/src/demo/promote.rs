//! The promotion half: a server that waits for its model, a request that waits for a person, refusals in the rules' own words, an
//! approval, and the model in the pods.

use std::{
    fs,
    process::Output,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, ensure};
use assayer_crds::ModelPromotion;
use assayer_crds::names::{APPROVE, APPROVE_REASON};
use assayer_crds::promotion::LiveStatus;
use futures::TryStreamExt as _;
use k8s_openapi::api::apps::v1::Deployment;
use kube::runtime::{WatchStreamExt as _, watcher};
use kube::{Api, ResourceExt as _};
use serde_json::Value;

use super::optimize::{Optimized, example_file, read as example};
use super::world::{NAMESPACE, Person, World};
use crate::progress::Progress;

/// The promotion, the workload, and the role that must approve.
pub(super) const PROMOTION: &str = "magika-prod";
pub(super) const WORKLOAD: &str = "scanner";
const ROLE: &str = "security";
const VOLUME: &str = "model";
const WITHIN: Duration = Duration::from_mins(3);

/// What went live, and what serves it.
pub(super) struct Live {
    pub(super) status: LiveStatus,
}

/// Applies server and promotion, shows who is refused, approves, and sees the model answer.
pub(super) async fn to_production(
    world: &World,
    server: &str,
    optimized: &Optimized,
    progress: &Progress,
) -> Result<Live> {
    apply_server(world, server, progress)?;
    let said = world.apply(Person::Erin, &example("modelpromotion.yaml")?)?;
    progress.say(&format!("{}: {}", Person::Erin.name(), said.trim()));
    let waiting = reach(world, "AwaitingApproval", progress).await?;
    let ready = message_of(&waiting, "Approved")?;
    progress.say(&ready);
    let digest = request_digest(&waiting)?;
    ensure!(
        ready.contains(&digest),
        "the condition does not print the command with {digest}"
    );
    refuse_those_who_may_not(world, &digest, progress)?;
    let first_write = approve(world, &digest, progress).await?;
    progress.say(&format!(
        "first write on the Deployment {:.3} s after the approval",
        first_write.as_secs_f64()
    ));
    let live = reach(world, "Live", progress).await?;
    let status = live
        .status
        .and_then(|status| status.live)
        .context("the promotion is Live without status.live")?;
    let artifact = optimized.selected.artifact.clone().context("no artifact")?;
    ensure!(
        status.artifact.artifact_digest == artifact.artifact_digest,
        "another digest is live"
    );
    ensure!(
        status
            .approvals
            .iter()
            .any(|approval| approval.user == Person::Sam.name()),
        "the approver is not in status.live"
    );
    classify(world, progress).await?;
    Ok(Live { status })
}

/// The server's manifest with the image in it; its pods are refused until a model is promoted, which is failing closed.
fn apply_server(world: &World, image: &str, progress: &Progress) -> Result<()> {
    let manifest = example("deployment.yaml")?;
    let placed = manifest.replace("image: scanner\n", &format!("image: {image}\n"));
    ensure!(
        placed != manifest,
        "deployment.yaml has no placeholder `image: scanner`"
    );
    world.apply(Person::Admin, &example("service.yaml")?)?;
    let said = world.apply(Person::Erin, &placed)?;
    for line in said.lines() {
        progress.say(&format!("{}: {line}", Person::Erin.name()));
    }
    Ok(())
}

/// Waits until the promotion is in `phase` for its current generation.
pub(super) async fn reach(world: &World, phase: &str, progress: &Progress) -> Result<ModelPromotion> {
    let step = progress.step(format!("{PROMOTION}: {phase}"));
    let api: Api<ModelPromotion> = Api::namespaced(world.client.clone(), NAMESPACE);
    let until = Instant::now() + WITHIN;
    loop {
        let found = api.get(PROMOTION).await.context("read the promotion")?;
        let status = found.status.clone().unwrap_or_default();
        if status.phase == phase && status.observed_generation == found.metadata.generation {
            step.done(format!("approvals {}", status.summary.approvals));
            return Ok(found);
        }
        let given_up = ["Failed", "Rejected", "RolledBack"].contains(&status.phase.as_str())
            && status.observed_generation == found.metadata.generation;
        let late = Instant::now() > until;
        ensure!(
            !given_up && !late,
            "expected {phase}, but it is {}: {}",
            status.phase,
            status
                .conditions
                .iter()
                .map(|c| format!("{}={} {}: {}", c.type_, c.status, c.reason, c.message))
                .collect::<Vec<_>>()
                .join("; ")
        );
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
}

/// A condition's message.
pub(super) fn message_of(promotion: &ModelPromotion, type_: &str) -> Result<String> {
    let conditions = promotion
        .status
        .as_ref()
        .map(|status| status.conditions.as_slice())
        .unwrap_or_default();
    let found = conditions.iter().find(|condition| condition.type_ == type_);
    Ok(found.with_context(|| format!("no condition {type_}"))?.message.clone())
}

/// The digest that an approval must name.
pub(super) fn request_digest(promotion: &ModelPromotion) -> Result<String> {
    let request = promotion.status.as_ref().and_then(|status| status.request.as_ref());
    Ok(request.context("the promotion has no request")?.digest.clone())
}

fn annotations(digest: &str) -> [String; 2] {
    [
        format!("{APPROVE}{ROLE}={digest}"),
        format!("{APPROVE_REASON}{ROLE}=numbers and slices looked at"),
    ]
}

fn refuse_those_who_may_not(world: &World, digest: &str, progress: &Progress) -> Result<()> {
    world.kubectl(Person::Admin, &["create", "serviceaccount", "robot"])?;
    let account = format!("--serviceaccount={NAMESPACE}:robot");
    for role in ["security-approver", "model-editor"] {
        let binding = format!("robot-is-{role}");
        let role = format!("--role={role}");
        world.kubectl(Person::Admin, &["create", "rolebinding", &binding, &role, &account])?;
    }
    let robot = format!("system:serviceaccount:{NAMESPACE}:robot");
    let [approve, reason] = annotations(digest);
    let arguments = [
        "annotate",
        "mpromo",
        PROMOTION,
        approve.as_str(),
        reason.as_str(),
        "--overwrite",
    ];
    let token = world.kubectl(Person::Admin, &["create", "token", "robot"])?;
    let attempts: [(&str, Output); 3] = [
        (
            "an editor without the right",
            world.kubectl_output(Person::Mallory, &arguments)?,
        ),
        ("the requester", world.kubectl_output(Person::Erin, &arguments)?),
        ("a service account", as_token(world, token.trim(), &arguments)?),
    ];
    for (who, output) in attempts {
        let words = String::from_utf8_lossy(&output.stderr).trim().to_owned();
        ensure!(!output.status.success(), "{who} was not refused");
        ensure!(
            words.contains("assayer-approvals"),
            "{who} was refused by something else: {words}"
        );
        progress.say(&format!("refused {who}: {words}"));
    }
    progress.say(&format!(
        "({robot} holds the role of an approver, and is refused for being a machine)"
    ));
    Ok(())
}

fn as_token(world: &World, token: &str, arguments: &[&str]) -> Result<Output> {
    let mut command = world.kubectl_command(Person::Admin, arguments)?;
    // A kubeconfig of its own, without the administrator's certificate, which would win over the token.
    let view: Value =
        serde_json::from_str(&world.kubectl(Person::Admin, &["config", "view", "--raw", "--minify", "-o", "json"])?)?;
    let path = world.folder().join("robot.kubeconfig");
    let mut kubeconfig = view;
    let users = kubeconfig["users"]
        .as_array_mut()
        .context("the kubeconfig has no users")?;
    for user in users {
        user["user"] = serde_json::json!({"token": token});
    }
    fs::write(&path, kubeconfig.to_string())?;
    Ok(command.env("KUBECONFIG", &path).output()?)
}

/// Approves as the right person, and measures until the Deployment is written.
pub(super) async fn approve(world: &World, digest: &str, progress: &Progress) -> Result<Duration> {
    let deployments: Api<Deployment> = Api::namespaced(world.client.clone(), NAMESPACE);
    let before = reference(&deployments.get(WORKLOAD).await?);
    let config = watcher::Config::default().fields(&format!("metadata.name={WORKLOAD}"));
    let mut changes = std::pin::pin!(watcher(deployments, config).default_backoff().applied_objects());
    // The first item is the present state: from then on nothing is missed.
    changes.try_next().await?;
    let [approve, reason] = annotations(digest);
    let said = world.kubectl(
        Person::Sam,
        &["annotate", "mpromo", PROMOTION, &approve, &reason, "--overwrite"],
    )?;
    let approved = Instant::now();
    progress.say(&format!("{}: {}", Person::Sam.name(), said.trim()));
    let written = async {
        while let Some(deployment) = changes.try_next().await? {
            if reference(&deployment) != before {
                return Ok(approved.elapsed());
            }
        }
        anyhow::bail!("the watch on the Deployment ended")
    };
    tokio::time::timeout(Duration::from_mins(1), written)
        .await
        .context("no write on the Deployment within 60 s")?
}

/// The reference of the model's image volume.
pub(super) fn reference(deployment: &Deployment) -> Option<String> {
    let pod = deployment.spec.as_ref()?.template.spec.as_ref()?;
    let volume = pod.volumes.as_ref()?.iter().find(|volume| volume.name == VOLUME)?;
    volume.image.as_ref()?.reference.clone()
}

/// Sends a real file to the server in the pod and reads what it says.
pub(super) async fn classify(world: &World, progress: &Progress) -> Result<()> {
    let step = progress.step("the server classifies a real file");
    let forward = world.forward(NAMESPACE, &format!("service/{WORKLOAD}"), 80).await?;
    let file = example_file("../../Cargo.toml");
    let body = fs::read(&file).with_context(|| format!("read {}", file.display()))?;
    let answer = reqwest::Client::new()
        .post(format!("http://{}/classify", forward.address))
        .body(body)
        .send()
        .await?;
    ensure!(answer.status().is_success(), "the server answers {}", answer.status());
    let answer: Value = answer.json().await?;
    let label = answer["label"].as_str().unwrap_or_default();
    ensure!(label == "toml", "Cargo.toml was classified as {answer}");
    step.done(format!("Cargo.toml is {label}, with score {}", answer["score"]));
    Ok(())
}

/// Name of the object, for lines.
pub(super) fn name_of(promotion: &ModelPromotion) -> String {
    promotion.name_any()
}
