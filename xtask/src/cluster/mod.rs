//! A real Kubernetes on this machine, from programs in the cache: a bare control plane for tests, or a whole node.

mod audit;
mod containerd;
mod control_plane;
mod kubeconfig;
mod leftovers;
mod network;
mod node;
mod pki;
mod place;
mod ports;
mod prometheus;
mod registry;
mod whole;

pub use control_plane::{ControlPlane, ControlPlaneOptions, ISSUER, SERVICE_ADDRESS, SERVICE_RANGE};
pub use pki::{Authority, Files, Identity};
pub use prometheus::{Prometheus, promtool};
pub use registry::Registry;
pub use whole::{Cluster, Running, clean_up, is_running, running};
