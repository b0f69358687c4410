//! One piece of work: the roles of a worker pod, one after another, each a process of its own, in a private folder.
//!
//! Decides how workers are started, stopped and believed. Never judges what they measured.

use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result};
use assayer_crds::contract::{
    CONTRACT_VERSION, FailureClass, MAX_REPORT_BYTES, Outcome, Report, Role, Termination, Work, WorkerPlan,
};
use assayer_crds::digest::Digest;
use assayer_operator::optimization::results::content;
use assayer_operator::optimization::steps::{self, Run, Settings, Step};
use assayer_worker::layout::Layout;
use rustix::process::{Pid, Signal, kill_process_group};
use tempfile::TempDir;
use tokio::io::AsyncReadExt as _;
use tokio::process::{Child, Command};
use tokio::signal::unix::{Signal as Listener, SignalKind, signal};

use super::Options;
use super::worker::WORKER;

/// Delay before the second attempt; it doubles with each further one.
const FIRST_DELAY: Duration = Duration::from_secs(2);
/// Files inside a job's folder.
const LOG: &str = "worker.log";
const TERMINATION: &str = "termination.json";
const CREDENTIALS: &str = "config.json";
/// Lines of a worker's log that are shown when it left no report.
const LOG_LINES: usize = 8;

/// Ctrl-C or a request to end.
#[derive(Debug, thiserror::Error)]
#[error("interrupted")]
pub(super) struct Interrupted;

/// Work that failed, in words.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Problem {
    /// `Reason: message`.
    pub(super) told: String,
    /// Whether another attempt may end differently.
    passes: bool,
}

/// Starts workers, and stops them when the user says so.
pub(super) struct Jobs {
    folder: TempDir,
    program: PathBuf,
    library: PathBuf,
    /// Credentials for registries: the text of a `config.json`.
    credentials: Option<Vec<u8>>,
    threads: Option<u32>,
    /// Folder of calibration tables.
    tables: Option<PathBuf>,
    settings: Settings,
    run: Run,
    verbose: bool,
    interrupt: Listener,
    terminate: Listener,
}

/// A step that succeeded.
pub(super) struct Done {
    /// Its report, checked.
    pub(super) report: Report,
    /// Its folder.
    pub(super) folder: PathBuf,
}

/// How a role ended.
struct Ended {
    line: Vec<u8>,
    success: bool,
    status: String,
    took: Duration,
}

impl Jobs {
    /// A private folder, and ears for signals.
    pub(super) fn new(options: &Options, library: PathBuf, verbose: bool) -> Result<Self> {
        let folder = tempfile::Builder::new()
            .prefix("assayer-")
            .tempdir()
            .context("make a folder for the work")?;
        // Ties the answers to this run: the folder's name is random.
        let uid = format!("{}-{}", std::process::id(), folder.path().display());
        let settings = Settings {
            worker_image: String::new(),
            plain_http: options.access.plain_http.clone(),
        };
        Ok(Self {
            program: std::env::current_exe().context("find this program")?,
            library,
            credentials: options.access.text()?,
            threads: options.threads,
            tables: options.calibration_tables.as_deref().map(tables).transpose()?,
            run: Run {
                uid,
                generation: 1,
                rerun: None,
                worker_image: String::new(),
            },
            settings,
            verbose,
            interrupt: signal(SignalKind::interrupt())?,
            terminate: signal(SignalKind::terminate())?,
            folder,
        })
    }

    /// Where models lie between their making and the end of the run.
    pub(super) fn folder(&self) -> &Path {
        self.folder.path()
    }

    /// Removes the folder, or keeps it and says where it is.
    pub(super) fn end(self, keep: bool) -> Option<PathBuf> {
        keep.then(|| self.folder.keep())
    }

    /// Does one step; the outer error ends the run, the inner one is about this step only.
    pub(super) async fn work(
        &mut self,
        spec: &assayer_crds::ModelOptimizationSpec,
        step: &Step,
        cores: Option<u32>,
        work: Work,
    ) -> Result<Result<Done, Problem>> {
        let mut delay = FIRST_DELAY;
        let mut attempt = 1;
        loop {
            let plan = steps::worker_plan(spec, &self.settings, &self.run, step, attempt, work.clone());
            match self.attempt(step, attempt, &plan, cores).await? {
                Err(problem) if problem.passes && i64::from(attempt) <= i64::from(spec.run.retries) => {
                    tracing::warn!(%step, attempt, "{}; another attempt in {} s", problem.told, delay.as_secs());
                    self.sleep(delay).await?;
                    delay *= 2;
                    attempt += 1;
                }
                ended => return Ok(ended),
            }
        }
    }

