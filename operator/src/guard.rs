//! Tries a forged approval as a server-side dry run, and closes all gates unless the policy for approvals refuses it by name.
//!
//! Decides whether the admission policies are in force, and in which epoch. Never writes anything: each probe is a dry run that is meant
//! to fail. It sees the policy as it holds in the operator's own namespace; a binding that leaves out other namespaces is for the
//! chart's tests to exclude.
//!
//! The epoch is what makes a gap leave a mark. The API server itself keeps it: a policy or binding that was deleted comes back with another
//! uid, one that was changed with another generation, and so with another epoch, whoever watched meanwhile. The epoch is part of the request
//! digest, so that approvals from before name something else. It is an HMAC with the operator's key, so that nobody who puts a
//! policy back can name the next request before its policy is seen to refuse.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use assayer_crds::common::Owner;
use assayer_crds::conditions::{GUARD_DOWN, GUARD_UP};
use assayer_crds::names::{APPROVE, FIELD_MANAGER, REQUESTED_BY};
use assayer_crds::promotion::{
    Change, Delivery, ImageVolumeDelivery, ModelPromotion, ModelPromotionSpec, OptimizationSource, Source, Target,
    Workload, WorkloadKind,
};
use k8s_openapi::api::admissionregistration::v1::{ValidatingAdmissionPolicy, ValidatingAdmissionPolicyBinding};
use k8s_openapi::api::authentication::v1::SelfSubjectReview;
use k8s_openapi::api::core::v1::ObjectReference;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use kube::Api;
use kube::api::PostParams;
use tokio_util::sync::CancellationToken;

use crate::client::limited;
use crate::context::Context;
use crate::error::Error;
use crate::events::{self, Note};
use crate::evidence::keys::SigningKey;

/// The policy that must refuse.
pub const POLICY: &str = "assayer-approvals";
/// Time between probes once one was clear.
const INTERVAL: Duration = Duration::from_secs(30);
/// Time between probes until then, and after one without an answer.
const QUICK: Duration = Duration::from_secs(2);
/// So many quick probes at most: a cluster without the policies is not asked every two seconds for ever.
const QUICK_PROBES: u32 = 60;
/// Longest probe.
const LIMIT: Duration = Duration::from_secs(10);
/// So long may a former answer stand in for one that did not come.
const STALE: Duration = Duration::from_secs(90);
const NAME: &str = "assayer-guard-probe";

/// Which policy and which binding: another uid once they were deleted, another generation once they were changed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Edition {
    policy: (String, i64),
    binding: (String, i64),
}

impl Edition {
    fn of(policy: &ObjectMeta, binding: &ObjectMeta) -> Option<Self> {
        let part = |meta: &ObjectMeta| Some((meta.uid.clone()?, meta.generation?));
        Some(Self {
            policy: part(policy)?,
            binding: part(binding)?,
        })
    }

    /// The epoch that begins with it.
    pub fn epoch(&self, key: &SigningKey) -> String {
        let ((policy, edition), (binding, bound)) = (&self.policy, &self.binding);
        key.mark(format!("assayer guard epoch {policy}/{edition} {binding}/{bound}").as_bytes())
    }
}

/// The edition that the cluster has now; none while the policy or its binding is missing.
///
/// # Errors
/// When they can't be read.
pub async fn edition(client: &kube::Client) -> Result<Option<Edition>, Error> {
    let policies: Api<ValidatingAdmissionPolicy> = Api::all(client.clone());
    let bindings: Api<ValidatingAdmissionPolicyBinding> = Api::all(client.clone());
    let reads = async { tokio::try_join!(policies.get_metadata_opt(POLICY), bindings.get_metadata_opt(POLICY)) };
    let what = format!("ValidatingAdmissionPolicy {POLICY} and its binding");
    let (policy, binding) = limited(&what, reads).await?.map_err(Error::read(&what))?;
    Ok(policy
        .zip(binding)
        .and_then(|(policy, binding)| Edition::of(&policy.metadata, &binding.metadata)))
}

