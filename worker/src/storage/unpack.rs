//! Layers to files: regular files under plain relative names, nothing else.
//!
//! Decides what a layer may hold. Never writes outside its folder, never overwrites, never follows or makes a link.

use std::collections::BTreeSet;
use std::fs::{File, OpenOptions};
use std::io::{self, Read, Write};
use std::path::{Component, Path, PathBuf};

use assayer_crds::digest::Digest;
use sha2::{Digest as _, Sha256};
use tar::{Archive, EntryType, PaxExtensions};

use super::Error;

/// Bounds of an artifact, checked before anything is written.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// Most files, over all layers.
    pub files: usize,
    /// Most bytes of files, over all layers.
    pub bytes: u64,
    /// Most folders above a file.
    pub depth: usize,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            files: 1_024,
            bytes: 64 << 30,
            depth: 8,
        }
    }
}

/// Longest path inside an artifact.
const MAX_PATH: usize = 255;
/// Longest extension record (long names and the like).
const MAX_EXTENSION: u64 = 64 * 1024;
/// Tar's own overhead that is allowed beside the files' bytes: headers, padding, records.
const OVERHEAD_PER_FILE: u64 = 256 * 1024;

/// Unpacks layers into one folder.
pub(super) struct Unpacker<'a> {
    uri: &'a str,
    into: &'a Path,
    limits: Limits,
    seen: BTreeSet<PathBuf>,
    bytes: u64,
}

/// The name, and the size where a record gives one, that extension records announce for the next entry.
#[derive(Default)]
struct Announced {
    path: Option<Vec<u8>>,
    size: Option<u64>,
}

impl<'a> Unpacker<'a> {
    pub(super) fn new(uri: &'a str, into: &'a Path, limits: Limits) -> Self {
        Self {
            uri,
            into,
            limits,
            seen: BTreeSet::new(),
            bytes: 0,
        }
    }

