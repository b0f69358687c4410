//! Lets writes through only while this process may lead. A layer of the client, so that no controller can forget to ask.
//!
//! It never talks to the cluster: it compares the monotonic clock with the end of the term that the lease's last accepted write began.
//! A process that was paused beyond its term finds its writes refused even before it learns that another took over.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::task::{Context, Poll};
use std::time::{Duration, Instant};

use axum::http::{Method, Request};
use futures::future::{Either, Ready, ready};
use tower::{BoxError, Layer, Service};

/// A write that was not sent.
#[derive(Debug, thiserror::Error)]
#[error("the lease is not held: {0} was not sent")]
pub struct NotLeading(Method);

/// Until when writes may be sent. Cheap to clone; all clones are one fence.
#[derive(Clone, Debug)]
pub struct Fence {
    epoch: Instant,
    until: Arc<AtomicU64>,
}

impl Fence {
    /// Closed until [`Fence::open_until`].
    pub fn closed() -> Self {
        Self {
            epoch: Instant::now(),
            until: Arc::new(AtomicU64::new(0)),
        }
    }

    /// Open for good: for a process that runs without a lease.
    pub fn open() -> Self {
        let fence = Self::closed();
        fence.until.store(u64::MAX, Ordering::SeqCst);
        fence
    }

    /// Opens until the monotonic time `until`, or closes when there is none.
    pub fn open_until(&self, until: Option<Instant>) {
        let millis = until.map_or(0, |until| self.millis(until));
        self.until.store(millis, Ordering::SeqCst);
    }

    /// Whether a write may be sent at `now`.
    pub fn permits(&self, now: Instant) -> bool {
        self.millis(now) < self.until.load(Ordering::SeqCst)
    }

    fn millis(&self, at: Instant) -> u64 {
        let since: Duration = at.saturating_duration_since(self.epoch);
        u64::try_from(since.as_millis()).unwrap_or(u64::MAX - 1)
    }
}

impl<S> Layer<S> for Fence {
    type Service = Fenced<S>;

    fn layer(&self, inner: S) -> Fenced<S> {
        Fenced {
            inner,
            fence: self.clone(),
        }
    }
}

/// A client's stack behind a [`Fence`].
#[derive(Clone, Debug)]
pub struct Fenced<S> {
    inner: S,
    fence: Fence,
}

impl<S, B> Service<Request<B>> for Fenced<S>
where
    S: Service<Request<B>, Error = BoxError>,
{
    type Response = S::Response;
    type Error = BoxError;
    type Future = Either<S::Future, Ready<Result<S::Response, BoxError>>>;

    fn poll_ready(&mut self, context: &mut Context<'_>) -> Poll<Result<(), BoxError>> {
        self.inner.poll_ready(context)
    }

    fn call(&mut self, request: Request<B>) -> Self::Future {
        let reads = matches!(*request.method(), Method::GET | Method::HEAD | Method::OPTIONS);
        if reads || self.fence.permits(Instant::now()) {
            return Either::Left(self.inner.call(request));
        }
        Either::Right(ready(Err(NotLeading(request.method().clone()).into())))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use tower::{ServiceExt as _, service_fn};

    async fn passes(fence: &Fence, method: Method) -> bool {
        let stack = fence.layer(service_fn(|_: Request<()>| ready(Ok::<_, BoxError>(()))));
        let request = Request::builder().method(method).body(()).unwrap();
        stack.oneshot(request).await.is_ok()
    }

    #[tokio::test]
    async fn only_reads_pass_a_closed_fence() {
        let fence = Fence::closed();
        for (method, read) in [
            (Method::GET, true),
            (Method::POST, false),
            (Method::PUT, false),
            (Method::PATCH, false),
            (Method::DELETE, false),
        ] {
            assert_eq!(passes(&fence, method.clone()).await, read, "{method}");
            assert!(passes(&Fence::open(), method).await);
        }
        fence.open_until(Some(Instant::now() + Duration::from_mins(1)));
        assert!(passes(&fence, Method::PATCH).await);
        fence.open_until(None);
        assert!(!passes(&fence, Method::PATCH).await);
    }

    #[test]
    fn the_end_of_the_term_closes_it_without_anybody_acting() {
        let fence = Fence::closed();
        let start = Instant::now();
        fence.open_until(Some(start + Duration::from_secs(10)));
        assert!(fence.permits(start + Duration::from_secs(9)));
        assert!(!fence.permits(start + Duration::from_secs(10)));
    }
}