    async fn sleep(&mut self, delay: Duration) -> Result<()> {
        tokio::select! {
            () = tokio::time::sleep(delay) => Ok(()),
            _ = self.interrupt.recv() => Err(Interrupted.into()),
            _ = self.terminate.recv() => Err(Interrupted.into()),
        }
    }

    async fn attempt(
        &mut self,
        step: &Step,
        attempt: i32,
        plan: &WorkerPlan,
        cores: Option<u32>,
    ) -> Result<Result<Done, Problem>> {
        let name = step.to_string().replace('/', "-");
        let layout = Layout::local(self.folder.path().join(format!("{name}-{attempt}")));
        let bytes = serde_json::to_vec(plan)?;
        self.furnish(&layout, &bytes)?;
        let roles = Role::sequence(&plan.work);
        let mut bounded = Duration::ZERO;
        for (index, role) in roles.iter().enumerate() {
            let ended = self.role(*role, &layout, cores).await?;
            if matches!(role, Role::Run | Role::Optimize) {
                bounded = ended.took;
            }
            let last = index + 1 == roles.len();
            if last || !ended.success {
                let folder = layout.root.clone();
                return Ok(answer(plan, &Digest::of(&bytes), &layout, *role, &ended, bounded)
                    .map(|report| Done { report, folder }));
            }
        }
        anyhow::bail!("{step} has no roles")
    }

    /// Plan, credentials and calibration tables, where the worker looks for them.
    fn furnish(&self, layout: &Layout, plan: &[u8]) -> Result<()> {
        let write = |path: &Path, bytes: &[u8]| -> Result<()> {
            let parent = path.parent().context("a path without a folder")?;
            std::fs::create_dir_all(parent).with_context(|| format!("create {}", parent.display()))?;
            std::fs::write(path, bytes).with_context(|| format!("write {}", path.display()))
        };
        write(&layout.plan(), plan)?;
        if let Some(tables) = &self.tables {
            let link = layout.tables();
            std::os::unix::fs::symlink(tables, &link).with_context(|| format!("link {}", link.display()))?;
        }
        if let Some(credentials) = &self.credentials {
            write(&layout.pull_secret().join(CREDENTIALS), credentials)?;
            write(&layout.push_secret().join(CREDENTIALS), credentials)?;
        }
        Ok(())
    }

    async fn role(&mut self, role: Role, layout: &Layout, cores: Option<u32>) -> Result<Ended> {
        let log = std::fs::File::options()
            .create(true)
            .append(true)
            .open(layout.root.join(LOG))
            .context("open the worker's log")?;
        let mut command = Command::new(&self.program);
        command.arg(WORKER);
        if let Some(threads) = self.threads.or(cores) {
            command.arg("--cpus").arg(threads.to_string());
        }
        command
            .arg(role.as_str())
            .arg("--root")
            .arg(&layout.root)
            .arg("--termination")
            .arg(layout.root.join(TERMINATION));
        command.env("ORT_DYLIB_PATH", &self.library).env("RUST_LOG", "info");
        // ONNX Runtime starts counting before it can be told not to in any other way.
        command.env("ORT_DISABLE_TELEMETRY", "1");
        // ONNX Runtime leaves a session file in the temporary folder and in the home: it goes with ours.
        command.env("TMPDIR", &layout.root).env("HOME", &layout.root);
        command.stdin(Stdio::null()).stdout(Stdio::piped());
        command.stderr(if self.verbose { Stdio::inherit() } else { log.into() });
        // A group of its own: Ctrl-C at the terminal is for us, who then stop it with all that it started.
        command.process_group(0).kill_on_drop(true);
        let began = Instant::now();
        let mut child = command
            .spawn()
            .with_context(|| format!("start worker {}", role.as_str()))?;
        let ended = tokio::select! {
            ended = end(&mut child) => Some(ended?),
            _ = self.interrupt.recv() => None,
            _ = self.terminate.recv() => None,
        };
        let Some((line, status)) = ended else {
            stop(&mut child).await;
            return Err(Interrupted.into());
        };
        Ok(Ended {
            line,
            success: status.success(),
            status: status.to_string(),
            took: began.elapsed(),
        })
    }
}

