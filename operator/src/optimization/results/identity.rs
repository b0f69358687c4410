//! Whether a pod is the one that was asked.
//!
//! Pure. Compares owner, plan, every container's image, command, arguments, environment, mounts and security context, the volumes
//! behind the mounts, and the digest of the image that really ran. An extra container is a mismatch: it shares the network and the
//! kubelet's log, and nobody asked for it.

use assayer_crds::conditions::WORKER_IDENTITY_MISMATCH;
use assayer_crds::names;
use k8s_openapi::api::batch::v1::Job;
use k8s_openapi::api::core::v1::{Container, ContainerStatus, Pod, PodSpec};
use kube::ResourceExt as _;

use super::Problem;

fn mismatch(what: impl std::fmt::Display) -> Problem {
    Problem::lasting(
        WORKER_IDENTITY_MISMATCH,
        format!(
            "{what}: a result counts only from the pod that was asked; look for an admission webhook that changes pods"
        ),
    )
}

/// Compares `pod` with what `job` asks for.
pub(super) fn check(job: &Job, job_uid: &str, pod: &Pod) -> Result<(), Problem> {
    let owned = pod
        .owner_references()
        .iter()
        .any(|owner| owner.controller == Some(true) && owner.kind == "Job" && owner.uid == job_uid);
    if !owned || job_uid.is_empty() {
        return Err(mismatch("the pod is not controlled by the Job"));
    }
    // The admission policies that keep people out of worker pods go by this label.
    if pod.labels().get(names::WORKER).map(String::as_str) != Some("true") {
        return Err(mismatch(format_args!(
            "the pod lacks the label {}: true",
            names::WORKER
        )));
    }
    let template = job.spec.as_ref().map(|spec| &spec.template);
    let wanted_annotations = template
        .and_then(|t| t.metadata.as_ref())
        .and_then(|m| m.annotations.as_ref());
    for name in [names::PLAN, names::PLAN_DIGEST] {
        let wanted = wanted_annotations.and_then(|annotations| annotations.get(name));
        if wanted.is_none() || pod.annotations().get(name) != wanted {
            return Err(mismatch(format_args!("the pod's annotation {name} is another one")));
        }
    }
    let (Some(wanted), Some(found)) = (template.and_then(|t| t.spec.as_ref()), pod.spec.as_ref()) else {
        return Err(mismatch("the pod has no spec"));
    };
    sandbox(wanted, found)?;
    volumes(wanted, found)?;
    let inits = wanted.init_containers.as_deref().unwrap_or_default();
    containers(inits, found.init_containers.as_deref().unwrap_or_default())?;
    containers(&wanted.containers, &found.containers)?;
    images(wanted, pod)
}

fn sandbox(wanted: &PodSpec, found: &PodSpec) -> Result<(), Problem> {
    let shares = [
        ("hostNetwork", found.host_network),
        ("hostPID", found.host_pid),
        ("hostIPC", found.host_ipc),
        ("shareProcessNamespace", found.share_process_namespace),
    ];
    if let Some((field, _)) = shares.iter().find(|(_, value)| *value == Some(true)) {
        return Err(mismatch(format_args!("the pod has {field}: true")));
    }
    if found.ephemeral_containers.as_ref().is_some_and(|list| !list.is_empty()) {
        return Err(mismatch("a debug container was attached to the pod"));
    }
    if found.automount_service_account_token != Some(false) {
        return Err(mismatch("the pod may mount a service-account token"));
    }
    if found.security_context != wanted.security_context {
        return Err(mismatch("the pod's security context is another one"));
    }
    Ok(())
}

/// The volumes that are mounted must be those that were asked for. Others can't be seen by our containers.
fn volumes(wanted: &PodSpec, found: &PodSpec) -> Result<(), Problem> {
    let all = found.volumes.as_deref().unwrap_or_default();
    for volume in wanted.volumes.as_deref().unwrap_or_default() {
        if !all.contains(volume) {
            return Err(mismatch(format_args!(
                "volume {} of the pod is another one",
                volume.name
            )));
        }
    }
    Ok(())
}

fn containers(wanted: &[Container], found: &[Container]) -> Result<(), Problem> {
    if let Some(extra) = found
        .iter()
        .find(|container| !wanted.iter().any(|w| w.name == container.name))
    {
        return Err(mismatch(format_args!(
            "the pod has an unknown container {}",
            extra.name
        )));
    }
    if wanted.len() != found.len() {
        return Err(mismatch("the pod lacks a container"));
    }
    for (wanted, found) in wanted.iter().zip(found) {
        let name = &wanted.name;
        let differs = [
            ("name", wanted.name != found.name),
            ("image", wanted.image != found.image),
            ("command", something_in(found.command.as_ref())),
            ("args", wanted.args != found.args),
            ("env", something_in(found.env.as_ref())),
            ("envFrom", something_in(found.env_from.as_ref())),
            ("volumeMounts", wanted.volume_mounts != found.volume_mounts),
            ("volumeDevices", something_in(found.volume_devices.as_ref())),
            ("securityContext", wanted.security_context != found.security_context),
            ("workingDir", found.working_dir.is_some()),
            ("lifecycle", found.lifecycle.is_some()),
            ("restartPolicy", found.restart_policy.is_some()),
            (
                "terminationMessagePath",
                wanted.termination_message_path != found.termination_message_path,
            ),
            (
                "terminationMessagePolicy",
                wanted.termination_message_policy != found.termination_message_policy,
            ),
        ];
        if let Some((field, _)) = differs.iter().find(|(_, differs)| *differs) {
            return Err(mismatch(format_args!("{field} of container {name} is another one")));
        }
    }
    Ok(())
}

/// True when the list has something in it: workers have no command, no environment and no devices of their own.
fn something_in<T>(list: Option<&Vec<T>>) -> bool {
    list.is_some_and(|list| !list.is_empty())
}

/// Each container that started must have run the image that was asked for, by digest.
fn images(wanted: &PodSpec, pod: &Pod) -> Result<(), Problem> {
    let status = pod.status.as_ref();
    let inits = status
        .and_then(|s| s.init_container_statuses.as_deref())
        .unwrap_or_default();
    let mains = status.and_then(|s| s.container_statuses.as_deref()).unwrap_or_default();
    let containers = wanted.init_containers.iter().flatten().chain(&wanted.containers);
    for container in containers {
        let status = inits.iter().chain(mains).find(|status| status.name == container.name);
        let Some(status) = status.filter(|status| started(status)) else {
            continue;
        };
        let asked = container.image.as_deref().and_then(digest_of);
        if asked.is_none() || digest_of(&status.image_id) != asked {
            return Err(mismatch(format_args!(
                "container {} ran image {}, not {}",
                container.name,
                status.image_id,
                container.image.as_deref().unwrap_or_default()
            )));
        }
    }
    Ok(())
}

fn started(status: &ContainerStatus) -> bool {
    let state = status.state.as_ref();
    state.is_some_and(|state| state.terminated.is_some() || state.running.is_some())
}

fn digest_of(image: &str) -> Option<&str> {
    image.rsplit_once('@').map(|(_, digest)| digest)
}
