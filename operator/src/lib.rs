//! The operator: reconciles `ModelOptimization`, `ModelPromotion` and `PromotionPolicy`, and shows the runtime inventory.
//!
//! Each kind is observe -> plan -> apply: `observe` reads and never decides, `plan` decides and never reads, `apply` writes and never
//! decides. The operator never links ONNX Runtime and holds no storage credentials.

pub mod backoff;
pub mod client;
pub mod clock;
pub mod config;
pub mod context;
pub mod error;
pub mod events;
pub mod evidence;
pub mod guard;
pub mod health;
pub mod inventory;
pub mod keygen;
pub mod leader;
pub mod metrics;
pub mod optimization;
pub mod promotion;
pub mod runtime;
pub mod server;
pub mod status;
pub mod targets;
pub mod telemetry;
pub mod unreadable;

pub use context::Context;
pub use error::Error;
