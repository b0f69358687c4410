//! Tables for preflight, patch and rollout.

use assayer_crds::names::FIELD_MANAGER;
use assayer_crds::promotion::{EnvDelivery, ImageVolumeDelivery};
use serde_json::{Value, json};

use super::*;

fn by_volume(name: &str) -> Delivery {
    Delivery {
        image_volume: Some(ImageVolumeDelivery { volume: name.into() }),
        env: None,
    }
}

fn by_env(container: &str, name: &str) -> Delivery {
    Delivery {
        image_volume: None,
        env: Some(EnvDelivery {
            name: name.into(),
            container: container.into(),
        }),
    }
}

/// A Deployment that takes a model both ways, changed by `edit`.
fn deployment(edit: impl Fn(&mut Value)) -> Deployment {
    let mut raw = json!({
        "metadata": {"name": "scanner", "namespace": "ml", "uid": "u-1", "generation": 3},
        "spec": {
            "replicas": 2, "selector": {},
            "template": {"spec": {
                "initContainers": [{"name": "fetch"}],
                "containers": [{"name": "server", "volumeMounts": [{"name": "model", "mountPath": "/m"}]}],
                "volumes": [{"name": "model", "image": {"pullPolicy": "IfNotPresent"}}, {"name": "tmp", "emptyDir": {}}]
            }}
        },
        "status": {"observedGeneration": 3, "replicas": 2, "updatedReplicas": 2, "availableReplicas": 2}
    });
    edit(&mut raw);
    serde_json::from_value(raw).unwrap()
}

fn managed(manager: &str, operation: &str, fields: &Value) -> Value {
    json!([{"manager": manager, "operation": operation, "fieldsV1": {"f:spec": {"f:template": {"f:spec": fields}}}}])
}

fn reference_fields() -> Value {
    json!({"f:volumes": {"k:{\"name\":\"model\"}": {"f:image": {"f:reference": {}}}}})
}

#[test]
fn preflight_passes_and_tells_the_former_value() {
    assert_eq!(preflight(&deployment(|_| ()), &by_volume("model")), Ok(None));
    let live = deployment(|d| {
        d["spec"]["template"]["spec"]["volumes"][0]["image"]["reference"] = json!("r/m@sha256:a");
        d["metadata"]["managedFields"] = managed(FIELD_MANAGER, "Apply", &reference_fields());
    });
    assert_eq!(
        preflight(&live, &by_volume("model")),
        Ok(Some("r/m@sha256:a".to_owned()))
    );
    assert!(written_by_us(&live, &by_volume("model")));
    assert_eq!(preflight(&deployment(|_| ()), &by_env("server", "MODEL_URI")), Ok(None));
    assert_eq!(preflight(&deployment(|_| ()), &by_env("fetch", "MODEL_URI")), Ok(None));
}

#[test]
fn preflight_names_what_is_wrong_and_what_is_there() {
    let template = |d: &mut Value, path: &str, value: Value| d["spec"]["template"]["spec"][path] = value;
    let cases: Vec<(Deployment, Delivery, &str)> = vec![
        (
            deployment(|_| ()),
            by_volume("modle"),
            "no volume `modle` (it has: model, tmp)",
        ),
        (
            deployment(|_| ()),
            by_volume("tmp"),
            "volume `tmp` is emptyDir, not an image volume",
        ),
        (
            deployment(|d| template(d, "containers", json!([{"name": "server"}]))),
            by_volume("model"),
            "no container mounts volume `model`",
        ),
        (
            deployment(|_| ()),
            by_env("srv", "MODEL_URI"),
            "no container `srv` (it has: server)",
        ),
        (
            deployment(|d| {
                template(
                    d,
                    "containers",
                    json!([{"name": "server", "env": [{"name": "M", "valueFrom": {"fieldRef": {"fieldPath": "metadata.name"}}}]}]),
                );
            }),
            by_env("server", "M"),
            "valueFrom",
        ),
        (
            deployment(|d| d["spec"]["paused"] = json!(true)),
            by_volume("model"),
            "is paused",
        ),
        (
            deployment(|d| d["metadata"]["managedFields"] = managed("argocd-controller", "Apply", &reference_fields())),
            by_volume("model"),
            "set by `argocd-controller` (Apply)",
        ),
        (
            deployment(|d| {
                let env = json!({"f:containers": {"k:{\"name\":\"server\"}": {"f:env": {"k:{\"name\":\"MODEL_URI\"}": {"f:value": {}}}}}});
                d["metadata"]["managedFields"] = managed("kubectl-client-side-apply", "Update", &env);
            }),
            by_env("server", "MODEL_URI"),
            "set by `kubectl-client-side-apply` (Update)",
        ),
        (
            deployment(|d| {
                let value = "x".repeat(2_049);
                template(
                    d,
                    "containers",
                    json!([{"name": "server", "env": [{"name": "M", "value": value}]}]),
                );
            }),
            by_env("server", "M"),
            "holds 2049 bytes, at most 2048",
        ),
        (
            deployment(|_| ()),
            Delivery {
                image_volume: None,
                env: None,
            },
            "exactly one",
        ),
    ];
    for (deployment, delivery, words) in cases {
        let problem = preflight(&deployment, &delivery).unwrap_err();
        assert!(
            problem.message.contains(words),
            "{} should say {words}",
            problem.message
        );
    }
}

