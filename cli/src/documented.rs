//! The commands in the documentation are commands of this program: each is parsed as it stands. Never runs one.

use std::fs;
use std::path::Path;

use clap::Parser as _;

use crate::Arguments;

const PAGES: [&str; 3] = ["README.md", "docs", "examples/magika"];

#[test]
fn documented_commands_are_understood() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("..");
    let mut commands = Vec::new();
    for page in PAGES.map(|page| root.join(page)) {
        let files = if page.is_dir() {
            fs::read_dir(&page)
                .unwrap()
                .map(|entry| entry.unwrap().path())
                .collect()
        } else {
            vec![page]
        };
        for file in files.iter().filter(|file| file.is_file()) {
            let text = fs::read_to_string(file).unwrap();
            commands.extend(text.lines().filter_map(command));
        }
    }
    assert!(commands.len() > 8, "the commands were not found: {commands:?}");
    for words in commands {
        if let Err(error) = Arguments::try_parse_from(&words) {
            panic!("{}: {error}", words.join(" "));
        }
    }
}

/// The words of a line that runs this program: in a block of code, or in a manifest's comment.
fn command(line: &str) -> Option<Vec<String>> {
    let line = line.trim_start_matches('#').trim_start();
    let line = line.split_once(":   ").map_or(line, |(_, command)| command);
    let rest = line.strip_prefix("kubectl ").unwrap_or(line);
    let rest = rest.strip_prefix("assayer ")?;
    // A sentence that begins with the program's name is no command.
    if !rest.contains(" -") && !rest.contains("oci://") {
        return None;
    }
    let rest = [" | ", " #", " > "]
        .iter()
        .fold(rest, |rest, end| rest.split(end).next().unwrap_or(rest));
    let mut words = vec!["assayer".to_owned()];
    for (quoted, part) in rest.split(['\'', '"']).enumerate() {
        if quoted % 2 == 1 {
            words.push(part.to_owned());
        } else {
            words.extend(part.split_whitespace().map(str::to_owned));
        }
    }
    Some(words)
}
