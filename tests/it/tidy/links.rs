//! Links between the pages: each leads to a file and a heading that is there, and the README leads to every page of `docs/`.
//!
//! Looks at relative links only; nothing is fetched.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};

use super::root;

/// Folders with pages.
const FOLDERS: [&str; 4] = ["", "docs", "examples/magika", "charts/argocd"];
/// Beginnings of paths in this tree.
const SOURCES: [&str; 9] = [
    "charts/",
    "cli/",
    "crds/",
    "docs/",
    "examples/magika/",
    "operator/",
    "tests/",
    "worker/",
    "xtask/",
];

#[test]
fn relative_links_lead_somewhere() {
    let mut broken = Vec::new();
    let pages = pages();
    for page in &pages {
        let text = fs::read_to_string(page).expect("pages are UTF-8");
        for link in links(&text) {
            if let Err(why) = follow(page, &link) {
                let page = page.strip_prefix(root()).unwrap_or(page);
                broken.push(format!("{}: ({link}) {why}", page.display()));
            }
        }
    }
    assert!(pages.len() > 10, "the pages were not found");
    assert!(broken.is_empty(), "{}", broken.join("\n"));
}

#[test]
fn the_readme_leads_to_every_page() {
    let readme = fs::read_to_string(root().join("README.md")).expect("there is a README");
    let linked: BTreeSet<String> = links(&readme).into_iter().collect();
    let missing: Vec<String> = pages()
        .iter()
        .filter_map(|page| page.strip_prefix(root()).ok())
        .map(|page| page.display().to_string())
        .filter(|page| page.starts_with("docs/") && !linked.contains(page))
        .collect();
    assert!(missing.is_empty(), "README.md does not link {}", missing.join(", "));
}

/// Files that a page names as code are there, so that a claim about them can be looked up.
#[test]
fn files_that_are_named_exist() {
    let mut missing = Vec::new();
    for page in pages() {
        let text = fs::read_to_string(&page).expect("pages are UTF-8");
        for word in prose(&text).flat_map(|line| line.split('`').skip(1).step_by(2)) {
            let ours = SOURCES.iter().any(|folder| word.starts_with(folder));
            let plain = word.chars().all(|c| c.is_alphanumeric() || "/._-".contains(c));
            if ours && plain && !root().join(word).exists() {
                let page = page.strip_prefix(root()).unwrap_or(&page);
                missing.push(format!("{}: `{word}`", page.display()));
            }
        }
    }
    assert!(missing.is_empty(), "named and not there:\n{}", missing.join("\n"));
}

#[test]
fn headings_become_anchors_as_on_the_forge() {
    let text = "# A `b`: c, d & e-f\n```\n# no heading\n[no](link)\n```\n## A `b`: c, d & e-f\n[`x`](y.md#z) `[a-z](b)` and [z](<w v.md>)";
    assert_eq!(anchors(text), ["a-b-c-d--e-f", "a-b-c-d--e-f-1"]);
    assert_eq!(links(text), ["y.md#z", "w v.md"]);
}

fn pages() -> Vec<PathBuf> {
    let mut pages: Vec<PathBuf> = FOLDERS
        .iter()
        .flat_map(|folder| fs::read_dir(root().join(folder)).expect("the folder is there"))
        .map(|entry| entry.expect("the entry can be read").path())
        .filter(|path| path.extension().is_some_and(|extension| extension == "md"))
        .collect();
    pages.sort();
    pages
}

fn follow(page: &Path, link: &str) -> Result<(), String> {
    if link.contains("://") || link.starts_with("mailto:") {
        return Ok(());
    }
    let (file, anchor) = link.split_once('#').unwrap_or((link, ""));
    let target = if file.is_empty() {
        page.to_owned()
    } else {
        page.parent().unwrap_or(page).join(file)
    };
    if !target.exists() {
        return Err("is not there".to_owned());
    }
    if anchor.is_empty() {
        return Ok(());
    }
    let text = fs::read_to_string(&target).map_err(|error| error.to_string())?;
    if anchors(&text).iter().any(|found| found == anchor) {
        Ok(())
    } else {
        Err(format!("has no heading #{anchor}"))
    }
}

/// Lines outside of fenced blocks.
fn prose(text: &str) -> impl Iterator<Item = &str> {
    let mut fenced = false;
    text.lines().filter(move |line| {
        let fence = line.trim_start().starts_with("```");
        fenced ^= fence;
        !fenced && !fence
    })
}

/// Targets of inline links, which are never inside of code.
fn links(text: &str) -> Vec<String> {
    let mut found = Vec::new();
    for line in prose(text) {
        let line: String = line.split('`').step_by(2).collect();
        for after in line.split("](").skip(1) {
            let target = match after.strip_prefix('<') {
                Some(bracketed) => bracketed.split('>').next(),
                None => after.split([')', ' ']).next(),
            };
            found.extend(target.map(str::to_owned));
        }
    }
    found
}

/// Headings as GitHub and GitLab make anchors of them; a second one of the same words gets a number.
fn anchors(text: &str) -> Vec<String> {
    let mut times: BTreeMap<String, usize> = BTreeMap::new();
    let headings = prose(text).filter(|line| line.starts_with('#'));
    headings
        .map(|line| {
            let words = line.trim_start_matches('#').trim().to_lowercase();
            let anchor: String = words
                .chars()
                .filter(|c| c.is_alphanumeric() || matches!(c, ' ' | '-' | '_'))
                .map(|c| if c == ' ' { '-' } else { c })
                .collect();
            let earlier = times.entry(anchor.clone()).or_default();
            *earlier += 1;
            match *earlier {
                1 => anchor,
                nth => format!("{anchor}-{}", nth - 1),
            }
        })
        .collect()
}
