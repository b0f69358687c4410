//! The worker: makes and measures optimized models. Links ONNX Runtime, never a Kubernetes client.

pub mod calibrate;
pub mod data;
pub mod failure;
pub mod layout;
mod mapped;
pub mod onnx;
pub mod passes;
pub mod session;
pub mod storage;
