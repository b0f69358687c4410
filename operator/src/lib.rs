//! The operator: reconciles `ModelOptimization`, `ModelPromotion` and `PromotionPolicy`, and shows the runtime inventory.
//!
//! Each kind is observe -> plan -> apply: `observe` reads and never decides, `plan` decides and never reads, `apply` writes and never
//! decides. The operator never links ONNX Runtime and holds no storage credentials.

pub mod backoff;
pub mod clock;
pub mod config;
pub mod context;
pub mod error;
pub mod events;
pub mod evidence;
pub mod optimization;
pub mod promotion;
pub mod status;
pub mod targets;

pub use context::Context;
pub use error::Error;
