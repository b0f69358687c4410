//! What people see: results on stdout, everything else on stderr, colours only on a terminal. Decides looks, never content.

use std::io::{IsTerminal as _, Write as _};

use comfy_table::{ContentArrangement, Table};
use console::{Term, style};

/// Words of verdicts and states, as tables show them.
const GOOD: [&str; 2] = ["Passed", "selected"];
const BAD: [&str; 3] = ["Failed", "Error", "Rejected"];

/// Whether stderr takes colours.
pub(crate) fn colours() -> bool {
    std::io::stderr().is_terminal() && std::env::var_os("NO_COLOR").is_none()
}

/// Prints a line to stdout. A reader that went away is no failure of ours.
pub(crate) fn print(text: &str) {
    drop(writeln!(std::io::stdout().lock(), "{text}"));
}

/// Prints a line to stderr; a table in it that was coloured for stdout loses that where stderr takes none.
pub(crate) fn note(text: &str) {
    let plain = if colours() {
        text.into()
    } else {
        console::strip_ansi_codes(text)
    };
    drop(writeln!(std::io::stderr().lock(), "{plain}"));
}

/// Prints an error to stderr.
pub(crate) fn error(text: &str) {
    let word = style("error:").red().bold().for_stderr();
    note(&format!("{word} {text}"));
}

/// A table with a header, as wide as the terminal where there is one. Verdicts get their colour on a terminal.
pub(crate) fn table(header: &[&str], rows: impl IntoIterator<Item = Vec<String>>) -> String {
    let mut table = Table::new();
    table.load_style(comfy_table::presets::UTF8_BORDERS_ONLY);
    if let Some((_, columns)) = Term::stdout().size_checked() {
        table
            .set_content_arrangement(ContentArrangement::Dynamic)
            .set_width(columns);
    }
    table.set_header(header.iter().copied());
    for row in rows {
        table.add_row(row);
    }
    coloured(table.to_string())
}

/// Colours come after the table: escape codes have no width.
fn coloured(mut text: String) -> String {
    for word in GOOD {
        text = text.replace(&format!(" {word} "), &format!(" {} ", style(word).green()));
    }
    for word in BAD {
        text = text.replace(&format!(" {word} "), &format!(" {} ", style(word).red()));
    }
    text
}

/// Asks a question whose safe answer is no.
pub(crate) fn confirmed(question: &str) -> std::io::Result<bool> {
    let answer = asked(&format!("{question} [y/N] "))?;
    Ok(answer.is_some_and(|answer| matches!(answer.as_str(), "y" | "Y" | "yes")))
}

/// Asks for a line; without a terminal there is nobody to ask.
pub(crate) fn asked(question: &str) -> std::io::Result<Option<String>> {
    if !std::io::stdin().is_terminal() {
        return Ok(None);
    }
    let mut stderr = std::io::stderr().lock();
    write!(stderr, "{question}")?;
    stderr.flush()?;
    let mut answer = String::new();
    std::io::stdin().read_line(&mut answer)?;
    Ok(Some(answer.trim().to_owned()))
}
