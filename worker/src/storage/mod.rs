//! Models and data sets in registries and folders: fetched by digest, published by digest.
//!
//! Decides what is fetched and what an artifact must hold. Bytes are checked before anybody reads them; nothing that was
//! only partly fetched stays. Models are never parsed here.

mod classify;
mod credentials;
mod error;
mod files;
mod pack;
mod registry;
mod unpack;
mod uri;

use std::path::{Path, PathBuf};

use assayer_crds::digest::{Digest, ModelFile, model_digest};

pub use self::credentials::Credentials;
pub use self::error::Error;
pub use self::files::{find, list, single};
pub use self::pack::{Packed, file as pack_file, folder as pack_folder};
pub use self::registry::Access;
pub use self::unpack::Limits;
pub use self::uri::{Location, Source};

/// What was fetched.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Fetched {
    /// Digest of the manifest; none for local paths.
    pub artifact_digest: Option<Digest>,
    /// The files, sorted.
    pub files: Vec<ModelFile>,
    /// Digest over the files.
    pub model_digest: Digest,
}

impl Fetched {
    /// Paths of the files.
    pub fn names(&self) -> impl Iterator<Item = &str> {
        self.files.iter().map(|file| file.path.as_str())
    }
}

/// What was published.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Pushed {
    /// `oci://host/repository@sha256:…`.
    pub uri: String,
    /// The tag that keeps it from being collected.
    pub tag: String,
    /// Digest of the manifest.
    pub artifact_digest: Digest,
    /// Digest over the files.
    pub model_digest: Digest,
    /// The files, sorted.
    pub files: Vec<ModelFile>,
}

/// Fetches an artifact, or copies a local file or folder where `local` allows it, into the empty folder `into`.
pub async fn fetch(uri: &str, into: &Path, local: bool, access: &Access) -> Result<Fetched, Error> {
    let limits = Limits::default();
    let (artifact_digest, files) = match Source::parse(uri, local)? {
        Source::Artifact(location, digest) => {
            let files = registry::Repository::open(&location, access)
                .await?
                .pull(&digest, into, limits)
                .await?;
            (Some(digest), files)
        }
        Source::Path(path) => (None, copy(&path, into, limits)?),
    };
    let model_digest = model_digest(&files);
    Ok(Fetched {
        artifact_digest,
        files,
        model_digest,
    })
}

/// The regular file of the user's own machine that `uri` names, if it names one: it can be read where it lies.
pub fn local_file(uri: &str, local: bool) -> Result<Option<PathBuf>, Error> {
    match Source::parse(uri, local)? {
        Source::Path(path) if path.is_file() => Ok(Some(path)),
        Source::Path(_) | Source::Artifact(..) => Ok(None),
    }
}

/// What [`fetch`] says of a single local file, which stays where it is.
pub fn describe(file: &Path) -> Result<Fetched, Error> {
    let name = file.file_name().and_then(|name| name.to_str()).unwrap_or_default();
    let files = vec![files::hash(file, name.to_owned())?];
    Ok(Fetched {
        artifact_digest: None,
        model_digest: model_digest(&files),
        files,
    })
}

/// Publishes a packed artifact under `tag` and reads its manifest back.
pub async fn push(packed: &Packed, location: &Location, tag: &str, access: &Access) -> Result<Pushed, Error> {
    check_tag(tag)?;
    registry::Repository::open(location, access)
        .await?
        .push(packed, tag)
        .await?;
    Ok(Pushed {
        uri: location.at(&packed.artifact_digest),
        tag: tag.to_owned(),
        artifact_digest: packed.artifact_digest.clone(),
        model_digest: packed.model_digest.clone(),
        files: packed.files.clone(),
    })
}

/// Packs a file or folder.
pub fn pack(path: &Path) -> Result<Packed, Error> {
    if path.is_dir() {
        pack_folder(path)
    } else {
        pack_file(path)
    }
}

/// The digest that `oci://host/repository:tag` names now.
pub async fn resolve(location: &Location, access: &Access) -> Result<Digest, Error> {
    if let Some(digest) = &location.digest {
        return Ok(digest.clone());
    }
    let tag = location.tag.as_deref().unwrap_or("latest");
    registry::Repository::open(location, access).await?.resolve(tag).await
}

