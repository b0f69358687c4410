//! The Job as a whole: who sees what, what is asked of the node, and what pod security says to it.

use assayer_crds::contract::{Role, paths};
use k8s_openapi::api::core::v1::{Container, PodSpec};
use serde_json::json;

use super::*;
use crate::optimization::steps::{self, Settings};
use crate::optimization::world::{IMAGE, spec};

fn run() -> Run {
    Run {
        uid: "u".into(),
        generation: 3,
        rerun: None,
        worker_image: IMAGE.into(),
    }
}

fn built(spec: &ModelOptimizationSpec, step: &Step) -> Job {
    let settings = Settings {
        worker_image: IMAGE.into(),
        plain_http: Vec::new(),
    };
    let work = if let Some(name) = step.environment() {
        let environment = spec.environments.iter().find(|environment| environment.name == name);
        Work::Measure(steps::measure_plan(spec, environment.unwrap(), None, None))
    } else {
        Work::Make(steps::make_plan(spec, &spec.candidates[0], None))
    };
    let run = run();
    let plan = steps::worker_plan(spec, &settings, &run, step, 1, work);
    build(&Request {
        namespace: "ml",
        object: "magika",
        spec,
        run: &run,
        step,
        attempt: 1,
        plan,
    })
}

fn make() -> Step {
    Step::Make {
        candidate: "dynamic".into(),
    }
}

fn measure(environment: &str) -> Step {
    Step::Baseline {
        environment: environment.into(),
    }
}

fn pod_of(job: &Job) -> &PodSpec {
    job.spec.as_ref().unwrap().template.spec.as_ref().unwrap()
}

fn containers(job: &Job) -> Vec<&Container> {
    let pod = pod_of(job);
    pod.init_containers.iter().flatten().chain(&pod.containers).collect()
}

/// Paths of the mounts of `role`, those that can be written with `+`.
fn seen(job: &Job, role: Role) -> Vec<String> {
    let container = containers(job)
        .into_iter()
        .find(|c| c.name == role.as_str())
        .unwrap()
        .clone();
    let path = |mount: &k8s_openapi::api::core::v1::VolumeMount| {
        let sign = if mount.read_only == Some(true) { "" } else { "+" };
        format!("{sign}{}", mount.mount_path)
    };
    container.volume_mounts.unwrap().iter().map(path).collect()
}

#[test]
fn each_role_sees_only_what_it_needs() {
    let measuring = built(&spec(), &measure("edge"));
    assert_eq!(
        seen(&measuring, Role::Stage),
        [
            "/assayer/plan",
            "+/assayer/baseline",
            "+/assayer/candidate",
            "+/assayer/inputs",
            "+/assayer/labels",
            "/assayer/secrets/pull",
            "+/tmp"
        ]
    );
    assert_eq!(
        seen(&measuring, Role::Run),
        [
            "/assayer/plan",
            "/assayer/baseline",
            "/assayer/candidate",
            "/assayer/inputs",
            "+/assayer/predictions",
            "+/tmp"
        ]
    );
    assert_eq!(
        seen(&measuring, Role::Score),
        ["/assayer/plan", "/assayer/labels", "/assayer/predictions", "+/tmp"]
    );
    let making = built(&spec(), &make());
    assert_eq!(
        seen(&making, Role::Publish),
        ["/assayer/plan", "/assayer/out", "/assayer/secrets/push", "+/tmp"]
    );
    let labels = format!("/{}", paths::LABELS);
    for role in [Role::Stage, Role::Optimize, Role::Publish] {
        assert!(
            !seen(&making, role).iter().any(|path| path.ends_with(&labels)),
            "{role:?}"
        );
    }
    assert!(!seen(&making, Role::Optimize).iter().any(|path| path.contains("secret")));
}

#[test]
fn every_mount_has_its_volume_and_tmp_is_shared_with_nobody() {
    for job in [built(&spec(), &make()), built(&spec(), &measure("edge"))] {
        let volumes: Vec<&str> = pod_of(&job)
            .volumes
            .iter()
            .flatten()
            .map(|volume| volume.name.as_str())
            .collect();
        let mut sorted = volumes.clone();
        sorted.sort_unstable();
        sorted.dedup();
        assert_eq!(sorted.len(), volumes.len());
        let mut tmps = Vec::new();
        for container in containers(&job) {
            for mount in container.volume_mounts.iter().flatten() {
                assert!(volumes.contains(&mount.name.as_str()), "{}", mount.name);
                if mount.mount_path == "/tmp" {
                    assert!(!tmps.contains(&mount.name));
                    tmps.push(mount.name.clone());
                }
            }
        }
        assert_eq!(tmps.len(), 3);
    }
}

#[test]
fn the_pod_is_restricted_and_has_no_account() {
    for job in [built(&spec(), &make()), built(&spec(), &measure("edge"))] {
        let pod = pod_of(&job);
        assert_eq!(pod.automount_service_account_token, Some(false));
        assert_eq!(pod.enable_service_links, Some(false));
        assert_eq!(pod.security_context.as_ref().unwrap().run_as_non_root, Some(true));
        for container in containers(&job) {
            assert_eq!(container.image.as_deref(), Some(IMAGE));
            assert_eq!(container.args, Some(vec![container.name.clone()]));
            assert!(container.command.is_none() && container.env.is_none());
            let security = container.security_context.as_ref().unwrap();
            assert_eq!(security.read_only_root_filesystem, Some(true));
            assert_eq!(
                security.capabilities.as_ref().unwrap().drop,
                Some(vec!["ALL".to_owned()])
            );
            let limits = container.resources.as_ref().unwrap().limits.as_ref().unwrap();
            assert!(limits.contains_key("cpu") && limits.contains_key("memory"));
        }
        let spec = job.spec.as_ref().unwrap();
        assert_eq!(spec.active_deadline_seconds, Some(645));
        assert_eq!(spec.backoff_limit, Some(0));
        assert_eq!(spec.ttl_seconds_after_finished, None);
    }
}

