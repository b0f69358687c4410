//! Reads everything that a plan may know, live.
//!
//! Never decides and never writes. Evidence-relevant text (reports) is handed on only when its digest is the one that the status has: a
//! config map can be replaced, the status only by the operator.

use std::collections::BTreeMap;

use assayer_crds::contract::{MAX_REPORT_BYTES, Report};
use assayer_crds::digest::Digest;
use assayer_crds::{ModelOptimization, names};
use k8s_openapi::api::batch::v1::Job;
use k8s_openapi::api::core::v1::{ConfigMap, Event, Pod};
use kube::ResourceExt as _;
use kube::api::{Api, ListParams, LogParams};

use super::observed::{KeptReport, Log, Observed, ObservedJob, ObservedPod, Seen};
use super::plan::phases;
use super::results::reporting_container;
use super::steps::Settings;
use crate::client::limited;
use crate::context::Context;
use crate::error::Error;

/// Lines from the end of a log among which the report must be; the worker prints it last.
const LOG_LINES: i64 = 32;
/// Room for other lines around a report of the largest size.
const LOG_SLACK_BYTES: u64 = 16 * 1024;
/// Most events that are read about one object.
const EVENTS: u32 = 50;
/// Objects in one page of a list.
const PAGE: u32 = 200;

/// Reads `object` and what belongs to it.
pub(super) async fn observe(ctx: &Context, object: ModelOptimization) -> Result<Observed, Error> {
    let namespace = object.namespace().unwrap_or_default();
    let reader = Reader {
        client: ctx.client.clone(),
        namespace,
    };
    let uid = object.uid().unwrap_or_default();
    let selector = format!("{}={uid}", names::OPTIMIZATION_UID);
    let jobs: Vec<Job> = reader.list("jobs", &selector).await?;
    let pods: Vec<Pod> = reader.list("pods", &selector).await?;
    let owned = jobs
        .into_iter()
        .filter(|job| controlled_by(&job.metadata.owner_references, &uid));
    let mut seen = Vec::new();
    for job in owned {
        seen.push(reader.job(&object, job, &pods).await?);
    }
    let over = object.status.as_ref().is_some_and(|status| {
        phases::terminal(&status.phase) && status.observed_generation == object.metadata.generation
    });
    let kept = if over {
        Vec::new()
    } else {
        reader.list::<ConfigMap>("config maps", &selector).await?
    };
    let reports = reports(&object, &kept);
    Ok(Observed {
        object,
        settings: Settings {
            worker_image: ctx.config.worker_image.clone(),
            plain_http: ctx.config.plain_http.clone(),
        },
        jobs: seen,
        reports,
    })
}

type Owners = Option<Vec<k8s_openapi::apimachinery::pkg::apis::meta::v1::OwnerReference>>;

pub(super) fn controlled_by(owners: &Owners, uid: &str) -> bool {
    owners
        .iter()
        .flatten()
        .any(|owner| owner.controller == Some(true) && owner.uid == uid)
}

struct Reader {
    client: kube::Client,
    namespace: String,
}

/// Whether nothing about the Job is of interest any more: its result is in the status.
fn settled(object: &ModelOptimization, job: &Job) -> bool {
    let Some(status) = &object.status else {
        return false;
    };
    let name = job.name_any();
    let known = status.work.iter().find(|work| work.job == name);
    known.is_some_and(|work| matches!(work.state.as_str(), "Done" | "Failed")) || phases::terminal(&status.phase)
}

impl Reader {
    async fn list<K>(&self, what: &str, selector: &str) -> Result<Vec<K>, Error>
    where
        K: kube::Resource<DynamicType = (), Scope = kube::core::NamespaceResourceScope>
            + Clone
            + std::fmt::Debug
            + serde::de::DeserializeOwned,
    {
        let api: Api<K> = Api::namespaced(self.client.clone(), &self.namespace);
        let mut params = ListParams::default().labels(selector).limit(PAGE);
        let mut items = Vec::new();
        loop {
            let page = limited(what, api.list(&params)).await?;
            let page = page.map_err(Error::read(format!("{what} in {}", self.namespace)))?;
            items.extend(page.items);
            match page.metadata.continue_.filter(|token| !token.is_empty()) {
                Some(token) => params = params.continue_token(&token),
                None => return Ok(items),
            }
        }
    }

