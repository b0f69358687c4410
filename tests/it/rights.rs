//! The operator holds the rights that it uses and no other: every verb that the chart grants, with the place in the source that needs it.

use std::{collections::BTreeSet, fs};

use anyhow::{Context, Result, ensure};
use serde_json::Value;

use crate::{
    chart::{objects, root},
    installed::render,
};

/// Group and resource (with the one name that it is granted for), verbs, and the lines of `operator/src` that use them.
type Use = (
    &'static str,
    &'static [&'static str],
    &'static [(&'static str, &'static str)],
);

const EVERYWHERE: &[Use] = &[
    (
        "assayer.dev/modeloptimizations",
        &["get", "list", "watch"],
        &[
            ("optimization/mod.rs", "watcher(objects,"),
            ("promotion/mod.rs", "watcher(sources,"),
        ],
    ),
    (
        "assayer.dev/modelpromotions",
        &["get", "list", "watch"],
        &[
            ("promotion/mod.rs", "watcher(objects,"),
            ("unreadable.rs", "api.get_opt(name)"),
        ],
    ),
    (
        "assayer.dev/promotionpolicies",
        &["get", "list", "watch"],
        &[
            ("promotion/mod.rs", "watcher(policies,"),
            ("unreadable.rs", "api.get_opt(name)"),
        ],
    ),
    (
        "assayer.dev/modeloptimizations/status",
        &["patch"],
        &[("optimization/apply.rs", "patch_status(")],
    ),
    (
        "assayer.dev/modelpromotions/status",
        &["patch"],
        &[("promotion/apply.rs", "patch_status(")],
    ),
    (
        "assayer.dev/promotionpolicies/status",
        &["patch"],
        &[("promotion/policies.rs", "patch_status(")],
    ),
    (
        "batch/jobs",
        &["get", "list", "watch", "create", "patch", "delete"],
        &[
            ("optimization/mod.rs", "watcher(jobs,"),
            ("optimization/apply.rs", "self.jobs().get("),
            ("optimization/apply.rs", "self.jobs().create("),
            ("optimization/apply.rs", "self.jobs().patch("),
            ("optimization/apply.rs", "self.jobs().delete("),
        ],
    ),
    (
        "/pods",
        &["list", "watch"],
        &[
            ("optimization/mod.rs", "watcher(pods,"),
            ("inventory/watch.rs", "scoped::<Pod>"),
        ],
    ),
    ("/pods/log", &["get"], &[("optimization/observe.rs", "api.logs(")]),
    (
        "/configmaps",
        &["get", "list", "watch", "create"],
        &[
            ("inventory/watch.rs", "scoped::<ConfigMap>"),
            ("evidence/store.rs", "api.create("),
            ("evidence/store.rs", "api.get_opt("),
        ],
    ),
    (
        "/namespaces",
        &["get"],
        &[("promotion/observe.rs", "get_metadata_opt(")],
    ),
    (
        "apps/deployments",
        &["get", "list", "watch", "patch"],
        &[
            ("promotion/mod.rs", "watcher(workloads,"),
            ("promotion/apply.rs", "Api<Deployment>"),
        ],
    ),
    (
        "apps/replicasets",
        &["list", "watch"],
        &[("inventory/watch.rs", "PartialObjectMeta<ReplicaSet>>(")],
    ),
    (
        "/events",
        &["list"],
        &[("optimization/observe.rs", "\"events\", api.list(")],
    ),
    (
        "events.k8s.io/events",
        &["create", "patch"],
        &[("context.rs", "Recorder::new(")],
    ),
    (
        "admissionregistration.k8s.io/validatingadmissionpolicies:assayer-approvals",
        &["get"],
        &[("guard.rs", "policies.get_metadata_opt(")],
    ),
    (
        "admissionregistration.k8s.io/validatingadmissionpolicybindings:assayer-approvals",
        &["get"],
        &[("guard.rs", "bindings.get_metadata_opt(")],
    ),
];

const AT_HOME: &[Use] = &[
    (
        "coordination.k8s.io/leases",
        &["create"],
        &[("leader/mod.rs", "self.api.create(")],
    ),
    (
        "coordination.k8s.io/leases:assayer-operator",
        &["get", "update"],
        &[
            ("leader/mod.rs", "self.api.get_opt("),
            ("leader/mod.rs", "self.api.replace("),
        ],
    ),
    (
        "/secrets:assayer-signing-key",
        &["get"],
        &[("keygen.rs", "secrets.get_opt(")],
    ),
    (
        "assayer.dev/modelpromotions",
        &["create"],
        &[("guard.rs", "promotions.create(")],
    ),
];

type Rights = BTreeSet<(String, String)>;

fn words(rule: &Value, field: &str) -> Vec<String> {
    let list = rule[field].as_array().into_iter().flatten();
    list.filter_map(Value::as_str).map(str::to_owned).collect()
}

fn granted(objects: &[Value], kind: &str) -> Result<Rights> {
    let role = objects
        .iter()
        .find(|object| object["kind"] == kind && object["metadata"]["name"] == "assayer-operator")
        .with_context(|| format!("no {kind} assayer-operator"))?;
    let mut rights = Rights::new();
    for rule in role["rules"].as_array().into_iter().flatten() {
        let named = words(rule, "resourceNames");
        let suffix = named.first().map(|name| format!(":{name}")).unwrap_or_default();
        ensure!(
            named.len() < 2,
            "{rule} names several objects: give each a rule of its own"
        );
        for group in words(rule, "apiGroups") {
            for resource in words(rule, "resources") {
                for verb in words(rule, "verbs") {
                    rights.insert((format!("{group}/{resource}{suffix}"), verb));
                }
            }
        }
    }
    Ok(rights)
}

fn used(uses: &[Use]) -> Rights {
    let each = uses
        .iter()
        .flat_map(|(resource, verbs, _)| verbs.iter().map(|verb| ((*resource).to_owned(), (*verb).to_owned())));
    each.collect()
}

#[test]
fn rights_are_the_ones_that_the_operator_uses() -> Result<()> {
    let objects = objects(&render(&[])?)?;
    assert_eq!(
        granted(&objects, "ClusterRole")?,
        used(EVERYWHERE),
        "in every namespace"
    );
    assert_eq!(granted(&objects, "Role")?, used(AT_HOME), "in its own namespace");
    for (resource, _, places) in EVERYWHERE.iter().chain(AT_HOME) {
        ensure!(!places.is_empty(), "nothing needs {resource}");
        for (file, line) in *places {
            let source =
                fs::read_to_string(root().join("operator/src").join(file)).with_context(|| (*file).to_owned())?;
            // Calls are found however they are wrapped.
            let flat: String = source.split_whitespace().collect();
            let line: String = line.split_whitespace().collect();
            ensure!(
                flat.contains(&line),
                "{resource}: operator/src/{file} no longer has `{line}`: take the right back"
            );
        }
    }
    Ok(())
}
