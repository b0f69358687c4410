//! A small world to try plans in: an API server that keeps what is written, a Job controller, a kubelet and a worker.
//!
//! Only for tests. Pods, statuses and messages have the shapes that a real cluster gives; what each attempt does is scripted.

mod worker;

use std::collections::BTreeMap;

use assayer_crds::contract::{Failure, FailureClass, Outcome};
use assayer_crds::digest::Digest;
use assayer_crds::evidence::Statement;
use assayer_crds::{ModelOptimization, ModelOptimizationSpec, names};
use jiff::{SignedDuration, Timestamp};
use k8s_openapi::api::batch::v1::{Job, JobCondition, JobStatus};
use k8s_openapi::api::core::v1::{
    Container, ContainerState, ContainerStateRunning, ContainerStateTerminated, ContainerStateWaiting, ContainerStatus,
    Pod, PodCondition, PodStatus,
};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{ObjectMeta, OwnerReference, Time};
use kube::ResourceExt as _;
use serde_json::json;

use super::observed::{KeptReport, Log, Observed, ObservedJob, ObservedPod, Seen};
use super::plan::{Change, Plan, plan};
use super::steps::Settings;
pub(super) use worker::measurements;
use worker::{outcome, plan_of, words};

pub(super) const IMAGE: &str =
    "registry:5000/assayer-worker@sha256:aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa";
const SHA: &str = "sha256:bbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbb";

/// What an attempt at a step does.
#[derive(Clone, Debug, PartialEq)]
pub(super) enum Fate {
    /// Reports success.
    Succeeds,
    /// Runs and does not end.
    Hangs,
    /// Reports a failure.
    Reports(FailureClass, &'static str, &'static str),
    /// Is killed for memory without a word.
    RunsOutOfMemory,
    /// Is evicted.
    Evicted(&'static str),
    /// Its pod is gone when the Job completes.
    Vanishes,
    /// No node takes it, until the deadline.
    Unschedulable,
    /// Its image can't be pulled.
    NoImage,
    /// A Secret is missing.
    NoSecret,
    /// Admission refuses the pod.
    RefusedPod,
    /// Ends with this code and no words.
    Wordless(i32),
    /// Its time is up.
    TooLate,
    /// A webhook adds a container.
    ExtraContainer,
    /// Somebody takes the label away that the admission policies go by.
    WithoutLabel,
    /// Another image ran.
    OtherImage,
    /// The report is changed on its way.
    Tampered,
    /// Claims more time than there was.
    Implausible,
    /// The node can't give the log.
    NoLog,
}

pub(super) struct World {
    pub(super) now: Timestamp,
    pub(super) object: ModelOptimization,
    pub(super) settings: Settings,
    pub(super) jobs: BTreeMap<String, ObservedJob>,
    /// Kept reports: config map, line, when.
    pub(super) kept: BTreeMap<String, (String, Timestamp)>,
    pub(super) evidence: BTreeMap<String, Statement>,
    pub(super) fates: BTreeMap<(String, i32), Fate>,
    /// Candidate latency as a multiple of the baseline's, and accuracy, by candidate.
    pub(super) numbers: BTreeMap<String, (f64, f64)>,
    /// Of nodes that make candidates, and of nodes that measure them.
    pub(super) instruction_sets: (&'static str, &'static str),
    pub(super) transcript: Vec<String>,
    /// Writes until the operator dies.
    pub(super) crash_after: Option<usize>,
    serial: u64,
}

pub(super) fn spec() -> ModelOptimizationSpec {
    serde_json::from_value(json!({
        "owner": {"group": "file-security", "contact": "fs@example.com"},
        "influences": ["Security"],
        "model": {"name": "magika", "version": "3.3.0", "uri": format!("oci://r:5000/models/magika@{SHA}")},
        "data": {
            "calibration": {"uri": format!("oci://r:5000/data/cal@{SHA}"), "samples": 512},
            "evaluation": {"uri": format!("oci://r:5000/data/eval@{SHA}")},
            "inputs": [{"name": "bytes", "column": "features"}],
            "label": "file_type"
        },
        "task": {"kind": "Classification", "output": "target_label"},
        "environments": [{"name": "edge", "executionProvider": "CPU"}],
        "candidates": [
            {"name": "dynamic", "stages": [{"quantize": {"mode": "Dynamic"}}]},
            {"name": "static", "stages": [{"quantize": {"mode": "Static"}}]}
        ],
        "gates": [
            {"name": "accuracy", "metric": "accuracy", "maxDrop": "0.01"},
            {"name": "p99", "metric": "latencyP99", "maxRatio": "0.80"},
            {"name": "size", "metric": "artifactSize", "maxRatio": "0.30", "severity": "Warn"}
        ],
        "output": {"uri": "oci://r:5000/models/magika", "pushSecret": "push"},
        "run": {"pullSecret": "pull", "deadline": "10m", "retries": 2}
    }))
    .unwrap()
}

impl World {
    pub(super) fn new() -> Self {
        Self::with(spec())
    }

