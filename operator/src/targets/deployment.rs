//! Deployments: preflight, the patch of one delivered field, and the verdict on the rollout.
//!
//! Pure. The operator owns only the delivered fields: an image volume's reference, or the value of one environment variable.

use std::collections::BTreeMap;

use assayer_crds::promotion::Delivery;
use k8s_openapi::api::apps::v1::Deployment;
use k8s_openapi::api::core::v1::{Container, EnvVar, PodSpec, Volume};
use kube::ResourceExt as _;
use kube::core::TypeMeta;
use serde::Serialize;

use super::fields::{below, field, keeper, name_in, named, ours, owned_by_us};
use super::{Problem, Rollout, field_of};

/// Longest former value that can be kept in a status.
const MAX_FORMER: usize = 2_048;

/// A server-side apply of delivered fields only.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Patch {
    #[serde(flatten)]
    types: TypeMeta,
    metadata: Identity,
    spec: Nested<Nested<Delivered>>,
}

/// Names the very object that was looked at: one of the same name that was created since is not written.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
struct Identity {
    name: String,
    namespace: String,
    uid: String,
}

/// `spec.template.spec`: two levels that hold nothing else of ours.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(untagged)]
enum Nested<T> {
    Template { template: T },
    Spec { spec: T },
}

#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
struct Delivered {
    #[serde(skip_serializing_if = "Vec::is_empty")]
    volumes: Vec<VolumePart>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    init_containers: Vec<ContainerPart>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    containers: Vec<ContainerPart>,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
struct VolumePart {
    name: String,
    image: ImagePart,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
struct ImagePart {
    reference: String,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
struct ContainerPart {
    name: String,
    env: Vec<EnvPart>,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
struct EnvPart {
    name: String,
    value: String,
}

fn pod(deployment: &Deployment) -> Option<&PodSpec> {
    deployment.spec.as_ref()?.template.spec.as_ref()
}

fn volume<'a>(pod: &'a PodSpec, name: &str) -> Option<&'a Volume> {
    pod.volumes.iter().flatten().find(|volume| volume.name == name)
}

fn variable<'a>(containers: &'a [Container], container: &str, name: &str) -> Option<&'a EnvVar> {
    let container = containers.iter().find(|c| c.name == container)?;
    container.env.iter().flatten().find(|env| env.name == name)
}

/// The list that holds the container: `containers`, or `initContainers`.
fn list_of<'a>(pod: &'a PodSpec, container: &str) -> Option<(&'static str, &'a [Container])> {
    let init = pod.init_containers.as_deref().unwrap_or_default();
    [("containers", pod.containers.as_slice()), ("initContainers", init)]
        .into_iter()
        .find(|(_, list)| list.iter().any(|c| c.name == container))
}

/// What the delivered field holds now.
pub fn value(deployment: &Deployment, delivery: &Delivery) -> Option<String> {
    let pod = pod(deployment)?;
    let held = match (&delivery.image_volume, &delivery.env) {
        (Some(by), _) => volume(pod, &by.volume)?.image.as_ref()?.reference.clone(),
        (None, Some(by)) => variable(list_of(pod, &by.container)?.1, &by.container, &by.name)?
            .value
            .clone(),
        (None, None) => None,
    };
    held.filter(|held| !held.is_empty())
}

/// Path of the delivered field in `managedFields`.
fn path(deployment: &Deployment, delivery: &Delivery) -> Option<Vec<String>> {
    let mut path = vec![field("spec"), field("template"), field("spec")];
    match (&delivery.image_volume, &delivery.env) {
        (Some(by), _) => path.extend([field("volumes"), named(&by.volume), field("image"), field("reference")]),
        (None, Some(by)) => {
            let (list, _) = list_of(pod(deployment)?, &by.container)?;
            path.extend([
                field(list),
                named(&by.container),
                field("env"),
                named(&by.name),
                field("value"),
            ]);
        }
        (None, None) => return None,
    }
    Some(path)
}

