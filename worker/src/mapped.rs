//! The one place that maps files into memory.
//!
//! Weights are read where they lie: mapped, never copied into the heap. Decides nothing about what the bytes mean.

use bytes::Bytes;
use memmap2::Mmap;
use rustix::mm::{Advice, madvise};
use std::{
    fs::File,
    io,
    ops::Range,
    sync::{Mutex, PoisonError},
};

/// Where files are mapped now: what else lies in memory would be lost by [`release`].
static MAPPED: Mutex<Vec<Range<usize>>> = Mutex::new(Vec::new());

/// A mapping that is known for as long as it is there.
struct Known(Mmap);

impl Known {
    fn new(map: Mmap) -> Self {
        let known = Self(map);
        MAPPED
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .push(addresses(&known.0));
        known
    }
}

impl AsRef<[u8]> for Known {
    fn as_ref(&self) -> &[u8] {
        &self.0
    }
}

impl Drop for Known {
    fn drop(&mut self) {
        let own = addresses(&self.0);
        MAPPED
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .retain(|range| *range != own);
    }
}

fn addresses(bytes: &[u8]) -> Range<usize> {
    let range = bytes.as_ptr_range();
    range.start.addr()..range.end.addr()
}

/// Maps a whole file read-only. An empty file gives no bytes.
#[allow(unsafe_code)]
pub(crate) fn map(file: &File) -> io::Result<Bytes> {
    if file.metadata()?.len() == 0 {
        return Ok(Bytes::new());
    }
    // SAFETY: a mapping is sound while nobody truncates or writes the file. Callers pass regular files with a single
    // name, from folders that only this process writes to (a Job's own volume or the user's model folder, opened by
    // descriptor); a violation can end this process, which holds nothing but this one model.
    let map = unsafe { Mmap::map(file)? };
    Ok(Bytes::from_owner(Known::new(map)))
}

/// Takes the whole pages of `bytes` out of this process, where they are a mapped file's: they are read from it again if they are needed.
/// Bytes of any other kind stay.
#[allow(unsafe_code)]
pub(crate) fn release(bytes: &[u8]) {
    let page = rustix::param::page_size();
    let start = bytes.as_ptr();
    let ahead = start.align_offset(page);
    let length = bytes.len().saturating_sub(ahead) / page * page;
    let mapped = MAPPED.lock().unwrap_or_else(PoisonError::into_inner);
    let own = addresses(bytes);
    if length == 0
        || !mapped
            .iter()
            .any(|range| range.start <= own.start && own.end <= range.end)
    {
        return;
    }
    // SAFETY: the pages lie inside a live, read-only mapping of a file; dropped, they hold the same bytes when they are read next.
    // A kernel that does not drop them is no fault.
    let _ = unsafe {
        madvise(
            start.wrapping_add(ahead).cast_mut().cast(),
            length,
            Advice::LinuxDontNeed,
        )
    };
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Write as _;

    #[test]
    fn released_bytes_are_what_they_were() {
        let mut file = tempfile::tempfile().unwrap();
        let written: Vec<u8> = (0..100_000_u32).map(|at| (at % 251) as u8).collect();
        file.write_all(&written).unwrap();
        let mapped = map(&file).unwrap();
        assert_eq!(mapped, written);
        release(&mapped[5000..90_000]);
        assert_eq!(mapped, written);
        // Nobody but this process knows these.
        let own = written.clone();
        release(&own);
        assert_eq!(own, written);
    }
}