    pub(super) fn with(spec: ModelOptimizationSpec) -> Self {
        let mut object = ModelOptimization::new("magika-int8", spec);
        object.metadata.namespace = Some("ml".into());
        object.metadata.uid = Some("11111111-2222-3333-4444-555555555555".into());
        object.metadata.generation = Some(1);
        Self {
            now: "2026-01-01T00:00:00Z".parse().unwrap(),
            object,
            settings: Settings {
                worker_image: IMAGE.into(),
                plain_http: vec!["r:5000".into()],
            },
            jobs: BTreeMap::new(),
            kept: BTreeMap::new(),
            evidence: BTreeMap::new(),
            fates: BTreeMap::new(),
            numbers: BTreeMap::from([("dynamic".into(), (4.71, 0.925)), ("static".into(), (0.45, 0.9257))]),
            instruction_sets: ("avx512_vnni", "avx512_vnni"),
            transcript: Vec::new(),
            crash_after: None,
            serial: 0,
        }
    }

    pub(super) fn fate(mut self, step: &str, attempt: i32, fate: Fate) -> Self {
        self.fates.insert((step.into(), attempt), fate);
        self
    }

    pub(super) fn every(mut self, step: &str, fate: &Fate) -> Self {
        for attempt in 1..=10 {
            self.fates.insert((step.into(), attempt), fate.clone());
        }
        self
    }

    pub(super) fn pass(&mut self, seconds: i64) {
        self.now += SignedDuration::from_secs(seconds);
    }

    pub(super) fn observe(&self) -> Observed {
        let work = self.object.status.iter().flat_map(|status| &status.work);
        let reports = work.filter(|work| !work.report.is_empty()).filter_map(|work| {
            let (line, at) = self
                .kept
                .values()
                .find(|(line, _)| Digest::of(line.as_bytes()).as_str() == work.report)?;
            let report = serde_json::from_str(line).unwrap();
            Some((work.step.clone(), KeptReport { report, kept_at: *at }))
        });
        Observed {
            object: self.object.clone(),
            settings: self.settings.clone(),
            jobs: self.jobs.values().cloned().collect(),
            reports: reports.collect(),
        }
    }

    /// One reconcile. Returns the plan, carried out up to the crash, if one is due.
    pub(super) fn reconcile(&mut self) -> Plan {
        let plan = plan(&self.observe(), self.now);
        for change in &plan.changes {
            if !self.alive() {
                return plan;
            }
            self.write(change);
        }
        if !self.alive() {
            return plan;
        }
        let before = self
            .object
            .status
            .as_ref()
            .map(|status| status.phase.clone())
            .unwrap_or_default();
        if before != plan.status.phase {
            self.transcript.push(format!("phase {}", plan.status.phase));
        }
        self.object.status = Some(plan.status.clone());
        for note in &plan.notes {
            let kind = if note.warning { "Warning" } else { "Normal" };
            self.transcript
                .push(format!("  {kind} {}: {}", note.reason, note.message));
        }
        plan
    }

