//! The operator holds the rights that it uses and no other: what the chart grants against what the API server saw being used.
//!
//! Decides nothing; the audit log of the journey's cluster does. A right that only rare paths use stands in [`RARE`], with the path.

use std::{collections::BTreeSet, fmt, path::Path};

use anyhow::{Context, Result, ensure};
use serde_json::Value;

use crate::{
    chart::objects,
    installed::{SYSTEM, render},
};

/// A verb on a resource, granted by a `ClusterRole` or by a `Role` in the operator's own namespace.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Right {
    by: &'static str,
    group: String,
    /// With the subresource, where there is one.
    resource: String,
    verb: String,
}

impl fmt::Display for Right {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {} {}/{}", self.by, self.verb, self.group, self.resource)
    }
}

/// Account, verb, group and resource of what no ordinary day needs, and what does.
const RARE: &[(&str, &str, &str, &str)] = &[
    (
        "assayer-operator",
        "get",
        "batch/jobs",
        "created, and stopped before that was recorded: its own Job is told from another's",
    ),
    (
        "assayer-operator",
        "get",
        "assayer.dev/promotionpolicies",
        "one that can't be read is told so in its status",
    ),
];

const ROLES: [&str; 2] = ["ClusterRole", "Role"];

/// Every service account of the chart uses exactly what it is granted, and asked for nothing else.
pub(crate) fn check(audit_log: &Path) -> Result<()> {
    let text = std::fs::read_to_string(audit_log).with_context(|| format!("read {}", audit_log.display()))?;
    let events: Vec<Value> = text
        .lines()
        .map(serde_json::from_str)
        .collect::<Result<_, _>>()
        .context("read the audit log")?;
    let chart = objects(&render(&[])?)?;
    for account in ["assayer-operator", "assayer-keygen"] {
        let granted = granted(&chart, account);
        let used = used(&events, account)?;
        ensure!(!granted.is_empty(), "the chart grants {account} nothing");
        let rare = |right: &Right| {
            let resource = format!("{}/{}", right.group, right.resource);
            RARE.iter()
                .any(|(who, verb, what, _)| (*who, *verb, *what) == (account, right.verb.as_str(), resource.as_str()))
        };
        let idle: Vec<String> = granted
            .difference(&used)
            .filter(|right| !rare(right))
            .map(ToString::to_string)
            .collect();
        ensure!(
            idle.is_empty(),
            "{account} is granted what it never used; take it back, or say in RARE what needs it:\n{}",
            idle.join("\n")
        );
        let surplus: Vec<String> = used.difference(&granted).map(ToString::to_string).collect();
        ensure!(
            surplus.is_empty(),
            "{account} used what this chart does not grant:\n{}",
            surplus.join("\n")
        );
    }
    Ok(())
}

fn words(rule: &Value, field: &str) -> Vec<String> {
    let list = rule[field].as_array().into_iter().flatten();
    list.filter_map(Value::as_str).map(str::to_owned).collect()
}

fn granted(chart: &[Value], account: &str) -> BTreeSet<Right> {
    let mut rights = BTreeSet::new();
    for by in ROLES {
        let role = chart
            .iter()
            .filter(|object| object["kind"] == by && object["metadata"]["name"] == account);
        for rule in role.flat_map(|role| role["rules"].as_array().into_iter().flatten()) {
            for group in words(rule, "apiGroups") {
                for resource in words(rule, "resources") {
                    rights.extend(words(rule, "verbs").into_iter().map(|verb| Right {
                        by,
                        group: group.clone(),
                        resource: resource.clone(),
                        verb,
                    }));
                }
            }
        }
    }
    rights
}

/// What `account` did by its own roles. What everybody may do (discovery, looking at one's own rights) is no right of the chart's.
fn used(events: &[Value], account: &str) -> Result<BTreeSet<Right>> {
    let user = format!("system:serviceaccount:{SYSTEM}:{account}");
    let mut rights = BTreeSet::new();
    for event in events.iter().filter(|event| event["user"]["username"] == user.as_str()) {
        let said = |key: &str| {
            event["annotations"][format!("authorization.k8s.io/{key}")]
                .as_str()
                .unwrap_or_default()
        };
        ensure!(
            said("decision") == "allow",
            "{account} asked for what it has no right to: {} {}: {}",
            event["verb"],
            event["requestURI"],
            said("reason")
        );
        let role = |kind: &str| said("reason").contains(&format!(" of {kind} \"{account}\" "));
        let Some(by) = ROLES.into_iter().find(|kind| role(kind)) else {
            continue;
        };
        let word = |of: &Value| of.as_str().unwrap_or_default().to_owned();
        let object = &event["objectRef"];
        let subresource = word(&object["subresource"]);
        let resource = word(&object["resource"]);
        rights.insert(Right {
            by,
            group: word(&object["apiGroup"]),
            resource: if subresource.is_empty() {
                resource
            } else {
                format!("{resource}/{subresource}")
            },
            verb: word(&event["verb"]),
        });
    }
    ensure!(!rights.is_empty(), "the audit log knows nothing of {account}");
    Ok(rights)
}

#[test]
fn one_object_by_name_is_granted_in_a_rule_of_its_own() -> Result<()> {
    for role in objects(&render(&[])?)?
        .iter()
        .filter(|object| ROLES.iter().any(|kind| object["kind"] == *kind))
    {
        for rule in role["rules"].as_array().into_iter().flatten() {
            let named = words(rule, "resourceNames");
            ensure!(
                named.len() < 2,
                "{rule} names several objects: give each a rule of its own"
            );
            // The name of what does not exist yet is not known to the authorizer.
            let creates = words(rule, "verbs").iter().any(|verb| verb == "create");
            ensure!(
                named.is_empty() || !creates,
                "{rule} grants create by name, which grants nothing"
            );
        }
    }
    Ok(())
}

#[test]
fn the_audit_log_is_read_as_kubernetes_writes_it() -> Result<()> {
    let event = |decision: &str, reason: &str| {
        serde_json::json!({
            "verb": "patch", "requestURI": "/x", "user": {"username": "system:serviceaccount:assayer-system:assayer-operator"},
            "objectRef": {"resource": "modelpromotions", "subresource": "status", "apiGroup": "assayer.dev", "name": "a"},
            "annotations": {"authorization.k8s.io/decision": decision, "authorization.k8s.io/reason": reason},
        })
    };
    let by_role = "RBAC: allowed by ClusterRoleBinding \"assayer-operator\" of ClusterRole \"assayer-operator\" to ServiceAccount \"assayer-operator/assayer-system\"";
    let by_default = "RBAC: allowed by ClusterRoleBinding \"system:discovery\" of ClusterRole \"system:discovery\" to Group \"system:authenticated\"";
    let rights = used(
        &[event("allow", by_role), event("allow", by_default)],
        "assayer-operator",
    )?;
    let told: Vec<String> = rights.iter().map(ToString::to_string).collect();
    ensure!(
        told == ["ClusterRole: patch assayer.dev/modelpromotions/status"],
        "{told:?}"
    );
    let refused = used(&[event("forbid", "")], "assayer-operator").map_err(|error| error.to_string());
    ensure!(refused.is_err_and(|why| why.contains("no right to")));
    Ok(())
}
