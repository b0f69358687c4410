//! Which folder and which secret each role sees.
//!
//! The table here is the label-blindness of the workers: `run` gets no labels and no credentials, `score` no model, and only `stage`
//! and `publish` a secret each. Pure.

use assayer_crds::contract::{ROOT, Role, Work, paths};
use assayer_crds::names;
use k8s_openapi::api::core::v1::{
    DownwardAPIVolumeFile, DownwardAPIVolumeSource, EmptyDirVolumeSource, KeyToPath, ObjectFieldSelector,
    SecretVolumeSource, Volume, VolumeMount,
};
use k8s_openapi::apimachinery::pkg::api::resource::Quantity;

use super::Request;

/// Most bytes of a folder that containers share: the worker's own limits on models and data are below it.
const SHARED_LIMIT: &str = "16Gi";
/// Most bytes of labels, or of a container's own `/tmp`.
const SMALL_LIMIT: &str = "1Gi";
const PLAN_VOLUME: &str = "plan";
const PULL: &str = "pull-secret";
const PUSH: &str = "push-secret";
/// Key of a `kubernetes.io/dockerconfigjson` Secret.
const DOCKER_CONFIG: &str = ".dockerconfigjson";

/// A folder and whether the role may write there.
type Folder = (&'static str, bool);

fn folders(role: Role, work: &Work) -> &'static [Folder] {
    match (role, work) {
        (Role::Stage, Work::Make(_)) => &[(paths::BASELINE, true), (paths::INPUTS, true)],
        (Role::Stage, Work::Measure(_)) => &[
            (paths::BASELINE, true),
            (paths::CANDIDATE, true),
            (paths::INPUTS, true),
            (paths::LABELS, true),
        ],
        (Role::Optimize, _) => &[(paths::BASELINE, false), (paths::INPUTS, false), (paths::OUT, true)],
        (Role::Publish, _) => &[(paths::OUT, false)],
        (Role::Run, _) => &[
            (paths::BASELINE, false),
            (paths::CANDIDATE, false),
            (paths::INPUTS, false),
            (paths::PREDICTIONS, true),
        ],
        (Role::Score, _) => &[(paths::LABELS, false), (paths::PREDICTIONS, false)],
    }
}

fn secret(request: &Request<'_>, role: Role) -> Option<(&'static str, &'static str)> {
    match role {
        Role::Stage => request
            .spec
            .run
            .pull_secret
            .as_ref()
            .map(|_| (PULL, paths::PULL_SECRET)),
        Role::Publish => request
            .spec
            .output
            .push_secret
            .as_ref()
            .map(|_| (PUSH, paths::PUSH_SECRET)),
        Role::Optimize | Role::Run | Role::Score => None,
    }
}

fn tmp(role: Role) -> String {
    format!("tmp-{}", role.as_str())
}

fn mount(name: &str, path: String, writable: bool) -> VolumeMount {
    VolumeMount {
        name: name.to_owned(),
        mount_path: path,
        read_only: (!writable).then_some(true),
        ..VolumeMount::default()
    }
}

/// The mounts of one container.
pub(super) fn mounts(request: &Request<'_>, role: Role) -> Vec<VolumeMount> {
    let plan_folder = paths::PLAN.rsplit_once('/').map_or("plan", |(folder, _)| folder);
    let mut mounts = vec![mount(PLAN_VOLUME, format!("{ROOT}/{plan_folder}"), false)];
    for (folder, writable) in folders(role, &request.plan.work) {
        mounts.push(mount(folder, format!("{ROOT}/{folder}"), *writable));
    }
    if let Some((name, path)) = secret(request, role) {
        mounts.push(mount(name, format!("{ROOT}/{path}"), false));
    }
    mounts.push(mount(&tmp(role), "/tmp".to_owned(), true));
    mounts
}

/// The volumes of the pod.
pub(super) fn volumes(request: &Request<'_>) -> Vec<Volume> {
    let sequence = Role::sequence(&request.plan.work);
    let mut volumes = vec![plan_volume()];
    let mut seen: Vec<&str> = Vec::new();
    for role in sequence {
        for (folder, _) in folders(role, &request.plan.work) {
            if !seen.contains(folder) {
                seen.push(folder);
                let limit = if *folder == paths::LABELS {
                    SMALL_LIMIT
                } else {
                    SHARED_LIMIT
                };
                volumes.push(empty(folder, limit));
            }
        }
    }
    for role in sequence {
        volumes.push(empty(&tmp(role), SMALL_LIMIT));
        let named = match role {
            Role::Stage => request.spec.run.pull_secret.as_ref(),
            Role::Publish => request.spec.output.push_secret.as_ref(),
            Role::Optimize | Role::Run | Role::Score => None,
        };
        if let (Some((volume, _)), Some(named)) = (secret(request, role), named) {
            volumes.push(secret_volume(volume, named));
        }
    }
    volumes
}

fn plan_volume() -> Volume {
    let file = paths::PLAN.rsplit_once('/').map_or(paths::PLAN, |(_, file)| file);
    Volume {
        name: PLAN_VOLUME.to_owned(),
        downward_api: Some(DownwardAPIVolumeSource {
            default_mode: Some(0o444),
            items: Some(vec![DownwardAPIVolumeFile {
                path: file.to_owned(),
                field_ref: Some(ObjectFieldSelector {
                    api_version: Some("v1".to_owned()),
                    field_path: format!("metadata.annotations['{}']", names::PLAN),
                }),
                ..DownwardAPIVolumeFile::default()
            }]),
        }),
        ..Volume::default()
    }
}

fn empty(name: &str, limit: &str) -> Volume {
    Volume {
        name: name.to_owned(),
        empty_dir: Some(EmptyDirVolumeSource {
            size_limit: Some(Quantity(limit.to_owned())),
            medium: None,
        }),
        ..Volume::default()
    }
}

fn secret_volume(name: &str, secret: &str) -> Volume {
    Volume {
        name: name.to_owned(),
        secret: Some(SecretVolumeSource {
            secret_name: Some(secret.to_owned()),
            default_mode: Some(0o440),
            optional: Some(false),
            items: Some(vec![KeyToPath {
                key: DOCKER_CONFIG.to_owned(),
                path: "config.json".to_owned(),
                mode: None,
            }]),
        }),
        ..Volume::default()
    }
}
