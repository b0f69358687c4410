//! `ModelPromotion`: observe, plan, apply.
//!
//! `observe` reads live and never decides, `plan` decides and never reads, `apply` writes and never decides. Policies and approvals are
//! pure tables beside them.

pub mod approvals;
pub mod ask;
pub mod chain;
pub mod gates;
pub mod observed;
pub mod phase;
pub mod plan;
pub mod policy;
pub mod rejudge;
pub mod request;
pub mod source;

#[cfg(test)]
pub(crate) mod fixtures;
