//! Leader election by a Lease, as client-go does it. Reads and writes the lease; `decide` decides, `fence` holds writes back.
//!
//! Written here because the crate that fits our kube version (`kube-lease-manager` 0.13) takes a lease for expired when `renewTime` +
//! duration lies before the local wall clock: a candidate whose clock runs ahead would take over from a healthy leader. Every write
//! names the resource version that was read, so that of two candidates one gets a conflict. A lost lease is never won back by the same
//! process: it exits, because reconciles that are under way can't be stopped in any other way.

pub mod decide;
pub mod fence;

use std::time::{Duration, Instant};

use k8s_openapi::api::coordination::v1::{Lease, LeaseSpec};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{MicroTime, ObjectMeta};
use kube::Api;
use kube::api::PostParams;
use tokio_util::sync::CancellationToken;

use crate::clock::Clock;
use crate::error::Error;
use assayer_crds::names::FIELD_MANAGER;
use decide::{Candidate, Decision, Record, Terms};
use fence::Fence;

/// Name of the lease in the operator's namespace.
pub const LEASE: &str = "assayer-operator";

/// Longest single request: several fit into the time in which a renewal must succeed.
const REQUEST: Duration = Duration::from_secs(4);

/// The lease was lost; nothing may be written any more.
#[derive(Debug, thiserror::Error)]
#[error("the lease {name} was lost: {why}")]
pub struct Lost {
    /// Name of the lease.
    name: String,
    /// Who has it now, or that it could not be renewed in time.
    why: String,
}

/// What became of one try.
#[derive(Debug, PartialEq, Eq)]
enum Attempt {
    Leads,
    Held { by: String },
    Outrun,
}

/// Takes part in the election of one lease.
pub struct Elector {
    api: Api<Lease>,
    name: String,
    candidate: Candidate,
    fence: Fence,
}

impl Elector {
    /// A candidate called `identity` for the lease `name` of `namespace`. `client` must not be behind `fence`.
    pub fn new(client: kube::Client, namespace: &str, name: &str, identity: &str, terms: Terms, fence: Fence) -> Self {
        Self {
            api: Api::namespaced(client, namespace),
            name: name.to_owned(),
            candidate: Candidate::new(identity, terms),
            fence,
        }
    }

    /// Waits until this process leads. Returns false when `stop` came first.
    pub async fn acquire(&mut self, stop: &CancellationToken) -> bool {
        let mut former = None;
        loop {
            match self.attempt().await {
                Ok(Attempt::Leads) => {
                    tracing::info!(lease = self.name, identity = self.candidate.identity(), "leading");
                    return true;
                }
                Ok(Attempt::Held { by }) => {
                    if former.as_ref() != Some(&by) {
                        tracing::info!(lease = self.name, holder = by, "standing by");
                        former = Some(by);
                    }
                }
                Ok(Attempt::Outrun) => tracing::debug!(lease = self.name, "somebody else was faster"),
                Err(error) => {
                    tracing::warn!(
                        lease = self.name,
                        reason = error.reason(),
                        error = error.message(),
                        "no election"
                    );
                }
            }
            if !self.pause(stop).await {
                return false;
            }
        }
    }

    /// Keeps the lease until `stop`.
    ///
    /// # Errors
    /// When another holds it, or it could not be renewed within its term: the process must exit at once.
    pub async fn hold(&mut self, stop: &CancellationToken) -> Result<(), Lost> {
        while self.pause(stop).await {
            let left = self
                .candidate
                .leads_until()
                .map(|until| until.saturating_duration_since(Instant::now()))
                .unwrap_or_default();
            if left.is_zero() {
                return Err(self.lost("it could not be renewed in time"));
            }
            match tokio::time::timeout(left, self.attempt()).await {
                Ok(Ok(Attempt::Held { by })) => return Err(self.lost(&format!("{by} holds it"))),
                Ok(Ok(Attempt::Leads | Attempt::Outrun)) => {}
                Ok(Err(error)) => {
                    tracing::warn!(
                        lease = self.name,
                        reason = error.reason(),
                        error = error.message(),
                        "not renewed yet"
                    );
                }
                Err(_) => return Err(self.lost("it could not be renewed in time")),
            }
        }
        Ok(())
    }

    /// Gives the lease back, so that a successor need not wait. Nothing is written through the fence afterwards.
    ///
    /// # Errors
    /// When the write fails: the successor then waits for a full term.
    pub async fn release(mut self) -> Result<(), Error> {
        self.fence.open_until(None);
        let (
            true,
            Decision::Renew {
                version, transitions, ..
            },
        ) = (
            self.candidate.leads(Instant::now()),
            self.candidate.decide(Instant::now()),
        )
        else {
            return Ok(());
        };
        let mut lease = self.lease(Some(version), transitions, None);
        if let Some(spec) = &mut lease.spec {
            spec.holder_identity = Some(String::new());
            spec.lease_duration_seconds = Some(1);
        }
        self.replace(&lease).await?;
        self.candidate.observe(None, Instant::now());
        Ok(())
    }

