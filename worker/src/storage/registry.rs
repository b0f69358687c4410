//! Talking to an OCI registry: artifacts in by digest, artifacts out by digest and tag.
//!
//! Decides what counts as transient, what an acceptable manifest is, and checks every byte that comes against the digest
//! that was asked for. Knows nothing of models.

use std::fs::File;
use std::io::{self, BufReader, Write as _};
use std::path::Path;
use std::time::Duration;

use assayer_crds::digest::{Digest, ModelFile};
use bytes::Bytes;
use futures::TryStreamExt as _;
use http::HeaderValue;
use oci_client::client::{Certificate, CertificateEncoding, ClientConfig, ClientProtocol};
use oci_client::errors::OciDistributionError as Oci;
use oci_client::manifest::{OciDescriptor, OciImageManifest};
use oci_client::{Client, Reference};
use sha2::{Digest as _, Sha256};

use super::credentials::Credentials;
use super::pack::{CONFIG_TYPE, MANIFEST_TYPE, Packed};
use super::unpack::{Limits, Unpacker};
use super::uri::Location;
use super::{Error, classify, files};

/// Docker's names for the same shapes; containerd mounts them just as well.
const DOCKER_MANIFEST: &str = "application/vnd.docker.distribution.manifest.v2+json";
const DOCKER_CONFIG: &str = "application/vnd.docker.container.image.v1+json";
const TAR: [&str; 2] = [
    "application/vnd.oci.image.layer.v1.tar",
    "application/vnd.docker.image.rootfs.diff.tar",
];
const TAR_GZIP: [&str; 2] = [
    "application/vnd.oci.image.layer.v1.tar+gzip",
    "application/vnd.docker.image.rootfs.diff.tar.gzip",
];

const MAX_MANIFEST: usize = 4 * 1024 * 1024;
const MAX_CONFIG: u64 = 4 * 1024 * 1024;
const MAX_LAYERS: usize = 64;
/// Waits between attempts; a registry that restarts comes back within these.
const WAITS: [Duration; 3] = [
    Duration::from_millis(250),
    Duration::from_secs(1),
    Duration::from_secs(3),
];

/// How registries are reached.
#[derive(Clone, Debug, Default)]
pub struct Access {
    /// Hosts (`host:port`) that are spoken to without TLS, beside this machine itself.
    pub plain_http: Vec<String>,
    /// Who we are there.
    pub credentials: Credentials,
}

/// A registry connection for one repository.
pub(super) struct Repository<'a> {
    client: Client,
    location: &'a Location,
}

impl<'a> Repository<'a> {
    pub(super) async fn open(location: &'a Location, access: &Access) -> Result<Self, Error> {
        // Whoever links this library may have chosen a provider; the first one stays.
        let _already_chosen = rustls::crypto::ring::default_provider().install_default();
        let mut plain = access.plain_http.clone();
        if location.is_loopback() {
            plain.push(location.host.clone());
        }
        let client = Client::try_from(config(&plain, Vec::new())).or_else(|_| {
            // An image without a CA bundle: fall back to the public roots instead of refusing plain registries too.
            let roots = webpki_root_certs::TLS_SERVER_ROOT_CERTS.iter();
            let roots = roots.map(|der| Certificate {
                encoding: CertificateEncoding::Der,
                data: der.to_vec(),
            });
            Client::try_from(config(&plain, roots.collect()))
        });
        let client = client.map_err(|error| Error::Unavailable {
            uri: location.host.clone(),
            reason: format!("no HTTP client: {}", classify::chain(&error)),
        })?;
        client
            .store_auth_if_needed(&location.host, &access.credentials.at(&location.host))
            .await;
        Ok(Self { client, location })
    }

    /// The digest that a tag names now.
    pub(super) async fn resolve(&self, tag: &str) -> Result<Digest, Error> {
        let reference = self.location.by_tag(tag);
        let bytes = retry(async || self.manifest_bytes(&reference).await).await?;
        Ok(Digest::of(&bytes))
    }

