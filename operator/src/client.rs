//! Clients of the API server: no retries of their own, bounded connects and silences, and writes behind the fence.

use std::time::Duration;

use axum::http::{HeaderValue, header};
use kube::client::ClientBuilder;
use kube::{Api, Config};

use crate::error::Error;
use crate::leader::fence::Fence;

/// Longest wait for one call.
const CALL_LIMIT: Duration = Duration::from_secs(20);

/// Longest time to open a connection.
const CONNECT: Duration = Duration::from_secs(5);
/// Longest silence in an answer. Watches are not that silent: the server sends bookmarks about every minute.
const SILENCE: Duration = Duration::from_mins(3);
const USER_AGENT: &str = concat!("assayer-operator/", env!("CARGO_PKG_VERSION"));

/// Sets what every client of the operator has in common. Retries are off: each failure is read anew and decided anew.
pub fn configure(mut config: Config) -> Config {
    config.default_retry = false;
    config.connect_timeout = Some(CONNECT);
    config.read_timeout = Some(SILENCE);
    config.write_timeout = Some(SILENCE);
    config.reset_reader_on_write = true;
    config
        .headers
        .push((header::USER_AGENT, HeaderValue::from_static(USER_AGENT)));
    config
}

/// A client for the lease alone.
///
/// # Errors
/// When TLS or credentials can't be set up.
pub fn plain(config: Config) -> kube::Result<kube::Client> {
    Ok(ClientBuilder::try_from(config)?.build())
}

/// A client whose writes pass only while `fence` permits.
///
/// # Errors
/// When TLS or credentials can't be set up.
pub fn fenced(config: Config, fence: &Fence) -> kube::Result<kube::Client> {
    Ok(ClientBuilder::try_from(config)?.with_layer(fence).build())
}

/// Objects of `namespace`, or of every one.
pub fn scoped<K>(client: &kube::Client, namespace: Option<&str>) -> Api<K>
where
    K: kube::Resource<Scope = kube::core::NamespaceResourceScope>,
    K::DynamicType: Default,
{
    match namespace {
        Some(namespace) => Api::namespaced(client.clone(), namespace),
        None => Api::all(client.clone()),
    }
}

/// Waits for `call` as long as one call may take.
///
/// # Errors
/// When it takes longer; whether it took effect is unknown then.
pub async fn limited<T>(what: &str, call: impl Future<Output = T>) -> Result<T, Error> {
    tokio::time::timeout(CALL_LIMIT, call)
        .await
        .map_err(|_| Error::Timeout {
            what: what.to_owned(),
            limit: CALL_LIMIT,
        })
}