/// Whether the operator wrote the delivered field last.
pub fn written_by_us(deployment: &Deployment, delivery: &Delivery) -> bool {
    path(deployment, delivery).is_some_and(|path| owned_by_us(&deployment.metadata, &path))
}

/// Whether the Deployment can take a model by `delivery`; returns what the field holds now.
///
/// # Errors
/// When a container or volume is missing, is of another kind, or is kept by somebody who would write it again.
pub fn preflight(deployment: &Deployment, delivery: &Delivery) -> Result<Option<String>, Problem> {
    let name = deployment.name_any();
    let paused = deployment.spec.as_ref().and_then(|spec| spec.paused).unwrap_or(false);
    if paused {
        return Err(Problem::invalid(format!(
            "Deployment {name} is paused, so nothing would roll out: kubectl rollout resume deployment/{name}"
        )));
    }
    let Some(pod) = pod(deployment) else {
        return Err(Problem::invalid(format!("Deployment {name} has no pod template")));
    };
    match (&delivery.image_volume, &delivery.env) {
        (Some(by), None) => check_volume(&name, pod, &by.volume)?,
        (None, Some(by)) => check_variable(&name, pod, &by.container, &by.name)?,
        _ => {
            return Err(Problem::invalid(
                "target.delivery must name exactly one of imageVolume and env",
            ));
        }
    }
    let former = value(deployment, delivery);
    if let Some(length) = former.as_ref().map(String::len).filter(|length| *length > MAX_FORMER) {
        let field = field_of(delivery);
        return Err(Problem::invalid(format!(
            "Deployment {name}, {field} holds {length} bytes, at most {MAX_FORMER} can be kept for going back: shorten it"
        )));
    }
    if let Some(path) = path(deployment, delivery)
        && let Some((manager, operation)) = keeper(&deployment.metadata, &path)
    {
        let field = field_of(delivery);
        let way_out = if delivery.env.is_some() {
            "remove the variable from the manifest"
        } else {
            "keep only `image: {}` in the manifest"
        };
        return Err(Problem::invalid(format!(
            "Deployment {name}, {field} is set by `{manager}` ({operation}), which would put its own value back: {way_out} and apply it again"
        )));
    }
    Ok(former)
}

fn check_volume(name: &str, pod: &PodSpec, wanted: &str) -> Result<(), Problem> {
    let Some(volume) = volume(pod, wanted) else {
        let names: Vec<_> = pod.volumes.iter().flatten().map(|v| v.name.as_str()).collect();
        return Err(Problem::invalid(format!(
            "Deployment {name} has no volume `{wanted}` (it has: {}): add volumes: [{{name: {wanted}, image: {{}}}}] and mount it",
            listed(&names)
        )));
    };
    if volume.image.is_none() {
        return Err(Problem::invalid(format!(
            "Deployment {name}, volume `{wanted}` is {}, not an image volume: declare {{name: {wanted}, image: {{}}}}",
            kind_of(volume)
        )));
    }
    let init = pod.init_containers.as_deref().unwrap_or_default();
    let mounted = pod
        .containers
        .iter()
        .chain(init)
        .flat_map(|container| container.volume_mounts.iter().flatten())
        .any(|mount| mount.name == wanted);
    if mounted {
        Ok(())
    } else {
        Err(Problem::invalid(format!(
            "Deployment {name}: no container mounts volume `{wanted}`: add volumeMounts: [{{name: {wanted}, mountPath: /models, readOnly: true}}]"
        )))
    }
}

