//! What keeps a workload's new pods from becoming ready, in the kubelet's own words.
//!
//! Pure. Looks only at pods whose spec carries the delivered value; never decides to roll back.

use assayer_crds::conditions::{ARTIFACT_NOT_MOUNTABLE, ROLLOUT_FAILED};
use k8s_openapi::api::core::v1::{ContainerStatus, Pod};
use kube::ResourceExt as _;

/// A pod that does not become ready.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PodProblem {
    /// `ArtifactNotMountable` when the artifact itself can't be pulled or mounted, else `RolloutFailed`.
    pub reason: &'static str,
    /// Pod, container, and the kubelet's or scheduler's words.
    pub message: String,
}

/// Container states that pass by themselves.
const NORMAL: [&str; 2] = ["ContainerCreating", "PodInitializing"];

/// Problems of those of `pods` that carry `value`: the artifact's first.
pub fn problems(pods: &[Pod], value: &str) -> Vec<PodProblem> {
    let mut found: Vec<_> = pods
        .iter()
        .filter(|pod| pod.metadata.deletion_timestamp.is_none() && carries(pod, value))
        .filter_map(|pod| problem(pod, value))
        .collect();
    found.sort_by_key(|problem| problem.reason != ARTIFACT_NOT_MOUNTABLE);
    found
}

fn carries(pod: &Pod, value: &str) -> bool {
    let Some(spec) = &pod.spec else { return false };
    let volumes = spec.volumes.iter().flatten().filter_map(|v| v.image.as_ref());
    let mut references = volumes.filter_map(|image| image.reference.as_deref());
    let containers = spec.containers.iter().chain(spec.init_containers.iter().flatten());
    references.any(|reference| reference == value)
        || containers
            .flat_map(|container| container.env.iter().flatten())
            .any(|env| env.value.as_deref() == Some(value))
}

fn problem(pod: &Pod, value: &str) -> Option<PodProblem> {
    let status = pod.status.as_ref()?;
    let containers = status
        .init_container_statuses
        .iter()
        .flatten()
        .chain(status.container_statuses.iter().flatten());
    let name = pod.name_any();
    for container in containers {
        if let Some((reason, words)) = waits(container) {
            let artifact = words.contains(value) || words.contains(value.trim_start_matches("oci://"));
            return Some(PodProblem {
                reason: if artifact {
                    ARTIFACT_NOT_MOUNTABLE
                } else {
                    ROLLOUT_FAILED
                },
                message: format!("pod {name}, container {}: {reason}: {words}", container.name),
            });
        }
    }
    let unready = status
        .conditions
        .iter()
        .flatten()
        .find(|c| (c.type_ == "PodScheduled" || c.type_ == "Ready") && c.status == "False")?;
    Some(PodProblem {
        reason: ROLLOUT_FAILED,
        message: format!(
            "pod {name}: {}: {}",
            unready.reason.as_deref().unwrap_or("NotReady"),
            unready.message.as_deref().unwrap_or("not ready")
        ),
    })
}

fn waits(container: &ContainerStatus) -> Option<(String, String)> {
    let waiting = container.state.as_ref()?.waiting.as_ref()?;
    let reason = waiting
        .reason
        .clone()
        .filter(|reason| !NORMAL.contains(&reason.as_str()))?;
    let last = container
        .last_state
        .as_ref()
        .and_then(|state| state.terminated.as_ref());
    let ended = last.map(|ended| {
        let words = ended.message.as_deref().unwrap_or_default().trim();
        format!(
            " (last exit code {}{}{words})",
            ended.exit_code,
            if words.is_empty() { "" } else { ": " }
        )
    });
    let words = waiting.message.clone().unwrap_or_default() + &ended.unwrap_or_default();
    Some((reason, words.chars().take(400).collect()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[expect(clippy::needless_pass_by_value, reason = "takes json! as it comes")]
    fn pod(volume: &str, status: serde_json::Value) -> Pod {
        serde_json::from_value(serde_json::json!({
            "metadata": {"name": "scanner-1"},
            "spec": {"containers": [{"name": "server"}], "volumes": [{"name": "model", "image": {"reference": volume}}]},
            "status": status,
        }))
        .unwrap()
    }

    fn waiting(reason: &str, message: &str) -> serde_json::Value {
        serde_json::json!({"containerStatuses": [{
            "name": "server", "image": "", "imageID": "", "ready": false, "restartCount": 0,
            "state": {"waiting": {"reason": reason, "message": message}}
        }]})
    }

    #[test]
    fn the_artifact_is_told_from_other_trouble() {
        for (status, expected) in [
            (
                waiting("ImagePullBackOff", "Back-off pulling image \"r/m@sha256:a\""),
                Some(ARTIFACT_NOT_MOUNTABLE),
            ),
            (
                waiting("ImagePullBackOff", "Back-off pulling image \"r/server:1\""),
                Some(ROLLOUT_FAILED),
            ),
            (waiting("CrashLoopBackOff", "back-off 10s"), Some(ROLLOUT_FAILED)),
            (waiting("ContainerCreating", ""), None),
            (
                serde_json::json!({"conditions": [{"type": "Ready", "status": "False", "reason": "ContainersNotReady"}]}),
                Some(ROLLOUT_FAILED),
            ),
            (
                serde_json::json!({"conditions": [{"type": "Ready", "status": "True"}]}),
                None,
            ),
        ] {
            let found = problems(&[pod("r/m@sha256:a", status.clone())], "r/m@sha256:a");
            assert_eq!(found.first().map(|p| p.reason), expected, "{status}");
        }
    }

    #[test]
    fn pods_of_the_former_model_are_not_looked_at() {
        let old = pod("r/m@sha256:old", waiting("CrashLoopBackOff", "x"));
        assert!(problems(&[old], "r/m@sha256:a").is_empty());
    }
}
