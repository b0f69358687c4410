//! What every reconcile has at hand. Holds no decision and no state of any object, except how often it failed in a row.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use kube::Resource;
use kube::runtime::controller::{self, Action};
use kube::runtime::events::{Recorder, Reporter};
use kube::runtime::reflector::ObjectRef;
use kube::runtime::watcher;

use crate::backoff::Backoff;
use crate::clock::Clock;
use crate::config::Config;
use crate::error::{Class, Error};
use crate::evidence::keys::SigningKey;
use crate::guard::Edition;
use crate::health::Health;
use crate::metrics::Metrics;

/// Shared by all controllers of one process.
pub struct Context {
    /// Client with the operator's own identity; its retries are off.
    pub client: kube::Client,
    /// Settings.
    pub config: Config,
    /// Where the shells read the time.
    pub clock: Clock,
    /// Long-lived, so that repeated events are aggregated.
    pub recorder: Recorder,
    /// Signs and verifies evidence.
    pub key: SigningKey,
    /// Delays after failures.
    pub backoff: Backoff,
    /// Whether the admission guard was seen in force.
    pub guard: Guard,
    /// Counts and durations of this process.
    pub metrics: Metrics,
    /// What runs, and whether it is stuck.
    pub health: Health,
}

impl Context {
    /// Puts the parts together.
    pub fn new(client: kube::Client, config: Config, key: SigningKey) -> Arc<Self> {
        let reporter = Reporter {
            controller: "assayer-operator".into(),
            instance: Some(config.pod_name.clone()),
        };
        let recorder = Recorder::new(client.clone(), reporter);
        let guard = Guard::new(config.without_guard);
        Arc::new(Self {
            client,
            config,
            clock: Clock,
            recorder,
            key,
            backoff: Backoff::default(),
            guard,
            metrics: Metrics::new(),
            health: Health::default(),
        })
    }

    /// Runs one reconcile of `object`: times it, counts its failure, and lets `/healthz` see when it does not end.
    ///
    /// # Errors
    /// Those of `work`.
    pub async fn timed<K, T>(
        &self,
        object: &ObjectRef<K>,
        work: impl Future<Output = Result<T, Error>>,
    ) -> Result<T, Error>
    where
        K: Resource<DynamicType = ()>,
    {
        let what = named(object);
        let started = Instant::now();
        let running = self.health.begin(what.clone(), started);
        let outcome = work.await;
        drop(running);
        self.metrics
            .reconciled(&K::kind(&()), started.elapsed(), outcome.as_ref().err());
        if outcome.is_ok() {
            self.backoff.succeeded(&what);
        }
        outcome
    }

    /// What to do after a reconcile of `object` failed with `error`; says so in the log.
    pub fn after<K>(&self, object: &ObjectRef<K>, error: &Error) -> Action
    where
        K: Resource<DynamicType = ()>,
    {
        let what = named(object);
        match error.class() {
            Class::Conflict => Action::requeue(SOMEBODY_WROTE),
            Class::Transient => {
                let delay = self.backoff.failed(&what);
                tracing::warn!(
                    object = what,
                    error = error.message(),
                    ?delay,
                    "reconcile failed and is tried again"
                );
                Action::requeue(delay)
            }
            Class::Terminal => {
                tracing::error!(
                    object = what,
                    error = error.message(),
                    "reconcile failed and waits for a change"
                );
                Action::await_change()
            }
        }
    }

    /// Logs what a controller of `K` says. Failures of reconciles were told by [`Context::after`]; what is left are those of the watches.
    pub fn heard<K>(&self, outcome: &Heard<K>)
    where
        K: Resource<DynamicType = ()>,
    {
        let kind = K::kind(&());
        match outcome {
            Ok((object, action)) => tracing::debug!(object = named(object), ?action, "reconciled"),
            // An object may go while a look at it is due.
            Err(controller::Error::ReconcilerFailed(..) | controller::Error::ObjectNotFound(_)) => {}
            Err(error) => {
                self.metrics.watch_failed(&kind);
                tracing::warn!(%error, %kind, "the controller stumbled");
            }
        }
    }
}

/// What a controller says about one reconcile or one failure of its watches.
pub type Heard<K> = Result<(ObjectRef<K>, Action), controller::Error<Error, watcher::Error>>;

/// Somebody else wrote the object in between: it is read again nearly at once.
const SOMEBODY_WROTE: Duration = Duration::from_millis(50);

/// `ModelPromotion ml/scanner`; without a namespace where the kind has none.
fn named<K>(object: &ObjectRef<K>) -> String
where
    K: Resource<DynamicType = ()>,
{
    let kind = K::kind(&());
    match &object.namespace {
        Some(namespace) => format!("{kind} {namespace}/{}", object.name),
        None => format!("{kind} {}", object.name),
    }
}

