//! External data: weights in files beside the model, opened so that nothing outside the folder can be reached.
//!
//! A location is a plain file name. It is opened relative to the folder's descriptor without following links, must be a
//! regular file with one name only, and every range is checked against its size before it is mapped.

use super::{
    beside::Beside,
    error::{Error, shown},
};
use crate::mapped;
use bytes::Bytes;
use rustix::fs::{self, Mode, OFlags, ResolveFlags};
use std::{
    collections::BTreeMap,
    os::fd::OwnedFd,
    path::{Path, PathBuf},
};

/// Where a tensor says that its bytes are.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Location {
    file: String,
    offset: u64,
    length: Option<u64>,
}

impl Location {
    /// Reads the entries of a tensor. Unknown keys are refused: readers that set attributes from them were exploited.
    pub(super) fn parse(tensor: &str, entries: &[(String, String)]) -> Result<Self, Error> {
        let mut found: BTreeMap<&str, &str> = BTreeMap::new();
        for (key, value) in entries {
            if !["location", "offset", "length", "checksum"].contains(&key.as_str()) {
                return Err(Error::external(tensor, format!("key {} is not known", shown(key))));
            }
            if found.insert(key, value).is_some() {
                return Err(Error::external(tensor, format!("key {} appears twice", shown(key))));
            }
        }
        let number = |key: &str| {
            found
                .get(key)
                .map(|value| parse_number(value))
                .transpose()
                .map_err(|()| {
                    Error::external(
                        tensor,
                        format!("{key} {} is not a number", shown(found.get(key).unwrap_or(&""))),
                    )
                })
        };
        let (offset, length) = (number("offset")?.unwrap_or(0), number("length")?);
        let file = *found
            .get("location")
            .ok_or_else(|| Error::external(tensor, "no location"))?;
        plain_file_name(tensor, file)?;
        Ok(Self {
            file: file.to_owned(),
            offset,
            length,
        })
    }
}

fn parse_number(text: &str) -> Result<u64, ()> {
    let digits = !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit());
    if digits { text.parse().map_err(drop) } else { Err(()) }
}

fn plain_file_name(tensor: &str, file: &str) -> Result<(), Error> {
    if file.contains("_ORT_MEM_ADDR_") {
        return Err(Error::external(
            tensor,
            "the location is a memory address, which would read this process",
        ));
    }
    let plain = !file.is_empty()
        && file.len() <= 255
        && file != "."
        && file != ".."
        && !file.contains(['/', '\\', ':'])
        && !file.chars().any(char::is_control);
    if plain {
        return Ok(());
    }
    Err(Error::external(
        tensor,
        format!(
            "location {} is not a plain file name in the model's folder",
            shown(file)
        ),
    ))
}

/// The model's folder, by descriptor, with the files mapped so far.
#[derive(Debug)]
pub(super) struct Folder {
    path: PathBuf,
    descriptor: OwnedFd,
    files: BTreeMap<String, Bytes>,
    max_bytes: u64,
    max_files: u64,
}

impl Folder {
    pub(super) fn open(path: &Path, max_bytes: u64, max_files: u64) -> Result<Self, Error> {
        let flags = OFlags::DIRECTORY | OFlags::RDONLY | OFlags::CLOEXEC;
        let descriptor = fs::open(path, flags, Mode::empty()).map_err(|errno| Error::Io {
            action: "open",
            path: path.to_owned(),
            source: errno.into(),
        })?;
        Ok(Self {
            path: path.to_owned(),
            descriptor,
            files: BTreeMap::new(),
            max_bytes,
            max_files,
        })
    }

    /// The bytes of one tensor, as a slice of the mapped file.
    pub(super) fn read(&mut self, tensor: &str, location: &Location, wanted: u64) -> Result<Bytes, Error> {
        if location.length.is_some_and(|length| length != wanted) {
            let reason = format!(
                "length {} where type and dimensions take {wanted}",
                location.length.unwrap_or(0)
            );
            return Err(Error::external(tensor, reason));
        }
        let file = self.file(tensor, &location.file)?;
        let range = location
            .offset
            .checked_add(wanted)
            .filter(|&end| end <= file.len() as u64);
        let range = range.and_then(|end| Some(usize::try_from(location.offset).ok()?..usize::try_from(end).ok()?));
        let range = range.ok_or_else(|| {
            let (offset, size) = (location.offset, file.len());
            Error::external(
                tensor,
                format!("{wanted} bytes at offset {offset} pass the end of a file of {size} bytes"),
            )
        })?;
        Ok(file.slice(range))
    }

    fn file(&mut self, tensor: &str, name: &str) -> Result<Bytes, Error> {
        if let Some(bytes) = self.files.get(name) {
            return Ok(bytes.clone());
        }
        if self.files.len() as u64 == self.max_files {
            let (value, limit) = (self.max_files + 1, self.max_files);
            return Err(Error::Limit {
                what: "number of external data files",
                value,
                limit,
            });
        }
        let file = self.open_beneath(tensor, name)?;
        let metadata = file.metadata().map_err(|source| self.io(name, source))?;
        let links = std::os::unix::fs::MetadataExt::nlink(&metadata);
        if !metadata.is_file() || links != 1 {
            let reason = format!(
                "{} is not a regular file with exactly one name (links: {links})",
                shown(name)
            );
            return Err(Error::external(tensor, reason));
        }
        if metadata.len() > self.max_bytes {
            let (value, limit) = (metadata.len(), self.max_bytes);
            return Err(Error::Limit {
                what: "size of an external data file in bytes",
                value,
                limit,
            });
        }
        let bytes = mapped::map(&file).map_err(|source| self.io(name, source))?;
        self.files.insert(name.to_owned(), bytes.clone());
        Ok(bytes)
    }

    /// `openat2` beneath the folder; where a sandbox lacks that call, the name is one component and links are refused.
    fn open_beneath(&self, tensor: &str, name: &str) -> Result<std::fs::File, Error> {
        let flags = OFlags::RDONLY | OFlags::CLOEXEC | OFlags::NOFOLLOW | OFlags::NONBLOCK;
        let resolve = ResolveFlags::BENEATH | ResolveFlags::NO_SYMLINKS | ResolveFlags::NO_MAGICLINKS;
        let opened = match fs::openat2(&self.descriptor, name, flags, Mode::empty(), resolve) {
            Err(rustix::io::Errno::NOSYS) => fs::openat(&self.descriptor, name, flags, Mode::empty()),
            other => other,
        };
        opened.map(std::fs::File::from).map_err(|errno| {
            Error::external(
                tensor,
                format!("cannot open {} in the model's folder: {errno}", shown(name)),
            )
        })
    }

    /// The files that were mapped, and the model's own, if it lies in this folder.
    pub(super) fn into_beside(self, own: Option<(&str, Bytes)>) -> Beside {
        let mut files = self.files;
        files.extend(own.map(|(name, bytes)| (name.to_owned(), bytes)));
        Beside::mapped(self.path, files)
    }

    fn io(&self, name: &str, source: std::io::Error) -> Error {
        Error::Io {
            action: "read",
            path: self.path.join(name),
            source,
        }
    }
}
