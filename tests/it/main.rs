//! What can only be seen on a real API server: the chart, its policies, the published schemas. One binary, so that it links once.

mod admission;
mod argocd;
mod chart;
mod crds;
mod installed;
mod inventory;
mod leader;
