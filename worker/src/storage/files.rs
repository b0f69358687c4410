//! The files of a model or data set in a folder: listed, hashed, and the one that matters found.
//!
//! Decides which single file is the model or the data set. Never follows links.

use std::fs::File;
use std::io::{self, Read as _};
use std::os::unix::fs::FileExt as _;
use std::path::{Path, PathBuf};
use std::sync::mpsc;

use assayer_crds::digest::{Digest, ModelFile};
use rayon::prelude::*;
use sha2::{Digest as _, Sha256};

use super::Error;
use super::unpack::Limits;
use crate::threads::joined;

/// Bytes that are read at once: they stay in the processor's cache until their digest is taken.
const CHUNK: usize = 1 << 17;
/// Bytes that are copied before their digest is taken.
const PART: u64 = 1 << 20;

/// Sorted, hashed files under `folder`, by their path inside it. Links and special files are refused.
pub fn list(folder: &Path, limits: Limits) -> Result<Vec<ModelFile>, Error> {
    let files = find(folder, limits)?.into_par_iter();
    files.map(|inside| hash(&folder.join(&inside), inside)).collect()
}

/// The same with nothing read yet: paths inside `folder`, sorted.
pub fn find(folder: &Path, limits: Limits) -> Result<Vec<String>, Error> {
    let mut files = Vec::new();
    walk(folder, "", 0, limits, &mut files)?;
    files.sort();
    Ok(files)
}

fn walk(folder: &Path, prefix: &str, depth: usize, limits: Limits, files: &mut Vec<String>) -> Result<(), Error> {
    let refused = |path: &Path, reason: String| Error::Refused {
        uri: path.display().to_string(),
        reason,
    };
    if depth > limits.depth {
        return Err(refused(folder, format!("more than {} folders deep", limits.depth)));
    }
    for entry in std::fs::read_dir(folder).map_err(Error::disk("list", folder))? {
        let entry = entry.map_err(Error::disk("list", folder))?;
        let path = entry.path();
        let name = entry
            .file_name()
            .into_string()
            .map_err(|_| refused(&path, "its name is not UTF-8".into()))?;
        let inside = format!("{prefix}{name}");
        let kind = entry.file_type().map_err(Error::disk("inspect", &path))?;
        if kind.is_dir() {
            walk(&path, &format!("{inside}/"), depth + 1, limits, files)?;
        } else if kind.is_file() {
            if files.len() >= limits.files {
                return Err(refused(folder, format!("more than {} files", limits.files)));
            }
            files.push(inside);
        } else {
            return Err(refused(&path, "it is no regular file: copy what it points to".into()));
        }
    }
    Ok(())
}

/// Size and digest of one file, under the name that it has inside an artifact.
pub(super) fn hash(path: &Path, inside: String) -> Result<ModelFile, Error> {
    let mut file = File::open(path).map_err(Error::disk("open", path))?;
    let mut hash = Sha256::new();
    let mut buffer = vec![0; CHUNK];
    let mut size = 0;
    loop {
        let read = file.read(&mut buffer).map_err(Error::disk("read", path))?;
        if read == 0 {
            break;
        }
        hash.update(&buffer[..read]);
        size += read as u64;
    }
    Ok(described(inside, size, hash))
}

/// Copies one file; a second thread takes the digest of what was written meanwhile.
///
/// The kernel copies, which reads nothing into this process, and on some file systems shares what both files hold.
pub(super) fn copy(from: &Path, to: &Path, inside: String) -> Result<ModelFile, Error> {
    let source = File::open(from).map_err(Error::disk("open", from))?;
    let mut target = File::options();
    let target = target.read(true).write(true).create(true).truncate(true).open(to);
    let target = target.map_err(Error::disk("create", to))?;
    let (written, ends) = mpsc::channel::<u64>();
    std::thread::scope(|scope| {
        let hasher = scope.spawn(|| hash_up_to(&target, ends));
        let mut size = 0;
        loop {
            let copied = io::copy(&mut (&source).take(PART), &mut &target).map_err(Error::disk("copy", from))?;
            size += copied;
            // Who ended early says why.
            if copied == 0 || written.send(size).is_err() {
                break;
            }
        }
        drop(written);
        let hash = joined(hasher).map_err(Error::disk("read", to))?;
        Ok(described(inside, size, hash))
    })
}

