//! The last page: which model is live, since when, who approved it, why, against which evidence; and the same from Prometheus.

use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use assayer_crds::promotion::LiveStatus;
use comfy_table::{ContentArrangement, Table};
use serde_json::Value;

use super::promote::Live;
use super::world::{Forward, SYSTEM, World};
use crate::{cluster::Prometheus, progress::Progress};

const QUERY: &str = "assayer_model_live_info";
const WITHIN: Duration = Duration::from_secs(30);

/// A Prometheus that scrapes the operator.
pub(super) struct Watching {
    prometheus: Prometheus,
    _forward: Forward,
}

/// Starts it.
pub(super) async fn watch(world: &World) -> Result<Watching> {
    let forward = world.forward(SYSTEM, "service/assayer-operator", 8080).await?;
    let config = format!(
        "global: {{scrape_interval: 1s}}\nscrape_configs:\n- job_name: assayer\n  honor_labels: true\n  static_configs: [{{targets: ['{}']}}]\n",
        forward.address
    );
    let prometheus = Prometheus::start("127.0.0.1".parse()?, &config).await?;
    Ok(Watching {
        prometheus,
        _forward: forward,
    })
}

/// Checks that Prometheus says the same as the status, and prints the table.
pub(super) async fn what_is_live(watching: &Watching, live: &Live, progress: &Progress) -> Result<()> {
    let step = progress.step("ask Prometheus");
    let until = Instant::now() + WITHIN;
    let labels = loop {
        // What was scraped last may be from before the roll-back.
        match ask(&watching.prometheus, &live.status).await {
            Ok(labels) => break labels,
            Err(error) if Instant::now() > until => return Err(error),
            Err(_) => tokio::time::sleep(Duration::from_millis(200)).await,
        }
    };
    step.done(format!("{QUERY}{labels}"));
    print_table(&live.status)
}

/// The labels of the one live model, which must be those of `status`.
async fn ask(prometheus: &Prometheus, status: &LiveStatus) -> Result<Value> {
    let answer: Value = reqwest::Client::new()
        .get(format!("{}/api/v1/query", prometheus.url()))
        .query(&[("query", QUERY)])
        .send()
        .await?
        .json()
        .await?;
    let found = answer["data"]["result"]
        .as_array()
        .context("Prometheus gave no result")?;
    let [one] = found.as_slice() else {
        bail!("expected one live model, Prometheus knows {}: {answer}", found.len());
    };
    let labels = &one["metric"];
    for (label, expected) in [
        ("artifact_digest", &status.artifact.artifact_digest),
        ("model", &status.model),
        ("version", &status.version),
        ("ticket", &status.ticket),
        ("owner", &status.owner),
        ("tier", &status.tier),
        ("evidence", &status.evidence.digest),
    ] {
        let found = labels[label].as_str().unwrap_or_default();
        ensure!(
            found == expected,
            "Prometheus says {label}={found}, status says {expected}"
        );
    }
    let approver = labels["approver"].as_str().unwrap_or_default();
    let known = status
        .approvals
        .iter()
        .any(|approval| approver.contains(&approval.user));
    ensure!(known, "Prometheus says approver={approver}");
    Ok(labels.clone())
}

fn print_table(live: &LiveStatus) -> Result<()> {
    use std::io::Write as _;
    let approvals: Vec<String> = live
        .approvals
        .iter()
        .map(|approval| format!("{} as {}: {}", approval.user, approval.role, approval.reason))
        .collect();
    let mut table = Table::new();
    table.set_content_arrangement(ContentArrangement::Dynamic);
    for (what, value) in [
        ("model", format!("{} {} ({})", live.model, live.version, live.technique)),
        ("artifact", live.artifact.uri.clone()),
        ("since", live.since.clone()),
        ("approved by", approvals.join(", ")),
        ("why", format!("{}: {}", live.ticket, live.reason)),
        ("tier and owner", format!("{}, {}", live.tier, live.owner)),
        (
            "evidence",
            format!("{} in ConfigMap {}", live.evidence.digest, live.evidence.config_map),
        ),
    ] {
        table.add_row([what.to_owned(), value]);
    }
    writeln!(std::io::stdout().lock(), "{table}")?;
    Ok(())
}
