//! Removes what a cluster leaves on the machine: pods' processes, mounts, links, rules, control groups, state. The same
//! after an orderly end and before a start (the run before may have been killed). Touches only what carries our names.

use std::{
    collections::BTreeSet,
    fs,
    os::unix::ffi::OsStringExt,
    path::{Path, PathBuf},
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, bail};
use rustix::{
    mount::{UnmountFlags, unmount},
    process::{Pid, Signal, kill_process},
};

use super::{
    network,
    place::{CGROUP, Place},
};
use crate::process;

const CGROUPS: &str = "/sys/fs/cgroup";
const GONE_WITHIN: Duration = Duration::from_secs(20);

/// Cleans when it is dropped: the last thing that a cluster does.
#[derive(Debug)]
pub(super) struct Guard {
    pub(super) place: Place,
}

impl Drop for Guard {
    fn drop(&mut self) {
        if let Err(error) = clean(&self.place) {
            // Nobody can be given the error; the next start tries again and reports it.
            let text = format!("{error:#}\n");
            drop(fs::write(self.place.logs.join("cleanup-error.log"), text));
        }
    }
}

/// Removes everything; fine if there is nothing.
pub(super) fn clean(place: &Place) -> Result<()> {
    kill_all(place)?;
    unmount_below(&[&place.state, &place.run])?;
    network::close(place)?;
    remove_cgroups()?;
    for folder in [&place.state, &place.run] {
        if folder.exists() {
            fs::remove_dir_all(folder).with_context(|| format!("remove {}", folder.display()))?;
        }
    }
    Ok(())
}

/// Whether something of a cluster runs or is mounted.
pub(super) fn exist(place: &Place) -> Result<bool> {
    Ok(place.run.exists() || place.state.exists() || !ours(place)?.is_empty())
}

/// Shims outlive containerd by design, and pods outlive their shim.
fn kill_all(place: &Place) -> Result<()> {
    let until = Instant::now() + GONE_WITHIN;
    loop {
        let pids = ours(place)?;
        if pids.is_empty() {
            return Ok(());
        }
        if Instant::now() > until {
            bail!("processes of the local cluster do not end: {pids:?}");
        }
        for pid in pids {
            if let Some(pid) = Pid::from_raw(pid) {
                // It fails only when the process is gone already.
                let _gone = kill_process(pid, Signal::KILL);
            }
        }
        thread::sleep(Duration::from_millis(50));
    }
}

fn ours(place: &Place) -> Result<BTreeSet<i32>> {
    let mut pids = BTreeSet::new();
    for cgroup in cgroups()? {
        let listed = fs::read_to_string(cgroup.join("cgroup.procs")).unwrap_or_default();
        pids.extend(listed.lines().filter_map(|line| line.parse::<i32>().ok()));
    }
    let run = place.run.display().to_string();
    for entry in fs::read_dir("/proc")?.filter_map(Result::ok) {
        let Some(pid) = entry.file_name().to_string_lossy().parse().ok() else {
            continue;
        };
        // A process may end while we look.
        let command_line = fs::read(entry.path().join("cmdline")).unwrap_or_default();
        if is_our_shim(&String::from_utf8_lossy(&command_line), &run) && process::is_alive(pid) {
            pids.extend(i32::try_from(pid));
        }
    }
    Ok(pids)
}

fn is_our_shim(command_line: &str, run: &str) -> bool {
    let mut words = command_line.split('\0');
    words
        .next()
        .is_some_and(|program| program.ends_with("containerd-shim-runc-v2"))
        && words.any(|word| word.starts_with(run))
}

/// Our control groups in all hierarchies (one with cgroup v2), children before parents.
fn cgroups() -> Result<Vec<PathBuf>> {
    let mut found = Vec::new();
    let mut roots = vec![PathBuf::from(CGROUPS)];
    roots.extend(fs::read_dir(CGROUPS)?.filter_map(Result::ok).map(|entry| entry.path()));
    for root in roots {
        collect_folders(&root.join(CGROUP), &mut found);
    }
    Ok(found)
}

