//! Reasons of attempts that brought no result, from what Kubernetes and the worker say.
//!
//! Pure. Refusals by quota or pod security, missing Secrets, image pulls and stuck scheduling show nowhere in a Job's status: they are
//! read from pods and Events. Decides the reason and whether another attempt is worth it.

use assayer_crds::conditions as reasons;
use assayer_crds::contract::{Failure, FailureClass};
use k8s_openapi::api::core::v1::{ContainerStateTerminated, ContainerStateWaiting, Pod};

use super::{ObservedPod, Problem, passes};
use crate::optimization::observed::Seen;

/// The Job controller's word for a Job whose time is up.
pub(super) const DEADLINE: &str = "DeadlineExceeded";
/// Longest message that is taken over from elsewhere.
const MESSAGE_CUT: usize = 700;
/// Longest part of what holds a pod up: the way out that follows it has to fit into a status, too.
const HELD_CUT: usize = 260;
/// What may hold an attempt up until its deadline; then it is the reason of the failure.
const HOLDS: [&str; 4] = [
    reasons::POD_REFUSED,
    reasons::IMAGE_UNAVAILABLE,
    reasons::UNSCHEDULABLE,
    reasons::POD_NOT_STARTED,
];

fn cut(text: &str) -> String {
    text.chars().take(MESSAGE_CUT).collect()
}

/// The constant of a reason's word, where it is one of ours.
pub(in crate::optimization) fn known(word: &str) -> Option<&'static str> {
    reasons::REASONS
        .iter()
        .find(|reason| reason.name == word)
        .map(|reason| reason.name)
}

/// A failure in the worker's own words. Which limit it ran into, the pod says.
pub(super) fn reported(pod: &Pod, container: &str, failure: &Failure) -> Problem {
    let worker = assayer_crds::contract::reasons::ALL
        .iter()
        .find(|reason| **reason == failure.reason);
    match worker {
        Some(reason) => Problem {
            reason,
            message: match *reason {
                reasons::OUT_OF_MEMORY => format!("{} ({})", cut(&failure.message), memory(pod, container)),
                _ => cut(&failure.message),
            },
            retry: passes(failure.class),
        },
        None => Problem::lasting(
            reasons::REPORT_INVALID,
            format!(
                "the worker gives the unknown reason `{}`",
                failure.reason.chars().take(60).collect::<String>()
            ),
        ),
    }
}

/// The pod was taken away from under the worker, or its disk ran over.
pub(super) fn lost(pod: &Pod) -> Option<Problem> {
    let status = pod.status.as_ref()?;
    let message = status.message.as_deref().unwrap_or_default();
    if status.reason.as_deref() == Some("Evicted") {
        if message.contains("exceeds the") && message.contains("limit") {
            return Some(Problem::lasting(reasons::OUT_OF_RESOURCES, cut(message)));
        }
        return Some(Problem::passing(
            reasons::POD_LOST,
            format!("the pod was evicted: {}", cut(message)),
        ));
    }
    let disrupted = status
        .conditions
        .iter()
        .flatten()
        .find(|condition| condition.type_ == "DisruptionTarget" && condition.status == "True")?;
    let why = disrupted
        .message
        .as_deref()
        .or(disrupted.reason.as_deref())
        .unwrap_or_default();
    Some(Problem::passing(
        reasons::POD_LOST,
        format!("the pod was disrupted: {}", cut(why)),
    ))
}

/// A pod that ended without any container having ended.
pub(super) fn pod_failed(pod: &Pod) -> Problem {
    let status = pod.status.as_ref();
    let reason = status.and_then(|s| s.reason.as_deref()).unwrap_or("no reason");
    let message = status.and_then(|s| s.message.as_deref()).unwrap_or("no message");
    Problem::passing(
        reasons::POD_LOST,
        format!("the node gave up the pod: {reason}: {}", cut(message)),
    )
}

/// The Job failed and no container tells why. What held it up is the reason, if anything did.
pub(super) fn job_failed(reason: &str, message: &str, remembered: Option<Problem>) -> Problem {
    if reason != DEADLINE {
        return Problem::passing(
            reasons::POD_LOST,
            format!("the Job failed and its pod is gone: {reason}: {}", cut(message)),
        );
    }
    match remembered.filter(|held| HOLDS.contains(&held.reason)) {
        Some(held) => Problem::lasting(held.reason, format!("until the deadline: {}", held.message)),
        None => Problem::lasting(
            reasons::DEADLINE_EXCEEDED,
            "the worker did not end within spec.run.deadline: raise it, or give the environment more CPU",
        ),
    }
}

/// The last refusal to create the pod.
pub(super) fn refused(events: &[Seen]) -> Option<Problem> {
    let event = events
        .iter()
        .rev()
        .find(|event| event.warning && event.reason == "FailedCreate")?;
    Some(held_up(reasons::POD_REFUSED, &event.message))
}

/// What holds a pod up, in the words of whoever does, and the way out.
fn held_up(reason: &'static str, message: &str) -> Problem {
    let way_out = match reason {
        reasons::POD_REFUSED => "raise the quota, or change the rule that refuses it",
        reasons::UNSCHEDULABLE => "change environments[].pod, or give the cluster such a node",
        reasons::IMAGE_UNAVAILABLE => "push the image, or correct the operator's workerImage",
        _ => "create what is missing, or correct spec.run.pullSecret, spec.output.pushSecret or environments[].pod",
    };
    Problem::passing(reason, format!("{}: {way_out}", both_ends(message)))
}

/// What is too long without its middle: such messages begin with what was tried, and end with what went wrong.
fn both_ends(message: &str) -> String {
    let characters: Vec<char> = message.chars().collect();
    if characters.len() <= HELD_CUT {
        return message.to_owned();
    }
    let (head, tail) = (
        &characters[..HELD_CUT / 2],
        &characters[characters.len() - HELD_CUT / 2..],
    );
    head.iter().chain(&['…']).chain(tail).collect()
}

