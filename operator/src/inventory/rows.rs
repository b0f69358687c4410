//! What the facts mean: which model is live, which one nobody approved, which workload drifted, who is waited for.
//!
//! Pure: no client, no clock. Approved means that a promotion's status has the decision on record for this very workload and digest; a
//! signed measurement alone approves nothing. Fails closed: what no record explains is unapproved.

use std::collections::{BTreeMap, BTreeSet};

use assayer_crds::promotion::{ApprovalStatus, AttemptStatus, LiveStatus};

use super::facts::{Artifact, Carried, EvidenceFact, Facts, Place, PromotionFact};
use super::shape::{
    BlastRow, DriftedRow, GateRow, Inventory, ModelRow, PhaseRow, UnapprovedRow, WaitingRow, WorkloadRef,
};

/// States of an attempt in which its artifact may run: the decision was recorded and not taken back.
const DECIDED: [&str; 4] = ["Deciding", "Progressing", "Complete", "RollingBack"];
/// States of an attempt that is under way.
const UNDER_WAY: [&str; 3] = ["Deciding", "Progressing", "RollingBack"];

/// Pods of one workload that carry one artifact.
#[derive(Clone, Copy, Debug, Default)]
struct Running {
    pods: u64,
    ready: u64,
}

/// A decision on record.
struct Decision<'a> {
    promotion: &'a str,
    live: Option<&'a LiveStatus>,
    attempt: Option<&'a AttemptStatus>,
}

type Carriage = (WorkloadRef, Artifact);

/// Turns facts into the inventory.
pub fn project(facts: &Facts) -> Inventory {
    let decisions = decisions(facts);
    let running = running(facts);
    let mut inventory = Inventory {
        drifted: drifted(facts),
        waiting: waiting(facts),
        phases: phases(facts),
        gates: gates(facts),
        ..Inventory::default()
    };
    for ((workload, artifact), running) in &running {
        let decision = decisions.get(&(workload.clone(), artifact.clone()));
        let evidence = evidence(facts, artifact);
        if decision.is_none() {
            inventory.unapproved.push(UnapprovedRow {
                workload: workload.clone(),
                artifact_digest: artifact.as_str().to_owned(),
                pods: running.pods,
            });
        }
        if decision.is_some() || evidence.is_some() {
            inventory
                .models
                .push(model(workload, artifact, running.ready, decision, evidence));
        }
    }
    inventory.blast_radius = blast_radius(&inventory.models, &running);
    inventory
}

fn target(namespace: &str, promotion: &PromotionFact) -> WorkloadRef {
    WorkloadRef {
        namespace: namespace.to_owned(),
        kind: "Deployment".to_owned(),
        name: promotion.workload.clone(),
    }
}

/// Every decision that a promotion's status has on record; what is live outranks what was once tried.
fn decisions(facts: &Facts) -> BTreeMap<Carriage, Decision<'_>> {
    let mut decisions = BTreeMap::new();
    for ((namespace, name), promotion) in &facts.promotions {
        let workload = target(namespace, promotion);
        let attempts = promotion.status.attempt.iter().chain(&promotion.status.history);
        for attempt in attempts.filter(|attempt| DECIDED.contains(&attempt.state.as_str())) {
            let key = (
                workload.clone(),
                Artifact::of(&format!("@{}", attempt.artifact.artifact_digest)),
            );
            decisions.entry(key).or_insert(Decision {
                promotion: name,
                live: None,
                attempt: Some(attempt),
            });
        }
    }
    for ((namespace, name), promotion) in &facts.promotions {
        let Some(live) = &promotion.status.live else {
            continue;
        };
        let key = (
            target(namespace, promotion),
            Artifact::of(&format!("@{}", live.artifact.artifact_digest)),
        );
        decisions.insert(
            key,
            Decision {
                promotion: name,
                live: Some(live),
                attempt: None,
            },
        );
    }
    // A status without a digest approves nothing, least of all everything that is unpinned.
    decisions.retain(|(_, artifact), _| *artifact != Artifact::Unpinned);
    decisions
}