    /// Unpacks one layer and returns the digest of its uncompressed bytes.
    pub(super) fn layer(&mut self, layer: impl Read, gzip: bool) -> Result<Digest, Error> {
        let most = self
            .limits
            .bytes
            .saturating_add(self.limits.files as u64 * OVERHEAD_PER_FILE);
        let raw: Box<dyn Read + '_> = if gzip {
            Box::new(flate2::read::MultiGzDecoder::new(layer))
        } else {
            Box::new(layer)
        };
        let mut archive = Archive::new(Hashing {
            inner: raw.take(most),
            hash: Sha256::new(),
        });
        self.entries(&mut archive)?;
        let mut rest = archive.into_inner();
        io::copy(&mut rest, &mut io::sink()).map_err(|error| self.refused(format!("a layer is damaged: {error}")))?;
        if rest.inner.limit() == 0 {
            return Err(self.refused(format!("a layer is larger than {most} bytes when unpacked")));
        }
        Ok(Digest::from_hash(rest.hash.finalize().into()))
    }

    fn entries<R: Read>(&mut self, archive: &mut Archive<R>) -> Result<(), Error> {
        let damaged = |uri: &str, error: io::Error| Error::Refused {
            uri: uri.to_owned(),
            reason: format!("a layer is not a tar archive or is cut short: {error}"),
        };
        let uri = self.uri;
        let mut announced = Announced::default();
        for entry in archive.entries().map_err(|error| damaged(uri, error))?.raw(true) {
            let mut entry = entry.map_err(|error| damaged(uri, error))?;
            match entry.header().entry_type() {
                EntryType::XGlobalHeader => {}
                kind @ (EntryType::XHeader | EntryType::GNULongName) => {
                    self.announce(&mut entry, kind, &mut announced)?;
                    continue;
                }
                EntryType::Directory => {
                    let path = self.path_of(&entry, announced.path.take())?;
                    self.check_depth(&path)?;
                }
                EntryType::Regular => {
                    if announced.size.is_some_and(|size| size != entry.size()) {
                        return Err(self.refused(
                            "an entry's size is given only in a pax record: write it in ustar or GNU format".into(),
                        ));
                    }
                    let path = self.path_of(&entry, announced.path.take())?;
                    self.file(&path, &mut entry)?;
                }
                kind => {
                    let name = String::from_utf8_lossy(&entry.path_bytes()).into_owned();
                    return Err(self.refused(format!(
                        "`{}` is a {kind:?} entry: artifacts hold regular files only",
                        crate::failure::cut(&name, 100)
                    )));
                }
            }
            announced = Announced::default();
        }
        Ok(())
    }

    fn announce<R: Read>(
        &self,
        entry: &mut tar::Entry<'_, R>,
        kind: EntryType,
        announced: &mut Announced,
    ) -> Result<(), Error> {
        if entry.size() > MAX_EXTENSION {
            return Err(self.refused(format!(
                "an extension record of {} bytes; at most {MAX_EXTENSION} are read",
                entry.size()
            )));
        }
        let mut bytes = Vec::new();
        entry
            .take(MAX_EXTENSION)
            .read_to_end(&mut bytes)
            .map_err(|error| self.refused(format!("a layer is cut short: {error}")))?;
        if kind == EntryType::GNULongName {
            while bytes.last() == Some(&0) {
                bytes.pop();
            }
            announced.path = Some(bytes);
            return Ok(());
        }
        for record in PaxExtensions::new(&bytes) {
            let record = record.map_err(|error| self.refused(format!("a malformed pax record: {error}")))?;
            match record.key_bytes() {
                b"path" => announced.path = Some(record.value_bytes().to_vec()),
                b"size" => {
                    let size = record.value().ok().and_then(|text| text.parse().ok());
                    announced.size = Some(size.ok_or_else(|| self.refused("a pax size that is no number".into()))?);
                }
                key if key.starts_with(b"GNU.sparse") => {
                    return Err(self.refused("a sparse file: write it in full".into()));
                }
                _ => {}
            }
        }
        Ok(())
    }

    fn path_of<R: Read>(&self, entry: &tar::Entry<'_, R>, announced: Option<Vec<u8>>) -> Result<PathBuf, Error> {
        let bytes = announced.unwrap_or_else(|| entry.path_bytes().into_owned());
        relative(&bytes).map_err(|why| {
            let shown = crate::failure::cut(&String::from_utf8_lossy(&bytes), 100);
            self.refused(format!("the name `{shown}` {why}"))
        })
    }

    fn check_depth(&self, path: &Path) -> Result<(), Error> {
        let depth = path.components().count();
        if depth > self.limits.depth + 1 {
            return Err(self.refused(format!(
                "`{}` lies {depth} levels deep; at most {} folders are allowed",
                path.display(),
                self.limits.depth
            )));
        }
        Ok(())
    }

    fn file<R: Read>(&mut self, path: &Path, entry: &mut tar::Entry<'_, R>) -> Result<(), Error> {
        self.check_depth(path)?;
        let name = path.file_name().and_then(|name| name.to_str()).unwrap_or_default();
        if name.starts_with(".wh.") {
            return Err(self.refused(format!(
                "`{}` deletes a file of a lower layer: flatten the artifact",
                path.display()
            )));
        }
        if self.seen.len() >= self.limits.files {
            return Err(self.refused(format!("more than {} files", self.limits.files)));
        }
        if !self.seen.insert(path.to_owned()) {
            return Err(self.refused(format!("`{}` comes twice", path.display())));
        }
        let size = entry.size();
        self.bytes = self.bytes.saturating_add(size);
        if self.bytes > self.limits.bytes {
            return Err(self.refused(format!("more than {} bytes of files", self.limits.bytes)));
        }
        let target = self.into.join(path);
        if let Some(parent) = target.parent() {
            std::fs::create_dir_all(parent).map_err(|error| self.collides(path, error))?;
        }
        let mut out = create_new(&target).map_err(|error| self.collides(path, error))?;
        let copied = copy(entry, &mut out).map_err(|error| match error {
            Side::Read(error) => self.refused(format!("`{}` is cut short: {error}", path.display())),
            Side::Write(error) => Error::disk("write", &target)(error),
        })?;
        if copied != size {
            return Err(self.refused(format!("`{}` is cut short: {copied} of {size} bytes", path.display())));
        }
        Ok(())
    }

    /// A name that is both file and folder in the same artifact is the artifact's fault; all else is the disk's.
    fn collides(&self, path: &Path, error: io::Error) -> Error {
        match error.kind() {
            io::ErrorKind::AlreadyExists | io::ErrorKind::NotADirectory | io::ErrorKind::IsADirectory => {
                self.refused(format!("`{}` is a file and a folder at once", path.display()))
            }
            _ => Error::disk("create", self.into.join(path))(error),
        }
    }

    fn refused(&self, reason: String) -> Error {
        Error::Refused {
            uri: self.uri.to_owned(),
            reason,
        }
    }
}

/// A plain relative path, or why it is none.
pub(super) fn relative(bytes: &[u8]) -> Result<PathBuf, &'static str> {
    let text = std::str::from_utf8(bytes).map_err(|_| "is not UTF-8")?;
    let text = text.strip_prefix("./").unwrap_or(text);
    if text.is_empty() || text.len() > MAX_PATH {
        return Err("is empty or longer than 255 bytes");
    }
    if text.chars().any(char::is_control) || text.contains('\\') {
        return Err("holds control characters or backslashes");
    }
    let path = Path::new(text);
    if path.components().all(|part| matches!(part, Component::Normal(_))) {
        Ok(path.components().collect())
    } else {
        Err("is absolute or climbs out of its folder")
    }
}

fn create_new(path: &Path) -> io::Result<File> {
    OpenOptions::new().write(true).create_new(true).open(path)
}

enum Side {
    Read(io::Error),
    Write(io::Error),
}

fn copy(from: &mut impl Read, to: &mut File) -> Result<u64, Side> {
    let mut buffer = vec![0; 128 * 1024];
    let mut copied = 0;
    loop {
        let read = from.read(&mut buffer).map_err(Side::Read)?;
        if read == 0 {
            return Ok(copied);
        }
        to.write_all(&buffer[..read]).map_err(Side::Write)?;
        copied += read as u64;
    }
}

/// Hashes what is read through it.
struct Hashing<R> {
    inner: R,
    hash: Sha256,
}

impl<R: Read> Read for Hashing<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let read = self.inner.read(buffer)?;
        self.hash.update(&buffer[..read]);
        Ok(read)
    }
}

#[cfg(test)]
#[path = "unpack_tests.rs"]
mod tests;
