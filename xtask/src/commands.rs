//! `cargo xtask cluster`: the local cluster for people. Decides what is printed; the cluster itself is `cluster`'s.

use std::{
    fs::File,
    io::Write,
    process::{Command, Stdio},
    time::{Duration, Instant},
};

use anyhow::{Context, Result, bail};
use clap::{Args, Subcommand};
use rustix::process::{Pid, Signal, kill_process};

use crate::{
    cache,
    cluster::{self, Cluster, Running},
    interrupt, process,
    progress::Progress,
    tools::go,
};

const DOWN_WITHIN: Duration = Duration::from_mins(1);

/// What to do with the local cluster.
#[derive(Debug, Subcommand)]
pub enum ClusterCommand {
    /// Start it and keep it until Ctrl-C
    Up(Up),
    /// Stop it, and remove what a killed one has left
    Down,
    /// Say whether it runs, and show its node and pods
    Status,
    /// Print what a shell needs to use it: `eval "$(cargo xtask cluster env)"`
    Env,
}

/// How to start it.
#[derive(Debug, Args)]
pub struct Up {
    /// Leave it running in the background; `cargo xtask cluster down` stops it
    #[arg(long)]
    detach: bool,
}

/// Does it.
pub async fn run(command: &ClusterCommand, progress: &Progress) -> Result<()> {
    match command {
        ClusterCommand::Up(up) if up.detach => detach(progress).await,
        ClusterCommand::Up(_) => up(progress).await,
        ClusterCommand::Down => down(progress).await,
        ClusterCommand::Status => status(progress),
        ClusterCommand::Env => env(),
    }
}

async fn up(progress: &Progress) -> Result<()> {
    let mut cluster = interrupt::or_interrupted(Cluster::start(progress)).await?;
    say_how_to_use(&cluster.running(), progress);
    progress.say(&format!(
        "logs: {}; Ctrl-C stops it and removes everything",
        cluster.logs().display()
    ));
    let ended = tokio::select! {
        signal = interrupt::requested() => signal.map(drop),
        failed = watch(&mut cluster) => failed,
    };
    let step = progress.step("stop the local cluster");
    drop(cluster);
    step.done("");
    ended
}

async fn watch(cluster: &mut Cluster) -> Result<()> {
    loop {
        cluster.check()?;
        tokio::time::sleep(Duration::from_secs(1)).await;
    }
}

fn say_how_to_use(running: &Running, progress: &Progress) {
    progress.say(&format!("export KUBECONFIG={}", running.kubeconfig.display()));
    progress.say(&format!("registry, over plain HTTP: {}", running.registry));
}

async fn detach(progress: &Progress) -> Result<()> {
    if let Some(running) = cluster::running()? {
        progress.say("it runs already");
        say_how_to_use(&running, progress);
        return Ok(());
    }
    let log = cache::folder("cluster")?.join("up.log");
    let output = File::create(&log).with_context(|| format!("create {}", log.display()))?;
    let mut command = Command::new(std::env::current_exe()?);
    command
        .args(["cluster", "up"])
        .stdin(Stdio::null())
        .stdout(output.try_clone()?)
        .stderr(output);
    // Not ours to take along when the terminal sends a Ctrl-C.
    std::os::unix::process::CommandExt::process_group(&mut command, 0);
    let mut child = command.spawn().context("start the cluster in the background")?;
    let step = progress.step("start the local cluster in the background");
    loop {
        if let Some(running) = cluster::running()?.filter(|running| running.pid == child.id()) {
            step.done(format!("process {}", child.id()));
            say_how_to_use(&running, progress);
            return Ok(());
        }
        if let Some(status) = child.try_wait()? {
            bail!(
                "it ended ({status}); the end of {}:\n{}",
                log.display(),
                process::tail(&log)
            );
        }
        tokio::time::sleep(Duration::from_millis(200)).await;
    }
}

async fn down(progress: &Progress) -> Result<()> {
    if let Some(running) = cluster::running()? {
        let step = progress.step(format!("ask process {} to stop its cluster", running.pid));
        let pid = i32::try_from(running.pid).ok().and_then(Pid::from_raw);
        kill_process(
            pid.context("the running cluster's process id is no process id")?,
            Signal::TERM,
        )?;
        let until = Instant::now() + DOWN_WITHIN;
        while cluster::is_running()? {
            if Instant::now() > until {
                bail!(
                    "process {} did not stop within {} s: kill it and try again",
                    running.pid,
                    DOWN_WITHIN.as_secs()
                );
            }
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
        step.done("");
    }
    cluster::clean_up(progress)
}

fn status(progress: &Progress) -> Result<()> {
    let Some(running) = cluster::running()? else {
        progress.say("no local cluster runs: `cargo xtask cluster up` starts one");
        return Ok(());
    };
    say_how_to_use(&running, progress);
    for resource in ["nodes", "pods"] {
        let mut kubectl = Command::new(go::path("kubectl")?);
        kubectl
            .arg("--kubeconfig")
            .arg(&running.kubeconfig)
            .args(["get", resource, "--all-namespaces", "-o", "wide"]);
        progress.say(&format!("{resource}:\n{}", process::read(&mut kubectl)?));
    }
    Ok(())
}

fn env() -> Result<()> {
    let running = cluster::running()?.context("no local cluster runs: `cargo xtask cluster up` starts one")?;
    let kubectl = go::folder_of("kubectl")?;
    let mut out = std::io::stdout().lock();
    writeln!(out, "export KUBECONFIG='{}'", running.kubeconfig.display())?;
    writeln!(out, "export ASSAYER_REGISTRY='{}'", running.registry)?;
    writeln!(out, "export PATH='{}':\"$PATH\"", kubectl.display())?;
    Ok(())
}
