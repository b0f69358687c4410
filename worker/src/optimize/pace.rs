//! How fast two models run beside each other on one input. They alternate, so that what slows the machine down slows both; judges nothing.
#![allow(
    clippy::cast_possible_truncation,
    clippy::cast_sign_loss,
    reason = "a number of runs is clamped before it is cast"
)]

use crate::{
    onnx::{Model, Tensor},
    session::{self, Options, Runtime},
};
use std::time::Instant;

/// Blocks of runs that count, of which the shortest does; one run more warms up.
const BLOCKS: usize = 5;
/// Seconds of a block, so that the clock and the scheduler don't decide.
const LONG_ENOUGH: f64 = 0.005;
/// Runs of a block at most.
const MOST_RUNS: f64 = 1000.0;

/// The time that `right` takes over that of `left`: below 1 where `right` is faster.
pub(super) fn ratio(
    runtime: &Runtime,
    threads: usize,
    (left, right): (&Model, &Model),
    inputs: &[Tensor],
) -> Result<f64, session::Error> {
    let options = Options {
        threads,
        ..Options::default()
    };
    let mut sessions = [
        runtime.open_model(left, &options)?,
        runtime.open_model(right, &options)?,
    ];
    let mut shortest = [f64::INFINITY; 2];
    let mut times = 1;
    for block in 0..=BLOCKS {
        for (session, shortest) in sessions.iter_mut().zip(&mut shortest) {
            let begin = Instant::now();
            for _ in 0..times {
                session.run::<session::Error>(inputs, |_| Ok(()))?;
            }
            let seconds = begin.elapsed().as_secs_f64();
            if block > 0 {
                *shortest = shortest.min(seconds);
            } else {
                times = times.max((LONG_ENOUGH / seconds).clamp(1.0, MOST_RUNS) as usize);
            }
        }
    }
    Ok(shortest[1] / shortest[0])
}
