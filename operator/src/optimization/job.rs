//! The Job of one attempt, down to the last field.
//!
//! Pure: builds what is created and what a pod must look like for its word to count. Each container gets only the folders and the
//! secret that its role needs; nothing gets a service-account token. Never decides whether a Job is created.

mod resources;
mod volumes;

use std::collections::BTreeMap;

use assayer_crds::ModelOptimizationSpec;
use assayer_crds::contract::{Role, Work, WorkerPlan};
use assayer_crds::digest::{Digest, canonical};
use assayer_crds::names;
use assayer_crds::optimization::Environment;
use k8s_openapi::api::batch::v1::{Job, JobSpec};
use k8s_openapi::api::core::v1::{
    Capabilities, Container, PodSecurityContext, PodSpec, PodTemplateSpec, SeccompProfile, SecurityContext,
};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{ObjectMeta, OwnerReference};
use kube::{Resource as _, ResourceExt as _};

use super::steps::{Run, Step};

/// The user and group that workers run as.
const USER: i64 = 65_532;
/// How much later than the worker's own deadline the Job's comes, so that the worker's last words are read.
pub const GRACE_SECONDS: u64 = 45;
/// How long a finished Job is kept once its result is in the status.
pub const TTL_SECONDS: i32 = 3_600;

/// What the Job of one attempt is built from.
#[derive(Clone, Debug)]
pub struct Request<'a> {
    /// Namespace of the optimization.
    pub namespace: &'a str,
    /// Its name.
    pub object: &'a str,
    /// Its spec.
    pub spec: &'a ModelOptimizationSpec,
    /// The run.
    pub run: &'a Run,
    /// The step.
    pub step: &'a Step,
    /// The attempt, from 1.
    pub attempt: i32,
    /// What the worker is asked.
    pub plan: WorkerPlan,
}

impl Request<'_> {
    /// The plan as it is mounted.
    pub fn plan_text(&self) -> String {
        // Strings, integers and booleans only: this can't fail to be JSON; an empty plan is refused by every worker.
        let bytes = canonical(&self.plan).unwrap_or_default();
        String::from_utf8(bytes).unwrap_or_default()
    }

    /// The environment whose pod options hold: the step's own; for making, the first CPU environment, where there is one.
    fn environment(&self) -> Option<&Environment> {
        match self.step.environment() {
            Some(name) => self
                .spec
                .environments
                .iter()
                .find(|environment| environment.name == name),
            None => self
                .spec
                .environments
                .iter()
                .find(|environment| !resources::accelerated(environment)),
        }
    }
}

/// Builds the Job.
pub fn build(request: &Request<'_>) -> Job {
    let text = request.plan_text();
    let digest = Digest::of(text.as_bytes());
    let labels = BTreeMap::from([
        (names::WORKER.to_owned(), "true".to_owned()),
        (names::OPTIMIZATION_UID.to_owned(), request.run.uid.clone()),
    ]);
    let about = BTreeMap::from([
        (names::STEP.to_owned(), request.step.to_string()),
        (names::ATTEMPT.to_owned(), request.attempt.to_string()),
        (names::GENERATION.to_owned(), request.run.generation.to_string()),
        (names::PLAN_DIGEST.to_owned(), digest.to_string()),
    ]);
    let mut pod_annotations = about.clone();
    pod_annotations.insert(names::PLAN.to_owned(), text);
    let environment = request.environment().or_else(|| request.spec.environments.first());
    let queue = environment
        .and_then(|e| e.pod.as_ref())
        .and_then(|pod| pod.queue_name.clone());
    let mut job_labels = labels.clone();
    if let Some(queue) = &queue {
        job_labels.insert(names::KUEUE_QUEUE.to_owned(), queue.clone());
    }
    Job {
        metadata: ObjectMeta {
            name: Some(request.run.job_name(request.object, request.step, request.attempt)),
            namespace: Some(request.namespace.to_owned()),
            labels: Some(job_labels),
            annotations: Some(about),
            owner_references: Some(vec![owner(request.object, &request.run.uid)]),
            ..ObjectMeta::default()
        },
        spec: Some(JobSpec {
            active_deadline_seconds: i64::try_from(request.plan.deadline_seconds + GRACE_SECONDS).ok(),
            backoff_limit: Some(0),
            completions: Some(1),
            parallelism: Some(1),
            pod_replacement_policy: Some("Failed".to_owned()),
            suspend: Some(queue.is_some()),
            template: PodTemplateSpec {
                metadata: Some(ObjectMeta {
                    labels: Some(labels),
                    annotations: Some(pod_annotations),
                    ..ObjectMeta::default()
                }),
                spec: Some(pod(request)),
            },
            ..JobSpec::default()
        }),
        status: None,
    }
}

