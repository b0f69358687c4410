//! Child processes that never outlive us: started from a thread that lives as long as the process, with the kernel told
//! to kill them when it dies, their output in a file. Decides nothing about what they do.

use std::{
    collections::VecDeque,
    fs::{self, File},
    io::{self, BufRead, BufReader, Read},
    path::{Path, PathBuf},
    process::{Child, Command, ExitStatus, Output, Stdio},
    sync::{LazyLock, Mutex, PoisonError, mpsc},
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, anyhow, bail};
use rustix::process::{Pid, Signal, kill_process};

use crate::{foreground, progress::Step};

type Spawn = (Command, mpsc::Sender<io::Result<Child>>);

/// The kernel kills a child when the *thread* that made it ends; a test's thread ends long before the process does.
static SPAWNER: LazyLock<Mutex<mpsc::Sender<Spawn>>> = LazyLock::new(|| {
    let (sender, receiver) = mpsc::channel::<Spawn>();
    thread::spawn(move || {
        for (mut command, reply) in receiver {
            // Whoever asked may be gone; then the child is dropped with the reply.
            drop(reply.send(command.spawn()));
        }
    });
    Mutex::new(sender)
});

/// A long-running child; killed when dropped, and by the kernel when this process dies.
#[derive(Debug)]
pub struct Process {
    name: String,
    child: Child,
    log: PathBuf,
    /// How long it may take to leave after a polite signal; none: it is killed at once.
    grace: Duration,
}

impl Process {
    /// Starts `program` with its output in `log` (appended, so that a restart keeps what was said).
    pub fn start<A: AsRef<std::ffi::OsStr>>(
        name: &str,
        program: &Path,
        arguments: impl IntoIterator<Item = A>,
        environment: &[(&str, String)],
        log: &Path,
    ) -> Result<Self> {
        let output = File::options()
            .create(true)
            .append(true)
            .open(log)
            .with_context(|| format!("open {}", log.display()))?;
        // `setpriv` (util-linux, on every Debian) sets the death signal without unsafe code here.
        let mut command = Command::new("setpriv");
        command.args(["--pdeathsig", "KILL", "--"]).arg(program).args(arguments);
        command.envs(environment.iter().map(|(key, value)| (key, value)));
        command.stdin(Stdio::null()).stdout(output.try_clone()?).stderr(output);
        // Its own process group: a Ctrl-C at the terminal is for us, who then stop things in order.
        std::os::unix::process::CommandExt::process_group(&mut command, 0);
        let child = spawn(command).with_context(|| format!("start {name} ({})", program.display()))?;
        Ok(Self {
            name: name.to_owned(),
            child,
            log: log.to_owned(),
            grace: Duration::ZERO,
        })
    }

    /// Asks politely first when stopping, and waits this long.
    #[must_use]
    pub fn with_grace(mut self, grace: Duration) -> Self {
        self.grace = grace;
        self
    }

    /// The process id.
    pub fn id(&self) -> u32 {
        self.child.id()
    }

    /// Where its output goes.
    pub fn log(&self) -> &Path {
        &self.log
    }

    /// An error with the end of its log if it has ended.
    pub fn check(&mut self) -> Result<()> {
        match self
            .child
            .try_wait()
            .with_context(|| format!("look after {}", self.name))?
        {
            Some(status) => bail!(self.ended(status)),
            None => Ok(()),
        }
    }

    /// Stops it and waits until it is gone.
    pub fn stop(&mut self) {
        if self.child.try_wait().is_ok_and(|status| status.is_some()) {
            return;
        }
        if !self.grace.is_zero() {
            self.signal(Signal::TERM);
            let until = Instant::now() + self.grace;
            while Instant::now() < until {
                if self.child.try_wait().is_ok_and(|status| status.is_some()) {
                    return;
                }
                thread::sleep(Duration::from_millis(20));
            }
        }
        // Both fail only when it is gone already.
        drop(self.child.kill());
        drop(self.child.wait());
    }

    fn signal(&self, signal: Signal) {
        if let Some(pid) = i32::try_from(self.child.id()).ok().and_then(Pid::from_raw) {
            // It fails only when the process is gone already.
            let _gone = kill_process(pid, signal);
        }
    }

    fn ended(&self, status: ExitStatus) -> String {
        format!(
            "{} ended ({status}); the end of {}:\n{}",
            self.name,
            self.log.display(),
            tail(&self.log)
        )
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        self.stop();
    }
}

fn spawn(command: Command) -> io::Result<Child> {
    let (reply, answer) = mpsc::channel();
    let sent = SPAWNER
        .lock()
        .unwrap_or_else(PoisonError::into_inner)
        .send((command, reply));
    sent.map_err(|_| io::Error::other("the spawning thread is gone"))?;
    answer
        .recv()
        .map_err(|_| io::Error::other("the spawning thread is gone"))?
}

/// Whether a process runs; one that ended and that nobody has asked after is not alive.
pub fn is_alive(pid: u32) -> bool {
    fs::read_to_string(format!("/proc/{pid}/stat")).is_ok_and(|stat| !stat.contains(") Z "))
}

/// The last lines of a log, for an error message.
pub fn tail(log: &Path) -> String {
    const LINES: usize = 12;
    const COLUMNS: usize = 400;
    let text = match fs::read(log) {
        Ok(bytes) => String::from_utf8_lossy(&bytes).into_owned(),
        Err(error) => return format!("  (no log: {error})"),
    };
    let lines: Vec<&str> = text.lines().collect();
    let shown = lines.iter().skip(lines.len().saturating_sub(LINES));
    shown
        .map(|line| format!("  {}", line.chars().take(COLUMNS).collect::<String>()))
        .collect::<Vec<_>>()
        .join("\n")
}

