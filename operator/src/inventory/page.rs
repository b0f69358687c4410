//! The inventory as one HTML page: no script, no request to anywhere else, every word escaped.
//!
//! Pure. Values may come from anybody who can create a pod; they are text here and never markup.

use std::fmt::Write as _;

use jiff::Timestamp;

use super::shape::{Inventory, ModelRow, WorkloadRef};

/// Most rows of a table; the JSON has all of them.
pub const MAX_ROWS: usize = 1_000;

const STYLE: &str = "\
:root{color-scheme:light dark;--line:#8884;--dim:#777;--bad:#b3261e;--good:#1a7f4b}\
body{font:15px/1.5 system-ui,sans-serif;margin:0 auto;max-width:80rem;padding:2rem 1.25rem}\
h1{font-size:1.5rem;margin:0}h2{font-size:1.1rem;margin:2.25rem 0 .5rem}\
p{color:var(--dim);margin:.25rem 0 1rem}.wide{overflow-x:auto}\
table{border-collapse:collapse;width:100%}th,td{text-align:left;vertical-align:top;padding:.5rem .75rem .5rem 0;border-bottom:1px solid var(--line)}\
th{font-weight:600;font-size:.85rem;color:var(--dim);white-space:nowrap}\
code{font:.85em ui-monospace,monospace}small{color:var(--dim);display:block}.bad{color:var(--bad)}.good{color:var(--good)}.number{text-align:right}";

/// The page as of `now`. `leads` says whether this process leads.
pub fn page(inventory: &Inventory, now: Timestamp, leads: bool) -> String {
    let mut html = String::with_capacity(16 * 1024);
    html.push_str("<!doctype html>\n<html lang=\"en\"><head><meta charset=\"utf-8\"><meta name=\"viewport\" content=\"width=device-width\">");
    let _ = write!(
        html,
        "<title>Assayer: live models</title><style>{STYLE}</style></head><body><h1>Live models</h1><p>As of {}, from the {} replica.</p>",
        now.strftime("%F %T UTC"),
        if leads { "leading" } else { "standby" },
    );
    models(&mut html, inventory, now);
    unapproved(&mut html, inventory);
    drifted(&mut html, inventory);
    waiting(&mut html, inventory, now);
    html.push_str("<h2>Elsewhere</h2><p>The same as <a href=\"inventory\">JSON</a> and as <a href=\"metrics\">metrics</a>.</p></body></html>\n");
    html
}

fn models(html: &mut String, inventory: &Inventory, now: Timestamp) {
    if inventory.models.is_empty() {
        html.push_str("<p>No model is known to run. A ModelPromotion brings one here; so does the label <code>assayer.dev/governed: \"true\"</code> on pods.</p>");
        return;
    }
    let heads = [
        "Model",
        "Workload",
        "Serving",
        "Approved by",
        "Why",
        "Since",
        "Evidence",
    ];
    let rows = inventory.models.iter().map(|row| {
        [
            format!(
                "{} {}<small>{}</small><small><code>{}</code></small>",
                escape(or_dash(&row.model)),
                escape(&row.version),
                escape(&row.technique),
                escape(short(&row.artifact_digest))
            ),
            workload(&row.workload),
            format!("<span class=\"number\">{}</span>", row.replicas),
            approval(row),
            format!("{}<small>{}</small>", escape(or_dash(&row.ticket)), escape(&row.reason)),
            since(row.since.as_deref().unwrap_or_default(), now),
            format!(
                "<code>{}</code><small>{}</small>",
                escape(short(or_dash(&row.evidence))),
                escape(&row.promotion)
            ),
        ]
    });
    table(html, &heads, rows);
}

fn approval(row: &ModelRow) -> String {
    let words = match (row.approved, row.approvers.is_empty()) {
        (false, _) => return "<span class=\"bad\">no approval on record</span>".to_owned(),
        (true, true) => "not needed".to_owned(),
        (true, false) => row.approvers.join(", "),
    };
    format!(
        "<span class=\"good\">{}</span><small>{}</small>",
        escape(&words),
        escape(&row.tier)
    )
}

fn unapproved(html: &mut String, inventory: &Inventory) {
    if inventory.unapproved.is_empty() {
        return;
    }
    html.push_str("<h2 class=\"bad\">Without approval</h2><p>These run in governed workloads and no promotion has a decision on record for them.</p>");
    let rows = inventory.unapproved.iter().map(|row| {
        [
            workload(&row.workload),
            format!("<code>{}</code>", escape(&row.artifact_digest)),
            row.pods.to_string(),
        ]
    });
    table(html, &["Workload", "Artifact", "Pods"], rows);
}

