//! A world for plans: it does what they say, and plays the Deployment's controller and people. No cluster.

use std::fmt::Write as _;

use assayer_crds::names::FIELD_MANAGER;
use jiff::{SignedDuration, Timestamp};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{FieldsV1, ManagedFieldsEntry};
use serde_json::json;

use crate::promotion::chain::Reading;
use crate::promotion::fixtures;
use crate::promotion::observed::Observed;
use crate::promotion::plan::{Change, Next, Plan, plan};
use crate::status::violations;

pub(super) struct World {
    pub(super) observed: Observed,
    pub(super) now: Timestamp,
    pub(super) transcript: String,
    /// Values that were written into the workload.
    pub(super) writes: Vec<String>,
}

impl World {
    pub(super) fn new() -> Self {
        Self {
            observed: fixtures::observed(),
            now: fixtures::now(),
            transcript: String::new(),
            writes: Vec::new(),
        }
    }

    /// Plans once without carrying it out.
    pub(super) fn plan(&self) -> Plan {
        plan(&self.observed, self.now)
    }

    /// Plans and carries out one step; returns what was planned.
    pub(super) fn step(&mut self) -> Plan {
        let plan = self.plan();
        self.carry_out(&plan);
        plan
    }

    pub(super) fn carry_out(&mut self, plan: &Plan) {
        let mut status = plan.status.clone();
        for Change::Deliver { value, why, .. } in &plan.changes {
            self.say(&format!("write {value} ({why})"));
            self.writes.push(value.clone());
            let generation = self.set_reference(Some(value), true);
            status.attempt.as_mut().unwrap().workload_generation = Some(generation);
        }
        for note in &plan.notes {
            let kind = if note.warning { "Warning" } else { "Normal" };
            self.say(&format!(
                "event {kind} {} {}: {}",
                note.reason, note.action, note.message
            ));
        }
        if status.observed_generation.is_some() {
            let problems = violations(&status.conditions, status.observed_generation);
            assert_eq!(problems, Vec::<String>::new(), "{status:?}");
        }
        self.observed.promotion.status = Some(status);
        self.now += SignedDuration::from_secs(1);
    }

    /// Steps until nothing changes any more.
    pub(super) fn settle(&mut self) {
        for _ in 0..12 {
            let before = self.observed.promotion.status.clone();
            let plan = self.step();
            if plan.changes.is_empty() && before == self.observed.promotion.status {
                assert_ne!(
                    plan.next,
                    Next::Now,
                    "asks for another look at once although nothing changed"
                );
                return;
            }
        }
        panic!("does not settle:\n{}", self.transcript);
    }

    pub(super) fn say(&mut self, line: &str) {
        let line = line
            .replace(&fixtures::artifact().to_string(), "sha256:INT8")
            .replace(&self.request(), "sha256:REQUEST");
        writeln!(self.transcript, "{line}").unwrap();
    }

    pub(super) fn request(&self) -> String {
        let reading = Reading::new(&self.observed, self.now);
        let fallback = || "no request".to_owned();
        reading.request.map_or_else(fallback, |request| request.digest)
    }

    pub(super) fn phase(&self) -> &str {
        self.observed
            .promotion
            .status
            .as_ref()
            .map_or("", |status| status.phase.as_str())
    }

    pub(super) fn reason(&self, type_: &str) -> &str {
        let status = self.observed.promotion.status.as_ref().unwrap();
        let condition = status.conditions.iter().find(|condition| condition.type_ == type_);
        condition.map_or("", |condition| condition.reason.as_str())
    }

    pub(super) fn approve(&mut self) {
        let digest = self.request();
        self.say("bob approves as security");
        fixtures::approve(&mut self.observed.promotion, "security", "bob", &digest);
    }

    pub(super) fn edit(&mut self, ticket: &str) {
        self.say(&format!("alice changes the ticket to {ticket}"));
        let promotion = &mut self.observed.promotion;
        if promotion.spec.change.ticket != ticket {
            ticket.clone_into(&mut promotion.spec.change.ticket);
            promotion.metadata.generation = promotion.metadata.generation.map(|generation| generation + 1);
        }
    }

    pub(super) fn annotate(&mut self, key: &str, value: &str) {
        let annotations = self.observed.promotion.metadata.annotations.get_or_insert_default();
        annotations.insert(key.to_owned(), value.to_owned());
    }

    /// Writes the image volume's reference as the operator or as somebody else; returns the generation.
    pub(super) fn set_reference(&mut self, value: Option<&str>, ours: bool) -> i64 {
        let deployment = self.observed.deployment.as_mut().unwrap();
        let pod = deployment.spec.as_mut().unwrap().template.spec.as_mut().unwrap();
        let image = pod.volumes.as_mut().unwrap()[0].image.as_mut().unwrap();
        if image.reference.as_deref() != value {
            image.reference = value.map(str::to_owned);
            deployment.metadata.generation = deployment.metadata.generation.map(|generation| generation + 1);
        }
        let fields = json!({"f:spec": {"f:template": {"f:spec": {"f:volumes": {"k:{\"name\":\"model\"}": {"f:image": {"f:reference": {}}}}}}}});
        deployment.metadata.managed_fields = Some(vec![ManagedFieldsEntry {
            manager: Some(if ours { FIELD_MANAGER } else { "kubectl-edit" }.to_owned()),
            operation: Some(if ours { "Apply" } else { "Update" }.to_owned()),
            fields_v1: Some(FieldsV1(fields)),
            ..ManagedFieldsEntry::default()
        }]);
        deployment.metadata.generation.unwrap()
    }

    /// Somebody scales the Deployment, and its controller has followed down to 0.
    pub(super) fn scale(&mut self, replicas: i32) {
        let deployment = self.observed.deployment.as_mut().unwrap();
        deployment.spec.as_mut().unwrap().replicas = Some(replicas);
        deployment.metadata.generation = deployment.metadata.generation.map(|generation| generation + 1);
        if replicas == 0 {
            self.rollout(&json!({}));
        }
    }

    /// The Deployment's controller has rolled everything out.
    pub(super) fn rollout_completes(&mut self) {
        self.say("the Deployment's rollout completes");
        self.rollout(&json!({"replicas": 2, "updatedReplicas": 2, "availableReplicas": 2}));
    }

    /// The Deployment's controller has given up.
    pub(super) fn rollout_sticks(&mut self) {
        self.say("the Deployment's rollout misses its deadline");
        self.rollout(&json!({"replicas": 3, "updatedReplicas": 1, "availableReplicas": 2, "conditions": [
            {"type": "Progressing", "status": "False", "reason": "ProgressDeadlineExceeded", "message": "ReplicaSet scanner-2 has timed out progressing."}
        ]}));
    }

    fn rollout(&mut self, status: &serde_json::Value) {
        let deployment = self.observed.deployment.as_mut().unwrap();
        let mut status: k8s_openapi::api::apps::v1::DeploymentStatus = serde_json::from_value(status.clone()).unwrap();
        status.observed_generation = deployment.metadata.generation;
        deployment.status = Some(status);
    }

    /// A world in which int8 is live.
    pub(super) fn live() -> Self {
        let mut world = Self::new();
        world.settle();
        world.approve();
        world.settle();
        world.rollout_completes();
        world.settle();
        assert_eq!(world.phase(), crate::promotion::phase::LIVE, "{}", world.transcript);
        world
    }
}
