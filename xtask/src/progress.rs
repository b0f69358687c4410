//! What a developer sees while a command works: one line a step, with elapsed time.
//! Decides how it looks (live on a terminal, plain lines in a pipe); never what is done.

use std::{
    fmt::Display,
    io::{IsTerminal, Write},
    sync::{Mutex, PoisonError},
    time::{Duration, Instant},
};

use console::style;
use indicatif::{MultiProgress, ProgressBar, ProgressStyle};

/// A pipe must not be silent for minutes: people and build machines take silence for death.
const STILL_EVERY: Duration = Duration::from_secs(30);

/// The lines of one command, all timed from its start.
#[derive(Debug, Clone)]
pub struct Progress {
    started: Instant,
    look: Look,
}

#[derive(Debug, Clone)]
enum Look {
    Live(MultiProgress),
    Plain,
    Silent,
}

impl Progress {
    /// Lines on stderr: live where it is a terminal, plain and without colours where it is piped.
    pub fn stderr() -> Self {
        let terminal = std::io::stderr().is_terminal() && std::env::var_os("CI").is_none();
        let look = if terminal {
            Look::Live(MultiProgress::new())
        } else {
            Look::Plain
        };
        Self {
            started: Instant::now(),
            look,
        }
    }

    /// The same clock with plain lines only: for commands whose children write to the same terminal.
    #[must_use]
    pub fn plain(&self) -> Self {
        Self {
            started: self.started,
            look: Look::Plain,
        }
    }

    /// No lines at all: for tests.
    pub fn silent() -> Self {
        Self {
            started: Instant::now(),
            look: Look::Silent,
        }
    }

    /// Opens a step; it ends with [`Step::done`], or as failed when it is dropped before.
    pub fn step(&self, what: impl Display) -> Step {
        let what = what.to_string();
        let bar = match &self.look {
            Look::Live(bars) => {
                let bar = bars.add(ProgressBar::new_spinner());
                if let Ok(template) = ProgressStyle::with_template("{spinner} {msg} {elapsed:.dim}") {
                    bar.set_style(template);
                }
                bar.set_message(what.clone());
                bar.enable_steady_tick(Duration::from_millis(120));
                Some(bar)
            }
            Look::Plain | Look::Silent => None,
        };
        Step {
            progress: self.clone(),
            what,
            bar,
            opened: Instant::now(),
            said: Mutex::new(Instant::now()),
            ended: false,
        }
    }

    /// Prints one line between the steps.
    pub fn say(&self, line: &str) {
        let at = self.started.elapsed().as_secs_f64();
        match &self.look {
            // A terminal that is gone is no reason to stop the work.
            Look::Live(bars) => drop(bars.println(format!("{} {line}", style(format!("{at:7.1}s")).dim()))),
            Look::Plain => drop(writeln!(std::io::stderr().lock(), "{at:7.1}s {line}")),
            Look::Silent => {}
        }
    }

    /// Since the command began.
    pub fn elapsed(&self) -> Duration {
        self.started.elapsed()
    }

    fn mark(&self, good: bool) -> String {
        let word = if good { "ok  " } else { "FAIL" };
        match &self.look {
            Look::Live(_) if good => style(word).green().to_string(),
            Look::Live(_) => style(word).red().to_string(),
            Look::Plain | Look::Silent => word.to_owned(),
        }
    }
}

/// One step under way.
#[derive(Debug)]
pub struct Step {
    progress: Progress,
    what: String,
    bar: Option<ProgressBar>,
    opened: Instant,
    /// When a plain line last said that the step goes on.
    said: Mutex<Instant>,
    ended: bool,
}

impl Step {
    /// Says what the step is doing just now: live at once, in plain lines every half minute. Call it often.
    pub fn doing(&self, detail: impl Display) {
        if let Some(bar) = &self.bar {
            bar.set_message(format!("{}: {detail}", self.what));
            return;
        }
        let mut said = self.said.lock().unwrap_or_else(PoisonError::into_inner);
        if said.elapsed() >= STILL_EVERY {
            *said = Instant::now();
            let took = self.opened.elapsed().as_secs();
            self.progress
                .say(&format!("...  {}: {detail} ({took}s so far)", self.what));
        }
    }

    /// Ends the step well; `result` may be empty.
    pub fn done(mut self, result: impl Display) {
        self.end(true, &result.to_string());
    }

    fn end(&mut self, good: bool, result: &str) {
        self.ended = true;
        if let Some(bar) = self.bar.take() {
            bar.finish_and_clear();
        }
        let took = self.opened.elapsed().as_secs_f64();
        let between = if result.is_empty() { "" } else { ": " };
        self.progress.say(&format!(
            "{} {}{between}{result} ({took:.1}s)",
            self.progress.mark(good),
            self.what
        ));
    }
}

impl Drop for Step {
    fn drop(&mut self) {
        if !self.ended {
            self.end(false, "");
        }
    }
}