#[test]
fn the_patch_holds_the_delivered_field_and_nothing_else() {
    let patch = patch(&deployment(|_| ()), &by_volume("model"), "r/m@sha256:b").unwrap();
    assert_eq!(
        serde_json::to_value(&patch).unwrap(),
        json!({
            "apiVersion": "apps/v1", "kind": "Deployment",
            "metadata": {"name": "scanner", "namespace": "ml", "uid": "u-1"},
            "spec": {"template": {"spec": {"volumes": [{"name": "model", "image": {"reference": "r/m@sha256:b"}}]}}}
        })
    );
}

#[test]
fn the_patch_keeps_what_was_delivered_before() {
    let earlier = deployment(|d| {
        d["spec"]["template"]["spec"]["volumes"][0]["image"]["reference"] = json!("r/m@sha256:a");
        d["spec"]["template"]["spec"]["initContainers"][0]["env"] =
            json!([{"name": "W", "value": "oci://r/w@sha256:c"}]);
        let mut fields = reference_fields();
        fields["f:initContainers"] =
            json!({"k:{\"name\":\"fetch\"}": {"f:env": {"k:{\"name\":\"W\"}": {"f:value": {}}}}});
        d["metadata"]["managedFields"] = managed(FIELD_MANAGER, "Apply", &fields);
    });
    let patch = patch(&earlier, &by_env("server", "MODEL_URI"), "oci://r/n@sha256:d").unwrap();
    assert_eq!(
        serde_json::to_value(&patch).unwrap()["spec"]["template"]["spec"],
        json!({
            "volumes": [{"name": "model", "image": {"reference": "r/m@sha256:a"}}],
            "initContainers": [{"name": "fetch", "env": [{"name": "W", "value": "oci://r/w@sha256:c"}]}],
            "containers": [{"name": "server", "env": [{"name": "MODEL_URI", "value": "oci://r/n@sha256:d"}]}],
        })
    );
}

#[test]
fn rollouts_are_judged_as_kubectl_does() {
    let status = |status: Value| deployment(|d| d["status"] = status.clone());
    let deadline = json!([{"type": "Progressing", "status": "False", "reason": "ProgressDeadlineExceeded", "message": "has timed out"}]);
    let cases = [
        (
            json!({"observedGeneration": 3, "replicas": 2, "updatedReplicas": 2, "availableReplicas": 2}),
            "complete",
        ),
        (
            json!({"observedGeneration": 2, "replicas": 2, "updatedReplicas": 2, "availableReplicas": 2}),
            "not observed",
        ),
        (
            json!({"observedGeneration": 3, "replicas": 3, "updatedReplicas": 1, "availableReplicas": 2}),
            "1 of 2 replicas are updated",
        ),
        (
            json!({"observedGeneration": 3, "replicas": 3, "updatedReplicas": 2, "availableReplicas": 2}),
            "1 old replicas",
        ),
        (
            json!({"observedGeneration": 3, "replicas": 2, "updatedReplicas": 2, "availableReplicas": 1}),
            "1 of 2 updated",
        ),
        (
            json!({"observedGeneration": 3, "replicas": 2, "updatedReplicas": 1, "conditions": deadline}),
            "stuck",
        ),
        (
            json!({"observedGeneration": 2, "replicas": 2, "updatedReplicas": 1, "conditions": deadline}),
            "not observed",
        ),
        (
            json!({"observedGeneration": 3, "conditions": [{"type": "ReplicaFailure", "status": "True", "message": "exceeded quota"}]}),
            "exceeded quota",
        ),
        (json!({}), "not observed"),
    ];
    for (raw, expected) in cases {
        let found = match rollout(&status(raw.clone()), 3) {
            Rollout::Complete { .. } => "complete".to_owned(),
            Rollout::Idle { message } => format!("idle: {message}"),
            Rollout::Stuck { message } => format!("stuck: {message}"),
            Rollout::Progressing { message } => message,
        };
        assert!(found.contains(expected), "{raw}: {found} should say {expected}");
    }
    assert!(matches!(rollout(&deployment(|_| ()), 4), Rollout::Progressing { .. }));
}

#[test]
fn nothing_is_complete_before_a_pod_runs_it() {
    let scaled = |status: Value| {
        deployment(|d| {
            d["spec"]["replicas"] = json!(0);
            d["status"] = status.clone();
        })
    };
    let none = scaled(json!({"observedGeneration": 3}));
    assert!(idle(&none) && matches!(rollout(&none, 3), Rollout::Idle { .. }));
    let old = scaled(json!({"observedGeneration": 3, "replicas": 2, "updatedReplicas": 0, "availableReplicas": 2}));
    assert!(matches!(rollout(&old, 3), Rollout::Progressing { .. }));
    assert!(!idle(&deployment(|_| ())));
}
