//! The one place that maps files into memory.
//!
//! Weights are read where they lie: mapped, never copied into the heap. Decides nothing about what the bytes mean.

use bytes::Bytes;
use rustix::mm::{Advice, madvise};
use std::{fs::File, io};

/// Maps a whole file read-only. An empty file gives no bytes.
#[allow(unsafe_code)]
pub(crate) fn map(file: &File) -> io::Result<Bytes> {
    if file.metadata()?.len() == 0 {
        return Ok(Bytes::new());
    }
    // SAFETY: a mapping is sound while nobody truncates or writes the file. Callers pass regular files with a single
    // name, from folders that only this process writes to (a Job's own volume or the user's model folder, opened by
    // descriptor); a violation can end this process, which holds nothing but this one model.
    let map = unsafe { memmap2::Mmap::map(file)? };
    Ok(Bytes::from_owner(map))
}

/// Lets the kernel reclaim the whole pages of `bytes`. Nothing is lost, wherever they lie; a kernel that does not is no fault.
#[allow(unsafe_code)]
pub(crate) fn release(bytes: &[u8]) {
    let page = rustix::param::page_size();
    let range = bytes.as_ptr_range();
    let ahead = range.start.align_offset(page);
    let length = bytes.len().saturating_sub(ahead) / page * page;
    if length == 0 {
        return;
    }
    // SAFETY: the pages lie inside a live slice, and paging them out changes no byte that is read from them.
    let _ = unsafe {
        madvise(
            range.start.wrapping_add(ahead).cast_mut().cast(),
            length,
            Advice::LinuxPageOut,
        )
    };
}
