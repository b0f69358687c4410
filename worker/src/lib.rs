//! The worker: makes and measures optimized models. Links ONNX Runtime, never a Kubernetes client.
//!
//! `pipeline` has one file a container; `storage`, `data`, `run`, `score` and `optimize` are the rooms it goes through.

pub mod calibrate;
pub mod command;
pub mod data;
mod deadline;
pub mod failure;
pub mod layout;
mod made_up;
mod mapped;
pub mod onnx;
pub mod optimize;
pub mod passes;
pub mod pipeline;
pub mod report;
pub mod run;
mod sandbox;
mod score;
pub mod session;
pub mod storage;
mod threads;

#[cfg(test)]
mod testing;
