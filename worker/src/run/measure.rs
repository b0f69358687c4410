//! Blocks of runs, alternating between models, and what comes out of them.
//!
//! Decides how many runs are enough and which figures they give. Both models see the same rows in the same order, and
//! each block of one has a neighbour of the other, so that a busy neighbour or a warm processor meets both.

use std::io::Write;
use std::time::{Duration, Instant};

use super::process::Process;
use crate::failure::{Result, bug};

/// How much is measured.
#[derive(Clone, Copy, Debug)]
pub(super) struct Budget {
    /// Runs before anything counts.
    warm_up: u32,
    /// Runs that are wanted, per model.
    wanted: usize,
    /// Time for which measuring goes on even when there are enough runs.
    calm: Duration,
    /// Most runs, per model.
    most: usize,
    /// Time after which `few` runs are enough.
    patience: Duration,
    /// Fewest runs, per model.
    few: usize,
}

impl Default for Budget {
    fn default() -> Self {
        Self {
            warm_up: 10,
            wanted: 200,
            calm: Duration::from_secs(2),
            most: 1_000,
            patience: Duration::from_mins(1),
            few: 10,
        }
    }
}

impl Budget {
    fn is_spent(&self, runs: usize, passed: Duration) -> bool {
        (runs >= self.wanted && passed >= self.calm)
            || runs >= self.most
            || (passed >= self.patience && runs >= self.few)
    }
}

/// Latencies of one model.
#[derive(Clone, Debug, Default)]
pub(super) struct Latencies {
    nanos: Vec<u64>,
    cpu_nanos: u64,
}

/// Figures of one model.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct Figures {
    pub(super) runs: u64,
    pub(super) p50_seconds: f64,
    pub(super) p99_seconds: f64,
    pub(super) utilisation: f64,
}

/// Measures all processes in alternating blocks.
pub(super) fn latencies(processes: &mut [Process], budget: Budget) -> Result<Vec<Latencies>> {
    let slowest = warm_up(processes, budget)?;
    // A block takes about a tenth of a second, so that there are many of them.
    let block = (100_000_000 / slowest.max(1)).clamp(1, 20);
    let block = u32::try_from(block).unwrap_or(1);
    let mut all = vec![Latencies::default(); processes.len()];
    let begin = Instant::now();
    let mut row = 0;
    while !budget.is_spent(all[0].nanos.len(), begin.elapsed()) {
        for (process, latencies) in processes.iter_mut().zip(&mut all) {
            let timed = process.time(row, block)?;
            latencies.nanos.extend(timed.nanos);
            latencies.cpu_nanos += timed.cpu_nanos;
        }
        row = (row + u64::from(block)) % processes[0].rows;
    }
    Ok(all)
}

/// Runs that don't count; returns the slowest model's last time.
fn warm_up(processes: &mut [Process], budget: Budget) -> Result<u64> {
    const SLOW: u64 = 500_000_000;
    let mut slowest = 0;
    for process in processes {
        let mut last = process.time(0, 1)?.nanos[0];
        if last < SLOW {
            last = *process.time(0, budget.warm_up)?.nanos.last().unwrap_or(&last);
        }
        slowest = slowest.max(last);
    }
    Ok(slowest)
}

impl Latencies {
    /// Percentiles and utilisation, with the number of threads that the model was given.
    pub(super) fn figures(mut self, threads: u32) -> Result<Figures> {
        self.nanos.sort_unstable();
        let total: u64 = self.nanos.iter().sum();
        if total == 0 {
            return Err(bug("the model's runs took no time at all"));
        }
        Ok(Figures {
            runs: self.nanos.len() as u64,
            p50_seconds: seconds(nearest_rank(&self.nanos, 50)),
            p99_seconds: seconds(nearest_rank(&self.nanos, 99)),
            utilisation: seconds(self.cpu_nanos) / (seconds(total) * f64::from(threads.max(1))),
        })
    }
}

/// The smallest value that at least `percent` of all values don't exceed; `sorted` is not empty.
fn nearest_rank(sorted: &[u64], percent: usize) -> u64 {
    let rank = (sorted.len() * percent).div_ceil(100).max(1);
    sorted[rank.min(sorted.len()) - 1]
}

#[allow(clippy::cast_precision_loss, reason = "nanoseconds of a measurement fit a double")]
fn seconds(nanos: u64) -> f64 {
    nanos as f64 / 1e9
}

/// Writes the scores of every row and returns the number of classes.
pub(super) fn predictions(
    process: &mut Process,
    out: &mut impl Write,
    mut wrote: impl FnMut(std::io::Error) -> crate::failure::Failure,
) -> Result<u32> {
    const BATCH: u64 = 32;
    let batch = process.batch_limit.clamp(1, BATCH);
    let (mut first, mut classes) = (0, None);
    while first < process.rows {
        let rows = batch.min(process.rows - first);
        let (found, bytes) = process.predict(first, u32::try_from(rows).unwrap_or(1))?;
        if *classes.get_or_insert(found) != found {
            return Err(bug(format!("the number of classes changed at row {first}")));
        }
        out.write_all(&bytes).map_err(&mut wrote)?;
        first += rows;
    }
    classes.ok_or_else(|| bug("no row was predicted"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn percentiles_are_by_nearest_rank() {
        let hundred: Vec<u64> = (1..=100).collect();
        assert_eq!((nearest_rank(&hundred, 50), nearest_rank(&hundred, 99)), (50, 99));
        assert_eq!((nearest_rank(&[7], 50), nearest_rank(&[7], 99)), (7, 7));
        let two_hundred: Vec<u64> = (1..=200).collect();
        assert_eq!(nearest_rank(&two_hundred, 99), 198);
    }

    #[test]
    fn measuring_ends() {
        let budget = Budget::default();
        let seconds = Duration::from_secs;
        assert!(!budget.is_spent(199, seconds(3)), "too few runs");
        assert!(!budget.is_spent(500, seconds(1)), "too short");
        assert!(budget.is_spent(200, seconds(2)));
        assert!(budget.is_spent(1_000, seconds(0)));
        assert!(
            budget.is_spent(10, seconds(60)),
            "slow models get fewer runs, and the report says how many"
        );
        assert!(!budget.is_spent(9, seconds(600)));
    }

    #[test]
    fn figures_are_in_seconds_and_shares() {
        let latencies = Latencies {
            nanos: vec![4_000_000, 2_000_000],
            cpu_nanos: 6_000_000,
        };
        let figures = latencies.figures(2).unwrap();
        assert_eq!(
            (figures.runs, figures.p50_seconds, figures.p99_seconds),
            (2, 0.002, 0.004)
        );
        assert!((figures.utilisation - 0.5).abs() < 1e-9);
        assert!(Latencies::default().figures(1).is_err());
    }
}
