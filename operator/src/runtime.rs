//! One life of the operator: clients, key, server, election, controllers, and an orderly end. Decides the order and nothing else.

use std::process::ExitCode;
use std::sync::Arc;
use std::time::Duration;

use tokio::net::TcpListener;
use tokio::signal::unix::{SignalKind, signal};
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use crate::config::Config;
use crate::context::Context;
use crate::inventory::{self, Caches};
use crate::leader::decide::Terms;
use crate::leader::fence::Fence;
use crate::leader::{Elector, LEASE};
use crate::server::{self, Parts};
use crate::{client, guard, keygen, optimization, promotion};

/// Longest wait for reconciles under way; shorter than a pod's grace period.
const DRAIN: Duration = Duration::from_secs(20);

/// How the process ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum End {
    Asked,
    Broken,
}

/// Runs until a signal, a lost lease, or the end of something that should never end.
///
/// # Errors
/// When it can't start: no cluster, no key, no port.
pub async fn run(config: Config) -> anyhow::Result<ExitCode> {
    let stop = stop_on_signals()?;
    let cluster = client::configure(kube::Config::infer().await?);
    let fence = if config.leader_elect {
        Fence::closed()
    } else {
        Fence::open()
    };
    let kube = client::fenced(cluster.clone(), &fence)?;
    let key = keygen::read(&kube, &config.namespace, &config.signing_secret).await?;
    tracing::info!(
        version = env!("CARGO_PKG_VERSION"),
        key = key.public().id(),
        namespace = config.namespace,
        "starting"
    );
    let ctx = Context::new(kube, config, key);
    let caches = Arc::new(Caches::default());
    let listener = TcpListener::bind(ctx.config.listen).await?;

    // The server outlives the rest, so that probes and scrapes see the drain.
    let serving = CancellationToken::new();
    let parts = Parts {
        ctx: Arc::clone(&ctx),
        caches: Arc::clone(&caches),
        fence: fence.clone(),
    };
    let server = tokio::spawn(server::serve(listener, parts, serving.clone()));
    let watching = tokio::spawn(inventory::watch::run(Arc::clone(&ctx), caches, serving.clone()));

    let end = lead(&ctx, client::plain(cluster)?, fence, &stop).await;
    serving.cancel();
    watching.await?;
    server.await??;
    Ok(match end {
        End::Asked => ExitCode::SUCCESS,
        End::Broken => ExitCode::FAILURE,
    })
}

/// Waits for the lease where there is one, works while it is held, and gives it back when all work has ended.
async fn lead(ctx: &Arc<Context>, client: kube::Client, fence: Fence, stop: &CancellationToken) -> End {
    if !ctx.config.leader_elect {
        return work(ctx, stop, std::future::pending()).await;
    }
    let (namespace, identity) = (&ctx.config.namespace, &ctx.config.pod_name);
    let mut elector = Elector::new(client, namespace, LEASE, identity, Terms::default(), fence);
    if !elector.acquire(stop).await {
        return End::Asked;
    }
    // Renewed until the work has ended, not merely until it was asked to end.
    let working = CancellationToken::new();
    let (lost, is_lost) = tokio::sync::oneshot::channel();
    let holding = tokio::spawn({
        let working = working.clone();
        async move {
            if let Err(error) = elector.hold(&working).await {
                tracing::error!(%error, "exiting: another may lead already");
                // The receiver is gone only when the work has ended by itself.
                let _ = lost.send(());
                return None;
            }
            Some(elector)
        }
    });
    let end = work(ctx, stop, async {
        if is_lost.await.is_err() {
            std::future::pending::<()>().await;
        }
    })
    .await;
    working.cancel();
    if let Ok(Some(elector)) = holding.await
        && let Err(error) = elector.release().await
    {
        tracing::warn!(
            reason = error.reason(),
            error = error.message(),
            "the lease was not given back; it runs out by itself"
        );
    }
    end
}

/// Runs guard and controllers until `stop`, `lost`, or the first of them ends by itself.
async fn work(ctx: &Arc<Context>, stop: &CancellationToken, lost: impl Future<Output = ()>) -> End {
    let ending = CancellationToken::new();
    let mut tasks: JoinSet<&'static str> = JoinSet::new();
    let task = |name: &'static str, future: std::pin::Pin<Box<dyn Future<Output = ()> + Send>>| async move {
        future.await;
        name
    };
    tasks.spawn(task("guard", Box::pin(guard::run(Arc::clone(ctx), ending.clone()))));
    let shutdown = || ending.clone().cancelled_owned();
    tasks.spawn(task(
        "optimization",
        Box::pin(optimization::run(Arc::clone(ctx), shutdown())),
    ));
    tasks.spawn(task("promotion", Box::pin(promotion::run(Arc::clone(ctx), shutdown()))));
    let end = tokio::select! {
        () = stop.cancelled() => End::Asked,
        () = lost => exit_at_once(),
        ended = tasks.join_next() => {
            tracing::error!(task = ?ended, "a task ended that never should");
            End::Broken
        }
    };
    ending.cancel();
    let drained = tokio::time::timeout(DRAIN, async { while tasks.join_next().await.is_some() {} }).await;
    if drained.is_err() {
        tracing::warn!(limit = ?DRAIN, "reconciles under way were cut off");
        tasks.shutdown().await;
    }
    end
}

/// Reconciles under way can't be stopped otherwise, and one of them may be about to write.
#[expect(clippy::exit, reason = "a lost lease must end every task at this very moment")]
fn exit_at_once() -> End {
    std::process::exit(1)
}

fn stop_on_signals() -> std::io::Result<CancellationToken> {
    let stop = CancellationToken::new();
    let (mut terminate, mut interrupt) = (signal(SignalKind::terminate())?, signal(SignalKind::interrupt())?);
    tokio::spawn({
        let stop = stop.clone();
        async move {
            tokio::select! {
                _ = terminate.recv() => {}
                _ = interrupt.recv() => {}
            }
            tracing::info!("ending as asked");
            stop.cancel();
        }
    });
    Ok(stop)
}