/// The digest of a file that grows to one length after another.
fn hash_up_to(file: &File, ends: mpsc::Receiver<u64>) -> io::Result<Sha256> {
    let mut hash = Sha256::new();
    let mut buffer = vec![0; CHUNK];
    let mut at = 0;
    for end in ends {
        while at < end {
            let left = usize::try_from(end - at).unwrap_or(CHUNK).min(CHUNK);
            file.read_exact_at(&mut buffer[..left], at)?;
            hash.update(&buffer[..left]);
            at += left as u64;
        }
    }
    Ok(hash)
}

fn described(path: String, size: u64, hash: Sha256) -> ModelFile {
    ModelFile {
        path,
        size,
        sha256: Digest::from_hash(hash.finalize().into()),
    }
}

/// The single file with `extension` at the top of `folder`.
pub fn single<'f>(
    folder: &Path,
    extension: &str,
    files: impl IntoIterator<Item = &'f str>,
    uri: &str,
) -> Result<PathBuf, Error> {
    let wanted = format!(".{extension}");
    let named: Vec<&str> = files
        .into_iter()
        .filter(|path| !path.contains('/') && path.ends_with(&wanted) && path.len() > wanted.len())
        .collect();
    match named[..] {
        [one] => Ok(folder.join(one)),
        [] => Err(Error::Refused {
            uri: uri.to_owned(),
            reason: format!("it holds no *{wanted} file at its top level: put exactly one there"),
        }),
        _ => Err(Error::Refused {
            uri: uri.to_owned(),
            reason: format!(
                "it holds {} *{wanted} files at its top level ({}): put exactly one there",
                named.len(),
                crate::failure::cut(&named.join(", "), 200)
            ),
        }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn files_are_sorted_and_hashed() {
        let folder = tempfile::tempdir().unwrap();
        std::fs::create_dir(folder.path().join("b")).unwrap();
        std::fs::write(folder.path().join("b/c"), "1").unwrap();
        std::fs::write(folder.path().join("model.onnx"), "22").unwrap();
        let files = list(folder.path(), Limits::default()).unwrap();
        let named = || files.iter().map(|file| file.path.as_str());
        let seen: Vec<_> = files.iter().map(|file| (file.path.as_str(), file.size)).collect();
        assert_eq!(seen, [("b/c", 1), ("model.onnx", 2)]);
        assert_eq!(files[1].sha256, Digest::of(b"22"));
        assert_eq!(
            single(folder.path(), "onnx", named(), "u").unwrap(),
            folder.path().join("model.onnx")
        );
        assert!(
            single(folder.path(), "parquet", named(), "u")
                .unwrap_err()
                .to_string()
                .contains("no *.parquet")
        );
    }

    #[test]
    fn a_copy_has_the_digest_of_the_file() {
        let folder = tempfile::tempdir().unwrap();
        let (from, to) = (folder.path().join("from"), folder.path().join("to"));
        for size in [0, 1, CHUNK, 7 * CHUNK + 3, 2 * (1 << 20) + 1] {
            let bytes: Vec<u8> = (0..=250).cycle().take(size).collect();
            std::fs::write(&from, &bytes).unwrap();
            let copied = copy(&from, &to, "to".into()).unwrap();
            assert_eq!(copied, hash(&from, "to".into()).unwrap());
            assert!(std::fs::read(&to).unwrap() == bytes, "{size} bytes");
        }
        assert!(copy(&folder.path().join("none"), &to, "to".into()).is_err());
    }

    #[test]
    fn links_and_twins_are_refused() {
        let folder = tempfile::tempdir().unwrap();
        std::fs::write(folder.path().join("a.onnx"), "").unwrap();
        std::fs::write(folder.path().join("b.onnx"), "").unwrap();
        let files = find(folder.path(), Limits::default()).unwrap();
        assert!(
            single(folder.path(), "onnx", files.iter().map(String::as_str), "u")
                .unwrap_err()
                .to_string()
                .contains("2 *.onnx files")
        );
        std::os::unix::fs::symlink("/etc/passwd", folder.path().join("c.onnx")).unwrap();
        assert!(
            list(folder.path(), Limits::default())
                .unwrap_err()
                .to_string()
                .contains("no regular file")
        );
    }
}