/// What runs where: governed pods by what they carry, and targets of promotions by what is delivered to them.
fn running(facts: &Facts) -> BTreeMap<Carriage, Running> {
    let mut running: BTreeMap<Carriage, Running> = BTreeMap::new();
    for ((namespace, _), pod) in &facts.pods {
        let (kind, name) = &pod.owner;
        let deployment = (kind == "ReplicaSet").then(|| facts.replica_sets.get(&(namespace.clone(), name.clone())));
        let workload = match deployment.flatten() {
            Some(name) => ("Deployment", name),
            None => (kind.as_str(), name),
        };
        let workload = WorkloadRef {
            namespace: namespace.clone(),
            kind: workload.0.to_owned(),
            name: workload.1.clone(),
        };
        let artifacts: BTreeSet<_> = pod.carried.iter().map(|carried| carried.artifact.clone()).collect();
        for artifact in artifacts {
            let entry = running.entry((workload.clone(), artifact)).or_default();
            entry.pods += 1;
            entry.ready += u64::from(pod.ready);
        }
    }
    for ((namespace, _), promotion) in &facts.promotions {
        let workload = target(namespace, promotion);
        let Some(found) = facts.workloads.get(&(namespace.clone(), promotion.workload.clone())) else {
            continue;
        };
        let Some(delivered) = delivered(promotion, &found.carried) else {
            continue;
        };
        // Governed pods were counted one by one; others are known only by the workload's own word.
        let available = if found.governed {
            0
        } else {
            u64::try_from(found.available).unwrap_or_default()
        };
        running.entry((workload, delivered.clone())).or_insert(Running {
            pods: available,
            ready: available,
        });
    }
    running
}

/// What is at the place where the promotion delivers.
fn delivered<'a>(promotion: &PromotionFact, carried: &'a [Carried]) -> Option<&'a Artifact> {
    let found = carried
        .iter()
        .find(|carried| match (&carried.place, &promotion.delivery) {
            (Place::Volume(volume), delivery) => delivery
                .image_volume
                .as_ref()
                .is_some_and(|into| into.volume == *volume),
            (Place::Env { container, name }, delivery) => delivery
                .env
                .as_ref()
                .is_some_and(|into| into.container == *container && into.name == *name),
        });
    found.map(|carried| &carried.artifact)
}

fn evidence<'a>(facts: &'a Facts, artifact: &Artifact) -> Option<&'a EvidenceFact> {
    let Artifact::Pinned(digest) = artifact else {
        return None;
    };
    facts.evidence.values().find(|evidence| evidence.artifact == *digest)
}

fn model(
    workload: &WorkloadRef,
    artifact: &Artifact,
    replicas: u64,
    decision: Option<&Decision<'_>>,
    evidence: Option<&EvidenceFact>,
) -> ModelRow {
    let known = |field: fn(&EvidenceFact) -> String| evidence.map(field).unwrap_or_default();
    let mut row = ModelRow {
        workload: workload.clone(),
        model: known(|evidence| evidence.model.clone()),
        version: known(|evidence| evidence.version.clone()),
        artifact_digest: artifact.as_str().to_owned(),
        technique: known(|evidence| evidence.technique.clone()),
        tier: String::new(),
        owner: known(|evidence| evidence.owner.clone()),
        approvers: Vec::new(),
        ticket: String::new(),
        reason: String::new(),
        evidence: known(|evidence| evidence.digest.to_string()),
        promotion: decision
            .map(|decision| decision.promotion.to_owned())
            .unwrap_or_default(),
        since: None,
        replicas,
        approved: decision.is_some(),
    };
    if let Some(attempt) = decision.and_then(|decision| decision.attempt) {
        row.approvers = approvers(&attempt.approvals);
        row.since = Some(
            attempt
                .finished_at
                .clone()
                .unwrap_or_else(|| attempt.started_at.clone()),
        );
    }
    if let Some(live) = decision.and_then(|decision| decision.live) {
        row.model.clone_from(&live.model);
        row.version.clone_from(&live.version);
        row.technique.clone_from(&live.technique);
        row.tier.clone_from(&live.tier);
        row.owner.clone_from(&live.owner);
        row.ticket.clone_from(&live.ticket);
        row.reason.clone_from(&live.reason);
        row.evidence.clone_from(&live.evidence.digest);
        row.approvers = approvers(&live.approvals);
        row.since = Some(live.since.clone());
    }
    row
}

fn approvers(approvals: &[ApprovalStatus]) -> Vec<String> {
    let users: BTreeSet<_> = approvals.iter().map(|approval| approval.user.clone()).collect();
    users.into_iter().collect()
}

