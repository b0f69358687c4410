//! What can only be seen on a real API server or a whole node, and what holds for the tree itself. One binary, so that it links once.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    reason = "a test that can't go on has failed"
)]

mod admission;
mod argocd;
mod chart;
mod conformance;
mod crds;
mod installed;
mod inventory;
mod journey;
mod leader;
mod monitoring;
mod optimization;
mod promotion;
mod rights;
mod tidy;
