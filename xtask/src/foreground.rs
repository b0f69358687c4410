//! Children that a command waits for, stopped with all that they have started when somebody interrupts. Decides which process group they
//! are in and when they end; never what they do.

use std::{
    cell::RefCell,
    io,
    os::unix::process::CommandExt as _,
    process::{Child, Command, Output, Stdio},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use rustix::process::{Pid, Signal, kill_process_group};

thread_local! {
    /// Whose work this thread does; none: its children stay in our group, where a Ctrl-C at the terminal reaches them by itself.
    static HERE: RefCell<Option<Foreground>> = const { RefCell::new(None) };
}

/// Work that can be stopped: one thread, which waits for one child at a time.
#[derive(Clone, Debug, Default)]
pub struct Foreground(Arc<Mutex<State>>);

#[derive(Debug, Default)]
struct State {
    /// It leads a process group of its own.
    child: Option<Pid>,
    stopped: bool,
}

impl Foreground {
    /// Does `work`; what this thread waits for meanwhile can be stopped.
    pub fn enter<T>(&self, work: impl FnOnce() -> T) -> T {
        let before = HERE.replace(Some(self.clone()));
        let result = work();
        HERE.set(before);
        result
    }

    /// Sends `signal` to the child and all that it has started, and lets no other start. Asked again, it signals again.
    pub fn stop(&self, signal: Signal) {
        let mut state = self.state();
        state.stopped = true;
        if let Some(group) = state.child {
            // It fails only when the child is gone already.
            let _gone = kill_process_group(group, signal);
        }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn start(&self, command: &mut Command) -> io::Result<Child> {
        let mut state = self.state();
        if state.stopped {
            return Err(stopped());
        }
        let child = command.process_group(0).spawn()?;
        state.child = i32::try_from(child.id()).ok().and_then(Pid::from_raw);
        Ok(child)
    }
}

/// Starts a child and has `wait` wait for it to its end.
pub fn attend<T>(command: &mut Command, wait: impl FnOnce(Child) -> T) -> io::Result<T> {
    let Some(here) = HERE.with_borrow(Clone::clone) else {
        return Ok(wait(command.spawn()?));
    };
    let result = wait(here.start(command)?);
    here.state().child = None;
    Ok(result)
}

/// Starts a child, waits for its end, and gives what it has printed.
pub fn output(command: &mut Command) -> io::Result<Output> {
    command.stdout(Stdio::piped()).stderr(Stdio::piped());
    attend(command, Child::wait_with_output)?
}

/// An error if what this thread does was stopped: for those who wait for something else than a child.
pub fn check() -> io::Result<()> {
    let is_stopped = HERE.with_borrow(|here| here.as_ref().is_some_and(|here| here.state().stopped));
    if is_stopped { Err(stopped()) } else { Ok(()) }
}

fn stopped() -> io::Error {
    io::Error::other("interrupted")
}

#[cfg(test)]
mod tests {
    use std::{
        fs, thread,
        time::{Duration, Instant},
    };

    use super::*;
    use crate::process;

    #[test]
    fn a_child_is_stopped_with_what_it_has_started_and_no_other_starts() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("pid");
        let script = format!("sleep 600 & echo $! > {}.new; mv {0}.new {0}; wait", file.display());
        let foreground = Foreground::default();
        let work = thread::spawn({
            let foreground = foreground.clone();
            move || {
                foreground.enter(|| {
                    let status = output(Command::new("sh").args(["-c", &script])).unwrap().status;
                    let another = output(&mut Command::new("true")).unwrap_err().to_string();
                    (status, another, check().is_err())
                })
            }
        });
        let until = Instant::now() + Duration::from_secs(20);
        let wait = |done: &dyn Fn() -> bool| {
            while !done() {
                assert!(Instant::now() < until, "nothing happens");
                thread::sleep(Duration::from_millis(20));
            }
        };
        wait(&|| file.exists());
        let grandchild: u32 = fs::read_to_string(&file).unwrap().trim().parse().unwrap();
        assert!(process::is_alive(grandchild));
        foreground.stop(Signal::KILL);
        let (status, another, checked) = work.join().unwrap();
        assert!(!status.success() && another == "interrupted" && checked);
        wait(&|| !process::is_alive(grandchild));
        assert!(check().is_ok(), "this thread was not stopped");
    }
}