/// Runs a command to its end; an error carries what it printed.
pub fn run(command: &mut Command) -> Result<Output> {
    let shown = show(command);
    let output = foreground::output(command.stdin(Stdio::null())).with_context(|| format!("run {shown}"))?;
    if !output.status.success() {
        let mut said = String::from_utf8_lossy(&output.stderr).into_owned();
        if said.trim().is_empty() {
            said = String::from_utf8_lossy(&output.stdout).into_owned();
        }
        bail!("{shown} failed ({}):\n{}", output.status, said.trim_end());
    }
    Ok(output)
}

/// Runs a command to its end and gives what it printed on stdout, without the white space around it.
pub fn read(command: &mut Command) -> Result<String> {
    let output = run(command)?;
    Ok(String::from_utf8_lossy(&output.stdout).trim().to_owned())
}

/// Like [`read`], for commands that take minutes: `step` shows the last line of what they say on stderr.
pub fn read_shown(command: &mut Command, step: &Step) -> Result<String> {
    let shown = show(command);
    command
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped());
    foreground::attend(command, |child| watch(child, &shown, step)).with_context(|| format!("run {shown}"))?
}

/// Shows what a child says until it has ended.
fn watch(mut child: Child, shown: &str, step: &Step) -> Result<String> {
    const KEPT: usize = 40;
    let (Some(mut out), Some(err)) = (child.stdout.take(), child.stderr.take()) else {
        bail!("{shown} has no pipes")
    };
    let output = thread::spawn(move || {
        let mut text = Vec::new();
        out.read_to_end(&mut text).map(|_| text)
    });
    let (sender, lines) = mpsc::channel();
    thread::spawn(move || {
        let mut lines = BufReader::new(err).split(b'\n').map_while(io::Result::ok);
        lines.try_for_each(|line| sender.send(String::from_utf8_lossy(&line).into_owned()))
    });
    let mut kept = VecDeque::new();
    loop {
        match lines.recv_timeout(Duration::from_secs(1)) {
            Ok(line) => {
                kept.push_back(line);
                kept.drain(..kept.len().saturating_sub(KEPT));
            }
            Err(mpsc::RecvTimeoutError::Timeout) => {}
            Err(mpsc::RecvTimeoutError::Disconnected) => break,
        }
        step.doing(kept.back().map_or("working", |line| line.trim()));
    }
    let text = output
        .join()
        .map_err(|_| anyhow!("reading what {shown} says panicked"))??;
    let status = child.wait()?;
    if !status.success() {
        bail!("{shown} failed ({status}):\n{}", Vec::from(kept).join("\n"));
    }
    Ok(String::from_utf8_lossy(&text).trim().to_owned())
}

fn show(command: &Command) -> String {
    let words = std::iter::once(command.get_program()).chain(command.get_args());
    words
        .map(|word| word.to_string_lossy().into_owned())
        .collect::<Vec<_>>()
        .join(" ")
}

/// Cargo in our source tree, as if we had not been started by cargo: what `cargo run` sets would rebuild crates that
/// look at it.
pub fn cargo() -> Command {
    let mut command = Command::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    command.current_dir(crate::cache::workspace());
    for (name, _) in std::env::vars_os() {
        if name.to_string_lossy().starts_with("CARGO_PKG_") || name == "CARGO_MANIFEST_DIR" {
            command.env_remove(name);
        }
    }
    command
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::progress::Progress;

    #[test]
    fn a_child_outlives_the_thread_that_asked_for_it_and_ends_with_its_handle() {
        let folder = tempfile::tempdir().unwrap();
        let log = folder.path().join("log");
        let asked = thread::spawn(move || Process::start("sleep", Path::new("sleep"), ["60"], &[], &log).unwrap());
        let mut process = asked.join().unwrap();
        thread::sleep(Duration::from_millis(200));
        process.check().unwrap();
        let pid = process.id();
        assert!(is_alive(pid));
        drop(process);
        assert!(!is_alive(pid));
    }

    #[test]
    fn an_ended_child_is_reported_with_the_end_of_its_log() {
        let folder = tempfile::tempdir().unwrap();
        let log = folder.path().join("log");
        let script = "for i in $(seq 40); do echo line $i; done; exit 3";
        let mut process = Process::start("talker", Path::new("sh"), ["-c", script], &[], &log).unwrap();
        let until = Instant::now() + Duration::from_secs(20);
        let error = loop {
            if let Err(error) = process.check() {
                break error.to_string();
            }
            assert!(Instant::now() < until, "it never ended");
            thread::sleep(Duration::from_millis(20));
        };
        assert!(error.contains("talker ended (exit status: 3)"), "{error}");
        assert!(error.contains("line 40") && !error.contains("line 20\n"), "{error}");
    }

    #[test]
    fn a_shown_command_gives_its_stdout_and_fails_with_its_last_words() {
        let step = Progress::silent().step("talk");
        let talk = "for i in $(seq 100); do echo noise $i >&2; done; echo result";
        assert_eq!(
            read_shown(Command::new("sh").args(["-c", talk]), &step).unwrap(),
            "result"
        );
        let failing = format!("{talk}; exit 5");
        let error = read_shown(Command::new("sh").args(["-c", &failing]), &step)
            .unwrap_err()
            .to_string();
        assert!(
            error.contains("exit status: 5") && error.contains("noise 100"),
            "{error}"
        );
        assert!(!error.contains("noise 60\n"), "{error}");
    }

    #[test]
    fn a_failed_command_says_what_it_printed() {
        let error = run(Command::new("sh").args(["-c", "echo no such thing >&2; exit 4"]))
            .unwrap_err()
            .to_string();
        assert!(
            error.contains("exit status: 4") && error.contains("no such thing"),
            "{error}"
        );
    }
}