fn with_environments(environments: &serde_json::Value) -> ModelOptimizationSpec {
    let mut value = serde_json::to_value(spec()).unwrap();
    value["environments"] = environments.clone();
    serde_json::from_value(value).unwrap()
}

fn limits(job: &Job) -> Vec<String> {
    let resources = containers(job)[1].resources.clone().unwrap();
    resources
        .limits
        .unwrap()
        .into_iter()
        .map(|(name, quantity)| format!("{name}={}", quantity.0))
        .collect()
}

#[test]
fn accelerators_are_asked_for_where_the_model_runs_and_nowhere_else() {
    let cases = [
        (json!({}), vec!["cpu=1", "memory=1Gi", "nvidia.com/gpu=1"]),
        (
            json!({"resources": {"limits": {"amd.com/gpu": "2", "cpu": "4"}}}),
            vec!["amd.com/gpu=2", "cpu=4", "memory=1Gi"],
        ),
        (
            json!({"resourceClaims": [{"name": "gpu", "resourceClaimTemplateName": "one"}]}),
            vec!["cpu=1", "memory=1Gi"],
        ),
    ];
    for (pod, expected) in cases {
        let spec = with_environments(&json!([{"name": "gpu", "executionProvider": "CUDA", "pod": pod}]));
        let measuring = built(&spec, &measure("gpu"));
        assert_eq!(limits(&measuring), expected);
        let making = built(&spec, &make());
        assert!(!limits(&making).iter().any(|limit| limit.contains("gpu")));
        assert!(pod_of(&making).resource_claims.is_none());
    }
}

#[test]
fn scheduling_is_passed_through_and_a_queue_suspends() {
    let spec = with_environments(&json!([
        {"name": "gpu", "executionProvider": "TensorRT", "pod": {
            "nodeSelector": {"pool": "a100"}, "runtimeClassName": "nvidia", "priorityClassName": "low", "queueName": "gpus",
            "tolerations": [{"key": "gpu", "operator": "Exists", "effect": "NoSchedule"}]
        }},
        {"name": "edge", "executionProvider": "CPU", "pod": {"nodeSelector": {"pool": "edge"}}}
    ]));
    let job = built(&spec, &measure("gpu"));
    let pod = pod_of(&job);
    assert_eq!(pod.node_selector.as_ref().unwrap()["pool"], "a100");
    assert_eq!(pod.runtime_class_name.as_deref(), Some("nvidia"));
    assert_eq!(pod.priority_class_name.as_deref(), Some("low"));
    assert_eq!(pod.tolerations.as_ref().unwrap()[0].operator.as_deref(), Some("Exists"));
    assert_eq!(job.metadata.labels.as_ref().unwrap()[names::KUEUE_QUEUE], "gpus");
    assert_eq!(job.spec.as_ref().unwrap().suspend, Some(true));
    let making = built(&spec, &make());
    assert_eq!(
        pod_of(&making).node_selector.as_ref().unwrap()["pool"],
        "edge",
        "making is processor work"
    );
    assert_eq!(making.spec.as_ref().unwrap().suspend, Some(false));
}

#[test]
fn requests_are_the_limits_and_limits_the_requests() {
    let pod = json!({"resources": {"requests": {"cpu": "2"}, "limits": {"memory": "3Gi"}}});
    let spec = with_environments(&json!([{"name": "edge", "executionProvider": "CPU", "pod": pod}]));
    let job = built(&spec, &measure("edge"));
    let resources = containers(&job)[1].resources.clone().unwrap();
    assert_eq!(resources.limits, resources.requests);
    assert_eq!(limits(&job), ["cpu=2", "memory=3Gi"]);
}

#[test]
fn names_are_short_and_differ_by_run_step_and_attempt() {
    let name = "a.very.long.name.of.an.optimization.that.is.too.long.to.fit";
    let base = run().job_name(name, &make(), 1);
    assert!(base.len() <= 63 && !base.contains('.') && base.starts_with("assayer-a-very-long-name-of-an-optimiz-"));
    let other_image = Run {
        worker_image: "x".into(),
        ..run()
    };
    let rerun = Run {
        rerun: Some("1".into()),
        ..run()
    };
    let others = [
        run().job_name(name, &make(), 2),
        run().job_name(name, &measure("edge"), 1),
        other_image.job_name(name, &make(), 1),
        rerun.job_name(name, &make(), 1),
    ];
    assert!(others.iter().all(|other| *other != base));
    assert_eq!(run().nonce(&make(), 1).len(), 32);
}

#[test]
fn the_same_plan_and_owner_make_the_same_job() {
    let job = built(&spec(), &make());
    assert!(same(&job, &job));
    let mut foreign = job.clone();
    foreign.metadata.owner_references.as_mut().unwrap()[0].uid = "other".into();
    assert!(!same(&foreign, &job));
    let mut changed = spec();
    changed.output.uri.push('x');
    assert!(!same(&built(&changed, &make()), &job));
}