    /// Fetches the artifact with `digest` and unpacks its files into `into`, which must be empty.
    pub(super) async fn pull(&self, digest: &Digest, into: &Path, limits: Limits) -> Result<Vec<ModelFile>, Error> {
        let uri = self.location.at(digest);
        let reference = self.location.by_digest(digest);
        let bytes = retry(async || self.manifest_bytes(&reference).await).await?;
        let actual = Digest::of(&bytes);
        if actual != *digest {
            return Err(mismatch(format!("manifest of {uri}"), digest, &actual));
        }
        let manifest = check_manifest(&uri, &bytes, limits)?;
        let diff_ids = self.diff_ids(&uri, &reference, &manifest).await?;
        let scratch = into.join(".layer.partial");
        let mut unpacker = Unpacker::new(&uri, into, limits);
        for (layer, diff_id) in manifest.layers.iter().zip(&diff_ids) {
            retry(async || self.blob_to_file(&uri, &reference, layer, &scratch).await).await?;
            let file = File::open(&scratch).map_err(Error::disk("open", &scratch))?;
            let gzip = TAR_GZIP.contains(&layer.media_type.as_str());
            // The scratch file goes by its name first, so that no entry can take its place.
            std::fs::remove_file(&scratch).map_err(Error::disk("remove", &scratch))?;
            let found = unpacker.layer(BufReader::with_capacity(256 * 1024, file), gzip)?;
            if found != *diff_id {
                return Err(mismatch(
                    format!("unpacked layer {} of {uri}", layer.digest),
                    diff_id,
                    &found,
                ));
            }
        }
        files::list(into, limits)
    }

    /// Sends the artifact under `tag`. Sending the same again changes nothing.
    pub(super) async fn push(&self, packed: &Packed, tag: &str) -> Result<(), Error> {
        let uri = self.location.tagged(tag);
        let reference = self.location.by_tag(tag);
        retry(async || {
            let layer = (&packed.layer_digest, packed.layer_bytes);
            self.send_blob(&uri, &reference, layer, packed.layer()).await
        })
        .await?;
        retry(async || {
            let config = (&Digest::of(&packed.config), packed.config.len() as u64);
            let bytes = Ok(Bytes::from(packed.config.clone()));
            self.send_blob(&uri, &reference, config, std::iter::once(bytes)).await
        })
        .await?;
        retry(async || {
            let kind = HeaderValue::from_static(MANIFEST_TYPE);
            let sent = self
                .client
                .push_manifest_raw(&reference, packed.manifest.clone(), kind)
                .await;
            sent.map(|_| ()).map_err(|error| classify::registry(&uri, &error))
        })
        .await?;
        self.verify(packed).await
    }

    /// Reads the manifest back by digest: what the registry answers is what pods will get.
    async fn verify(&self, packed: &Packed) -> Result<(), Error> {
        let uri = self.location.at(&packed.artifact_digest);
        let reference = self.location.by_digest(&packed.artifact_digest);
        let bytes = retry(async || self.manifest_bytes(&reference).await).await?;
        if bytes != packed.manifest {
            return Err(mismatch(
                format!("{uri} after the push"),
                &packed.artifact_digest,
                &Digest::of(&bytes),
            ));
        }
        Ok(())
    }

    /// Sends a blob that is not there yet.
    async fn send_blob(
        &self,
        uri: &str,
        reference: &Reference,
        (digest, bytes): (&Digest, u64),
        chunks: impl Iterator<Item = io::Result<Bytes>> + Send + 'static,
    ) -> Result<(), Error> {
        // A registry that can't answer this is asked to take the blob, and says then what is wrong.
        if self
            .client
            .blob_exists(reference, digest.as_str())
            .await
            .unwrap_or(false)
        {
            return Ok(());
        }
        let chunks = futures::stream::iter(chunks).map_err(Oci::IoError);
        let sent = self
            .client
            .push_blob_stream(reference, chunks, digest.as_str(), Some(bytes))
            .await;
        match sent {
            Ok(_) => Ok(()),
            // Some registries take a blob without saying where it is now, which we know.
            Err(Oci::RegistryNoLocationError) => match self.client.blob_exists(reference, digest.as_str()).await {
                Ok(true) => Ok(()),
                Ok(false) => Err(classify::registry(uri, &Oci::RegistryNoLocationError)),
                Err(error) => Err(classify::registry(uri, &error)),
            },
            Err(error) => Err(classify::registry(uri, &error)),
        }
    }