/// Whether forged approvals are known to be refused by the cluster, and by which edition of its policy. Closed until seen.
#[derive(Debug)]
pub struct Guard {
    not_needed: bool,
    seen: Mutex<Option<Edition>>,
}

impl Guard {
    fn new(not_needed: bool) -> Self {
        Self {
            not_needed,
            seen: Mutex::new(None),
        }
    }

    /// Whether approvals count without it.
    pub fn not_needed(&self) -> bool {
        self.not_needed
    }

    /// Whether approvals may count now.
    pub fn in_force(&self) -> bool {
        self.not_needed || self.seen().is_some()
    }

    /// Whether `present`, read live, is the very edition that was seen to refuse.
    pub fn vouches_for(&self, present: &Edition) -> bool {
        self.seen().as_ref() == Some(present)
    }

    /// Records which edition the last probe saw in force; returns what was recorded before.
    pub fn record(&self, in_force: Option<Edition>) -> Option<Edition> {
        std::mem::replace(&mut *self.seen(), in_force)
    }

    fn seen(&self) -> MutexGuard<'_, Option<Edition>> {
        self.seen.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use assayer_crds::{ModelOptimization, ModelPromotion, PromotionPolicy};
    use kube::client::Body;
    use kube::core::{DeserializeGuard, Status};

    use super::*;

    fn context() -> Arc<Context> {
        let nobody = tower::service_fn(|_: axum::http::Request<Body>| {
            std::future::ready(Err::<axum::http::Response<Body>, _>("there is no cluster"))
        });
        let config = Config {
            worker_image: String::new(),
            plain_http: Vec::new(),
            namespace: "assayer-system".into(),
            pod_name: "assayer-operator-0".into(),
            watch_namespace: None,
            signing_secret: String::new(),
            leader_elect: false,
            listen: ([127, 0, 0, 1], 0).into(),
            without_guard: false,
        };
        Context::new(
            kube::Client::new(nobody, "default"),
            config,
            SigningKey::generate().unwrap(),
        )
    }

    fn failed(code: u16) -> Error {
        let mut status = Status::failure("no", if code == 409 { "Conflict" } else { "InternalError" });
        status.code = code;
        Error::write("a thing")(kube::Error::Api(status.boxed()))
    }

    #[tokio::test]
    async fn every_kind_is_spelled_as_in_the_api_and_timed() {
        async fn fails<K: Resource<DynamicType = ()>>(ctx: &Context, object: ObjectRef<K>) {
            let outcome = ctx.timed(&object, async { Err::<(), _>(failed(500)) }).await;
            assert!(outcome.is_err());
        }
        let ctx = context();
        fails(
            &ctx,
            ObjectRef::<DeserializeGuard<ModelOptimization>>::new("a").within("ml"),
        )
        .await;
        fails(
            &ctx,
            ObjectRef::<DeserializeGuard<ModelPromotion>>::new("a").within("ml"),
        )
        .await;
        fails(&ctx, ObjectRef::<DeserializeGuard<PromotionPolicy>>::new("a")).await;
        let text = ctx.metrics.text().unwrap();
        for kind in ["ModelOptimization", "ModelPromotion", "PromotionPolicy"] {
            for line in [
                format!(r#"assayer_reconcile_duration_seconds_count{{kind="{kind}"}} 1"#),
                format!(r#"assayer_reconcile_errors_total{{kind="{kind}",reason="WriteFailed"}} 1"#),
            ] {
                assert!(text.lines().any(|found| found == line), "{line} is not in\n{text}");
            }
        }
    }

    #[tokio::test]
    async fn a_reconcile_that_does_not_end_is_seen() {
        let ctx = context();
        let object = ObjectRef::<ModelPromotion>::new("a").within("ml");
        let later = || Instant::now() + crate::health::LONGEST_RECONCILE + Duration::from_secs(1);
        let mut work = std::pin::pin!(ctx.timed(&object, std::future::pending::<Result<(), Error>>()));
        assert!(futures::poll!(&mut work).is_pending());
        assert!(ctx.health.stuck(later())[0].starts_with("ModelPromotion ml/a has run for"));
    }

    #[tokio::test]
    async fn failures_wait_longer_until_one_succeeds() {
        let ctx = context();
        let object = ObjectRef::<ModelPromotion>::new("a").within("ml");
        let millis = |error: &Error| ctx.after(&object, error);
        let wait = |millis| Action::requeue(Duration::from_millis(millis));
        assert_eq!(millis(&failed(500)), wait(500));
        assert_eq!(millis(&failed(500)), wait(1_000));
        assert_eq!(millis(&failed(409)), wait(50));
        let odd = Error::Malformed {
            what: "it".into(),
            problem: "odd".into(),
        };
        assert_eq!(millis(&odd), Action::await_change());
        ctx.timed(&object, async { Ok(()) }).await.unwrap();
        assert_eq!(millis(&failed(500)), wait(500));
    }
}
