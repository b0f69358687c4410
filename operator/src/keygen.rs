//! Makes the signing Secret if there is none. Never changes one that exists: a new key would void all evidence.

use std::collections::BTreeMap;

use k8s_openapi::api::core::v1::Secret;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use kube::Api;
use kube::api::PostParams;

use crate::evidence::EvidenceError;
use crate::evidence::keys::{PRIVATE, PUBLIC, SigningKey};
use assayer_crds::names::FIELD_MANAGER;

/// A signing key that can't be made or used.
#[derive(Debug, thiserror::Error)]
pub enum KeyError {
    /// The API server could not be asked.
    #[error("could not {verb} Secret {namespace}/{name}")]
    Api {
        /// `read` or `create`.
        verb: &'static str,
        /// Namespace of the Secret.
        namespace: String,
        /// Name of the Secret.
        name: String,
        /// The client's error.
        #[source]
        source: Box<kube::Error>,
    },
    /// There is no Secret.
    #[error(
        "there is no Secret {namespace}/{name}: run `assayer-operator keygen --secret {name} --namespace {namespace}`"
    )]
    Missing {
        /// Namespace of the Secret.
        namespace: String,
        /// Name of the Secret.
        name: String,
    },
    /// The Secret has no such entry, or it is not text.
    #[error("Secret {namespace}/{name} has no text under {key}: it must hold a P-256 key as PKCS#8 PEM")]
    Entry {
        /// Namespace of the Secret.
        namespace: String,
        /// Name of the Secret.
        name: String,
        /// Name of the entry.
        key: &'static str,
    },
    /// The key can't be made, read or written.
    #[error(transparent)]
    Key(#[from] EvidenceError),
}

/// What `keygen` found or did.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Made {
    /// The Secret was created.
    Created,
    /// A usable one was there already.
    Kept,
}

/// Creates the Secret `name` with a new key pair, unless there is one. A Secret that exists and can't be used is an error, and is left
/// alone.
///
/// # Errors
/// When the API server refuses, or what exists is no P-256 key.
pub async fn ensure(client: &kube::Client, namespace: &str, name: &str) -> Result<Made, KeyError> {
    match read(client, namespace, name).await {
        Ok(_) => return Ok(Made::Kept),
        Err(KeyError::Missing { .. }) => {}
        Err(error) => return Err(error),
    }
    let key = SigningKey::generate()?;
    let secret = Secret {
        metadata: ObjectMeta {
            name: Some(name.to_owned()),
            namespace: Some(namespace.to_owned()),
            ..ObjectMeta::default()
        },
        immutable: Some(true),
        string_data: Some(BTreeMap::from([
            (PRIVATE.to_owned(), key.to_pem()?),
            (PUBLIC.to_owned(), key.public().pem().to_owned()),
        ])),
        type_: Some("Opaque".to_owned()),
        ..Secret::default()
    };
    let parameters = PostParams {
        field_manager: Some(FIELD_MANAGER.to_owned()),
        ..PostParams::default()
    };
    match Api::namespaced(client.clone(), namespace)
        .create(&parameters, &secret)
        .await
    {
        Ok(_) => Ok(Made::Created),
        Err(kube::Error::Api(status)) if status.is_already_exists() => {
            read(client, namespace, name).await.map(|_| Made::Kept)
        }
        Err(source) => Err(failed("create", namespace, name)(source)),
    }
}

/// Reads the signing key.
///
/// # Errors
/// When there is none, or it is no P-256 key.
pub async fn read(client: &kube::Client, namespace: &str, name: &str) -> Result<SigningKey, KeyError> {
    let secrets: Api<Secret> = Api::namespaced(client.clone(), namespace);
    let secret = secrets.get_opt(name).await.map_err(failed("read", namespace, name))?;
    let secret = secret.ok_or_else(|| KeyError::Missing {
        namespace: namespace.to_owned(),
        name: name.to_owned(),
    })?;
    let entry = secret.data.as_ref().and_then(|data| data.get(PRIVATE));
    let pem = entry.and_then(|bytes| std::str::from_utf8(&bytes.0).ok());
    let pem = pem.ok_or_else(|| KeyError::Entry {
        namespace: namespace.to_owned(),
        name: name.to_owned(),
        key: PRIVATE,
    })?;
    Ok(SigningKey::from_pem(pem)?)
}

fn failed(verb: &'static str, namespace: &str, name: &str) -> impl FnOnce(kube::Error) -> KeyError {
    let (namespace, name) = (namespace.to_owned(), name.to_owned());
    move |source| KeyError::Api {
        verb,
        namespace,
        name,
        source: Box::new(source),
    }
}