    async fn job(&self, object: &ModelOptimization, job: Job, pods: &[Pod]) -> Result<ObservedJob, Error> {
        let uid = job.uid().unwrap_or_default();
        let done = settled(object, &job);
        let mut own = Vec::new();
        for pod in pods
            .iter()
            .filter(|pod| controlled_by(&pod.metadata.owner_references, &uid))
        {
            own.push(self.pod(pod.clone(), done).await?);
        }
        let events = if own.is_empty() && !done {
            self.events(&uid).await?
        } else {
            Vec::new()
        };
        Ok(ObservedJob { job, pods: own, events })
    }

    async fn pod(&self, pod: Pod, done: bool) -> Result<ObservedPod, Error> {
        let container = reporting_container(&pod).map(ToOwned::to_owned);
        let log = match &container {
            Some(container) if !done => self.log(&pod.name_any(), container).await?,
            _ => Log::NotRead,
        };
        let pending = pod.status.as_ref().and_then(|status| status.phase.as_deref()) == Some("Pending");
        let events = if pending && !done {
            self.events(&pod.uid().unwrap_or_default()).await?
        } else {
            Vec::new()
        };
        Ok(ObservedPod { pod, log, events })
    }

    /// The end of a log. What the API server can't give is data, too: the node may be gone for good.
    async fn log(&self, pod: &str, container: &str) -> Result<Log, Error> {
        let api: Api<Pod> = Api::namespaced(self.client.clone(), &self.namespace);
        let params = LogParams {
            container: Some(container.to_owned()),
            limit_bytes: i64::try_from(MAX_REPORT_BYTES + LOG_SLACK_BYTES + 1).ok(),
            tail_lines: Some(LOG_LINES),
            ..LogParams::default()
        };
        match limited(&format!("the log of pod {pod}"), api.logs(pod, &params)).await? {
            Ok(text) => Ok(Log::Read(text.into_bytes())),
            Err(kube::Error::Api(status)) => Ok(Log::Unreadable(status.message.clone())),
            Err(error) => Err(Error::read(format!("the log of pod {pod}"))(error)),
        }
    }

    async fn events(&self, uid: &str) -> Result<Vec<Seen>, Error> {
        let api: Api<Event> = Api::namespaced(self.client.clone(), &self.namespace);
        let params = ListParams::default()
            .fields(&format!("involvedObject.uid={uid}"))
            .limit(EVENTS);
        let list = limited("events", api.list(&params)).await?;
        let mut events = list
            .map_err(Error::read(format!("events in {}", self.namespace)))?
            .items;
        events.sort_by_key(when);
        let seen = events.into_iter().map(|event| Seen {
            reason: event.reason.unwrap_or_default(),
            message: event.message.unwrap_or_default(),
            warning: event.type_.as_deref() == Some("Warning"),
        });
        Ok(seen.collect())
    }
}

fn when(event: &Event) -> Option<jiff::Timestamp> {
    let last = event.last_timestamp.as_ref().map(|time| time.0);
    let repeated = event
        .series
        .as_ref()
        .and_then(|series| series.last_observed_time.as_ref())
        .map(|time| time.0);
    let first = event.event_time.as_ref().map(|time| time.0);
    repeated
        .or(last)
        .or(first)
        .or(event.metadata.creation_timestamp.as_ref().map(|time| time.0))
}

/// The kept reports that the status vouches for, by step.
pub(super) fn reports(object: &ModelOptimization, kept: &[ConfigMap]) -> BTreeMap<String, KeptReport> {
    let work = object.status.iter().flat_map(|status| &status.work);
    work.filter(|work| !work.report.is_empty())
        .filter_map(|work| {
            let found = kept.iter().find_map(|map| kept_report(map, &work.report))?;
            Some((work.step.clone(), found))
        })
        .collect()
}

fn kept_report(map: &ConfigMap, digest: &str) -> Option<KeptReport> {
    let line = map.data.as_ref()?.get(names::REPORT_KEY)?;
    if Digest::of(line.as_bytes()).as_str() != digest {
        return None;
    }
    let report: Report = serde_json::from_str(line).ok()?;
    let kept_at = map.metadata.creation_timestamp.as_ref()?.0;
    Some(KeptReport { report, kept_at })
}
