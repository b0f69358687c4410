//! What a URI names: an artifact in a registry, a repository to push to, or a local path.
//!
//! Decides spellings only. Pulls are by digest, always: a tag can move between evidence and rollout.

use std::path::PathBuf;

use assayer_crds::digest::Digest;
use oci_client::Reference;

use super::Error;

const SCHEME: &str = "oci://";

/// A repository in a registry, with tag or digest where one was given.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Location {
    /// `host` or `host:port`.
    pub host: String,
    /// Repository inside the registry.
    pub repository: String,
    /// Tag.
    pub tag: Option<String>,
    /// Digest of the manifest.
    pub digest: Option<Digest>,
}

/// What can be fetched.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Source {
    /// An artifact, by digest.
    Artifact(Location, Digest),
    /// A file or folder of the user's own machine (local runs only).
    Path(PathBuf),
}

impl Location {
    /// Reads `oci://host[:port]/repository[:tag][@sha256:…]`.
    pub fn parse(uri: &str) -> Result<Self, Error> {
        let wrong = |reason: String| Error::Uri {
            uri: uri.chars().take(300).collect(),
            reason,
        };
        let rest = uri
            .strip_prefix(SCHEME)
            .ok_or_else(|| wrong("expected oci://host[:port]/repository@sha256:…".into()))?;
        let host = rest.split('/').next().unwrap_or_default();
        let reference: Reference = rest.parse().map_err(|error| wrong(format!("{error}")))?;
        // The parser knows a default registry; ours are always named.
        if reference.registry() != host {
            return Err(wrong(format!(
                "`{host}` is not a registry host: write oci://host[:port]/repository"
            )));
        }
        let digest = match reference.digest().map(str::parse) {
            None => None,
            Some(Ok(digest)) => Some(digest),
            Some(Err(error)) => return Err(wrong(format!("{error}"))),
        };
        let has_tag = rest
            .split('@')
            .next()
            .and_then(|name| name.rsplit('/').next())
            .is_some_and(|last| last.contains(':'));
        Ok(Self {
            host: host.to_owned(),
            repository: reference.repository().to_owned(),
            tag: reference.tag().filter(|_| has_tag).map(str::to_owned),
            digest,
        })
    }

    /// `oci://host/repository@sha256:…`.
    pub fn at(&self, digest: &Digest) -> String {
        format!("{SCHEME}{}/{}@{digest}", self.host, self.repository)
    }

    /// `oci://host/repository:tag`.
    pub fn tagged(&self, tag: &str) -> String {
        format!("{SCHEME}{}/{}:{tag}", self.host, self.repository)
    }

    /// Whether the host is this machine, which registries conventionally speak to without TLS.
    pub fn is_loopback(&self) -> bool {
        let name = self.host.rsplit_once(':').map_or(self.host.as_str(), |(name, _)| name);
        name == "localhost" || name == "[::1]" || name.parse::<std::net::Ipv4Addr>().is_ok_and(|ip| ip.is_loopback())
    }

    pub(super) fn by_digest(&self, digest: &Digest) -> Reference {
        Reference::with_digest(self.host.clone(), self.repository.clone(), digest.to_string())
    }

    pub(super) fn by_tag(&self, tag: &str) -> Reference {
        Reference::with_tag(self.host.clone(), self.repository.clone(), tag.to_owned())
    }
}

impl Source {
    /// Reads what can be fetched; paths only where `local` says so.
    pub fn parse(uri: &str, local: bool) -> Result<Self, Error> {
        if !uri.starts_with(SCHEME) {
            let scheme = uri.split_once("://").map(|(scheme, _)| scheme);
            return match scheme {
                None if local => Ok(Self::Path(uri.into())),
                Some("file") if local => Ok(Self::Path(uri["file://".len()..].into())),
                _ => Err(Error::Uri {
                    uri: uri.chars().take(300).collect(),
                    reason: "expected oci://host[:port]/repository@sha256:… (paths are for local runs)".into(),
                }),
            };
        }
        let location = Location::parse(uri)?;
        match location.digest.clone() {
            Some(digest) => Ok(Self::Artifact(location, digest)),
            None => Err(Error::Uri {
                uri: uri.to_owned(),
                reason: "it names no digest: `assayer pin` resolves tags and fills digests in".into(),
            }),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn artifacts_are_named_by_host_repository_and_digest() {
        let digest = Digest::of(b"x");
        let location = Location::parse(&format!("oci://10.0.0.5:5000/models/magika:v1@{digest}")).unwrap();
        assert_eq!(
            (location.host.as_str(), location.repository.as_str()),
            ("10.0.0.5:5000", "models/magika")
        );
        assert_eq!(
            (location.tag.as_deref(), &location.digest),
            (Some("v1"), &Some(digest.clone()))
        );
        assert_eq!(
            location.at(&digest),
            format!("oci://10.0.0.5:5000/models/magika@{digest}")
        );
        assert_eq!(Location::parse("oci://h.example/m").unwrap().tag, None);
        assert!(!location.is_loopback());
        assert!(Location::parse("oci://127.0.0.1:5000/m").unwrap().is_loopback());
        assert!(Location::parse("oci://localhost:5000/m").unwrap().is_loopback());
    }

    #[test]
    fn odd_uris_are_refused() {
        let digest = Digest::of(b"x");
        for uri in [
            "oci://models/magika@sha256:00",
            "oci://ubuntu",
            "oci://",
            "oci://h.example/UPPER",
            "oci://h.example/../etc",
            &format!("oci://h.example/m@{}", digest.as_str().replace("sha256", "sha512")),
        ] {
            assert!(Location::parse(uri).is_err(), "{uri}");
        }
        assert!(
            Source::parse("oci://h.example/m:latest", true).is_err(),
            "tags can move"
        );
    }

    #[test]
    fn paths_are_for_local_runs() {
        assert!(Source::parse("/etc/passwd", false).is_err());
        assert!(Source::parse("file:///etc/passwd", false).is_err());
        assert!(Source::parse("https://h.example/m", true).is_err());
        assert_eq!(Source::parse("file:///m", true).unwrap(), Source::Path("/m".into()));
        assert_eq!(Source::parse("m.onnx", true).unwrap(), Source::Path("m.onnx".into()));
    }
}
