//! Tries a forged approval as a server-side dry run, and closes all gates unless the policy for approvals refuses it by name.
//!
//! Decides whether the admission policies are in force. Never writes anything: each probe is a dry run that is meant to fail. It sees the
//! policy as it holds in the operator's own namespace; a binding that leaves out other namespaces is for the chart's tests to exclude.

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
use k8s_openapi::api::authentication::v1::SelfSubjectReview;
use k8s_openapi::api::core::v1::ObjectReference;
use kube::Api;
use kube::api::PostParams;
use tokio_util::sync::CancellationToken;

use crate::context::Context;
use crate::error::Error;
use crate::events::{self, Note};

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
    let mut refused_at: Option<Instant> = None;
    let mut first = true;
    let mut quick = 0;
    while !stop.is_cancelled() {
        ctx.health.beat("guard", Instant::now(), INTERVAL + LIMIT * 3);
        let sight = probe(&ctx, &mut user).await;
        let now = Instant::now();
        if sight == Sight::Refused {
            refused_at = Some(now);
        }
        let holds = in_force(&sight, refused_at.map(|at| now.saturating_duration_since(at)));
        let changed = ctx.guard.record(holds);
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
            format!("a forged approval was refused by policy {POLICY}: approvals count again"),
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
    fn the_forgery_is_wrong_in_nothing_but_the_approval() {
        let promotion = forged("assayer-system", "me");
        let annotations = promotion.metadata.annotations.unwrap();
        assert_eq!(annotations.get(REQUESTED_BY).map(String::as_str), Some("me"));
        assert_eq!(annotations.keys().filter(|key| key.starts_with(APPROVE)).count(), 1);
    }
}