/// What one probe saw.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Sight {
    /// The policy refused: it is in force.
    Refused,
    /// Nobody refused: an approval can be forged.
    Accepted,
    /// Somebody else refused, so that nothing is known about the policy.
    RefusedElsewhere(String),
    /// No answer.
    Unclear(String),
}

impl Sight {
    /// Word for the metric.
    pub fn as_str(&self) -> &'static str {
        match self {
            Self::Refused => "refused",
            Self::Accepted => "accepted",
            Self::RefusedElsewhere(_) => "refused_elsewhere",
            Self::Unclear(_) => "unclear",
        }
    }
}

/// What the API server's answer to the forged create means.
pub fn classify(answer: Result<(), &kube::Error>) -> Sight {
    let status = match answer {
        Ok(()) => return Sight::Accepted,
        Err(kube::Error::Api(status)) => status,
        Err(other) => return Sight::Unclear(other.to_string()),
    };
    let words = || format!("{} {}", status.code, status.message);
    match status.code {
        403 | 422
            if status
                .message
                .contains(&format!("ValidatingAdmissionPolicy '{POLICY}'")) =>
        {
            Sight::Refused
        }
        // Admission comes before the name is looked up: it let the forgery through.
        409 => Sight::Accepted,
        408 | 429 | 500.. => Sight::Unclear(words()),
        _ => Sight::RefusedElsewhere(words()),
    }
}

/// Whether approvals may count after `sight`, where the last clear refusal was `ago`.
pub fn in_force(sight: &Sight, ago: Option<Duration>) -> bool {
    match sight {
        Sight::Refused => true,
        Sight::Accepted | Sight::RefusedElsewhere(_) => false,
        Sight::Unclear(_) => ago.is_some_and(|ago| ago <= STALE),
    }
}

/// Probes until `stop`: at once, then every thirty seconds; every two for the first two minutes in which it was not refused.
pub async fn run(ctx: Arc<Context>, stop: CancellationToken) {
    let mut user = None;
    let mut refused: Option<(Instant, Edition)> = None;
    let mut first = true;
    let mut quick = 0;
    while !stop.is_cancelled() {
        ctx.health.beat("guard", Instant::now(), INTERVAL + LIMIT * 3);
        let (edition, sight) = look(&ctx, &mut user).await;
        let now = Instant::now();
        if let (Sight::Refused, Some(edition)) = (&sight, edition) {
            refused = Some((now, edition));
        }
        let ago = refused.as_ref().map(|(at, _)| now.saturating_duration_since(*at));
        let holds = in_force(&sight, ago);
        let seen = refused.as_ref().filter(|_| holds).map(|(_, edition)| edition.clone());
        let before = ctx.guard.record(seen.clone());
        let changed = before.is_some() != holds;
        if before.is_some() && holds && before != seen {
            tracing::warn!(
                "policy {POLICY} was changed or replaced: what was approved before has to be approved again"
            );
        }
        ctx.metrics.guard_probed(sight.as_str());
        ctx.metrics.guard(holds, !ctx.config.without_guard);
        if changed || (first && !holds) {
            tell(&ctx, holds, &sight).await;
        }
        first = false;
        quick = if sight == Sight::Refused { 0 } else { quick + 1 };
        let wait = if (1..=QUICK_PROBES).contains(&quick) {
            QUICK
        } else {
            INTERVAL
        };
        tokio::select! {
            () = stop.cancelled() => {}
            () = tokio::time::sleep(wait) => {}
        }
    }
    ctx.health.ended("guard");
}

/// Probes, and tells by which edition the forgery was refused: the one that was there before and after.
async fn look(ctx: &Context, user: &mut Option<String>) -> (Option<Edition>, Sight) {
    let before = match edition(&ctx.client).await {
        Ok(before) => before,
        Err(error) => return (None, Sight::Unclear(error.message())),
    };
    let sight = probe(ctx, user).await;
    match (sight, edition(&ctx.client).await) {
        (Sight::Refused, Err(error)) => (None, Sight::Unclear(error.message())),
        (Sight::Refused, Ok(None)) => {
            let words = format!("the policy or its binding {POLICY} is not there");
            (None, Sight::RefusedElsewhere(words))
        }
        (Sight::Refused, Ok(after)) if after != before => {
            (None, Sight::Unclear(format!("{POLICY} was changed meanwhile")))
        }
        (sight, _) => (before, sight),
    }
}