    fn alive(&mut self) -> bool {
        match &mut self.crash_after {
            Some(0) => {
                self.crash_after = None;
                false
            }
            Some(left) => {
                *left -= 1;
                true
            }
            None => true,
        }
    }

    fn write(&mut self, change: &Change) {
        self.serial += 1;
        match change {
            Change::CreateJob { job, .. } => {
                let name = job.name_any();
                let mut job = (**job).clone();
                job.metadata.uid = Some(format!("job-{}", self.serial));
                job.metadata.creation_timestamp = Some(Time(self.now));
                if let Some(there) = self.jobs.get(&name) {
                    assert!(super::job::same(&there.job, &job), "another Job {name} is there");
                    return;
                }
                let seen = ObservedJob {
                    job,
                    pods: Vec::new(),
                    events: Vec::new(),
                };
                self.jobs.insert(name, seen);
            }
            Change::DeleteJob { name, uid, .. } => {
                if self
                    .jobs
                    .get(name)
                    .is_some_and(|seen| seen.job.metadata.uid.as_ref() == Some(uid))
                {
                    self.jobs.remove(name);
                }
            }
            Change::ExpireJob { name, .. } => {
                let seen = self.jobs.get_mut(name).unwrap();
                assert!(seen.finished(), "{name} expires while it runs");
                seen.job.spec.as_mut().unwrap().ttl_seconds_after_finished = Some(super::job::TTL_SECONDS);
            }
            Change::KeepReport { name, line, digest, .. } => {
                assert_eq!(Digest::of(line.as_bytes()), *digest);
                let there = self
                    .kept
                    .entry(name.clone())
                    .or_insert_with(|| (line.clone(), self.now));
                assert_eq!(there.0, *line, "another report is kept as {name}");
            }
            Change::RecordEvidence { statement, .. } => {
                let digest = crate::evidence::store::digest_of(statement).unwrap();
                self.evidence
                    .insert(crate::evidence::store::name_of(&digest), (**statement).clone());
            }
        }
    }

    /// Jobs that have not finished and are not suspended.
    pub(super) fn running(&self) -> Vec<String> {
        let open = self
            .jobs
            .iter()
            .filter(|(_, seen)| !seen.finished() && seen.job.spec.as_ref().unwrap().suspend != Some(true));
        open.map(|(name, _)| name.clone()).collect()
    }

    /// Lets one Job come to its end, as scripted.
    pub(super) fn end(&mut self, name: &str) {
        let Some(mut seen) = self.jobs.remove(name) else {
            return;
        };
        let about = seen.job.annotations();
        let key = (about[names::STEP].clone(), about[names::ATTEMPT].parse().unwrap());
        let fate = self.fates.get(&key).cloned().unwrap_or(Fate::Succeeds);
        self.act(&mut seen, &fate);
        self.jobs.insert(name.to_owned(), seen);
    }