fn collect_folders(folder: &Path, found: &mut Vec<PathBuf>) {
    let Ok(entries) = fs::read_dir(folder) else { return };
    for entry in entries.filter_map(Result::ok) {
        if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
            collect_folders(&entry.path(), found);
        }
    }
    found.push(folder.to_owned());
}

fn remove_cgroups() -> Result<()> {
    let until = Instant::now() + GONE_WITHIN;
    loop {
        let mut last = None;
        for cgroup in cgroups()? {
            // Busy for a moment after its last process ended.
            if let Err(error) = fs::remove_dir(&cgroup) {
                last = Some((cgroup, error));
            }
        }
        match last {
            None => return Ok(()),
            Some((cgroup, error)) if Instant::now() > until => {
                return Err(error).with_context(|| format!("remove {}", cgroup.display()));
            }
            Some(_) => thread::sleep(Duration::from_millis(50)),
        }
    }
}

/// Unmounts what lies below the folders, innermost first. An error if something stays: deleting through a mount would
/// delete what is not ours.
fn unmount_below(folders: &[&Path]) -> Result<()> {
    for target in mounts_below(folders)?.iter().rev() {
        unmount(target, UnmountFlags::DETACH).with_context(|| format!("unmount {}", target.display()))?;
    }
    let left = mounts_below(folders)?;
    if left.is_empty() {
        Ok(())
    } else {
        bail!("still mounted: {left:?}")
    }
}

fn mounts_below(folders: &[&Path]) -> Result<Vec<PathBuf>> {
    let table = fs::read_to_string("/proc/self/mountinfo").context("read /proc/self/mountinfo")?;
    let targets = table.lines().filter_map(mount_target);
    Ok(targets
        .filter(|target| folders.iter().any(|folder| target.starts_with(folder)))
        .collect())
}

/// The fifth field; the kernel writes blanks and the like as three octal digits.
fn mount_target(line: &str) -> Option<PathBuf> {
    let field = line.split(' ').nth(4)?.as_bytes();
    let mut path = Vec::with_capacity(field.len());
    let mut index = 0;
    while index < field.len() {
        let octal = field
            .get(index + 1..index + 4)
            .and_then(|digits| std::str::from_utf8(digits).ok());
        match octal.and_then(|digits| u8::from_str_radix(digits, 8).ok()) {
            Some(byte) if field[index] == b'\\' => {
                path.push(byte);
                index += 4;
            }
            _ => {
                path.push(field[index]);
                index += 1;
            }
        }
    }
    Some(PathBuf::from(std::ffi::OsString::from_vec(path)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_kernels_escapes_in_mount_targets_are_read() {
        let line = r"30 24 0:26 / /var/a\040b/c\134d rw,relatime shared:5 - tmpfs tmpfs rw";
        assert_eq!(mount_target(line).unwrap(), PathBuf::from(r"/var/a b/c\d"));
        assert_eq!(mount_target("short line"), None);
    }

    #[test]
    fn only_shims_of_our_containerd_are_ours() {
        let shim = |socket: &str| format!("/x/containerd-shim-runc-v2\0-namespace\0k8s.io\0-address\0{socket}\0");
        assert!(is_our_shim(
            &shim("/run/assayer-cluster/containerd.sock"),
            "/run/assayer-cluster"
        ));
        assert!(!is_our_shim(
            &shim("/run/containerd/containerd.sock"),
            "/run/assayer-cluster"
        ));
        assert!(!is_our_shim("vi\0/run/assayer-cluster/notes", "/run/assayer-cluster"));
    }

    #[test]
    fn nothing_is_mounted_below_a_fresh_folder() {
        let folder = tempfile::tempdir().unwrap();
        assert!(mounts_below(&[folder.path()]).unwrap().is_empty());
        assert!(!mounts_below(&[Path::new("/proc")]).unwrap().is_empty());
    }
}