/// The tag of a published candidate: it keeps registries from collecting it. Artifacts that differ in their recipe only have one each.
pub fn candidate_tag(candidate: &str, artifact_digest: &Digest) -> String {
    format!("assayer-{candidate}-{}", artifact_digest.short(12))
}

fn check_tag(tag: &str) -> Result<(), Error> {
    let first = tag
        .bytes()
        .next()
        .is_some_and(|b| b.is_ascii_alphanumeric() || b == b'_');
    let rest = tag
        .bytes()
        .all(|b| b.is_ascii_alphanumeric() || matches!(b, b'_' | b'.' | b'-'));
    if first && rest && tag.len() <= 128 {
        return Ok(());
    }
    Err(Error::Uri {
        uri: crate::failure::cut(tag, 140),
        reason: "a tag is at most 128 letters, digits, `_`, `.` and `-`, not starting with `.` or `-`".into(),
    })
}

/// Copies a file under its name, or a folder's files.
fn copy(from: &Path, into: &Path, limits: Limits) -> Result<Vec<ModelFile>, Error> {
    let uri = || from.display().to_string();
    let metadata = std::fs::metadata(from).map_err(|error| match error.kind() {
        std::io::ErrorKind::NotFound => Error::NotFound {
            uri: uri(),
            reason: "no such file or folder".into(),
        },
        _ => Error::disk("read", from)(error),
    })?;
    let named: Vec<(PathBuf, String)> = if metadata.is_dir() {
        let files = files::find(from, limits)?;
        files.into_iter().map(|inside| (from.join(&inside), inside)).collect()
    } else {
        let name = from.file_name().and_then(|name| name.to_str()).unwrap_or_default();
        vec![(from.to_owned(), name.to_owned())]
    };
    let copied = named.into_iter().map(|(source, inside)| {
        let relative = unpack::relative(inside.as_bytes()).map_err(|why| Error::Refused {
            uri: uri(),
            reason: format!("the name `{inside}` {why}"),
        })?;
        let target = into.join(relative);
        if let Some(parent) = target.parent() {
            std::fs::create_dir_all(parent).map_err(Error::disk("create", parent))?;
        }
        files::copy(&source, &target, inside)
    });
    copied.collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn local_files_and_folders_are_copied() {
        let folder = tempfile::tempdir().unwrap();
        let model = folder.path().join("model.onnx");
        std::fs::write(&model, "m").unwrap();
        let into = tempfile::tempdir().unwrap();
        let fetched = fetch(model.to_str().unwrap(), into.path(), true, &Access::default())
            .await
            .unwrap();
        assert_eq!(fetched.files[0].path, "model.onnx");
        assert_eq!(fetched.model_digest, pack(&model).unwrap().model_digest);
        assert_eq!(fetched, describe(&model).unwrap());
        let lies = |path: &Path, local| local_file(path.to_str().unwrap(), local);
        assert_eq!(lies(&model, true).unwrap(), Some(model.clone()));
        assert_eq!(lies(folder.path(), true).unwrap(), None, "a folder is fetched");
        assert!(lies(&model, false).is_err(), "in a pod a path is refused");
        let refused = fetch(model.to_str().unwrap(), into.path(), false, &Access::default()).await;
        assert!(matches!(refused, Err(Error::Uri { .. })), "in a pod a path is refused");
        let missing = fetch("/no/such", into.path(), true, &Access::default()).await;
        assert!(matches!(missing, Err(Error::NotFound { .. })));
    }

    #[test]
    fn tags_hold_the_candidate_and_its_digest() {
        let digest = Digest::of(b"m");
        let tag = candidate_tag("int8", &digest);
        assert_eq!(tag, format!("assayer-int8-{}", &digest.hex()[..12]));
        assert!(check_tag(&tag).is_ok());
        for odd in ["", "-a", ".a", "a b", "a/b", &"a".repeat(129)] {
            assert!(check_tag(odd).is_err(), "{odd}");
        }
    }
}