fn drifted(facts: &Facts) -> Vec<DriftedRow> {
    let live_elsewhere = |workload: &WorkloadRef, except: &str, digest: &str| {
        facts.promotions.iter().any(|((namespace, name), promotion)| {
            let live = promotion
                .status
                .live
                .as_ref()
                .map(|live| live.artifact.artifact_digest.as_str());
            name != except && target(namespace, promotion) == *workload && live == Some(digest)
        })
    };
    let mut rows = Vec::new();
    for ((namespace, name), promotion) in &facts.promotions {
        let Some(live) = promotion
            .status
            .live
            .as_ref()
            .filter(|_| promotion.status.phase != "Superseded")
        else {
            continue;
        };
        let workload = target(namespace, promotion);
        let found = facts
            .workloads
            .get(&(namespace.clone(), promotion.workload.clone()))
            .and_then(|found| delivered(promotion, &found.carried))
            .map_or("", Artifact::as_str);
        let rolling = facts.promotions.iter().any(|((other, _), promotion)| {
            target(other, promotion) == workload
                && promotion.status.attempt.as_ref().is_some_and(|attempt| {
                    UNDER_WAY.contains(&attempt.state.as_str()) && attempt.artifact.artifact_digest == found
                })
        });
        if found != live.artifact.artifact_digest && !rolling && !live_elsewhere(&workload, name, found) {
            rows.push(DriftedRow {
                workload,
                promotion: name.clone(),
                artifact_digest: live.artifact.artifact_digest.clone(),
                found: found.to_owned(),
            });
        }
    }
    rows
}

fn waiting(facts: &Facts) -> Vec<WaitingRow> {
    let mut rows = Vec::new();
    for ((namespace, name), promotion) in &facts.promotions {
        let status = &promotion.status;
        let Some(request) = status.request.as_ref().filter(|_| status.phase == "AwaitingApproval") else {
            continue;
        };
        let missing = request.required.iter().map(|required| {
            let given = status
                .approvals
                .iter()
                .filter(|approval| approval.role == required.role)
                .count();
            u64::from(required.count).saturating_sub(given as u64)
        });
        rows.push(WaitingRow {
            namespace: namespace.clone(),
            promotion: name.clone(),
            tier: request.tier.clone(),
            missing: missing.sum(),
            since: request.since.clone(),
        });
    }
    rows
}

fn blast_radius(models: &[ModelRow], running: &BTreeMap<Carriage, Running>) -> Vec<BlastRow> {
    let names: BTreeMap<_, _> = models
        .iter()
        .map(|row| (row.artifact_digest.as_str(), row.model.as_str()))
        .collect();
    let mut by_digest: BTreeMap<&str, (BTreeSet<&WorkloadRef>, u64)> = BTreeMap::new();
    for ((workload, artifact), running) in running {
        let entry = by_digest.entry(artifact.as_str()).or_default();
        entry.0.insert(workload);
        entry.1 += running.pods;
    }
    by_digest
        .into_iter()
        .map(|(digest, (workloads, pods))| BlastRow {
            model: names.get(digest).copied().unwrap_or_default().to_owned(),
            artifact_digest: digest.to_owned(),
            workloads: workloads.len() as u64,
            pods,
            namespaces: workloads
                .iter()
                .map(|workload| &workload.namespace)
                .collect::<BTreeSet<_>>()
                .len() as u64,
        })
        .collect()
}

fn phases(facts: &Facts) -> Vec<PhaseRow> {
    let mut counts: BTreeMap<(&'static str, &str), u64> = BTreeMap::new();
    for promotion in facts.promotions.values() {
        *counts.entry(("ModelPromotion", &promotion.status.phase)).or_default() += 1;
    }
    for optimization in facts.optimizations.values() {
        *counts.entry(("ModelOptimization", &optimization.phase)).or_default() += 1;
    }
    let row = |((kind, phase), count): ((&'static str, &str), u64)| PhaseRow {
        kind,
        phase: if phase.is_empty() { "Pending" } else { phase }.to_owned(),
        count,
    };
    let mut rows: Vec<PhaseRow> = Vec::new();
    for row in counts.into_iter().map(row) {
        match rows
            .iter_mut()
            .find(|seen| (seen.kind, &seen.phase) == (row.kind, &row.phase))
        {
            Some(seen) => seen.count += row.count,
            None => rows.push(row),
        }
    }
    rows
}

fn gates(facts: &Facts) -> Vec<GateRow> {
    let mut rows = Vec::new();
    for ((namespace, name), optimization) in &facts.optimizations {
        for ((severity, verdict), count) in &optimization.verdicts {
            rows.push(GateRow {
                namespace: namespace.clone(),
                optimization: name.clone(),
                severity: severity.clone(),
                verdict: verdict.clone(),
                count: *count,
            });
        }
    }
    rows
}

#[cfg(test)]
mod tests;
