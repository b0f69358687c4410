//! What the operator is told at start. Decides nothing; flags are checked where they are parsed.

use clap::Args;

/// Settings of one operator process.
#[derive(Args, Clone, Debug)]
pub struct Config {
    /// Image of the workers, by digest: `registry/assayer-worker@sha256:…`.
    #[arg(long, env = "ASSAYER_WORKER_IMAGE", value_parser = image_by_digest)]
    pub worker_image: String,
    /// Registries (`host:port`) that workers speak to without TLS; may be given several times.
    #[arg(long = "plain-http", env = "ASSAYER_PLAIN_HTTP", value_delimiter = ',')]
    pub plain_http: Vec<String>,
    /// Namespace that the operator runs in: its lease and its signing key are there.
    #[arg(long, env = "POD_NAMESPACE", default_value = "assayer-system")]
    pub namespace: String,
    /// Name of the operator's own pod: the identity in the lease.
    #[arg(long, env = "POD_NAME", default_value = "assayer-operator")]
    pub pod_name: String,
    /// Watch only this namespace. Default: all.
    #[arg(long, env = "ASSAYER_WATCH_NAMESPACE")]
    pub watch_namespace: Option<String>,
    /// Secret in the operator's namespace with `signing.key` (PKCS#8 PEM, ECDSA P-256) and `signing.pub`.
    #[arg(long, env = "ASSAYER_SIGNING_SECRET", default_value = "assayer-signing-key")]
    pub signing_secret: String,
    /// Wait for a lease before doing anything, and exit when it is lost.
    #[arg(long, env = "ASSAYER_LEADER_ELECT", default_value_t = false)]
    pub leader_elect: bool,
    /// Address of `/healthz`, `/readyz`, `/metrics` and `/inventory`.
    #[arg(long, env = "ASSAYER_LISTEN", default_value = "0.0.0.0:8080")]
    pub listen: std::net::SocketAddr,
    /// Don't insist that the admission policies are in force. Approvals then rest on this operator's own checks alone.
    #[arg(long, env = "ASSAYER_WITHOUT_GUARD", default_value_t = false)]
    pub without_guard: bool,
}

fn image_by_digest(text: &str) -> Result<String, String> {
    let digest = text
        .rsplit_once('@')
        .map(|(_, digest)| digest.parse::<assayer_crds::digest::Digest>());
    match digest {
        Some(Ok(_)) => Ok(text.to_owned()),
        _ => Err("must name an image by digest, as in registry/assayer-worker@sha256:<64 hex>".to_owned()),
    }
}