/// What a pod waits for, where it is something that people can act on.
pub(super) fn waiting(pod: &ObservedPod) -> Option<Problem> {
    let status = pod.pod.status.as_ref()?;
    let unscheduled = status
        .conditions
        .iter()
        .flatten()
        .find(|condition| condition.type_ == "PodScheduled" && condition.status == "False");
    if let Some(condition) = unscheduled {
        let why = condition
            .message
            .as_deref()
            .or(condition.reason.as_deref())
            .unwrap_or_default();
        return Some(held_up(reasons::UNSCHEDULABLE, why));
    }
    let all = status
        .init_container_statuses
        .iter()
        .flatten()
        .chain(status.container_statuses.iter().flatten());
    let each = all.filter_map(|status| status.state.as_ref()).collect::<Vec<_>>();
    if let Some(problem) = each.iter().filter_map(|state| state.waiting.as_ref()).find_map(held) {
        return Some(problem);
    }
    let began = each
        .iter()
        .any(|state| state.running.is_some() || state.terminated.is_some());
    let event = pod.events.iter().rev().find(|event| {
        event.warning
            && matches!(
                event.reason.as_str(),
                "FailedMount" | "FailedAttachVolume" | "FailedCreatePodSandBox"
            )
    });
    event
        .filter(|_| !began)
        .map(|event| held_up(reasons::POD_NOT_STARTED, &event.message))
}

fn held(waiting: &ContainerStateWaiting) -> Option<Problem> {
    let message = waiting.message.as_deref().unwrap_or_default();
    let word = waiting.reason.as_deref().unwrap_or_default();
    let reason = match word {
        "ErrImagePull"
        | "ImagePullBackOff"
        | "InvalidImageName"
        | "ErrImageNeverPull"
        | "ImageInspectError"
        | "RegistryUnavailable"
        | "SignatureValidationFailed" => reasons::IMAGE_UNAVAILABLE,
        "CreateContainerConfigError" | "CreateContainerError" | "RunContainerError" => reasons::POD_NOT_STARTED,
        _ => return None,
    };
    Some(held_up(reason, &format!("{word}: {message}")))
}

/// The limit that a container ran into, and where it is set.
fn memory(pod: &Pod, container: &str) -> String {
    let spec = pod.spec.as_ref();
    let mut all = spec
        .into_iter()
        .flat_map(|spec| spec.init_containers.iter().flatten().chain(&spec.containers));
    let limit = all
        .find(|one| one.name == container)
        .and_then(|one| one.resources.as_ref()?.limits.as_ref()?.get("memory"));
    let limit = limit.map_or("not set", |limit| limit.0.as_str());
    format!("environments[].pod.resources.limits.memory is {limit}")
}

/// What the end of a container says by itself, where it says more than any words could.
pub(super) fn by_end(pod: &Pod, container: &str, state: &ContainerStateTerminated) -> Option<Problem> {
    match state.reason.as_deref() {
        Some("OOMKilled") => {
            return Some(Problem::lasting(
                reasons::OUT_OF_MEMORY,
                format!(
                    "container {container} ran out of memory: raise the memory limit ({})",
                    memory(pod, container)
                ),
            ));
        }
        Some("StartError" | "ContainerCannotRun") => {
            let message = state.message.as_deref().unwrap_or_default();
            return Some(Problem::lasting(
                reasons::POD_NOT_STARTED,
                format!("container {container} could not start: {}", cut(message)),
            ));
        }
        Some("ContainerStatusUnknown") => {
            return Some(Problem::passing(
                reasons::POD_LOST,
                format!("the node lost track of container {container}"),
            ));
        }
        _ => {}
    }
    match state.exit_code {
        139 | 134 | 132 => Some(Problem::lasting(
            reasons::RUNTIME_FAILED,
            format!("container {container} died of signal {}", state.exit_code - 128),
        )),
        143 => Some(Problem::passing(
            reasons::POD_LOST,
            format!("container {container} was told to stop"),
        )),
        _ => None,
    }
}

/// A container that ended without a word.
pub(super) fn wordless(pod: &Pod, container: &str, state: &ContainerStateTerminated) -> Problem {
    if let Some(problem) = by_end(pod, container, state) {
        return problem;
    }
    let text = format!(
        "container {container} exited with {} and left no report",
        state.exit_code
    );
    if state.exit_code == 0 {
        return Problem::lasting(reasons::REPORT_INVALID, text);
    }
    match FailureClass::of_exit_code(state.exit_code) {
        FailureClass::Storage => Problem::passing(reasons::STORAGE_UNAVAILABLE, text),
        FailureClass::Resources => Problem::lasting(reasons::OUT_OF_RESOURCES, text),
        FailureClass::Refused => Problem::lasting(reasons::REPORT_INVALID, text),
        FailureClass::Bug => Problem::lasting(reasons::INTERNAL, text),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_long_message_keeps_what_was_tried_what_went_wrong_and_the_way_out() {
        let image = format!("registry.example.com/worker@sha256:{}", "0".repeat(64));
        let message = format!(
            "Back-off pulling image \"{image}\": ErrImagePull: {}{image}: not found",
            "failed: ".repeat(60)
        );
        let held = held_up(reasons::IMAGE_UNAVAILABLE, &message).message;
        // A status has 512 bytes for it, and puts environment and reason in front.
        assert!(held.len() < 400, "{}", held.len());
        for words in [image.as_str(), "…", "not found", "workerImage"] {
            assert!(held.contains(words), "{words} is not in {held}");
        }
        assert_eq!(both_ends("short"), "short");
    }
}