/// The folder of calibration tables, made if it is missing.
fn tables(folder: &Path) -> Result<PathBuf> {
    std::fs::create_dir_all(folder).with_context(|| format!("--calibration-tables: create {}", folder.display()))?;
    // Workers run in folders of their own.
    Ok(std::path::absolute(folder)?)
}

/// Its output, as far as a report may be long, and its status.
async fn end(child: &mut Child) -> Result<(Vec<u8>, std::process::ExitStatus)> {
    let mut line = Vec::new();
    if let Some(out) = child.stdout.take() {
        out.take(MAX_REPORT_BYTES + 2)
            .read_to_end(&mut line)
            .await
            .context("read the worker's report")?;
    }
    Ok((line, child.wait().await.context("wait for the worker")?))
}

/// Kills it and what it started, and waits until it is gone: the folder is removed after that.
async fn stop(child: &mut Child) {
    let group = child.id().and_then(|id| i32::try_from(id).ok()).and_then(Pid::from_raw);
    if let Some(group) = group {
        // It fails only when everything is gone already.
        let _gone = kill_process_group(group, Signal::KILL);
    }
    drop(child.wait().await);
}

/// What the worker said, if it can be believed.
fn answer(
    plan: &WorkerPlan,
    digest: &Digest,
    layout: &Layout,
    role: Role,
    ended: &Ended,
    bounded: Duration,
) -> Result<Report, Problem> {
    let invalid = |why: String| lasting(format!("ReportInvalid: worker {}: {why}", role.as_str()));
    let line = ended.line.strip_suffix(b"\n").unwrap_or(&ended.line);
    if line.is_empty() {
        return Err(lasting(format!(
            "worker {} ended without a report ({}){}",
            role.as_str(),
            ended.status,
            tail(layout)
        )));
    }
    let termination = std::fs::read(layout.root.join(TERMINATION))
        .map_err(|error| invalid(format!("no termination message: {error}")))?;
    let announced: Termination = serde_json::from_slice(&termination).map_err(|error| invalid(error.to_string()))?;
    if announced.report_sha256 != Digest::of(line) || announced.nonce != plan.nonce {
        return Err(invalid("the report is not the one that was announced".into()));
    }
    let report: Report = serde_json::from_slice(line).map_err(|error| invalid(error.to_string()))?;
    if report.v != CONTRACT_VERSION || report.nonce != plan.nonce || report.plan_sha256 != *digest {
        return Err(invalid("the report is about another plan".into()));
    }
    if let Outcome::Failed(failure) = &report.outcome {
        let told = format!("{}: {}", failure.reason, failure.message);
        return Err(Problem {
            told,
            passes: failure.class == FailureClass::Storage,
        });
    }
    if !ended.success {
        return Err(invalid(format!("it reports success and ended with {}", ended.status)));
    }
    // Only a pushed artifact has a place that can be told beforehand.
    let pushed = matches!(&plan.work, Work::Make(make) if make.output.contains("://"));
    let checked = content::check(plan, &report, pushed.then_some(&announced));
    checked
        .and_then(|()| content::fits_seconds(&report, bounded.as_secs_f64()))
        .map_err(|problem| lasting(format!("{}: {}", problem.reason, problem.message)))?;
    Ok(report)
}

fn lasting(told: String) -> Problem {
    Problem { told, passes: false }
}

fn tail(layout: &Layout) -> String {
    let log = std::fs::read(layout.root.join(LOG)).unwrap_or_default();
    let text = String::from_utf8_lossy(&log);
    let lines: Vec<&str> = text.lines().collect();
    let last = &lines[lines.len().saturating_sub(LOG_LINES)..];
    if last.is_empty() {
        String::new()
    } else {
        format!("; its last words:\n{}", last.join("\n"))
    }
}