    #[expect(clippy::too_many_lines, reason = "a table of fates")]
    fn act(&self, seen: &mut ObservedJob, fate: &Fate) {
        let mut pod = self.pod(&seen.job);
        let plan = plan_of(&seen.job);
        let mut log = Log::NotRead;
        match fate {
            Fate::Hangs => {
                running(&mut pod);
                seen.pods = vec![observed(pod, log)];
                return;
            }
            Fate::Vanishes => return finish(&mut seen.job, "Complete", "", ""),
            Fate::RefusedPod => {
                let message = "Error creating: pods \"w-\" is forbidden: violates PodSecurity \"restricted:latest\"";
                seen.events = vec![warning("FailedCreate", message)];
                return;
            }
            Fate::Unschedulable => {
                seen.pods = vec![observed(unscheduled(pod), log)];
                return;
            }
            Fate::NoImage => {
                waiting(&mut pod, "ImagePullBackOff", "Back-off pulling image: not found");
                seen.pods = vec![observed(pod, log)];
                return;
            }
            Fate::NoSecret => {
                waiting(&mut pod, "PodInitializing", "");
                let mut pod = observed(pod, log);
                pod.events = vec![warning("FailedMount", "secret \"pull\" not found")];
                seen.pods = vec![pod];
                return;
            }
            Fate::TooLate => {
                return finish(
                    &mut seen.job,
                    "Failed",
                    "DeadlineExceeded",
                    "Job was active longer than specified deadline",
                );
            }
            Fate::Evicted(message) => {
                let status = pod.status.get_or_insert_default();
                status.phase = Some("Failed".into());
                status.reason = Some("Evicted".into());
                status.message = Some((*message).into());
            }
            Fate::RunsOutOfMemory => terminated(&mut pod, 1, 137, Some("OOMKilled"), None),
            Fate::Wordless(code) => terminated(&mut pod, 0, *code, Some("Error"), None),
            Fate::Reports(class, reason, message) => {
                let failure = Failure {
                    class: *class,
                    reason: (*reason).into(),
                    message: (*message).into(),
                };
                let (line, words) = words(&seen.job, &plan, Outcome::Failed(failure), self.instruction_sets.0);
                log = Log::Read(format!("warming up\n{line}\n").into_bytes());
                terminated(&mut pod, 1, i32::from(class.exit_code()), Some("Error"), Some(&words));
            }
            Fate::Succeeds
            | Fate::ExtraContainer
            | Fate::WithoutLabel
            | Fate::OtherImage
            | Fate::Tampered
            | Fate::Implausible
            | Fate::NoLog => {
                let mut outcome = outcome(&self.numbers, &plan);
                if *fate == Fate::Implausible {
                    match &mut outcome {
                        Outcome::Made(made) => made.seconds = 1e6,
                        Outcome::Measured(measured) => measured.run_seconds = 1e6,
                        Outcome::Failed(_) => {}
                    }
                }
                let made = matches!(outcome, Outcome::Made(_));
                let (on_make, on_measure) = self.instruction_sets;
                let set = if made { on_make } else { on_measure };
                let (line, words) = words(&seen.job, &plan, outcome, set);
                log = Log::Read(format!("a line of stderr\n{line}\n").into_bytes());
                terminated(&mut pod, 2, 0, Some("Completed"), Some(&words));
            }
        }
        match fate {
            Fate::ExtraContainer => pod.spec.as_mut().unwrap().containers.push(Container {
                name: "mesh".into(),
                ..Container::default()
            }),
            Fate::WithoutLabel => {
                pod.labels_mut().remove(names::WORKER);
            }
            Fate::OtherImage => {
                let statuses = pod.status.as_mut().unwrap().container_statuses.as_mut().unwrap();
                statuses[0].image_id = format!("registry:5000/assayer-worker@{SHA}");
            }
            Fate::Tampered => {
                if let Log::Read(bytes) = &mut log {
                    let at = bytes.len() - 3;
                    bytes[at] ^= 1;
                }
            }
            Fate::NoLog => log = Log::Unreadable("the node is unreachable".into()),
            _ => {}
        }
        let failed = pod.status.as_ref().and_then(|status| status.phase.as_deref()) == Some("Failed");
        seen.pods = vec![observed(pod, log)];
        if failed {
            finish(
                &mut seen.job,
                "Failed",
                "BackoffLimitExceeded",
                "Job has reached the specified backoff limit",
            );
        } else {
            finish(&mut seen.job, "Complete", "", "");
        }
    }