fn drifted(html: &mut String, inventory: &Inventory) {
    if inventory.drifted.is_empty() {
        return;
    }
    html.push_str(
        "<h2 class=\"bad\">Drifted</h2><p>These workloads no longer carry the model that was promoted to them.</p>",
    );
    let rows = inventory.drifted.iter().map(|row| {
        [
            workload(&row.workload),
            escape(&row.promotion),
            format!("<code>{}</code>", escape(short(&row.artifact_digest))),
            format!("<code>{}</code>", escape(short(or_dash(&row.found)))),
        ]
    });
    table(html, &["Workload", "Promotion", "Promoted", "Found"], rows);
}

fn waiting(html: &mut String, inventory: &Inventory, now: Timestamp) {
    if inventory.waiting.is_empty() {
        return;
    }
    html.push_str("<h2>Waiting for approval</h2>");
    let rows = inventory.waiting.iter().map(|row| {
        [
            format!("{}<small>{}</small>", escape(&row.promotion), escape(&row.namespace)),
            escape(&row.tier),
            row.missing.to_string(),
            since(&row.since, now),
        ]
    });
    table(html, &["Promotion", "Tier", "Missing", "Since"], rows);
}

fn table<const N: usize>(html: &mut String, heads: &[&str; N], rows: impl ExactSizeIterator<Item = [String; N]>) {
    let all = rows.len();
    html.push_str("<div class=\"wide\"><table><thead><tr>");
    for head in heads {
        let _ = write!(html, "<th>{head}</th>");
    }
    html.push_str("</tr></thead><tbody>");
    for row in rows.take(MAX_ROWS) {
        let _ = write!(html, "<tr><td>{}</td></tr>", row.join("</td><td>"));
    }
    html.push_str("</tbody></table></div>");
    if all > MAX_ROWS {
        let _ = write!(html, "<p>The first {MAX_ROWS} of {all}; the JSON has all.</p>");
    }
}

fn workload(workload: &WorkloadRef) -> String {
    format!(
        "{}<small>{} in {}</small>",
        escape(&workload.name),
        escape(&workload.kind),
        escape(&workload.namespace)
    )
}

/// A time and how long ago that was.
fn since(time: &str, now: Timestamp) -> String {
    let Ok(at) = time.parse::<Timestamp>() else {
        return "unknown".to_owned();
    };
    let minutes = now.duration_since(at).as_mins().max(0);
    let ago = match minutes {
        0..60 => format!("{minutes} min ago"),
        60..2_880 => format!("{} h ago", minutes / 60),
        _ => format!("{} d ago", minutes / 1_440),
    };
    format!("{}<small>{ago}</small>", at.strftime("%F %T UTC"))
}

fn or_dash(text: &str) -> &str {
    if text.is_empty() { "-" } else { text }
}

/// 12 hex digits of a digest; anything else as it is.
fn short(text: &str) -> &str {
    text.strip_prefix("sha256:")
        .and_then(|hex| hex.get(..12))
        .unwrap_or(text)
}

/// Text as HTML text or attribute value, at most 512 characters.
fn escape(text: &str) -> String {
    let mut escaped = String::with_capacity(text.len());
    for character in text.chars().take(512) {
        match character {
            '&' => escaped.push_str("&amp;"),
            '<' => escaped.push_str("&lt;"),
            '>' => escaped.push_str("&gt;"),
            '"' => escaped.push_str("&quot;"),
            '\'' => escaped.push_str("&#39;"),
            other => escaped.push(other),
        }
    }
    escaped
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::inventory::{fixtures, rows};

    fn at() -> Timestamp {
        "2026-01-02T03:04:05Z".parse().unwrap()
    }

    #[test]
    fn names_from_anybody_stay_text() {
        let mut facts = fixtures::live();
        facts.promotions.values_mut().for_each(|promotion| {
            if let Some(live) = &mut promotion.status.live {
                live.model = "<script>alert('x')</script>".into();
                live.reason = "\"><img src=x onerror=alert(1)>".into();
            }
        });
        let html = page(&rows::project(&facts), at(), true);
        assert!(!html.contains("<script") && !html.contains("<img"), "{html}");
        assert!(html.contains("&lt;script&gt;alert(&#39;x&#39;)&lt;/script&gt;"));
    }

    #[test]
    fn the_page_says_what_is_live_who_approved_it_and_why() {
        let html = page(&rows::project(&fixtures::live()), at(), true);
        for word in [
            "magika",
            "static-int8",
            "alice@example.com",
            "CHG-4711",
            "Halves p99",
            "scanner",
            "2026-01-01 00:00:00 UTC",
        ] {
            assert!(html.contains(word), "{word}");
        }
        assert!(!html.contains("Without approval"));
        assert!(!html.contains("http:") && !html.contains("https:"), "self-contained");
    }

    #[test]
    fn an_empty_inventory_says_what_would_fill_it() {
        assert!(page(&Inventory::default(), at(), false).contains("No model is known to run"));
    }
}