    async fn manifest_bytes(&self, reference: &Reference) -> Result<Vec<u8>, Error> {
        let uri = format!("oci://{reference}");
        let auth = oci_client::secrets::RegistryAuth::Anonymous; // what `open` stored wins
        let accepted = [
            MANIFEST_TYPE,
            DOCKER_MANIFEST,
            oci_client::manifest::OCI_IMAGE_INDEX_MEDIA_TYPE,
        ];
        let pulled = self.client.pull_manifest_raw(reference, &auth, &accepted).await;
        let (bytes, _) = pulled.map_err(|error| classify::registry(&uri, &error))?;
        if bytes.len() > MAX_MANIFEST {
            return Err(Error::Refused {
                uri,
                reason: format!("its manifest has more than {MAX_MANIFEST} bytes"),
            });
        }
        Ok(bytes.to_vec())
    }

    async fn diff_ids(
        &self,
        uri: &str,
        reference: &Reference,
        manifest: &OciImageManifest,
    ) -> Result<Vec<Digest>, Error> {
        let refused = |reason: &str| Error::Refused {
            uri: uri.to_owned(),
            reason: reason.to_owned(),
        };
        let bytes = retry(async || {
            let mut bytes = Vec::new();
            self.blob(uri, reference, &manifest.config, |chunk| {
                bytes.extend_from_slice(chunk);
                Ok(())
            })
            .await?;
            Ok(bytes)
        })
        .await?;
        let config: serde_json::Value =
            serde_json::from_slice(&bytes).map_err(|_| refused("its image config is no JSON"))?;
        let ids = config
            .pointer("/rootfs/diff_ids")
            .and_then(serde_json::Value::as_array)
            .cloned()
            .unwrap_or_default();
        let ids: Option<Vec<Digest>> = ids.iter().map(|id| id.as_str()?.parse().ok()).collect();
        let ids = ids.ok_or_else(|| refused("its image config has a diff_id that is no sha256 digest"))?;
        if ids.len() != manifest.layers.len() {
            return Err(refused(
                "its image config names another number of layers than its manifest: push it with `assayer push`",
            ));
        }
        Ok(ids)
    }

    async fn blob_to_file(
        &self,
        uri: &str,
        reference: &Reference,
        blob: &OciDescriptor,
        path: &Path,
    ) -> Result<(), Error> {
        let mut file = File::create(path).map_err(Error::disk("create", path))?;
        self.blob(uri, reference, blob, |chunk| {
            file.write_all(chunk).map_err(Error::disk("write", path))
        })
        .await
    }

    /// Streams a blob to `sink` and checks size and digest. What `sink` got counts only when this returns `Ok`.
    async fn blob(
        &self,
        uri: &str,
        reference: &Reference,
        blob: &OciDescriptor,
        mut sink: impl FnMut(&[u8]) -> Result<(), Error>,
    ) -> Result<(), Error> {
        let what = || format!("blob {} of {uri}", blob.digest);
        let expected: Digest = blob.digest.parse().map_err(|_| Error::Refused {
            uri: uri.to_owned(),
            reason: format!(
                "it names a blob by `{}`: only sha256 is accepted",
                crate::failure::cut(&blob.digest, 80)
            ),
        })?;
        // By digest alone: a descriptor's `urls` would make us call addresses of its author's choice.
        let opened = self.client.pull_blob_stream(reference, expected.as_str()).await;
        let mut stream = opened.map_err(|error| classify::registry(&what(), &error))?.stream;
        let (mut hash, mut left) = (Sha256::new(), u64::try_from(blob.size).unwrap_or(0));
        while let Some(chunk) = stream
            .try_next()
            .await
            .map_err(|error| classify::stream(&what(), &error))?
        {
            left = left.checked_sub(chunk.len() as u64).ok_or_else(|| Error::Refused {
                uri: uri.to_owned(),
                reason: format!(
                    "blob {} is larger than the {} bytes that its manifest says",
                    blob.digest, blob.size
                ),
            })?;
            hash.update(&chunk);
            sink(&chunk)?;
        }
        let actual = Digest::from_hash(hash.finalize().into());
        if actual != expected || left != 0 {
            return Err(mismatch(what(), &expected, &actual));
        }
        Ok(())
    }
}

