//! Ctrl-C and `kill` end a command in order: what it holds is dropped, and so stopped, before the process exits.

use std::future::Future;

use anyhow::{Result, bail};
use tokio::signal::unix::{SignalKind, signal};

/// Runs `work` until it ends or somebody interrupts; then `work` is dropped, with everything it started.
pub async fn or_interrupted<T>(work: impl Future<Output = Result<T>>) -> Result<T> {
    tokio::select! {
        result = work => result,
        name = requested() => bail!("interrupted by {}", name?),
    }
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
