//! What is rendered from known rows, read back as Prometheus reads it.

use super::super::fixtures::{key, live, pod};
use super::super::{facts, rows};
use super::*;

/// Reads samples back: name, labels, value. Panics on anything that the text format does not allow.
fn parse(text: &str) -> Vec<(String, BTreeMap<String, String>, f64)> {
    assert!(text.ends_with('\n'));
    text.lines().filter(|line| !line.starts_with('#')).map(sample).collect()
}

fn sample(line: &str) -> (String, BTreeMap<String, String>, f64) {
    let (name, mut rest) = line.split_once('{').unwrap();
    assert!(name.chars().all(|c| c.is_ascii_lowercase() || c == '_'), "{line}");
    let mut labels = BTreeMap::new();
    loop {
        let (label, value) = rest.split_once("=\"").unwrap();
        let mut characters = value.char_indices();
        let mut read = String::new();
        let end = loop {
            match characters.next().unwrap() {
                (at, '"') => break at,
                (_, '\\') => match characters.next().unwrap().1 {
                    'n' => read.push('\n'),
                    c @ ('"' | '\\') => read.push(c),
                    other => panic!("escape {other} in {line}"),
                },
                (_, c) => read.push(c),
            }
        };
        assert!(labels.insert(label.to_owned(), read).is_none(), "{line}");
        rest = &value[end + 1..];
        match rest.strip_prefix(',') {
            Some(more) => rest = more,
            None => break,
        }
    }
    let value = rest.strip_prefix("} ").unwrap().parse().unwrap();
    (name.to_owned(), labels, value)
}

fn of<'a>(
    samples: &'a [(String, BTreeMap<String, String>, f64)],
    name: &str,
) -> Vec<(&'a BTreeMap<String, String>, f64)> {
    samples
        .iter()
        .filter(|(n, ..)| n == name)
        .map(|(_, labels, value)| (labels, *value))
        .collect()
}

#[test]
fn the_public_series_and_their_labels() {
    let samples = parse(&render(&rows::project(&live())));
    let info = of(&samples, "assayer_model_live_info");
    assert_eq!(info.len(), 1);
    let labels: Vec<_> = info[0].0.keys().map(String::as_str).collect();
    assert_eq!(
        labels,
        [
            "approver",
            "artifact_digest",
            "evidence",
            "model",
            "namespace",
            "owner",
            "promotion",
            "technique",
            "ticket",
            "tier",
            "version",
            "workload",
            "workload_kind"
        ]
    );
    assert_eq!(info[0].0["approver"], "alice@example.com");
    assert_eq!(
        of(&samples, "assayer_model_live_since_seconds")[0].1.to_string(),
        "1767225600"
    );
    assert_eq!(of(&samples, "assayer_model_live_replicas")[0].1.to_string(), "1");
    let scopes: Vec<_> = of(&samples, "assayer_model_blast_radius")
        .into_iter()
        .map(|(labels, value)| (labels["scope"].clone(), value.to_string()))
        .collect();
    assert_eq!(
        scopes,
        [("workloads", "1"), ("pods", "2"), ("namespaces", "1")].map(|(a, b)| (a.to_owned(), b.to_owned()))
    );
    assert!(of(&samples, "assayer_model_unapproved").is_empty());
}

#[test]
fn a_series_goes_with_its_object() {
    let mut facts = live();
    facts.pods.clear();
    facts.workloads.clear();
    let samples = parse(&render(&rows::project(&facts)));
    assert!(of(&samples, "assayer_model_live_info").is_empty());
    assert_eq!(of(&samples, "assayer_model_drifted").len(), 1);
}

#[test]
fn hostile_values_are_escaped_and_cut_and_free_text_is_no_label() {
    let mut facts = live();
    let live = facts
        .promotions
        .get_mut(&key("magika-prod"))
        .unwrap()
        .status
        .live
        .as_mut()
        .unwrap();
    live.model = "a\"b\\c\nd\re".into();
    live.version = "x".repeat(500);
    live.reason = "free text".into();
    let text = render(&rows::project(&facts));
    assert!(!text.contains("free text"));
    let samples = parse(&text);
    let info = of(&samples, "assayer_model_live_info");
    assert_eq!(info[0].0["model"], "a\"b\\c\nd\u{fffd}e");
    assert_eq!(info[0].0["version"].chars().count(), MAX_VALUE);
}

#[test]
fn a_flood_in_one_namespace_ends_in_one_series_and_leaves_the_others_alone() {
    let mut facts = live();
    for n in 0..MAX_IN_NAMESPACE + 40 {
        let mut flood = pod("a");
        flood.owner = ("Pod".into(), format!("p{n}"));
        facts.pods.insert(("aaa".into(), format!("p{n}")), flood);
    }
    facts.pods.insert(
        ("zzz".into(), "p".into()),
        facts::PodFact {
            owner: ("Pod".into(), "p".into()),
            ..pod("b")
        },
    );
    let samples = parse(&render(&rows::project(&facts)));
    let unapproved = of(&samples, "assayer_model_unapproved");
    let overflow: Vec<_> = unapproved
        .iter()
        .filter(|(labels, _)| labels["namespace"] == OVERFLOW)
        .collect();
    assert_eq!(unapproved.len(), MAX_IN_NAMESPACE + 2);
    assert_eq!((overflow.len(), overflow[0].1.to_string()), (1, "40".to_owned()));
    assert!(unapproved.iter().any(|(labels, _)| labels["namespace"] == "zzz"));
    assert!(
        of(&samples, "assayer_inventory_series_left_out")
            .iter()
            .any(|(labels, _)| labels["family"] == "assayer_model_unapproved")
    );
}

#[test]
fn values_that_are_equal_after_the_cut_are_one_series() {
    let mut facts = live();
    for end in ["x", "y"] {
        let mut long = pod("a");
        long.owner = ("Pod".into(), format!("{}{end}", "p".repeat(MAX_VALUE)));
        facts.pods.insert(key(end), long);
    }
    let text = render(&rows::project(&facts));
    let mut lines: Vec<_> = text
        .lines()
        .filter(|line| !line.starts_with('#'))
        .map(|line| line.rsplit_once(' ').unwrap().0)
        .collect();
    let all = lines.len();
    lines.sort_unstable();
    lines.dedup();
    assert_eq!(lines.len(), all, "a repeated series fails the whole scrape");
}
