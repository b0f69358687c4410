//! A process that holds a model, seen from the process that measures it.
//!
//! Decides what its death means. Memory is read from the kernel, not asked of the process; whatever it says is bounded
//! and checked.

use std::ffi::OsString;
use std::io::{BufReader, Read as _};
use std::os::unix::process::ExitStatusExt as _;
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};

use super::machine;
use super::protocol::{Answer, Ask, Setup, hear, say};
use crate::failure::{Failure, Result, bug, reasons, refused, resources};

/// Which of the two models a process holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Which {
    Baseline,
    Candidate,
}

impl Which {
    pub(super) fn name(self) -> &'static str {
        match self {
            Self::Baseline => "baseline",
            Self::Candidate => "candidate",
        }
    }

    /// A failure of the process that holds this model, in terms of this model.
    fn blame(self, failure: &Failure) -> Failure {
        let reason = match (self, failure.reason.as_str()) {
            (Self::Candidate, reasons::RUNTIME_FAILED) => reasons::CANDIDATE_BROKEN,
            (Self::Baseline, reasons::CANDIDATE_BROKEN) => reasons::RUNTIME_FAILED,
            (_, same) => same,
        };
        crate::failure::failure(failure.class, reason, format!("{}: {}", self.name(), failure.message))
    }
}

/// How measuring processes are started: this very program with these arguments.
#[derive(Clone, Debug)]
pub struct Program {
    /// Arguments that make this program a measuring process.
    pub arguments: Vec<OsString>,
}

/// Times of some runs.
pub(super) struct Timed {
    pub(super) nanos: Vec<u64>,
    pub(super) cpu_nanos: u64,
}

/// A process with a model; it dies with this value.
pub(super) struct Process {
    which: Which,
    child: Child,
    to: ChildStdin,
    from: BufReader<ChildStdout>,
    /// Version of ONNX Runtime.
    pub(super) onnxruntime: String,
    /// Rows of data.
    pub(super) rows: u64,
    /// Most rows that the model takes at once.
    pub(super) batch_limit: u64,
}

impl Process {
    /// Starts a process and waits until its model is loaded.
    pub(super) fn start(which: Which, program: &Program, setup: &Setup) -> Result<Self> {
        let own = std::env::current_exe().map_err(|error| bug(format!("this program can't be found: {error}")))?;
        let mut child = Command::new(own)
            .args(&program.arguments)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .map_err(|error| bug(format!("a measuring process can't be started: {error}")))?;
        let (Some(to), Some(from)) = (child.stdin.take(), child.stdout.take()) else {
            return Err(bug("a measuring process without pipes"));
        };
        let from = BufReader::new(from);
        let mut process = Self {
            which,
            child,
            to,
            from,
            onnxruntime: String::new(),
            rows: 0,
            batch_limit: 0,
        };
        say(&mut process.to, setup).map_err(|_| process.gone())?;
        match process.answer()? {
            Answer::Ready {
                onnxruntime,
                rows,
                batch_limit,
            } if rows > 0 && batch_limit > 0 => {
                process.onnxruntime = crate::failure::cut(&onnxruntime, 100);
                process.rows = rows;
                process.batch_limit = batch_limit;
                Ok(process)
            }
            _ => Err(process.odd()),
        }
    }

    /// Times single rows.
    pub(super) fn time(&mut self, first: u64, runs: u32) -> Result<Timed> {
        say(&mut self.to, &Ask::Time { first, runs }).map_err(|_| self.gone())?;
        match self.answer()? {
            Answer::Timed { nanos, cpu_nanos } if nanos.len() == runs as usize => Ok(Timed { nanos, cpu_nanos }),
            _ => Err(self.odd()),
        }
    }

    /// Scores of rows, as little-endian floats; and the number of classes, which is the same for all rows.
    pub(super) fn predict(&mut self, first: u64, rows: u32) -> Result<(u32, Vec<u8>)> {
        const MOST_CLASSES: u32 = 1_000_000;
        say(&mut self.to, &Ask::Predict { first, rows }).map_err(|_| self.gone())?;
        match self.answer()? {
            Answer::Scores {
                rows: answered,
                classes,
            } if answered == rows && (2..=MOST_CLASSES).contains(&classes) => {
                let mut bytes = vec![0; rows as usize * classes as usize * 4];
                self.from.read_exact(&mut bytes).map_err(|_| self.gone())?;
                Ok((classes, bytes))
            }
            _ => Err(self.odd()),
        }
    }

    /// Peak resident memory so far.
    pub(super) fn peak_memory(&self) -> Result<u64> {
        machine::peak_memory(&self.child.id().to_string()).ok_or_else(|| {
            bug(format!(
                "the kernel tells no peak memory of the process with the {}",
                self.which.name()
            ))
        })
    }

    fn answer(&mut self) -> Result<Answer> {
        match hear::<Answer>(&mut self.from) {
            Ok(Some(Answer::Failed(failure))) => Err(self.which.blame(&failure)),
            Ok(Some(answer)) => Ok(answer),
            Ok(None) => Err(self.gone()),
            Err(_) => Err(self.odd()),
        }
    }

    fn odd(&self) -> Failure {
        refused(
            reasons::CANDIDATE_BROKEN,
            format!(
                "the process with the {} answered out of order: nothing of it is believed",
                self.which.name()
            ),
        )
    }

    /// Why the process is no longer there.
    fn gone(&mut self) -> Failure {
        let name = self.which.name();
        let status = match self.child.wait() {
            Ok(status) => status,
            Err(error) => return bug(format!("the process with the {name} can't be waited for: {error}")),
        };
        match status.signal() {
            Some(libc::SIGKILL) => resources(
                reasons::OUT_OF_MEMORY,
                format!("the process with the {name} was killed, most likely for memory: raise the memory limit"),
            ),
            Some(signal) => self.which.blame(&refused(
                reasons::RUNTIME_FAILED,
                format!("ONNX Runtime crashed with signal {signal} on this model"),
            )),
            None => bug(format!("the process with the {name} ended early ({status})")),
        }
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        // It has no state worth saving; a process that is gone already is what we want.
        let _gone_already = self.child.kill();
        let _status = self.child.wait();
    }
}
