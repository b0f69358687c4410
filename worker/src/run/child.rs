//! The process that holds one model: loads it inside the sandbox and runs rows on request.
//!
//! Decides nothing about the measurement. It knows inputs and a model, never labels, credentials or the other model.

use std::io::{BufRead, Write};
use std::time::Instant;

use rustix::process::{Signal, set_parent_process_death_signal};
use rustix::time::{ClockId, clock_gettime};

use super::protocol::{Answer, Ask, Setup, hear, say};
use super::provider;
use crate::data::{Feed, Input};
use crate::failure::{Failure, Result, bug, reasons, refused};
use crate::onnx::shown;
use crate::sandbox::{self, Level};
use crate::session::{self, Optimize, Options, Output, Runtime, Session};

/// Answers on `out` until `input` ends. Returns whether it ended in good order.
pub fn serve(mut input: impl BufRead, mut out: impl Write) -> bool {
    match serve_inner(&mut input, &mut out) {
        Ok(()) => true,
        Err(failure) => {
            if let Err(error) = say(&mut out, &Answer::Failed(failure)) {
                tracing::error!(%error, "the measuring process is gone");
            }
            false
        }
    }
}

fn serve_inner(input: &mut impl BufRead, out: &mut impl Write) -> Result<()> {
    let broken = |error: std::io::Error| bug(format!("the pipe to the measuring process broke: {error}"));
    // Native code that hangs does not notice that nobody listens any more.
    set_parent_process_death_signal(Some(Signal::KILL)).map_err(|error| broken(error.into()))?;
    let Some(setup) = hear::<Setup>(input).map_err(broken)? else {
        return Ok(());
    };
    let mut model = Loaded::open(&setup)?;
    let ready = Answer::Ready {
        onnxruntime: model.version.clone(),
        rows: model.feed.rows(),
        batch_limit: model.feed.batch_limit() as u64,
    };
    say(out, &ready).map_err(broken)?;
    while let Some(ask) = hear::<Ask>(input).map_err(broken)? {
        match ask {
            Ask::Time { first, runs } => {
                let (nanos, cpu_nanos) = model.time(first, runs)?;
                say(out, &Answer::Timed { nanos, cpu_nanos }).map_err(broken)?;
            }
            Ask::Predict { first, rows } => {
                let scores = model.predict(first, rows)?;
                let classes = u32::try_from(scores.len()).unwrap_or(u32::MAX) / rows.max(1);
                say(out, &Answer::Scores { rows, classes }).map_err(broken)?;
                let bytes: Vec<u8> = scores.iter().flat_map(|score| score.to_le_bytes()).collect();
                out.write_all(&bytes).and_then(|()| out.flush()).map_err(broken)?;
            }
        }
    }
    Ok(())
}

/// A model in ONNX Runtime, with rows to feed it.
struct Loaded {
    session: Session,
    feed: Feed,
    output: String,
    version: String,
}

impl Loaded {
    /// Library first, then the sandbox, then the model.
    fn open(setup: &Setup) -> Result<Self> {
        let runtime = Runtime::load(None).map_err(|error| failed(&error))?;
        sandbox::enter(Level::Model)?;
        let provider = provider::parse(&setup.provider)?;
        provider::prove(&runtime, provider)?;
        let options = Options {
            threads: setup.threads as usize,
            optimize: Optimize::Everything,
            provider,
            optimized_model: None,
            prepack: true,
        };
        let session = runtime.open(&setup.model, &options).map_err(|error| failed(&error))?;
        if !session.outputs().contains(&setup.output.as_str()) {
            let there: Vec<String> = session.outputs().iter().map(|name| shown(name)).collect();
            return Err(refused(
                reasons::COLUMN_MISSING,
                format!(
                    "task.output `{}` is no output of the model; it has {}",
                    setup.output,
                    there.join(", ")
                ),
            ));
        }
        let inputs: Option<Vec<Input>> = setup.inputs.iter().map(super::protocol::WireInput::to_input).collect();
        let inputs = inputs.ok_or_else(|| bug("an input of an unknown element type"))?;
        let feed = Feed::open(&setup.data, inputs)?;
        Ok(Self {
            session,
            feed,
            output: setup.output.clone(),
            version: provider::version(&runtime),
        })
    }

    fn time(&mut self, first: u64, runs: u32) -> Result<(Vec<u64>, u64)> {
        let rows = self.feed.rows();
        let mut nanos = Vec::with_capacity(runs as usize);
        let mut cpu_nanos = 0;
        for run in 0..u64::from(runs) {
            let row = (first + run) % rows;
            let tensors = self.feed.tensors([row])?;
            let (cpu, begin) = (cpu_now(), Instant::now());
            self.session
                .run(&tensors, |_| Ok::<_, session::Error>(()))
                .map_err(|error| failed(&error))?;
            nanos.push(u64::try_from(begin.elapsed().as_nanos()).unwrap_or(u64::MAX));
            cpu_nanos += cpu_now().saturating_sub(cpu);
        }
        Ok((nanos, cpu_nanos))
    }

    fn predict(&mut self, first: u64, rows: u32) -> Result<Vec<f32>> {
        let tensors = self.feed.tensors(first..first + u64::from(rows))?;
        let mut scores = None;
        let wanted = self.output.as_str();
        self.session.run(&tensors, |output| {
            if output.name == wanted {
                scores = Some(scores_of(&output, rows).map_err(Stop::Refused)?);
            }
            Ok::<_, Stop>(())
        })?;
        let scores = scores.ok_or_else(|| bug(format!("output `{wanted}` vanished")))?;
        match scores.iter().position(|score| !score.is_finite()) {
            None => Ok(scores),
            Some(at) => Err(refused(
                reasons::CANDIDATE_BROKEN,
                format!(
                    "output `{wanted}` is {} at row {}: scores must be finite",
                    scores[at],
                    first + (at / (scores.len() / rows as usize)) as u64
                ),
            )),
        }
    }
}

/// Scores of `rows` rows: as many 32-bit floats for each.
fn scores_of(output: &Output<'_>, rows: u32) -> Result<Vec<f32>> {
    let shape = &output.shape;
    let wrong = |what: String| {
        refused(
            reasons::COLUMN_MISSING,
            format!(
                "output `{}` {what}: task.output must give class scores of shape [rows, classes]",
                shown(output.name)
            ),
        )
    };
    let scores = output
        .floats()
        .ok_or_else(|| wrong("does not hold 32-bit floats".into()))?;
    let classes: usize = shape.iter().skip(1).product();
    if shape.len() < 2 || shape[0] != rows as usize || classes < 2 || scores.len() != classes * rows as usize {
        return Err(wrong(format!("has shape {shape:?} for {rows} rows")));
    }
    Ok(scores.to_vec())
}

/// Why a run was stopped.
enum Stop {
    Session(session::Error),
    Refused(Failure),
}

impl From<session::Error> for Stop {
    fn from(error: session::Error) -> Self {
        Self::Session(error)
    }
}

impl From<Stop> for Failure {
    fn from(stop: Stop) -> Self {
        match stop {
            Stop::Session(error) => failed(&error),
            Stop::Refused(failure) => failure,
        }
    }
}

fn failed(error: &session::Error) -> Failure {
    provider::failure_of(error, reasons::RUNTIME_FAILED)
}

/// Processor time of this process so far, in nanoseconds.
fn cpu_now() -> u64 {
    let now = clock_gettime(ClockId::ProcessCPUTime);
    u64::try_from(now.tv_sec).unwrap_or(0) * 1_000_000_000 + u64::try_from(now.tv_nsec).unwrap_or(0)
}
