//! Logs: JSON for machines or lines for people, filtered as `RUST_LOG` says. Decides nothing about what is logged.

use std::io::IsTerminal as _;

use clap::{Args, ValueEnum};
use tracing_subscriber::EnvFilter;

/// How the process logs.
#[derive(Args, Clone, Debug)]
pub struct Telemetry {
    /// Filter as in `RUST_LOG`: `info`, or `info,kube=debug`.
    #[arg(long, env = "RUST_LOG", default_value = "info", global = true)]
    pub log: String,
    /// Default: lines on a terminal, JSON elsewhere.
    #[arg(long, env = "ASSAYER_LOG_FORMAT", value_enum, global = true)]
    pub log_format: Option<Format>,
}

/// Shape of a log record.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Format {
    /// One JSON object a line.
    Json,
    /// For people.
    Pretty,
}

/// Starts logging to standard error. Call it once.
///
/// # Errors
/// When the filter can't be read, or logging was started before.
pub fn start(settings: &Telemetry) -> anyhow::Result<()> {
    let filter = EnvFilter::try_new(&settings.log).map_err(|error| {
        anyhow::anyhow!(
            "--log `{}` is not a filter such as info,kube=debug: {error}",
            settings.log
        )
    })?;
    let fallback = if std::io::stderr().is_terminal() {
        Format::Pretty
    } else {
        Format::Json
    };
    let logs = tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(std::io::stderr);
    let started = match settings.log_format.unwrap_or(fallback) {
        Format::Json => logs.json().flatten_event(true).try_init(),
        Format::Pretty => logs.try_init(),
    };
    started.map_err(|error| anyhow::anyhow!("logging can't be started: {error}"))
}
