//! `ModelOptimization`: observe, plan, apply.
//!
//! `observe` reads live and never decides, `plan` decides and never reads, `apply` writes and never decides.

pub mod gates;
pub mod job;
pub mod observed;
pub mod results;
pub mod steps;