    /// Reads (unless we lead and know what is there), decides, writes.
    async fn attempt(&mut self) -> Result<Attempt, Error> {
        if !self.candidate.leads(Instant::now()) {
            self.read().await?;
        }
        let started = Instant::now();
        let written = match self.candidate.decide(started) {
            Decision::Wait { holder } => return Ok(Attempt::Held { by: holder }),
            Decision::Create => self.create(&self.lease(None, 0, None)).await,
            Decision::Take { version, transitions } => {
                self.replace(&self.lease(Some(version), transitions, None)).await
            }
            Decision::Renew {
                version,
                transitions,
                acquired,
            } => self.replace(&self.lease(Some(version), transitions, acquired)).await,
        };
        match written {
            Ok(lease) => {
                self.candidate.wrote(record(&lease), started);
                self.fence.open_until(self.candidate.leads_until());
                Ok(Attempt::Leads)
            }
            Err(error) if is_race(&error) => self.look_again().await,
            Err(error) => Err(error),
        }
    }

    /// Somebody else wrote. Where our own name is still there (an edit of labels) the next try renews the new version; a lease that was
    /// deleted or emptied under us is lost, since another may already be writing his name.
    async fn look_again(&mut self) -> Result<Attempt, Error> {
        self.read().await?;
        self.fence.open_until(self.candidate.leads_until());
        match self.candidate.decide(Instant::now()) {
            Decision::Wait { holder } => Ok(Attempt::Held { by: holder }),
            Decision::Renew { .. } | Decision::Create | Decision::Take { .. } => Ok(Attempt::Outrun),
        }
    }

    async fn read(&mut self) -> Result<(), Error> {
        let what = format!("Lease {}", self.name);
        let lease = bounded(&what, self.api.get_opt(&self.name))
            .await?
            .map_err(Error::read(&what))?;
        self.candidate.observe(lease.as_ref().map(record), Instant::now());
        Ok(())
    }

    async fn create(&self, lease: &Lease) -> Result<Lease, Error> {
        let what = format!("Lease {}", self.name);
        bounded(&what, self.api.create(&parameters(), lease))
            .await?
            .map_err(Error::write(what))
    }

    async fn replace(&self, lease: &Lease) -> Result<Lease, Error> {
        let what = format!("Lease {}", self.name);
        bounded(&what, self.api.replace(&self.name, &parameters(), lease))
            .await?
            .map_err(Error::write(what))
    }

    fn lease(&self, version: Option<String>, transitions: i32, acquired: Option<jiff::Timestamp>) -> Lease {
        let now = Clock.now();
        let terms = self.candidate.terms();
        Lease {
            metadata: ObjectMeta {
                name: Some(self.name.clone()),
                resource_version: version,
                ..ObjectMeta::default()
            },
            spec: Some(LeaseSpec {
                holder_identity: Some(self.candidate.identity().to_owned()),
                lease_duration_seconds: i32::try_from(terms.lease.as_secs()).ok(),
                lease_transitions: Some(transitions),
                acquire_time: Some(MicroTime(acquired.unwrap_or(now))),
                renew_time: Some(MicroTime(now)),
                ..LeaseSpec::default()
            }),
        }
    }

    /// Waits one retry period and up to a fifth more, so that candidates don't march in step. False when `stop` came first.
    async fn pause(&self, stop: &CancellationToken) -> bool {
        let retry = self.candidate.terms().retry;
        let wait = retry.mul_f64(1.0 + rand::random::<f64>() / 5.0);
        tokio::select! {
            () = stop.cancelled() => false,
            () = tokio::time::sleep(wait) => true,
        }
    }

    fn lost(&self, why: &str) -> Lost {
        self.fence.open_until(None);
        Lost {
            name: self.name.clone(),
            why: why.to_owned(),
        }
    }
}

fn parameters() -> PostParams {
    PostParams {
        field_manager: Some(FIELD_MANAGER.to_owned()),
        ..PostParams::default()
    }
}

/// Conflict, already there, or gone: somebody else wrote between our read and our write.
fn is_race(error: &Error) -> bool {
    let Error::Write { source, .. } = error else {
        return false;
    };
    matches!(&**source, kube::Error::Api(status) if status.is_conflict() || status.is_already_exists() || status.is_not_found())
}

async fn bounded<T>(what: &str, call: impl Future<Output = T>) -> Result<T, Error> {
    tokio::time::timeout(REQUEST, call).await.map_err(|_| Error::Timeout {
        what: what.to_owned(),
        limit: REQUEST,
    })
}

fn record(lease: &Lease) -> Record {
    let spec = lease.spec.clone().unwrap_or_default();
    Record {
        holder: spec.holder_identity.unwrap_or_default(),
        duration: spec
            .lease_duration_seconds
            .and_then(|seconds| u64::try_from(seconds).ok())
            .filter(|seconds| *seconds > 0)
            .map(Duration::from_secs),
        transitions: spec.lease_transitions.unwrap_or_default(),
        acquired: spec.acquire_time.map(|time| time.0),
        version: lease.metadata.resource_version.clone().unwrap_or_default(),
    }
}
