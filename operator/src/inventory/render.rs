//! The inventory as Prometheus text exposition, written anew at each scrape: a series lives as long as its object.
//!
//! Pure. Label values may come from anybody who can create a pod, so they are escaped, cut and counted: what is beyond the caps goes into
//! one overflow series whose value says how much was left out. Source: Prometheus text format 0.0.4.

use std::collections::BTreeMap;
use std::fmt::Write as _;

use jiff::Timestamp;

use super::shape::{Inventory, ModelRow, WaitingRow, WorkloadRef};
use crate::metrics::OVERFLOW;

/// Longest label value, in characters.
pub const MAX_VALUE: usize = 128;
/// Most series of one family.
pub const MAX_SERIES: usize = 5_000;
/// Most series of one family and namespace, so that no tenant crowds the others out.
pub const MAX_IN_NAMESPACE: usize = 500;

/// Label names and values, and the sample.
struct Series<'a> {
    namespace: &'a str,
    values: Vec<String>,
    sample: i64,
}

/// Writes families one after the other.
struct Exposition {
    text: String,
    left_out: BTreeMap<&'static str, usize>,
}

/// The text exposition of `inventory`.
pub fn render(inventory: &Inventory) -> String {
    let mut out = Exposition {
        text: String::new(),
        left_out: BTreeMap::new(),
    };
    models(&mut out, inventory);
    findings(&mut out, inventory);
    people_and_gates(&mut out, inventory);
    out.summary();
    out.text
}

const IDENTITY: [&str; 4] = ["namespace", "workload_kind", "workload", "artifact_digest"];

fn identity(workload: &WorkloadRef, digest: &str) -> Vec<String> {
    [&workload.namespace, &workload.kind, &workload.name, digest]
        .map(str::to_owned)
        .to_vec()
}

fn models(out: &mut Exposition, inventory: &Inventory) {
    let of = |row: &ModelRow| identity(&row.workload, &row.artifact_digest);
    out.family(
        "assayer_model_live_info",
        "A model that runs, with who approved it and against which evidence; always 1. Without an approver there is no approval on record.",
        &[
            "namespace", "workload_kind", "workload", "model", "version", "artifact_digest", "technique", "tier", "owner", "approver", "ticket",
            "evidence", "promotion",
        ],
        inventory.models.iter().map(|row| Series {
            namespace: &row.workload.namespace,
            values: vec![
                row.workload.namespace.clone(),
                row.workload.kind.clone(),
                row.workload.name.clone(),
                row.model.clone(),
                row.version.clone(),
                row.artifact_digest.clone(),
                row.technique.clone(),
                row.tier.clone(),
                row.owner.clone(),
                row.approvers.join(","),
                row.ticket.clone(),
                row.evidence.clone(),
                row.promotion.clone(),
            ],
            sample: 1,
        }),
    );
    out.family(
        "assayer_model_live_since_seconds",
        "Unix time since which the model is live.",
        &IDENTITY,
        inventory.models.iter().filter_map(|row| {
            Some(Series {
                namespace: &row.workload.namespace,
                values: of(row),
                sample: seconds(row.since.as_deref()?)?,
            })
        }),
    );
    out.family(
        "assayer_model_live_replicas",
        "Pods that are ready and carry the model.",
        &IDENTITY,
        inventory.models.iter().map(|row| Series {
            namespace: &row.workload.namespace,
            values: of(row),
            sample: whole(row.replicas),
        }),
    );
}

fn findings(out: &mut Exposition, inventory: &Inventory) {
    out.family(
        "assayer_model_unapproved",
        "A model that runs in a governed workload without an approval on record; always 1.",
        &IDENTITY,
        inventory.unapproved.iter().map(|row| Series {
            namespace: &row.workload.namespace,
            values: identity(&row.workload, &row.artifact_digest),
            sample: 1,
        }),
    );
    out.family(
        "assayer_model_drifted",
        "A workload that no longer carries the model that was promoted to it; always 1.",
        &[
            "namespace",
            "workload_kind",
            "workload",
            "artifact_digest",
            "promotion",
            "found",
        ],
        inventory.drifted.iter().map(|row| {
            let mut values = identity(&row.workload, &row.artifact_digest);
            values.extend([row.promotion.clone(), row.found.clone()]);
            Series {
                namespace: &row.workload.namespace,
                values,
                sample: 1,
            }
        }),
    );
    out.family(
        "assayer_model_blast_radius",
        "Workloads, pods and namespaces that carry a model.",
        &["model", "artifact_digest", "scope"],
        inventory.blast_radius.iter().flat_map(|row| {
            [
                ("workloads", row.workloads),
                ("pods", row.pods),
                ("namespaces", row.namespaces),
            ]
            .map(|(scope, count)| Series {
                namespace: "",
                values: vec![row.model.clone(), row.artifact_digest.clone(), scope.to_owned()],
                sample: whole(count),
            })
        }),
    );
}

