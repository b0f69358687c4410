//! What was read, as plain data: everything that a plan may know.
//!
//! No client, no clock, no decision. `observe` fills it in a cluster, tests fill it by hand.

use std::collections::BTreeMap;

use assayer_crds::ModelOptimization;
use assayer_crds::contract::{Measured, Report};
use assayer_crds::names;
use jiff::Timestamp;
use k8s_openapi::api::batch::v1::Job;
use k8s_openapi::api::core::v1::Pod;
use kube::ResourceExt as _;

use super::steps::{Run, Settings};

/// Longest rerun token that tells runs apart.
const MAX_TOKEN: usize = 253;

/// One optimization with everything that belongs to it, read live.
#[derive(Clone, Debug)]
pub struct Observed {
    /// The object.
    pub object: ModelOptimization,
    /// What the operator was told at start.
    pub settings: Settings,
    /// Its Jobs, of this run and of others.
    pub jobs: Vec<ObservedJob>,
    /// Reports that were accepted in this run and kept, by step. Only those whose digest is the one in the status.
    pub reports: BTreeMap<String, KeptReport>,
}

/// A Job with its pods and what was said about it.
#[derive(Clone, Debug)]
pub struct ObservedJob {
    /// The Job.
    pub job: Job,
    /// Pods that name it as their controller.
    pub pods: Vec<ObservedPod>,
    /// Events about the Job itself.
    pub events: Vec<Seen>,
}

/// A worker pod.
#[derive(Clone, Debug)]
pub struct ObservedPod {
    /// The pod.
    pub pod: Pod,
    /// The end of the reporting container's log.
    pub log: Log,
    /// Events about the pod.
    pub events: Vec<Seen>,
}

/// The log of the container that reports.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Log {
    /// Not read: no container has ended yet, or the result is in the status already.
    NotRead,
    /// Its last bytes.
    Read(Vec<u8>),
    /// The kubelet could not give it; the message is the API server's.
    Unreadable(String),
}

/// An Event of the cluster.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Seen {
    /// One word, such as `FailedCreate`.
    pub reason: String,
    /// In words.
    pub message: String,
    /// Whether it warns.
    pub warning: bool,
}

/// An accepted report that was kept.
#[derive(Clone, Debug, PartialEq)]
pub struct KeptReport {
    /// What the worker said.
    pub report: Report,
    /// When it was kept, by the API server's clock.
    pub kept_at: Timestamp,
}

impl KeptReport {
    /// The measurements, where these are what was reported.
    pub fn measured(&self) -> Option<&Measured> {
        match &self.report.outcome {
            assayer_crds::contract::Outcome::Measured(measured) => Some(measured),
            _ => None,
        }
    }

    /// What was made, where this is what was reported.
    pub fn made(&self) -> Option<&assayer_crds::contract::Made> {
        match &self.report.outcome {
            assayer_crds::contract::Outcome::Made(made) => Some(made),
            _ => None,
        }
    }
}

impl Observed {
    /// The run that the spec, the rerun annotation and the settings ask for.
    pub fn run(&self) -> Run {
        let token = self
            .object
            .annotations()
            .get(names::RERUN)
            .filter(|token| !token.is_empty());
        let token = token.map(|token| token.chars().take(MAX_TOKEN).collect::<String>());
        Run {
            uid: self.object.uid().unwrap_or_default(),
            generation: self.object.metadata.generation.unwrap_or_default(),
            // Taking the annotation away asks for nothing.
            rerun: token.or_else(|| self.object.status.as_ref()?.rerun.clone()),
            worker_image: self.settings.worker_image.clone(),
        }
    }

    /// The Job called `name`.
    pub fn job(&self, name: &str) -> Option<&ObservedJob> {
        self.jobs
            .iter()
            .find(|job| job.job.metadata.name.as_deref() == Some(name))
    }
}

impl ObservedJob {
    /// Whether the Job has condition `type_`, and the condition's reason and message.
    pub fn condition(&self, type_: &str) -> Option<(String, String)> {
        let conditions = self.job.status.as_ref()?.conditions.as_ref()?;
        let condition = conditions.iter().find(|c| c.type_ == type_ && c.status == "True")?;
        Some((
            condition.reason.clone().unwrap_or_default(),
            condition.message.clone().unwrap_or_default(),
        ))
    }

    /// Whether it is complete or failed.
    pub fn finished(&self) -> bool {
        self.condition("Complete").is_some() || self.condition("Failed").is_some()
    }
}