fn config(plain: &[String], extra_root_certificates: Vec<Certificate>) -> ClientConfig {
    ClientConfig {
        protocol: ClientProtocol::HttpsExcept(plain.to_vec()),
        use_monolithic_push: true,
        platform_resolver: None,
        connect_timeout: Some(Duration::from_secs(10)),
        read_timeout: Some(Duration::from_mins(1)),
        user_agent: concat!("assayer-worker/", env!("CARGO_PKG_VERSION")),
        extra_root_certificates,
        ..ClientConfig::default()
    }
}

/// Refuses what containerd would mount as an empty folder, and what is beyond the limits.
fn check_manifest(uri: &str, bytes: &[u8], limits: Limits) -> Result<OciImageManifest, Error> {
    let refused = |reason: String| Error::Refused {
        uri: uri.to_owned(),
        reason,
    };
    let value: serde_json::Value =
        serde_json::from_slice(bytes).map_err(|error| refused(format!("its manifest is no JSON: {error}")))?;
    if value.get("manifests").is_some() {
        return Err(refused(
            "it is an index over several manifests: pin the digest of one manifest".into(),
        ));
    }
    let manifest: OciImageManifest =
        serde_json::from_value(value).map_err(|error| refused(format!("its manifest can't be read: {error}")))?;
    let config = manifest.config.media_type.as_str();
    if config != CONFIG_TYPE && config != DOCKER_CONFIG {
        return Err(refused(format!(
            "it is not image-shaped (config `{}` instead of {CONFIG_TYPE}); such artifacts are mounted as an empty folder: push it with `assayer push`",
            crate::failure::cut(config, 100)
        )));
    }
    if let Some(layer) = manifest.layers.iter().find(|layer| !is_layer(&layer.media_type)) {
        return Err(refused(format!(
            "layer type `{}` can't be mounted; {} or +gzip can: push it with `assayer push`",
            crate::failure::cut(&layer.media_type, 100),
            TAR[0]
        )));
    }
    let mut sizes = manifest.layers.iter().map(|layer| u64::try_from(layer.size).ok());
    let total = sizes.try_fold(0_u64, |sum, size| sum.checked_add(size?));
    let most = limits.bytes.saturating_add(1 << 30);
    match total {
        None => Err(refused("a layer has an impossible size".into())),
        Some(total) if total > most => Err(refused(format!(
            "its layers have {total} bytes; at most {most} are read"
        ))),
        Some(_) if manifest.layers.is_empty() => Err(refused("it has no layer".into())),
        Some(_) if manifest.layers.len() > MAX_LAYERS => Err(refused(format!(
            "it has {} layers; at most {MAX_LAYERS} are read",
            manifest.layers.len()
        ))),
        Some(_) if u64::try_from(manifest.config.size).is_ok_and(|size| size <= MAX_CONFIG) => Ok(manifest),
        Some(_) => Err(refused(format!("its image config is larger than {MAX_CONFIG} bytes"))),
    }
}

fn is_layer(media_type: &str) -> bool {
    TAR.contains(&media_type) || TAR_GZIP.contains(&media_type)
}

fn mismatch(what: String, expected: &Digest, actual: &Digest) -> Error {
    Error::DigestMismatch {
        what,
        expected: expected.to_string(),
        actual: actual.to_string(),
    }
}

/// Tries again after transient failures, a few times.
async fn retry<T>(mut attempt: impl AsyncFnMut() -> Result<T, Error>) -> Result<T, Error> {
    for wait in WAITS {
        match attempt().await {
            Err(error) if error.is_transient() => {
                tracing::warn!(%error, ?wait, "trying again");
                tokio::time::sleep(wait).await;
            }
            done => return done,
        }
    }
    attempt().await
}

#[cfg(test)]
#[path = "registry_tests.rs"]
mod tests;
