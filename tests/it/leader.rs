//! Two candidates and one Lease on a real API server, with the rights that the chart gives: who leads, when the other follows.

use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use assayer_operator::leader::decide::Terms;
use assayer_operator::leader::fence::Fence;
use assayer_operator::leader::{Elector, LEASE};
use k8s_openapi::api::coordination::v1::Lease;
use kube::api::{Patch, PatchParams};
use kube::{Api, Client};
use serde_json::json;
use tokio_util::sync::CancellationToken;

use crate::installed::{Installed, SYSTEM};

const TERMS: Terms = Terms {
    lease: Duration::from_secs(4),
    renew: Duration::from_secs(3),
    retry: Duration::from_millis(400),
};

struct Candidate {
    elector: Elector,
    fence: Fence,
}

fn candidate(client: &Client, name: &str) -> Candidate {
    let fence = Fence::closed();
    let elector = Elector::new(client.clone(), SYSTEM, LEASE, name, TERMS, fence.clone());
    Candidate { elector, fence }
}

async fn lease(client: &Client) -> Result<Lease> {
    Ok(Api::<Lease>::namespaced(client.clone(), SYSTEM).get(LEASE).await?)
}

fn holder(lease: &Lease) -> &str {
    lease
        .spec
        .as_ref()
        .and_then(|spec| spec.holder_identity.as_deref())
        .unwrap_or_default()
}

#[tokio::test]
async fn a_killed_leader_is_followed_after_its_term_and_never_earlier() -> Result<()> {
    let installed = Installed::start(&[]).await?;
    let operator = installed.operator().await?;
    let never = CancellationToken::new();

    let mut a = candidate(&operator, "a");
    ensure!(a.elector.acquire(&never).await, "the first candidate leads at once");
    let a_fence = a.fence.clone();
    let holding = tokio::spawn({
        let never = never.clone();
        async move { a.elector.hold(&never).await }
    });

    let b = candidate(&operator, "b");
    let b_fence = b.fence.clone();
    let following = tokio::spawn({
        let never = never.clone();
        let mut b = b;
        async move {
            b.elector.acquire(&never).await;
            b
        }
    });
    // Longer than a term: a live leader keeps the lease, and the standby writes nothing.
    tokio::time::sleep(TERMS.lease + TERMS.retry * 3).await;
    ensure!(!holding.is_finished() && !following.is_finished());
    ensure!(a_fence.permits(Instant::now()) && !b_fence.permits(Instant::now()));
    ensure!(holder(&lease(&operator).await?) == "a");

    holding.abort();
    let killed = Instant::now();
    let mut both = false;
    while !following.is_finished() {
        let now = Instant::now();
        both |= a_fence.permits(now) && b_fence.permits(now);
        ensure!(killed.elapsed() < TERMS.lease * 5, "nobody followed");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    let took = killed.elapsed();
    ensure!(!both, "two processes could write at once");
    ensure!(
        took >= TERMS.lease.checked_sub(TERMS.retry * 2).context("terms")?,
        "took over after {took:?}"
    );
    let now = lease(&operator).await?;
    let spec = now.spec.clone().context("the lease has a spec")?;
    ensure!(holder(&now) == "b" && spec.lease_transitions == Some(1), "{spec:?}");

    // Given back, the successor need not wait for the term.
    following.await?.elector.release().await?;
    ensure!(!b_fence.permits(Instant::now()));
    ensure!(holder(&lease(&operator).await?).is_empty());
    let released = Instant::now();
    let mut c = candidate(&operator, "c");
    ensure!(c.elector.acquire(&never).await);
    ensure!(released.elapsed() < TERMS.lease / 2, "took {:?}", released.elapsed());
    Ok(())
}

#[tokio::test]
async fn a_leader_whose_lease_another_holds_has_lost_at_its_next_renewal() -> Result<()> {
    let installed = Installed::start(&[]).await?;
    let operator = installed.operator().await?;
    let never = CancellationToken::new();
    let mut a = candidate(&operator, "a");
    ensure!(a.elector.acquire(&never).await);

    // Somebody edits a label: the version moves, the name stays, and so does the leader.
    let leases = Api::<Lease>::namespaced(installed.admin.clone(), SYSTEM);
    let touch = json!({"metadata": {"labels": {"touched": "true"}}});
    leases
        .patch(LEASE, &PatchParams::default(), &Patch::Merge(&touch))
        .await?;
    let soon = CancellationToken::new();
    let stop = soon.clone();
    let timer = tokio::spawn(async move {
        tokio::time::sleep(TERMS.renew * 2).await;
        stop.cancel();
    });
    a.elector.hold(&soon).await?;
    timer.await?;
    ensure!(a.fence.permits(Instant::now()));

    let steal = json!({"spec": {"holderIdentity": "thief"}});
    leases
        .patch(LEASE, &PatchParams::default(), &Patch::Merge(&steal))
        .await?;
    let stolen = Instant::now();
    let lost = a.elector.hold(&never).await.expect_err("the lease is another's");
    ensure!(lost.to_string().contains("thief"), "{lost}");
    ensure!(stolen.elapsed() < TERMS.renew && !a.fence.permits(Instant::now()));

    // Whoever stands by is not fooled by a clock: the record's times lie far in the past, and the term is still waited for.
    let old =
        json!({"spec": {"renewTime": "1999-01-01T00:00:00.000000Z", "acquireTime": "1999-01-01T00:00:00.000000Z"}});
    leases
        .patch(LEASE, &PatchParams::default(), &Patch::Merge(&old))
        .await?;
    let began = Instant::now();
    let mut b = candidate(&operator, "b");
    ensure!(b.elector.acquire(&never).await);
    ensure!(began.elapsed() >= TERMS.lease, "took over after {:?}", began.elapsed());
    Ok(())
}