async fn probe(ctx: &Context, user: &mut Option<String>) -> Sight {
    let attempt = async {
        if user.is_none() {
            *user = Some(whoami(&ctx.client).await?);
        }
        let forged = forged(&ctx.config.namespace, user.as_deref().unwrap_or_default());
        let promotions: Api<ModelPromotion> = Api::namespaced(ctx.client.clone(), &ctx.config.namespace);
        let parameters = PostParams {
            dry_run: true,
            field_manager: Some(FIELD_MANAGER.to_owned()),
        };
        let answer = promotions.create(&parameters, &forged).await;
        Ok::<_, Error>(classify(answer.as_ref().map(|_| ())))
    };
    match tokio::time::timeout(LIMIT, attempt).await {
        Ok(Ok(sight)) => sight,
        Ok(Err(error)) => Sight::Unclear(error.message()),
        Err(_) => Sight::Unclear(format!("no answer within {LIMIT:?}")),
    }
}

/// The operator's own user name, so that the forgery is wrong in nothing but the approval.
async fn whoami(client: &kube::Client) -> Result<String, Error> {
    let review = Api::<SelfSubjectReview>::all(client.clone())
        .create(&PostParams::default(), &SelfSubjectReview::default())
        .await
        .map_err(Error::read("SelfSubjectReview"))?;
    let user = review
        .status
        .and_then(|status| status.user_info)
        .and_then(|user| user.username);
    Ok(user.unwrap_or_default())
}

/// A well-formed promotion that is approved before anybody saw it.
fn forged(namespace: &str, user: &str) -> ModelPromotion {
    let word = || NAME.to_owned();
    let mut promotion = ModelPromotion::new(
        NAME,
        ModelPromotionSpec {
            owner: Owner {
                group: word(),
                contact: word(),
            },
            change: Change {
                ticket: word(),
                reason: "A forged approval that must be refused; it is only ever tried as a dry run.".to_owned(),
            },
            source: Source {
                model_optimization: OptimizationSource {
                    name: word(),
                    candidate: None,
                },
            },
            target: Target {
                workload: Workload {
                    api_version: "apps/v1".to_owned(),
                    kind: WorkloadKind::Deployment,
                    name: word(),
                },
                delivery: Delivery {
                    image_volume: Some(ImageVolumeDelivery {
                        volume: "model".to_owned(),
                    }),
                    env: None,
                },
            },
            suspend: true,
        },
    );
    promotion.metadata.namespace = Some(namespace.to_owned());
    promotion.metadata.annotations = Some(BTreeMap::from([
        (format!("{APPROVE}guard"), format!("sha256:{}", "0".repeat(64))),
        (REQUESTED_BY.to_owned(), user.to_owned()),
    ]));
    promotion
}

async fn tell(ctx: &Context, holds: bool, sight: &Sight) {
    let note = if holds {
        Note::normal(
            GUARD_UP,
            "ProbeGuard",
            format!("a forged approval was refused by policy {POLICY}: approvals count, but none from before a gap"),
        )
    } else {
        let why = match sight {
            Sight::Accepted => "was not refused".to_owned(),
            Sight::RefusedElsewhere(words) => format!("was refused by somebody else ({words})"),
            Sight::Unclear(words) => format!("could not be tried ({words})"),
            Sight::Refused => "was refused".to_owned(),
        };
        Note::warning(
            GUARD_DOWN,
            "ProbeGuard",
            format!(
                "a forged approval {why}; policy {POLICY} must refuse it: no promotion proceeds until then. Install the chart's policies"
            ),
        )
    };
    if holds {
        tracing::info!(reason = note.reason, "{}", note.message);
    } else {
        tracing::error!(
            reason = note.reason,
            required = !ctx.config.without_guard,
            "{}",
            note.message
        );
    }
    let pod = ObjectReference {
        api_version: Some("v1".to_owned()),
        kind: Some("Pod".to_owned()),
        name: Some(ctx.config.pod_name.clone()),
        namespace: Some(ctx.config.namespace.clone()),
        ..ObjectReference::default()
    };
    events::publish(&ctx.recorder, &pod, &[note]).await;
}

