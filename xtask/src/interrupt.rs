//! Ctrl-C and `kill` end a command in order: what it holds is dropped, and so stopped, before the process exits.

use std::{future::Future, time::Duration};

use anyhow::{Context, Result, bail};
use rustix::process::Signal;
use tokio::signal::unix::{SignalKind, signal};

use crate::foreground::Foreground;

/// How long a child may take to end after an interrupt.
const GRACE: Duration = Duration::from_secs(5);

/// Runs `work` until it ends or somebody interrupts; then `work` is dropped, with everything it started.
pub async fn or_interrupted<T>(work: impl Future<Output = Result<T>>) -> Result<T> {
    tokio::select! {
        result = work => result,
        name = requested() => bail!("interrupted by {}", name?),
    }
}

/// The same for work that waits for children on a thread of its own: the child is stopped, no other starts, and what `work` holds is
/// dropped as it returns.
pub async fn or_interrupted_thread<T: Send + 'static>(work: impl FnOnce() -> Result<T> + Send + 'static) -> Result<T> {
    let foreground = Foreground::default();
    let mut thread = tokio::task::spawn_blocking({
        let foreground = foreground.clone();
        move || foreground.enter(work)
    });
    let name = tokio::select! {
        result = &mut thread => return result.context("a thread panicked")?,
        name = requested() => name,
    };
    foreground.stop(Signal::INT);
    if tokio::time::timeout(GRACE, &mut thread).await.is_err() {
        foreground.stop(Signal::KILL);
        drop(thread.await);
    }
    bail!("interrupted by {}", name?)
}

/// Waits for Ctrl-C or a request to end, and says which came.
pub async fn requested() -> Result<&'static str> {
    let mut interrupt = signal(SignalKind::interrupt())?;
    let mut terminate = signal(SignalKind::terminate())?;
    let mut hangup = signal(SignalKind::hangup())?;
    Ok(tokio::select! {
        _ = interrupt.recv() => "Ctrl-C",
        _ = terminate.recv() => "SIGTERM",
        _ = hangup.recv() => "SIGHUP",
    })
}
