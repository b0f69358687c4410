//! The chart's admission policies on a real API server: who may do what, and with which words the others are refused.

mod approvals;
mod authors;
mod guard;
mod scene;
mod status;
mod workers;
