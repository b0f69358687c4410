//! `assayer approve`: shows what would be approved, then writes the annotations that name this very request.
//!
//! Decides nothing about rights: the cluster does. The stamps are written too, because clusters without the mutating policy only check them.

mod seat;

use std::collections::BTreeMap;
use std::path::PathBuf;

use anyhow::{Context as _, Result, bail, ensure};
use assayer_crds::promotion::{ModelPromotionStatus, RequestStatus};
use assayer_crds::{ModelPromotion, names};
use assayer_operator::evidence::dsse;
use assayer_operator::evidence::keys::PublicKey;
use clap::Args;
use k8s_openapi::api::authentication::v1::{SelfSubjectReview, UserInfo};
use k8s_openapi::api::core::v1::ConfigMap;
use kube::api::{Patch, PatchParams, PostParams};
use kube::config::{KubeConfigOptions, Kubeconfig};
use kube::{Api, Client, ResourceExt as _};
use serde_json::json;

use crate::{terminal, verify};

/// Phases in which nothing waits for people: the request was carried out, or is being carried out.
const DECIDED: [&str; 3] = ["Progressing", "Live", "Superseded"];

/// Which promotion, and as what.
#[derive(Args)]
pub(crate) struct Options {
    /// Name of the `ModelPromotion`
    name: String,
    /// Namespace [default: the context's]
    #[arg(short, long)]
    namespace: Option<String>,
    /// Role to approve in [default: the one that the tier needs, where there is just one]
    #[arg(long)]
    role: Option<String>,
    /// Why, in one sentence; kept on record [default: asked for after the evidence was shown]
    #[arg(long)]
    reason: Option<String>,
    /// Reject instead: terminal for this request
    #[arg(long)]
    reject: bool,
    /// Don't ask
    #[arg(short, long, requires = "reason")]
    yes: bool,
    /// Public key (PEM) that the evidence must be signed with; without it only its digest is checked here
    #[arg(long, value_name = "FILE")]
    key: Option<PathBuf>,
    /// Kubeconfig [default: KUBECONFIG, ~/.kube/config]
    #[arg(long, value_name = "FILE")]
    kubeconfig: Option<PathBuf>,
    /// Context of the kubeconfig
    #[arg(long)]
    context: Option<String>,
}

/// Shows, asks, approves.
pub(crate) async fn run(options: &Options) -> Result<()> {
    let client = client(options).await?;
    let namespace = options
        .namespace
        .clone()
        .unwrap_or_else(|| client.default_namespace().to_owned());
    let api: Api<ModelPromotion> = Api::namespaced(client.clone(), &namespace);
    let promotion = api
        .get(&options.name)
        .await
        .with_context(|| format!("read ModelPromotion {namespace}/{}", options.name))?;
    let status = promotion.status.clone().unwrap_or_default();
    let request = waiting(&promotion, &status)?;
    let role = role(options, request)?;
    terminal::note(&show(&promotion, &status, request));
    terminal::note(&show_evidence(&client, &namespace, request, options).await?);
    let user = who_am_i(&client).await?;
    let name = user.username.clone().unwrap_or_default();
    let verb = if options.reject { "reject" } else { "approve" };
    let seat = seat::free(&promotion, &role, &request.digest, &name, options.reject)?;
    let Some(reason) = reason(options, verb)? else {
        bail!("no reason was given: nothing was written (use --reason where there is no terminal)");
    };
    if !options.yes && !terminal::confirmed(&format!("{verb} request {} as {name} in role {seat}?", request.digest))? {
        bail!("not confirmed: nothing was written (use --yes where there is no terminal)");
    }
    let annotations = annotations(&seat, &request.digest, options, reason, &user);
    // With the resource version, so that a change since it was shown is a conflict and not an approval of something unseen.
    let patch =
        json!({"metadata": {"resourceVersion": promotion.metadata.resource_version, "annotations": annotations}});
    let parameters = PatchParams {
        field_manager: Some("assayer-cli".into()),
        ..Default::default()
    };
    api.patch(&options.name, &parameters, &Patch::Merge(&patch))
        .await
        .map_err(refusal)?;
    let done = if options.reject { "rejected" } else { "approved" };
    terminal::print(&format!("{done} {} as {name} in role {seat}", request.digest));
    Ok(())
}

fn refusal(error: kube::Error) -> anyhow::Error {
    match error {
        kube::Error::Api(status) if status.is_conflict() => {
            anyhow::anyhow!("the promotion changed after it was shown: nothing was written; look at it again")
        }
        kube::Error::Api(status) => anyhow::anyhow!("the cluster refused: {}", status.message),
        other => anyhow::Error::new(other).context("write the approval"),
    }
}

async fn client(options: &Options) -> Result<Client> {
    let wanted = KubeConfigOptions {
        context: options.context.clone(),
        ..Default::default()
    };
    let config = match &options.kubeconfig {
        Some(file) => {
            let kubeconfig = Kubeconfig::read_from(file).with_context(|| format!("read {}", file.display()))?;
            kube::Config::from_custom_kubeconfig(kubeconfig, &wanted).await?
        }
        None => kube::Config::from_kubeconfig(&wanted).await?,
    };
    Ok(Client::try_from(config)?)
}

