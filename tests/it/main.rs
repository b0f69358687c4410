//! What can only be seen on a real API server: the chart, its policies, the published schemas. One binary, so that it links once.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    reason = "a test that can't go on has failed"
)]

mod admission;
mod argocd;
mod chart;
mod crds;
mod installed;
mod inventory;
mod leader;
mod monitoring;
mod promotion;
mod rights;
