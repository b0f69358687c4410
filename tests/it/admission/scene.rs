//! One promotion and the people around it, with the rights that the chart's own roles give them.

use std::collections::BTreeMap;

use anyhow::{Context, Result, ensure};
use assayer_crds::{ModelPromotion, names};
use kube::{
    Api, Client, ResourceExt,
    api::{Patch, PatchParams, PostParams},
};
use serde_json::{Value, json};

use crate::installed::{Installed, create_namespace, eventually, kubectl, refusal, yaml};

pub(crate) const NAMESPACE: &str = "ml";
pub(crate) const DIGEST: &str = "sha256:2222222222222222222222222222222222222222222222222222222222222222";
pub(crate) const OTHER: &str = "sha256:3333333333333333333333333333333333333333333333333333333333333333";
/// Owns every promotion of these tests.
const OWNERS: &str = "file-security";

/// Who acts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Person {
    pub(crate) user: &'static str,
    pub(crate) groups: &'static [&'static str],
    /// Cluster roles of the chart, bound in the namespace.
    pub(crate) roles: &'static [&'static str],
}

const EDIT: &str = "assayer-edit";
const DEPLOY: &str = "deployer";
const SECURITY: &str = "assayer-approver-security";
const LEGAL: &str = "assayer-approver-legal";

/// May edit everything, and approve nothing.
pub(crate) const ALICE: Person = Person {
    user: "alice",
    groups: &["developers", "ml"],
    roles: &[EDIT, DEPLOY],
};
/// Approves as security.
pub(crate) const BOB: Person = Person {
    user: "bob",
    groups: &["security", "ml"],
    roles: &[SECURITY],
};
/// Approves as security, and may edit too.
pub(crate) const ERIN: Person = Person {
    user: "erin",
    groups: &["security"],
    roles: &[SECURITY, EDIT, DEPLOY],
};
/// Approves as legal.
pub(crate) const CAROL: Person = Person {
    user: "carol",
    groups: &["legal"],
    roles: &[LEGAL],
};
/// Requested every promotion of these tests, and holds the role of security too.
pub(crate) const RITA: Person = Person {
    user: "rita",
    groups: &["ml"],
    roles: &[SECURITY, EDIT, DEPLOY],
};
/// In the owning group, and holds the role of security.
pub(crate) const OLGA: Person = Person {
    user: "olga",
    groups: &["ml", OWNERS],
    roles: &[SECURITY],
};
/// A machine with every right that there is here.
pub(crate) const ROBOT: Person = Person {
    user: "system:serviceaccount:ci:deployer",
    groups: &[],
    roles: &[SECURITY, LEGAL, EDIT, DEPLOY],
};
/// May edit our kinds and nothing else: neither Jobs nor Deployments.
pub(crate) const MALLORY: Person = Person {
    user: "mallory",
    groups: &[],
    roles: &[EDIT],
};
/// Holds every right of the cluster.
pub(crate) const ROOT: Person = Person {
    user: "root",
    groups: &["system:masters"],
    roles: &[],
};

const EVERYBODY: [Person; 9] = [ALICE, BOB, ERIN, CAROL, RITA, OLGA, ROBOT, MALLORY, ROOT];

/// Who writes stamps down.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Stamps {
    /// The mutating policy does.
    ByCluster,
    /// There is none: clients do.
    ByClient,
}

/// A control plane with the chart, its people, and an operator that writes status.
pub(crate) struct Scene {
    pub(crate) installed: Installed,
    pub(crate) stamps: Stamps,
    clients: BTreeMap<&'static str, Client>,
    pub(crate) operator: Client,
}

