//! The worker's commands, shared by the binary in pods and the command-line tool on one machine.
//!
//! Decides what happens around the work: plan first, then the deadline, then the role, and a report on every path.

use std::any::Any;
use std::ffi::OsString;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::Arc;
use std::time::Duration;

use assayer_crds::contract::{Outcome, ROOT, Role, Runtime, paths};
use assayer_crds::digest::Digest;

use crate::deadline;
use crate::failure::{Failure, Result, bug};
use crate::layout::{Layout, read_plan};
use crate::pipeline;
use crate::report::Reporter;
use crate::run::{self, Program};

/// What a worker process does.
#[derive(Clone, Debug, clap::Subcommand)]
pub enum Command {
    /// Fetch models and data, check their digests, split inputs from labels
    Stage(Settings),
    /// Make the candidate
    Optimize(Settings),
    /// Push the candidate by digest
    Publish(Settings),
    /// Measure models: predictions, latency, memory; without labels and network
    Run(Settings),
    /// Compare predictions with labels
    Score(Settings),
    /// Hold one model for `run`
    #[command(hide = true)]
    MeasureChild,
}

/// Where a role finds its plan and folders.
#[derive(Clone, Debug, clap::Args)]
pub struct Settings {
    /// Root of the job's folders; another one than a pod's makes this a local run, in which URIs may be paths
    #[arg(long, value_name = "DIR", default_value = ROOT)]
    pub root: PathBuf,
    /// Where the termination message goes; in a pod the kubelet reads it from its usual place
    #[arg(long, value_name = "FILE")]
    pub termination: Option<PathBuf>,
}

impl Command {
    /// The sub-command as it is spelled.
    pub const MEASURE_CHILD: &str = "measure-child";

    fn role(&self) -> Option<(Role, &Settings)> {
        match self {
            Self::Stage(settings) => Some((Role::Stage, settings)),
            Self::Optimize(settings) => Some((Role::Optimize, settings)),
            Self::Publish(settings) => Some((Role::Publish, settings)),
            Self::Run(settings) => Some((Role::Run, settings)),
            Self::Score(settings) => Some((Role::Score, settings)),
            Self::MeasureChild => None,
        }
    }
}

/// Executes a command. `prefix` are the arguments of this program that lead to the worker's commands: none for the
/// worker itself.
pub fn execute(command: &Command, prefix: &[&str]) -> ExitCode {
    let Some((role, settings)) = command.role() else {
        let served = run::serve(std::io::stdin().lock(), std::io::stdout().lock());
        return if served { ExitCode::SUCCESS } else { ExitCode::from(2) };
    };
    let layout = Layout::local(&settings.root);
    let termination = settings.termination.clone().or_else(|| {
        let usual = PathBuf::from(paths::TERMINATION);
        (!layout.is_local() && usual.exists()).then_some(usual)
    });
    let arguments = prefix
        .iter()
        .map(OsString::from)
        .chain([Command::MEASURE_CHILD.into()])
        .collect();
    ExitCode::from(work(role, &layout, termination, &Program { arguments }))
}

fn work(role: Role, layout: &Layout, termination: Option<PathBuf>, program: &Program) -> u8 {
    let mounted = match read_plan(layout) {
        Ok(mounted) => mounted,
        Err(failure) => {
            // Without a plan there is no nonce to answer with: nobody can take this for another job's result.
            let reporter = Reporter::new("0".repeat(32), Digest::of(b""), termination);
            tracing::error!(reason = failure.reason, "{}", failure.message);
            return reporter.emit(Runtime::default(), Outcome::Failed(failure));
        }
    };
    let plan = &mounted.plan;
    let reporter = Arc::new(Reporter::new(plan.nonce.clone(), mounted.sha256.clone(), termination));
    let left = pipeline::started(role, layout).left(Duration::from_secs(plan.deadline_seconds));
    if let Err(error) = deadline::watch(left, plan.deadline_seconds, Arc::clone(&reporter)) {
        let failure = bug(format!("the deadline can't be watched: {error}"));
        return reporter.emit(Runtime::default(), Outcome::Failed(failure));
    }
    tracing::info!(role = role.as_str(), root = %layout.root.display(), seconds_left = left.as_secs(), "begin");
    match guarded(|| pipeline::perform(role, plan, layout, program)) {
        Ok(None) => 0,
        Ok(Some((runtime, outcome))) => reporter.emit(runtime, outcome),
        Err(failure) => {
            tracing::error!(reason = failure.reason, "{}", failure.message);
            let runtime = run::describe(String::new(), 0);
            reporter.emit(runtime, Outcome::Failed(failure))
        }
    }
}

/// A panic is a bug of ours, and is reported like any other failure.
fn guarded<T>(work: impl FnOnce() -> Result<T>) -> Result<T> {
    catch_unwind(AssertUnwindSafe(work)).unwrap_or_else(|panic| Err(panicked(panic.as_ref())))
}

fn panicked(panic: &(dyn Any + Send)) -> Failure {
    let text = panic
        .downcast_ref::<&str>()
        .copied()
        .or_else(|| panic.downcast_ref::<String>().map(String::as_str));
    bug(format!(
        "the worker panicked: {}; please report it",
        text.unwrap_or("no message")
    ))
}

#[cfg(test)]
mod tests {
    use assayer_crds::contract::{FailureClass, Report, reasons};
    use clap::Parser;

    use super::*;

    #[derive(Parser)]
    struct Worker {
        #[command(subcommand)]
        command: Command,
    }

    #[test]
    fn commands_are_spelled_like_roles() {
        for role in [Role::Stage, Role::Optimize, Role::Publish, Role::Run, Role::Score] {
            let worker = Worker::try_parse_from(["worker", role.as_str()]).unwrap();
            let (found, settings) = worker.command.role().unwrap();
            assert_eq!((found, settings.root.as_path()), (role, ROOT.as_ref()));
        }
        assert!(Worker::try_parse_from(["worker", Command::MEASURE_CHILD]).is_ok());
    }

    #[test]
    fn a_panic_is_a_bug_with_its_message() {
        let failure = guarded::<()>(|| panic!("index {} of 3", 7)).unwrap_err();
        assert_eq!(failure.class, FailureClass::Bug);
        assert!(failure.message.contains("index 7 of 3"));
    }

    #[test]
    fn without_a_plan_the_exit_code_says_refused() {
        let folder = tempfile::tempdir().unwrap();
        let termination = folder.path().join("t");
        let program = Program { arguments: Vec::new() };
        assert_eq!(
            work(
                Role::Stage,
                &Layout::local(folder.path()),
                Some(termination.clone()),
                &program
            ),
            2
        );
        assert!(std::fs::metadata(termination).unwrap().len() <= 1_024);
        // The shape that others read.
        let failed = Outcome::Failed(bug("x"));
        let report = Report {
            v: 1,
            nonce: String::new(),
            plan_sha256: Digest::of(b""),
            runtime: Runtime::default(),
            outcome: failed,
        };
        assert!(serde_json::to_string(&report).unwrap().contains(reasons::INTERNAL));
    }
}
