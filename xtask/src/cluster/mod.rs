//! A real Kubernetes on this machine, from programs in the cache: a bare control plane for tests, and a whole node.

pub mod control_plane;
mod kubeconfig;
mod pki;
mod ports;

pub use control_plane::{ControlPlane, ControlPlaneOptions};
pub use pki::{Authority, Files, Identity};
