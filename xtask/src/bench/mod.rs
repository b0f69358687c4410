//! `cargo xtask bench worker`: what the worker makes of real models on this machine, beside other tools' from the same run, and which of
//! the project's bars are met. Decides the order of the work; asserts nothing.

mod bars;
mod bed;
mod contestant;
mod environment;
mod evaluate;
mod make;
mod ours;
mod peers;
mod table;
mod task;

use std::path::PathBuf;

use anyhow::{Context, Result};
use clap::{Args, Subcommand};

use self::{bars::Bar, bed::Bed, contestant::Contestant, task::Task};
use crate::{
    cache::{self, Lock},
    progress::Progress,
};

/// What to measure.
#[derive(Debug, Subcommand)]
pub enum Bench {
    /// Quality, latency, size, and what it takes to make candidates, beside other tools' in one run
    Worker(Options),
}

/// How much.
#[derive(Debug, Args)]
pub struct Options {
    /// Only this model; may be given several times [default: all but large]
    #[arg(long, value_enum)]
    model: Vec<Task>,
    /// Times that everything is done; the table shows medians
    #[arg(long, default_value_t = 3, value_parser = clap::value_parser!(u32).range(1..=100))]
    runs: u32,
    /// Calibration samples for time and memory, the same for all; quality is of candidates made with 256
    #[arg(long, default_value_t = 64, value_parser = clap::value_parser!(u32).range(1..=512))]
    samples: u32,
    /// Only our candidates and the tool that latencies are compared with
    #[arg(long, conflicts_with = "all_peers")]
    no_peers: bool,
    /// Also olive and modelopt: they bring torch along, 3 GB of downloads and 6 GB of the cache for each
    #[arg(long)]
    all_peers: bool,
    /// Only contestants whose name holds this, such as `int4`, beside the one that latencies are compared with, and only bars that need no
    /// others; may be given several times
    #[arg(long, value_name = "TEXT")]
    only: Vec<String>,
    /// Program to measure, such as target/release/assayer [default: built with the workspace's dev profile]
    #[arg(long, value_name = "FILE")]
    program: Option<PathBuf>,
    /// Where to write all figures as JSON
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
}

impl Options {
    /// Whether a contestant of this name takes part.
    fn wants(&self, id: &str) -> bool {
        self.only.is_empty() || self.only.iter().any(|part| id.contains(part.as_str()))
    }

    /// Whether a tool takes part that may be there `on_request` only.
    fn wants_peer(&self, on_request: bool) -> bool {
        !self.no_peers && (self.all_peers || !on_request)
    }
}

/// Measures and prints.
pub fn run(bench: &Bench, progress: &Progress) -> Result<()> {
    let Bench::Worker(options) = bench;
    // Two at once would measure each other, and a run that was killed leaves its unfinished downloads.
    let _alone = Lock::wait("bench", progress)?;
    environment::sweep()?;
    let mut written = serde_json::Map::new();
    for task in Task::chosen(&options.model) {
        let bed = Bed::new(task, options, progress)?;
        let contestants = measure(&bed, options, progress)?;
        let mut bars = bars::of(task, &contestants, bed.baseline_bytes()?, options.samples);
        if !options.only.is_empty() {
            bars.retain(Bar::has_all_figures);
        }
        progress.say(&format!(
            "\n{}\n{}",
            table::models(task, &contestants),
            table::bars(&bars)
        ));
        written.insert(
            task.name().to_owned(),
            serde_json::json!({"contestants": contestants, "bars": bars}),
        );
        if let Some(path) = &options.json {
            // After each model: hours of work must not hang on the last one.
            let text = serde_json::to_vec_pretty(&written)?;
            std::fs::write(path, text).with_context(|| format!("write {}", path.display()))?;
        }
    }
    progress.say("latencies are ratios to the first column's, medians of alternating blocks; seconds and MiB are whole processes'");
    Ok(())
}

/// All contestants of a model, made and evaluated.
fn measure(bed: &Bed, options: &Options, progress: &Progress) -> Result<Vec<Contestant>> {
    let mut contestants = vec![Contestant::baseline(&bed.baseline(), bed.baseline_bytes()?)];
    let ours = ours::of(bed.task())?;
    contestants.extend(ours.into_iter().filter(|one| options.wants(&one.id)));
    contestants.extend(peers::of(bed.task(), options, progress)?);
    for round in 0..options.runs {
        let step = progress.step(format!(
            "{}: make {} candidates, round {} of {}",
            bed.task().name(),
            contestants.len() - 1,
            round + 1,
            options.runs
        ));
        for contestant in &mut contestants {
            step.doing(&contestant.id);
            make::timed(bed, contestant, options.samples)?;
        }
        step.done("");
    }
    let step = progress.step(format!(
        "{}: make those that calibrate with more samples",
        bed.task().name()
    ));
    for contestant in &mut contestants {
        step.doing(&contestant.id);
        make::for_quality(bed, contestant)?;
    }
    step.done("");
    evaluate::all(bed, &mut contestants, options.runs, progress)?;
    Ok(contestants)
}

/// Where everything of the bench is kept between runs.
fn cached() -> Result<PathBuf> {
    cache::folder("bench")
}
