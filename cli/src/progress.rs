//! What people see while work goes on: live bars on a terminal, plain lines in a pipe. Decides looks, never what is done.

use std::io::IsTerminal as _;
use std::time::{Duration, Instant};

use console::style;
use indicatif::{MultiProgress, ProgressBar, ProgressStyle};

use crate::terminal;

/// Steps of one command, timed from its start.
pub(crate) struct Progress {
    started: Instant,
    live: Option<Live>,
}

struct Live {
    bars: MultiProgress,
    all: ProgressBar,
}

/// One step under way. Dropped before it ended, it vanishes without a line.
pub(crate) struct Step<'a> {
    progress: &'a Progress,
    name: String,
    began: Instant,
    spinner: Option<ProgressBar>,
}

impl Progress {
    /// For `steps` steps, on stderr.
    pub(crate) fn new(steps: usize) -> Self {
        let live = std::io::stderr().is_terminal().then(|| {
            let bars = MultiProgress::new();
            let all = bars.add(ProgressBar::new(steps as u64));
            styled(&all, "{bar:30} {pos}/{len} {elapsed}");
            all.enable_steady_tick(Duration::from_millis(500));
            Live { bars, all }
        });
        Self {
            started: Instant::now(),
            live,
        }
    }

    /// Opens a step.
    pub(crate) fn step(&self, name: impl Into<String>) -> Step<'_> {
        let name = name.into();
        let spinner = self.live.as_ref().map(|live| {
            let spinner = live.bars.insert_before(&live.all, ProgressBar::new_spinner());
            styled(&spinner, "{spinner} {msg} {elapsed}");
            spinner.set_message(name.clone());
            spinner.enable_steady_tick(Duration::from_millis(120));
            spinner
        });
        Step {
            progress: self,
            name,
            began: Instant::now(),
            spinner,
        }
    }

    /// Ends the bars; lines stay.
    pub(crate) fn finish(&self) {
        if let Some(live) = &self.live {
            live.all.finish_and_clear();
        }
    }

    fn line(&self, good: bool, text: &str) {
        let at = self.started.elapsed().as_secs_f64();
        let word = match good {
            true => style("ok  ").green(),
            false => style("FAIL").red(),
        };
        let line = format!("{at:6.1}s {} {text}", word.for_stderr());
        match &self.live {
            // A terminal that is gone is no reason to stop the work.
            Some(live) => drop(live.bars.println(line)),
            None => terminal::note(&line),
        }
    }
}

impl Step<'_> {
    /// Ends well.
    pub(crate) fn done(self, result: &str) {
        self.end(true, result);
    }

    /// Ends badly.
    pub(crate) fn failed(self, why: &str) {
        self.end(false, why);
    }

    fn end(mut self, good: bool, text: &str) {
        self.clear();
        let took = self.began.elapsed().as_secs_f64();
        self.progress
            .line(good, &format!("{}: {text} ({took:.1} s)", self.name));
        if let Some(live) = &self.progress.live {
            live.all.inc(1);
        }
    }

    fn clear(&mut self) {
        if let Some(spinner) = self.spinner.take() {
            spinner.finish_and_clear();
        }
    }
}

impl Drop for Step<'_> {
    fn drop(&mut self) {
        self.clear();
    }
}

fn styled(bar: &ProgressBar, template: &str) {
    // A template that can't be read leaves the default look.
    if let Ok(style) = ProgressStyle::with_template(template) {
        bar.set_style(style);
    }
}