impl Scene {
    pub(crate) async fn open(stamps: Stamps) -> Result<Self> {
        let mutating = format!("policies.mutating={}", stamps == Stamps::ByCluster);
        let values = [mutating.as_str(), "rbac.approverRoles={security,legal}"];
        let installed = Installed::start(&values).await?;
        create_namespace(&installed.admin, NAMESPACE).await?;
        bind(&installed)?;
        let mut clients = BTreeMap::new();
        for person in EVERYBODY {
            clients.insert(person.user, installed.person(person.user, person.groups).await?);
        }
        let operator = installed.operator().await?;
        let scene = Self {
            installed,
            stamps,
            clients,
            operator,
        };
        scene.wait_until_enforced().await?;
        Ok(scene)
    }

    pub(crate) fn client(&self, person: Person) -> Client {
        self.clients[person.user].clone()
    }

    pub(crate) fn promotions(&self, person: Person) -> Api<ModelPromotion> {
        Api::namespaced(self.client(person), NAMESPACE)
    }

    /// A promotion's manifest as its author would apply it.
    pub(crate) fn manifest(&self, name: &str, author: Person) -> Value {
        let mut manifest = yaml(include_str!("../../../crds/tests/rules/modelpromotion.yaml"));
        manifest["metadata"] = json!({"name": name, "namespace": NAMESPACE});
        if self.stamps == Stamps::ByClient {
            manifest["metadata"]["annotations"] = json!({names::REQUESTED_BY: author.user});
        }
        manifest
    }

    /// A promotion that Rita requested and that waits for approval.
    pub(crate) async fn waiting(&self, name: &str) -> Result<()> {
        self.requested(name).await?;
        self.write_status(name, 1).await
    }

    /// A promotion that Rita requested and that the operator has not looked at.
    pub(crate) async fn requested(&self, name: &str) -> Result<()> {
        let manifest: ModelPromotion = serde_json::from_value(self.manifest(name, RITA))?;
        let made = self.promotions(RITA).create(&PostParams::default(), &manifest).await?;
        ensure!(
            made.annotations()
                .get(names::REQUESTED_BY)
                .is_some_and(|by| by == RITA.user)
        );
        Ok(())
    }

    /// What the operator would say: this is the request, approve it by its digest.
    pub(crate) async fn write_status(&self, name: &str, generation: i64) -> Result<()> {
        let status = json!({"status": {"observedGeneration": generation, "phase": "AwaitingApproval", "request": {
            "digest": DIGEST, "candidate": "int8-static", "tier": "grave", "policyDigest": OTHER,
            "artifact": {"uri": "", "artifactDigest": "", "modelDigest": "", "bytes": 1},
            "evidence": {"configMap": "", "digest": ""},
        }}});
        Api::<ModelPromotion>::namespaced(self.operator.clone(), NAMESPACE)
            .patch_status(name, &PatchParams::default(), &Patch::Merge(status))
            .await
            .context("the operator writes status")?;
        Ok(())
    }

    /// The annotations by which `person` approves, with the stamps where clients write them.
    pub(crate) fn approve(&self, person: Person, seat: &str, digest: &str) -> Value {
        let mut annotations = json!({format!("{}{seat}", names::APPROVE): digest});
        if self.stamps == Stamps::ByClient {
            annotations[format!("{}{seat}", names::APPROVED_BY)] = person.user.into();
            annotations[format!("{}{seat}", names::APPROVER_GROUPS)] = joined(person).into();
        }
        annotations
    }

    /// The annotations by which `person` rejects.
    pub(crate) fn reject(&self, person: Person, seat: &str, digest: &str) -> Value {
        let mut annotations = json!({format!("{}{seat}", names::REJECT): digest});
        if self.stamps == Stamps::ByClient {
            annotations[format!("{}{seat}", names::REJECTED_BY)] = person.user.into();
        }
        annotations
    }

    /// The annotations by which an approval is withdrawn, with its stamps where clients write them.
    pub(crate) fn withdraw(&self, seat: &str) -> Value {
        let mut annotations = json!({format!("{}{seat}", names::APPROVE): null});
        if self.stamps == Stamps::ByClient {
            annotations[format!("{}{seat}", names::APPROVED_BY)] = Value::Null;
            annotations[format!("{}{seat}", names::APPROVER_GROUPS)] = Value::Null;
        }
        annotations
    }