/// The reference that ties a worker's objects to their optimization: deleting it deletes them.
pub fn owner(object: &str, uid: &str) -> OwnerReference {
    OwnerReference {
        api_version: assayer_crds::ModelOptimization::api_version(&()).into_owned(),
        kind: assayer_crds::ModelOptimization::kind(&()).into_owned(),
        name: object.to_owned(),
        uid: uid.to_owned(),
        controller: Some(true),
        block_owner_deletion: None,
    }
}

fn pod(request: &Request<'_>) -> PodSpec {
    let sequence = Role::sequence(&request.plan.work);
    let mut containers: Vec<Container> = sequence.iter().map(|role| container(request, *role)).collect();
    let last = containers.split_off(sequence.len() - 1);
    let mut spec = PodSpec {
        init_containers: Some(containers),
        containers: last,
        volumes: Some(volumes::volumes(request)),
        restart_policy: Some("Never".to_owned()),
        automount_service_account_token: Some(false),
        enable_service_links: Some(false),
        termination_grace_period_seconds: Some(10),
        security_context: Some(PodSecurityContext {
            run_as_non_root: Some(true),
            run_as_user: Some(USER),
            run_as_group: Some(USER),
            fs_group: Some(USER),
            seccomp_profile: Some(SeccompProfile {
                type_: "RuntimeDefault".to_owned(),
                localhost_profile: None,
            }),
            ..PodSecurityContext::default()
        }),
        ..PodSpec::default()
    };
    if let Some(options) = request.environment().and_then(|environment| environment.pod.as_ref()) {
        let measured = matches!(request.plan.work, Work::Measure(_));
        resources::place(&mut spec, options, measured);
    }
    spec
}

fn container(request: &Request<'_>, role: Role) -> Container {
    let measured = matches!(request.plan.work, Work::Measure(_));
    let environment = request.environment().or_else(|| request.spec.environments.first());
    Container {
        name: role.as_str().to_owned(),
        image: Some(request.run.worker_image.clone()),
        args: Some(vec![role.as_str().to_owned()]),
        image_pull_policy: Some("IfNotPresent".to_owned()),
        resources: Some(resources::requirements(environment, measured)),
        volume_mounts: Some(volumes::mounts(request, role)),
        termination_message_path: Some(assayer_crds::contract::paths::TERMINATION.to_owned()),
        termination_message_policy: Some("File".to_owned()),
        security_context: Some(SecurityContext {
            allow_privilege_escalation: Some(false),
            privileged: Some(false),
            read_only_root_filesystem: Some(true),
            run_as_non_root: Some(true),
            capabilities: Some(Capabilities {
                drop: Some(vec!["ALL".to_owned()]),
                add: None,
            }),
            ..SecurityContext::default()
        }),
        ..Container::default()
    }
}

/// Whether `live` is the Job that `expected` asks for: same owner, same plan. A name alone proves nothing.
pub fn same(live: &Job, expected: &Job) -> bool {
    let owner_of = |job: &Job| {
        job.owner_references()
            .iter()
            .find(|o| o.controller == Some(true))
            .map(|o| o.uid.clone())
    };
    let plan_of = |job: &Job| job.annotations().get(names::PLAN_DIGEST).cloned();
    owner_of(live).is_some() && owner_of(live) == owner_of(expected) && plan_of(live) == plan_of(expected)
}

#[cfg(test)]
mod tests;