fn check_variable(name: &str, pod: &PodSpec, container: &str, wanted: &str) -> Result<(), Problem> {
    let Some((_, list)) = list_of(pod, container) else {
        let names: Vec<_> = pod.containers.iter().map(|c| c.name.as_str()).collect();
        return Err(Problem::invalid(format!(
            "Deployment {name} has no container `{container}` (it has: {}): correct target.delivery.env.container",
            listed(&names)
        )));
    };
    if variable(list, container, wanted).is_some_and(|env| env.value_from.is_some()) {
        return Err(Problem::invalid(format!(
            "Deployment {name}, container `{container}` takes {wanted} from another place (valueFrom): remove it from the manifest"
        )));
    }
    Ok(())
}

fn listed(names: &[&str]) -> String {
    if names.is_empty() {
        "none".to_owned()
    } else {
        names.join(", ")
    }
}

/// The kind of a volume that is not an image volume: the only other field that is set.
fn kind_of(volume: &Volume) -> String {
    let fields = serde_json::to_value(volume).unwrap_or_default();
    let kind = fields
        .as_object()
        .and_then(|fields| fields.keys().find(|key| *key != "name").cloned());
    kind.unwrap_or_else(|| "emptyDir".to_owned())
}

/// Builds the patch that sets the delivered field to `wanted` and keeps every other field that the operator has delivered here: a
/// server-side apply takes away what it leaves out.
///
/// Returns nothing when the Deployment has no identity or no place for the field.
pub fn patch(deployment: &Deployment, delivery: &Delivery, wanted: &str) -> Option<Patch> {
    let meta = &deployment.metadata;
    let pod = pod(deployment)?;
    let mut volumes = BTreeMap::new();
    let mut lists = BTreeMap::from([("initContainers", BTreeMap::new()), ("containers", BTreeMap::new())]);
    for kept in delivered(deployment, pod) {
        place(pod, &kept.0, kept.1, &mut volumes, &mut lists)?;
    }
    place(pod, delivery, wanted.to_owned(), &mut volumes, &mut lists)?;
    let parts = |list: BTreeMap<String, BTreeMap<String, String>>| {
        list.into_iter()
            .map(|(name, env)| ContainerPart {
                name,
                env: env.into_iter().map(|(name, value)| EnvPart { name, value }).collect(),
            })
            .collect()
    };
    let delivered = Delivered {
        volumes: volumes
            .into_iter()
            .map(|(name, reference)| VolumePart {
                name,
                image: ImagePart { reference },
            })
            .collect(),
        init_containers: parts(lists.remove("initContainers").unwrap_or_default()),
        containers: parts(lists.remove("containers").unwrap_or_default()),
    };
    Some(Patch {
        types: TypeMeta::resource::<Deployment>(),
        metadata: Identity {
            name: meta.name.clone()?,
            namespace: meta.namespace.clone()?,
            uid: meta.uid.clone()?,
        },
        spec: Nested::Template {
            template: Nested::Spec { spec: delivered },
        },
    })
}

type Variables = BTreeMap<String, BTreeMap<String, String>>;

fn place(
    pod: &PodSpec,
    delivery: &Delivery,
    value: String,
    volumes: &mut BTreeMap<String, String>,
    lists: &mut BTreeMap<&'static str, Variables>,
) -> Option<()> {
    match (&delivery.image_volume, &delivery.env) {
        (Some(by), _) => {
            volumes.insert(by.volume.clone(), value);
        }
        (None, Some(by)) => {
            let (list, _) = list_of(pod, &by.container)?;
            lists
                .get_mut(list)?
                .entry(by.container.clone())
                .or_default()
                .insert(by.name.clone(), value);
        }
        (None, None) => return None,
    }
    Some(())
}

