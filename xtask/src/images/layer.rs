//! Layers as deterministic tar archives: sorted, all times 0, all owners root. Pure: files come in as bytes.

use std::{collections::BTreeMap, io::Cursor};

use anyhow::{Context, Result, bail};
use sha2::{Digest, Sha256};
use tar::{Builder, EntryType, Header};

/// An uncompressed tar and its digest, which is also its diff id.
#[derive(Debug, Clone)]
pub struct Layer {
    /// The archive.
    pub tar: Vec<u8>,
    /// `sha256:` and 64 hex digits.
    pub digest: String,
}

#[derive(Debug)]
enum Entry {
    Folder { mode: u32 },
    File { mode: u32, content: Vec<u8> },
}

/// What shall be in a layer, by absolute path in the image.
#[derive(Debug, Default)]
pub struct Contents {
    entries: BTreeMap<String, Entry>,
}

impl Contents {
    /// A folder; those above it come by themselves.
    #[must_use]
    pub fn folder(mut self, path: &str, mode: u32) -> Self {
        self.put(path, Entry::Folder { mode });
        self
    }

    /// A file; the folders above it come by themselves.
    #[must_use]
    pub fn file(mut self, path: &str, mode: u32, content: Vec<u8>) -> Self {
        self.put(path, Entry::File { mode, content });
        self
    }

    fn put(&mut self, path: &str, entry: Entry) {
        let path = path.trim_matches('/');
        for (index, _) in path.match_indices('/') {
            self.entries
                .entry(path[..index].to_owned())
                .or_insert(Entry::Folder { mode: 0o755 });
        }
        self.entries.insert(path.to_owned(), entry);
    }

    /// The archive: the same contents give the same bytes, always.
    pub fn build(&self) -> Result<Layer> {
        let mut builder = Builder::new(Vec::new());
        for (path, entry) in &self.entries {
            if path.is_empty() || path.split('/').any(|part| matches!(part, "" | "." | "..")) {
                bail!("/{path} is no path for a layer");
            }
            let mut header = Header::new_ustar();
            header.set_uid(0);
            header.set_gid(0);
            header.set_mtime(0);
            match entry {
                Entry::Folder { mode } => {
                    header.set_entry_type(EntryType::Directory);
                    header.set_mode(*mode);
                    header.set_size(0);
                    builder.append_data(&mut header, format!("{path}/"), std::io::empty())
                }
                Entry::File { mode, content } => {
                    header.set_entry_type(EntryType::Regular);
                    header.set_mode(*mode);
                    header.set_size(content.len() as u64);
                    builder.append_data(&mut header, path, Cursor::new(content))
                }
            }
            .with_context(|| format!("archive /{path}"))?;
        }
        let tar = builder.into_inner()?;
        let digest = digest_of(&tar);
        Ok(Layer { tar, digest })
    }
}

/// `sha256:` and 64 hex digits.
pub fn digest_of(bytes: &[u8]) -> String {
    format!("sha256:{}", hex::encode(Sha256::digest(bytes)))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn names(layer: &Layer) -> Vec<String> {
        let mut archive = tar::Archive::new(Cursor::new(&layer.tar));
        let entries = archive.entries().unwrap().map(|entry| {
            let entry = entry.unwrap();
            let header = entry.header();
            assert_eq!(
                (header.mtime().unwrap(), header.uid().unwrap(), header.gid().unwrap()),
                (0, 0, 0)
            );
            entry.path().unwrap().display().to_string()
        });
        entries.collect()
    }

    #[test]
    fn the_order_of_adding_does_not_show() {
        let one = Contents::default()
            .file("/b/x", 0o644, b"1".to_vec())
            .folder("/tmp", 0o1777)
            .build()
            .unwrap();
        let two = Contents::default()
            .folder("/tmp", 0o1777)
            .file("/b/x", 0o644, b"1".to_vec())
            .build()
            .unwrap();
        assert_eq!(one.digest, two.digest);
        assert_eq!(names(&one), ["b/", "b/x", "tmp/"]);
        let other = Contents::default()
            .folder("/tmp", 0o1777)
            .file("/b/x", 0o644, b"2".to_vec())
            .build()
            .unwrap();
        assert_ne!(one.digest, other.digest);
    }

    #[test]
    fn paths_that_lead_out_are_refused() {
        for path in ["/../etc/passwd", "/a/./b", "/a//b", "/"] {
            assert!(
                Contents::default().file(path, 0o644, Vec::new()).build().is_err(),
                "{path}"
            );
        }
    }
}