    /// Annotates as `kubectl annotate` does.
    pub(crate) async fn annotate(
        &self,
        person: Person,
        name: &str,
        annotations: &Value,
    ) -> kube::Result<ModelPromotion> {
        self.patch(person, name, &json!({"metadata": {"annotations": annotations}}))
            .await
    }

    pub(crate) async fn patch(&self, person: Person, name: &str, patch: &Value) -> kube::Result<ModelPromotion> {
        self.promotions(person)
            .patch(name, &PatchParams::default(), &Patch::Merge(patch))
            .await
    }

    /// New policies take a moment until the API server enforces them; each is waited for by something that only it refuses.
    async fn wait_until_enforced(&self) -> Result<()> {
        for probe in super::guard::PROBES {
            eventually(probe.policy, || async {
                let said = (probe.refused)(self).await?;
                ensure!(
                    said.contains(&format!("ValidatingAdmissionPolicy '{}'", probe.policy)),
                    "refused, but not by {}: {said}",
                    probe.policy
                );
                Ok(())
            })
            .await?;
        }
        if self.stamps == Stamps::ByCluster {
            eventually("assayer-stamps", || async {
                let manifest: ModelPromotion = serde_json::from_value(self.manifest("stamped", RITA))?;
                let dry_run = PostParams {
                    dry_run: true,
                    ..PostParams::default()
                };
                let made = self.promotions(RITA).create(&dry_run, &manifest).await?;
                ensure!(made.annotations().contains_key(names::REQUESTED_BY));
                Ok(())
            })
            .await?;
        }
        Ok(())
    }
}

/// The person's groups as the API server sees them, joined as the stamp has them.
pub(crate) fn joined(person: Person) -> String {
    let mut groups: Vec<&str> = person.groups.to_vec();
    groups.push("system:authenticated");
    groups.join(",")
}

/// The annotations of a promotion.
pub(crate) fn annotations(promotion: &ModelPromotion) -> Value {
    json!(promotion.annotations())
}

/// Asserts that a refusal has all of these words.
pub(crate) fn assert_refused<T: std::fmt::Debug>(what: &str, result: kube::Result<T>, words: &[&str]) -> Result<()> {
    let said = refusal(result).with_context(|| what.to_owned())?;
    for word in words {
        ensure!(said.contains(word), "{what}: `{word}` is not in `{said}`");
    }
    Ok(())
}

fn bind(installed: &Installed) -> Result<()> {
    let mut objects = vec![json!({
        "apiVersion": "rbac.authorization.k8s.io/v1", "kind": "ClusterRole", "metadata": {"name": DEPLOY},
        "rules": [
            {"apiGroups": ["apps"], "resources": ["deployments"], "verbs": ["create", "patch", "update"]},
            {"apiGroups": ["batch"], "resources": ["jobs"], "verbs": ["create", "patch"]},
        ],
    })];
    for person in EVERYBODY {
        for role in person.roles {
            objects.push(json!({
                "apiVersion": "rbac.authorization.k8s.io/v1", "kind": "RoleBinding",
                "metadata": {"name": format!("{}-{role}", person.user.replace(':', "-")), "namespace": NAMESPACE},
                "roleRef": {"apiGroup": "rbac.authorization.k8s.io", "kind": "ClusterRole", "name": role},
                "subjects": [{"apiGroup": "rbac.authorization.k8s.io", "kind": "User", "name": person.user}],
            }));
        }
    }
    let list = json!({"apiVersion": "v1", "kind": "List", "items": objects}).to_string();
    let answer = kubectl(&installed.control_plane, &["apply", "--server-side", "-f", "-"], &list)?;
    ensure!(answer.refused.is_empty(), "{}", answer.refused);
    Ok(())
}
