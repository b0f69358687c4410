//! `scanner`: parses arguments, listens, loads the model meanwhile, and leaves when it is told to.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::{fs, io, thread};

use anyhow::{Context, Result};
use clap::{Parser, ValueEnum};
use ort::environment::Environment;
use scanner::features::Config;
use scanner::model::Model;
use scanner::server::Server;
use tokio::net::TcpListener;
use tokio::signal::unix::{SignalKind, signal};

/// Says what kind of file it is sent (POST /classify), with a model from a folder.
#[derive(Debug, Parser)]
#[command(version)]
struct Arguments {
    /// Folder that holds exactly one *.onnx, or that file.
    #[arg(long, env = "MODEL_PATH", default_value = "/models")]
    model: PathBuf,
    /// Configuration of the model: sizes and labels (config.min.json).
    #[arg(long, env = "MODEL_CONFIG", default_value = "/etc/scanner/config.min.json")]
    config: PathBuf,
    /// ONNX Runtime's shared library, 1.23 or newer.
    #[arg(long, env = "ORT_DYLIB_PATH", default_value = "/usr/lib/libonnxruntime.so")]
    onnxruntime: PathBuf,
    /// Address to listen on.
    #[arg(long, env = "LISTEN", default_value = "0.0.0.0:8080")]
    listen: String,
    /// Threads of one inference.
    #[arg(long, env = "THREADS", default_value_t = 1, value_parser = clap::value_parser!(u8).range(1..))]
    threads: u8,
    /// Largest file that is accepted, in bytes.
    #[arg(long, env = "MAX_BODY_BYTES", default_value_t = 16 << 20)]
    max_body_bytes: usize,
    /// How log lines look.
    #[arg(long, env = "LOG_FORMAT", value_enum, default_value_t = LogFormat::Json)]
    log_format: LogFormat,
}

#[derive(Clone, Copy, Debug, ValueEnum)]
enum LogFormat {
    Json,
    Pretty,
}

#[tokio::main]
async fn main() -> Result<()> {
    let arguments = Arguments::parse();
    let log = tracing_subscriber::fmt().with_writer(io::stderr);
    match arguments.log_format {
        LogFormat::Json => log.json().init(),
        LogFormat::Pretty => log.init(),
    }
    let listener = TcpListener::bind(&arguments.listen)
        .await
        .with_context(|| format!("listen on {}", arguments.listen))?;
    let mut terminate = signal(SignalKind::terminate()).context("watch SIGTERM")?;
    let mut interrupt = signal(SignalKind::interrupt()).context("watch SIGINT")?;
    // One environment a process, and it outlives every session.
    let runtime = runtime(&arguments.onnxruntime)?;
    let server = Server::new()?;
    tracing::info!(address = %listener.local_addr()?, model = %arguments.model.display(), "listening");

    let router = Arc::clone(&server).router(arguments.max_body_bytes);
    // A thread of its own: a model that takes long to load must not keep the process from leaving.
    thread::spawn(move || match load(&runtime, &arguments) {
        Ok(model) => {
            let digest = model.digest().clone();
            server.decide(Ok(model));
            tracing::info!(model_digest = %digest, "ready");
        }
        Err(error) => {
            let reason = format!("{error:#}");
            tracing::error!(reason, "not ready: the model is refused");
            server.decide(Err(reason));
        }
    });
    let leave = async move {
        let signal = tokio::select! { _ = terminate.recv() => "SIGTERM", _ = interrupt.recv() => "SIGINT" };
        tracing::info!(signal, "finishing open requests, then leaving");
    };
    axum::serve(listener, router)
        .with_graceful_shutdown(leave)
        .await
        .context("serve")
}

fn runtime(library: &Path) -> Result<Environment> {
    let library_name = || format!("load ONNX Runtime from {} (--onnxruntime)", library.display());
    Ok(ort::init_from(library)
        .with_context(library_name)?
        .with_telemetry(false)
        .build()?)
}

fn load(runtime: &Environment, arguments: &Arguments) -> Result<Model> {
    let config =
        fs::read(&arguments.config).with_context(|| format!("read {} (--config)", arguments.config.display()))?;
    let config = Config::parse(&config)?;
    Ok(Model::load(
        runtime,
        &arguments.model,
        config,
        usize::from(arguments.threads),
    )?)
}