#[cfg(test)]
mod tests {
    use super::*;
    use kube::core::Status;

    fn api(code: u16, message: &str) -> kube::Error {
        let mut status = Status::failure(message, "Forbidden");
        status.code = code;
        kube::Error::Api(status.boxed())
    }

    #[test]
    fn only_a_refusal_by_the_policys_own_name_counts() {
        let denied = |policy: &str| {
            format!(
                "modelpromotions.assayer.dev \"x\" is forbidden: ValidatingAdmissionPolicy '{policy}' with binding '{policy}' denied request: no"
            )
        };
        let cases = [
            (403, denied("assayer-approvals"), "refused"),
            (422, denied("assayer-approvals"), "refused"),
            (403, denied("assayer-approvals-off"), "refused_elsewhere"),
            (403, denied("other"), "refused_elsewhere"),
            (
                403,
                "User \"assayer-approvals\" cannot create resource".to_owned(),
                "refused_elsewhere",
            ),
            (
                404,
                "the server could not find the requested resource".to_owned(),
                "refused_elsewhere",
            ),
            (400, denied("assayer-approvals"), "refused_elsewhere"),
            (409, "already exists".to_owned(), "accepted"),
            (429, denied("assayer-approvals"), "unclear"),
            (503, "unavailable".to_owned(), "unclear"),
        ];
        for (code, message, expected) in cases {
            assert_eq!(
                classify(Err(&api(code, &message))).as_str(),
                expected,
                "{code} {message}"
            );
        }
        assert_eq!(classify(Ok(())), Sight::Accepted);
    }

    #[test]
    fn silence_is_borne_for_a_while_and_then_closes() {
        let unclear = Sight::Unclear("away".into());
        assert!(!in_force(&unclear, None));
        assert!(in_force(&unclear, Some(Duration::from_secs(90))));
        assert!(!in_force(&unclear, Some(Duration::from_secs(91))));
        assert!(!in_force(&Sight::Accepted, Some(Duration::ZERO)));
        assert!(!in_force(&Sight::RefusedElsewhere(String::new()), Some(Duration::ZERO)));
        assert!(in_force(&Sight::Refused, None));
    }

    #[test]
    fn every_gap_begins_another_epoch_that_nobody_can_foretell() {
        let meta = |uid: &str, generation| ObjectMeta {
            uid: Some(uid.into()),
            generation: Some(generation),
            ..ObjectMeta::default()
        };
        let edition = |policy, binding| Edition::of(&policy, &binding).unwrap();
        let key = SigningKey::generate().unwrap();
        let first = edition(meta("p", 1), meta("b", 1));
        assert_eq!(first.epoch(&key), first.clone().epoch(&key));
        let mut epochs = vec![
            first.epoch(&key),
            edition(meta("q", 1), meta("b", 1)).epoch(&key),
            edition(meta("p", 2), meta("b", 1)).epoch(&key),
            edition(meta("p", 1), meta("c", 1)).epoch(&key),
            edition(meta("p", 1), meta("b", 2)).epoch(&key),
            first.epoch(&SigningKey::generate().unwrap()),
        ];
        epochs.sort();
        epochs.dedup();
        assert_eq!(epochs.len(), 6);
        assert_eq!(Edition::of(&ObjectMeta::default(), &meta("b", 1)), None);
    }

    #[test]
    fn the_forgery_is_wrong_in_nothing_but_the_approval() {
        let promotion = forged("assayer-system", "me");
        let annotations = promotion.metadata.annotations.unwrap();
        assert_eq!(annotations.get(REQUESTED_BY).map(String::as_str), Some("me"));
        assert_eq!(annotations.keys().filter(|key| key.starts_with(APPROVE)).count(), 1);
    }
}