    fn pod(&self, job: &Job) -> Pod {
        let template = job.spec.as_ref().unwrap().template.clone();
        let meta = template.metadata.unwrap();
        let owner = OwnerReference {
            api_version: "batch/v1".into(),
            kind: "Job".into(),
            name: job.name_any(),
            uid: job.metadata.uid.clone().unwrap(),
            controller: Some(true),
            block_owner_deletion: Some(true),
        };
        let spec = template.spec.unwrap();
        let status = |container: &Container| ContainerStatus {
            name: container.name.clone(),
            image: IMAGE.into(),
            image_id: IMAGE.into(),
            ..ContainerStatus::default()
        };
        let inits = spec.init_containers.iter().flatten().map(status).collect();
        let mains = spec.containers.iter().map(status).collect();
        Pod {
            metadata: ObjectMeta {
                name: Some(format!("{}-x", job.name_any())),
                owner_references: Some(vec![owner]),
                creation_timestamp: Some(Time(self.now)),
                ..meta
            },
            spec: Some(spec),
            status: Some(PodStatus {
                phase: Some("Pending".into()),
                init_container_statuses: Some(inits),
                container_statuses: Some(mains),
                ..PodStatus::default()
            }),
        }
    }
}

fn observed(pod: Pod, log: Log) -> ObservedPod {
    ObservedPod {
        pod,
        log,
        events: Vec::new(),
    }
}

fn warning(reason: &str, message: &str) -> Seen {
    Seen {
        reason: reason.into(),
        message: message.into(),
        warning: true,
    }
}

pub(super) fn finish(job: &mut Job, type_: &str, reason: &str, message: &str) {
    job.status = Some(JobStatus {
        conditions: Some(vec![JobCondition {
            type_: type_.into(),
            status: "True".into(),
            reason: Some(reason.into()),
            message: Some(message.into()),
            ..JobCondition::default()
        }]),
        ..JobStatus::default()
    });
}

fn statuses(pod: &mut Pod) -> Vec<&mut ContainerStatus> {
    let status = pod.status.as_mut().unwrap();
    let inits = status.init_container_statuses.iter_mut().flatten();
    inits.chain(status.container_statuses.iter_mut().flatten()).collect()
}

fn running(pod: &mut Pod) {
    pod.status.as_mut().unwrap().phase = Some("Running".into());
    statuses(pod)[0].state = Some(ContainerState {
        running: Some(ContainerStateRunning::default()),
        ..ContainerState::default()
    });
}

fn waiting(pod: &mut Pod, reason: &str, message: &str) {
    statuses(pod)[0].state = Some(ContainerState {
        waiting: Some(ContainerStateWaiting {
            reason: Some(reason.into()),
            message: Some(message.into()),
        }),
        ..ContainerState::default()
    });
}

fn unscheduled(mut pod: Pod) -> Pod {
    let status = pod.status.as_mut().unwrap();
    status.container_statuses = None;
    status.init_container_statuses = None;
    status.conditions = Some(vec![PodCondition {
        type_: "PodScheduled".into(),
        status: "False".into(),
        reason: Some("Unschedulable".into()),
        message: Some("0/1 nodes are available: 1 Insufficient nvidia.com/gpu".into()),
        ..PodCondition::default()
    }]);
    pod
}

/// Ends container number `last` with `code`; those before it with 0.
fn terminated(pod: &mut Pod, last: usize, code: i32, reason: Option<&str>, message: Option<&str>) {
    let start: Timestamp = pod.metadata.creation_timestamp.as_ref().unwrap().0;
    for (index, status) in statuses(pod).into_iter().enumerate().take(last + 1) {
        let at_end = index == last;
        status.state = Some(ContainerState {
            terminated: Some(ContainerStateTerminated {
                exit_code: if at_end { code } else { 0 },
                reason: reason.filter(|_| at_end).map(Into::into),
                message: message.filter(|_| at_end).map(Into::into),
                started_at: Some(Time(start)),
                finished_at: Some(Time(start + SignedDuration::from_secs(10))),
                ..ContainerStateTerminated::default()
            }),
            ..ContainerState::default()
        });
    }
    let phase = if code == 0 { "Succeeded" } else { "Failed" };
    pod.status.as_mut().unwrap().phase = Some(phase.into());
}