/// Every field that the operator has delivered to the Deployment and that still holds a value.
fn delivered(deployment: &Deployment, pod: &PodSpec) -> Vec<(Delivery, String)> {
    use assayer_crds::promotion::{EnvDelivery, ImageVolumeDelivery};
    let root = [field("spec"), field("template"), field("spec")];
    let Some(tree) = ours(&deployment.metadata).and_then(|entry| below(entry, &root)) else {
        return Vec::new();
    };
    let keys = |tree: &serde_json::Value, list: &str| -> Vec<String> {
        tree.get(list)
            .and_then(serde_json::Value::as_object)
            .map(|items| items.keys().cloned().collect())
            .unwrap_or_default()
    };
    let mut all = Vec::new();
    for key in keys(tree, "f:volumes") {
        if let Some(volume) = name_in(&key) {
            all.push(Delivery {
                image_volume: Some(ImageVolumeDelivery { volume }),
                env: None,
            });
        }
    }
    for (list, containers) in [
        ("f:containers", pod.containers.as_slice()),
        ("f:initContainers", pod.init_containers.as_deref().unwrap_or_default()),
    ] {
        for key in keys(tree, list) {
            let Some(container) = name_in(&key).filter(|name| containers.iter().any(|c| c.name == *name)) else {
                continue;
            };
            let owned = tree.get(list).and_then(|l| l.get(&key)).cloned().unwrap_or_default();
            all.extend(
                keys(&owned, "f:env")
                    .iter()
                    .filter_map(|env| name_in(env))
                    .map(|name| Delivery {
                        image_volume: None,
                        env: Some(EnvDelivery {
                            name,
                            container: container.clone(),
                        }),
                    }),
            );
        }
    }
    all.into_iter()
        .filter_map(|delivery| value(deployment, &delivery).map(|value| (delivery, value)))
        .collect()
}

/// Whether nothing shall run.
pub fn idle(deployment: &Deployment) -> bool {
    deployment.spec.as_ref().and_then(|spec| spec.replicas) == Some(0)
}

/// How far the rollout is that began at `generation`. Source: `kubectl rollout status`, except that nothing is complete without a pod.
pub fn rollout(deployment: &Deployment, generation: i64) -> Rollout {
    let name = deployment.name_any();
    let generation = deployment.metadata.generation.unwrap_or_default().max(generation);
    let status = deployment.status.clone().unwrap_or_default();
    let wanted = deployment.spec.as_ref().and_then(|spec| spec.replicas).unwrap_or(1);
    if status.observed_generation.unwrap_or_default() < generation {
        return Rollout::Progressing {
            message: format!("Deployment {name}: generation {generation} is not observed yet"),
        };
    }
    let conditions = status.conditions.unwrap_or_default();
    let condition = |type_: &str| conditions.iter().find(|c| c.type_ == type_);
    let words = |type_: &str| condition(type_).and_then(|c| c.message.clone()).unwrap_or_default();
    if condition("Progressing").is_some_and(|c| c.reason.as_deref() == Some("ProgressDeadlineExceeded")) {
        return Rollout::Stuck {
            message: format!(
                "Deployment {name} missed its progressDeadlineSeconds: {}",
                words("Progressing")
            ),
        };
    }
    let updated = status.updated_replicas.unwrap_or_default();
    let total = status.replicas.unwrap_or_default();
    let available = status.available_replicas.unwrap_or_default();
    let waiting = if updated < wanted {
        format!("{updated} of {wanted} replicas are updated")
    } else if total > updated {
        format!("{} old replicas are still there", total - updated)
    } else if available < updated {
        format!("{available} of {updated} updated replicas are available")
    } else if available < 1 {
        return Rollout::Idle {
            message: format!(
                "Deployment {name} is scaled to 0, so no pod runs the model yet: kubectl scale deployment/{name} --replicas=1"
            ),
        };
    } else {
        return Rollout::Complete {
            message: format!("{available} of {wanted} replicas are updated and available"),
        };
    };
    let refused = match condition("ReplicaFailure") {
        Some(failure) if failure.status == "True" => format!("; {}", words("ReplicaFailure")),
        _ => String::new(),
    };
    Rollout::Progressing {
        message: format!("Deployment {name}: {waiting}{refused}"),
    }
}

#[cfg(test)]
#[path = "deployment_tests.rs"]
mod tests;
