//! The worker: makes and measures optimized models. Links ONNX Runtime, never a Kubernetes client.

pub mod calibrate;
mod mapped;
pub mod onnx;
pub mod optimize;
pub mod passes;
pub mod session;

#[cfg(test)]
mod testing;