fn people_and_gates(out: &mut Exposition, inventory: &Inventory) {
    let promotion = ["namespace", "promotion", "tier"];
    let of = |row: &WaitingRow| vec![row.namespace.clone(), row.promotion.clone(), row.tier.clone()];
    out.family(
        "assayer_promotion_approvals_missing",
        "Approvals that a promotion still waits for.",
        &promotion,
        inventory.waiting.iter().map(|row| Series {
            namespace: &row.namespace,
            values: of(row),
            sample: whole(row.missing),
        }),
    );
    out.family(
        "assayer_promotion_waiting_since_seconds",
        "Unix time since which a promotion waits for approvals.",
        &promotion,
        inventory.waiting.iter().filter_map(|row| {
            Some(Series {
                namespace: &row.namespace,
                values: of(row),
                sample: seconds(&row.since)?,
            })
        }),
    );
    out.family(
        "assayer_objects",
        "Objects by kind and phase.",
        &["kind", "phase"],
        inventory.phases.iter().map(|row| Series {
            namespace: "",
            values: vec![row.kind.to_owned(), row.phase.clone()],
            sample: whole(row.count),
        }),
    );
    out.family(
        "assayer_gate_verdicts",
        "Gates of an optimization by severity and verdict, over all candidates.",
        &["namespace", "optimization", "severity", "verdict"],
        inventory.gates.iter().map(|row| Series {
            namespace: &row.namespace,
            values: vec![
                row.namespace.clone(),
                row.optimization.clone(),
                row.severity.clone(),
                row.verdict.clone(),
            ],
            sample: whole(row.count),
        }),
    );
}

impl Exposition {
    fn family<'a>(
        &mut self,
        name: &'static str,
        help: &str,
        labels: &[&str],
        series: impl Iterator<Item = Series<'a>>,
    ) {
        self.head(name, help);
        let mut in_namespace: BTreeMap<&str, usize> = BTreeMap::new();
        let mut unique = std::collections::BTreeSet::new();
        let mut left_out = 0;
        for row in series {
            let values: Vec<String> = row.values.iter().map(|value| escape(value)).collect();
            let count = in_namespace.entry(row.namespace).or_default();
            let fits = unique.len() < MAX_SERIES && (row.namespace.is_empty() || *count < MAX_IN_NAMESPACE);
            // Two values that differ only beyond the cut would be one series twice, and the scrape would fail.
            if !fits || !unique.insert(values.clone()) {
                left_out += 1;
                continue;
            }
            *count += 1;
            self.line(name, labels, &values, row.sample);
        }
        if left_out > 0 {
            let values = vec![OVERFLOW.to_owned(); labels.len()];
            self.line(name, labels, &values, i64::try_from(left_out).unwrap_or(i64::MAX));
            self.left_out.insert(name, left_out);
        }
    }

    fn summary(&mut self) {
        let name = "assayer_inventory_series_left_out";
        self.head(name, "Series of a family that are only counted in its overflow series.");
        for (family, count) in std::mem::take(&mut self.left_out) {
            self.line(
                name,
                &["family"],
                &[family.to_owned()],
                i64::try_from(count).unwrap_or(i64::MAX),
            );
        }
    }

    fn head(&mut self, name: &str, help: &str) {
        // Writing to a String can't fail.
        let _ = writeln!(self.text, "# HELP {name} {help}\n# TYPE {name} gauge");
    }

    fn line(&mut self, name: &str, labels: &[&str], values: &[String], sample: i64) {
        let pairs: Vec<String> = labels
            .iter()
            .zip(values)
            .map(|(label, value)| format!("{label}=\"{value}\""))
            .collect();
        let _ = writeln!(self.text, "{name}{{{}}} {sample}", pairs.join(","));
    }
}

/// Cuts a label value and escapes what would end it; other control characters become U+FFFD.
fn escape(value: &str) -> String {
    let mut escaped = String::with_capacity(value.len());
    for character in value.chars().take(MAX_VALUE) {
        match character {
            '\\' => escaped.push_str("\\\\"),
            '"' => escaped.push_str("\\\""),
            '\n' => escaped.push_str("\\n"),
            other if other.is_control() => escaped.push('\u{fffd}'),
            other => escaped.push(other),
        }
    }
    escaped
}

fn seconds(time: &str) -> Option<i64> {
    time.parse::<Timestamp>().ok().map(Timestamp::as_second)
}

fn whole(count: u64) -> i64 {
    i64::try_from(count).unwrap_or(i64::MAX)
}

#[cfg(test)]
mod tests;
