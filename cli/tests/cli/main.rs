//! The program as its users run it. One binary, so that it links once.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    reason = "a test that can't go on has failed"
)]

mod approve;
mod evidence;
mod optimize;
mod registry;
mod scene;
mod usage;
