//! How fast two models run beside each other on one input. They alternate, so that what slows the machine down slows both; judges nothing.

use crate::{
    onnx::{Model, Tensor},
    session::{self, Options, Runtime},
};
use std::time::Instant;

/// Runs that count, of which the shortest does; one more warms up.
const RUNS: usize = 3;

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
    for run in 0..=RUNS {
        for (session, shortest) in sessions.iter_mut().zip(&mut shortest) {
            let begin = Instant::now();
            session.run::<session::Error>(inputs, |_| Ok(()))?;
            if run > 0 {
                *shortest = shortest.min(begin.elapsed().as_secs_f64());
            }
        }
    }
    Ok(shortest[1] / shortest[0])
}