/// The request that people are asked about, if there is one.
fn waiting<'a>(promotion: &ModelPromotion, status: &'a ModelPromotionStatus) -> Result<&'a RequestStatus> {
    let (name, phase) = (promotion.name_any(), &status.phase);
    ensure!(
        status.observed_generation == promotion.metadata.generation,
        "the operator has not seen the newest spec of {name} yet: try again in a moment"
    );
    let Some(request) = &status.request else {
        let ready = status.conditions.iter().find(|condition| condition.type_ == "Ready");
        let why = ready.map(|ready| format!(" ({})", ready.message)).unwrap_or_default();
        bail!("{name} is {phase}{why}: there is nothing to approve yet");
    };
    if let Some(refused) = status.rejected.iter().find(|refused| refused.digest == request.digest) {
        bail!(
            "{} rejected this request ({}): it can't be approved any more; change the spec or the evidence to ask anew",
            refused.by,
            refused.reason
        );
    }
    ensure!(
        !DECIDED.contains(&phase.as_str()),
        "{name} is {phase}: nothing waits for approval"
    );
    Ok(request)
}

/// The role that was asked for, or the only one that the tier needs.
fn role(options: &Options, request: &RequestStatus) -> Result<String> {
    let needed: Vec<&str> = request.required.iter().map(|required| required.role.as_str()).collect();
    if let Some(role) = &options.role {
        let base = names::role_of(role)
            .with_context(|| format!("`{role}` is no role: [a-z0-9-]{{1,50}}, and .2 to .99 for a further seat"))?;
        ensure!(
            needed.contains(&base),
            "tier {} needs {}, not {role}",
            request.tier,
            if needed.is_empty() {
                "no approval".to_owned()
            } else {
                needed.join(", ")
            }
        );
        return Ok(role.clone());
    }
    match needed.as_slice() {
        [one] => Ok((*one).to_owned()),
        [] => bail!("tier {} needs no approval", request.tier),
        several => bail!(
            "tier {} needs several roles: say --role {}",
            request.tier,
            several.join(" or ")
        ),
    }
}

/// Who asks for what, where, and what is there now.
fn show(promotion: &ModelPromotion, status: &ModelPromotionStatus, request: &RequestStatus) -> String {
    let spec = &promotion.spec;
    let by = promotion.annotations().get(names::REQUESTED_BY);
    let live = status.live.as_ref().map_or_else(
        || "no model of this promotion".to_owned(),
        |live| format!("{} ({})", live.candidate, live.artifact.artifact_digest),
    );
    format!(
        "promotion {}/{}: {} ({}), requested by {}\ntarget    Deployment {}, live now: {live}\nrequest   {}, tier {}, approvals {}",
        promotion.namespace().unwrap_or_default(),
        promotion.name_any(),
        spec.change.reason,
        spec.change.ticket,
        by.map_or("nobody knows whom", String::as_str),
        spec.target.workload.name,
        request.digest,
        request.tier,
        status.summary.approvals,
    )
}

async fn show_evidence(client: &Client, namespace: &str, request: &RequestStatus, options: &Options) -> Result<String> {
    let maps: Api<ConfigMap> = Api::namespaced(client.clone(), namespace);
    let name = &request.evidence.config_map;
    let map = maps
        .get(name)
        .await
        .with_context(|| format!("read the evidence ConfigMap {name}"))?;
    let envelope = map.data.unwrap_or_default().remove(names::EVIDENCE_KEY);
    let envelope = envelope.with_context(|| format!("ConfigMap {name} has no {}", names::EVIDENCE_KEY))?;
    let (verified, signature) = match &options.key {
        Some(file) => {
            let pem = std::fs::read_to_string(file).with_context(|| format!("read {}", file.display()))?;
            let key = PublicKey::from_pem(&pem)?;
            (
                dsse::verify(&envelope, &key)?,
                format!("holds for key {:.12}", key.id()),
            )
        }
        None => (
            dsse::read_unverified(&envelope)?,
            "was not checked here (no --key); the operator checks it".to_owned(),
        ),
    };
    ensure!(
        verified.digest.as_str() == request.evidence.digest,
        "ConfigMap {name} holds evidence {}, the request rests on {}: don't approve",
        verified.digest,
        request.evidence.digest
    );
    Ok(verify::summary(&verified, &signature))
}

async fn who_am_i(client: &Client) -> Result<UserInfo> {
    let reviews: Api<SelfSubjectReview> = Api::all(client.clone());
    let answer = reviews
        .create(&PostParams::default(), &SelfSubjectReview::default())
        .await
        .context("ask the cluster who I am")?;
    answer
        .status
        .and_then(|status| status.user_info)
        .context("the cluster does not say who I am")
}

/// The reason that was given, or that is given now; nothing where there is nobody to ask.
fn reason(options: &Options, verb: &str) -> Result<Option<String>> {
    let given = match &options.reason {
        Some(reason) => Some(reason.clone()),
        None => terminal::asked(&format!("why do you {verb}? "))?,
    };
    Ok(given.filter(|reason| !reason.trim().is_empty()))
}

fn annotations(
    seat: &str,
    digest: &str,
    options: &Options,
    reason: String,
    user: &UserInfo,
) -> BTreeMap<String, String> {
    let name = user.username.clone().unwrap_or_default();
    let groups = user.groups.clone().unwrap_or_default().join(",");
    let (decision, by) = if options.reject {
        (names::REJECT, names::REJECTED_BY)
    } else {
        (names::APPROVE, names::APPROVED_BY)
    };
    let mut annotations = BTreeMap::from([
        (format!("{decision}{seat}"), digest.to_owned()),
        (format!("{by}{seat}"), name),
        (format!("{}{seat}", names::APPROVE_REASON), reason),
    ]);
    if !options.reject {
        annotations.insert(format!("{}{seat}", names::APPROVER_GROUPS), groups);
    }
    annotations
}
