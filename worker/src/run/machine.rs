//! The machine as this container may use it: threads, processor, memory peaks.
//!
//! Decides how many threads a model gets: what the CPU limit allows, never what the host has. Pure functions over the text
//! of `/proc` and the cgroup files, and one reader each.

use std::path::{Path, PathBuf};

/// Threads for ONNX Runtime: the CPU limit rounded down, at least 1, at most the CPUs that the process may run on.
pub fn threads() -> u32 {
    let allowed = std::thread::available_parallelism().map_or(1, std::num::NonZero::get);
    let allowed = u32::try_from(allowed).unwrap_or(u32::MAX);
    threads_within(cpu_limit(Path::new("/")), allowed)
}

#[allow(
    clippy::cast_possible_truncation,
    clippy::cast_sign_loss,
    reason = "clamped to small positive numbers before"
)]
fn threads_within(limit: Option<f64>, allowed: u32) -> u32 {
    let limit = limit.map_or(u32::MAX, |cpus| cpus.floor().clamp(1.0, 65_536.0) as u32);
    limit.min(allowed).max(1)
}

/// The smallest CPU limit of this process's control group and the ones above, in CPUs; `root` is `/` outside tests.
fn cpu_limit(root: &Path) -> Option<f64> {
    let own = std::fs::read_to_string(root.join("proc/self/cgroup")).unwrap_or_default();
    let mut limits = Vec::new();
    for line in own.lines() {
        let mut parts = line.splitn(3, ':');
        let (Some(_), Some(controllers), Some(path)) = (parts.next(), parts.next(), parts.next()) else {
            continue;
        };
        if controllers.is_empty() {
            for folder in upwards(&root.join("sys/fs/cgroup"), path) {
                limits.extend(
                    std::fs::read_to_string(folder.join("cpu.max"))
                        .ok()
                        .and_then(|text| limit_v2(&text)),
                );
            }
        } else if controllers.split(',').any(|controller| controller == "cpu") {
            for mount in ["sys/fs/cgroup/cpu", "sys/fs/cgroup/cpu,cpuacct"] {
                for folder in upwards(&root.join(mount), path) {
                    let read = |name: &str| std::fs::read_to_string(folder.join(name)).ok();
                    limits.extend(limit_v1(read("cpu.cfs_quota_us"), read("cpu.cfs_period_us")));
                }
            }
        }
    }
    limits.into_iter().min_by(f64::total_cmp)
}

/// A group's folder and those above it, up to the mount. Inside a container the path may be the host's: then only the
/// mount itself exists, which is the container's own group.
fn upwards(mount: &Path, path: &str) -> Vec<PathBuf> {
    let mut folders = vec![mount.to_owned()];
    for part in path.split('/').filter(|part| !part.is_empty() && *part != "..") {
        let next = folders.last().unwrap_or(&mount.to_owned()).join(part);
        folders.push(next);
    }
    folders
}

fn limit_v2(text: &str) -> Option<f64> {
    let (quota, period) = text.trim().split_once(' ')?;
    share(quota.parse().ok()?, period.parse().ok()?)
}

fn limit_v1(quota: Option<String>, period: Option<String>) -> Option<f64> {
    share(quota?.trim().parse().ok()?, period?.trim().parse().ok()?)
}

fn share(quota: f64, period: f64) -> Option<f64> {
    (quota > 0.0 && period > 0.0).then(|| quota / period)
}

/// Peak resident memory of a process in bytes, as the kernel counts it; `self` or a process id.
pub fn peak_memory(process: &str) -> Option<u64> {
    let status = std::fs::read_to_string(format!("/proc/{process}/status")).ok()?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:"))?;
    line.trim()
        .strip_suffix("kB")?
        .trim()
        .parse::<u64>()
        .ok()?
        .checked_mul(1_024)
}

/// The processor's name.
pub fn cpu() -> String {
    let info = std::fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let name = info
        .lines()
        .find_map(|line| line.strip_prefix("model name").and_then(|rest| rest.split_once(": ")));
    name.map_or_else(
        || std::env::consts::ARCH.to_owned(),
        |(_, name)| crate::failure::cut(name.trim(), 100),
    )
}

/// The integer instruction set that kernels can use.
pub fn instruction_set() -> &'static str {
    #[cfg(target_arch = "x86_64")]
    {
        let sets = [
            (std::is_x86_feature_detected!("avx512vnni"), "avx512_vnni"),
            (std::is_x86_feature_detected!("avxvnni"), "avx_vnni"),
            (std::is_x86_feature_detected!("avx512bw"), "avx512"),
            (std::is_x86_feature_detected!("avx2"), "avx2"),
        ];
        sets.iter().find(|(there, _)| *there).map_or("sse", |(_, name)| name)
    }
    #[cfg(target_arch = "aarch64")]
    {
        if std::arch::is_aarch64_feature_detected!("i8mm") {
            "neon_i8mm"
        } else {
            "neon"
        }
    }
    #[cfg(not(any(target_arch = "x86_64", target_arch = "aarch64")))]
    {
        "generic"
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tree(files: &[(&str, &str)]) -> tempfile::TempDir {
        let root = tempfile::tempdir().unwrap();
        for (path, text) in files {
            let path = root.path().join(path);
            std::fs::create_dir_all(path.parent().unwrap()).unwrap();
            std::fs::write(path, text).unwrap();
        }
        root
    }

    #[test]
    fn limits_of_both_hierarchies_are_found() {
        let v2 = tree(&[
            ("proc/self/cgroup", "0::/a/b\n"),
            ("sys/fs/cgroup/a/cpu.max", "150000 100000\n"),
            ("sys/fs/cgroup/a/b/cpu.max", "max 100000\n"),
        ]);
        assert_eq!(cpu_limit(v2.path()), Some(1.5));
        let inside = tree(&[
            ("proc/self/cgroup", "0::/../other\n"),
            ("sys/fs/cgroup/cpu.max", "400000 100000\n"),
        ]);
        assert_eq!(cpu_limit(inside.path()), Some(4.0));
        let v1 = tree(&[
            ("proc/self/cgroup", "3:memory:/x\n2:cpu,cpuacct:/x\n"),
            ("sys/fs/cgroup/cpu/x/cpu.cfs_quota_us", "250000\n"),
            ("sys/fs/cgroup/cpu/x/cpu.cfs_period_us", "100000\n"),
            ("sys/fs/cgroup/cpu/cpu.cfs_quota_us", "-1\n"),
            ("sys/fs/cgroup/cpu/cpu.cfs_period_us", "100000\n"),
        ]);
        assert_eq!(cpu_limit(v1.path()), Some(2.5));
        assert_eq!(cpu_limit(tree(&[]).path()), None);
    }

    #[test]
    fn threads_are_the_limit_rounded_down_and_never_none() {
        for (limit, allowed, threads) in [
            (None, 8, 8),
            (Some(2.9), 8, 2),
            (Some(0.5), 8, 1),
            (Some(16.0), 4, 4),
            (Some(1e12), 4, 4),
        ] {
            assert_eq!(threads_within(limit, allowed), threads, "{limit:?}");
        }
    }

    #[test]
    fn this_machine_can_be_described() {
        assert!(peak_memory("self").unwrap() > 100_000);
        assert!(!cpu().is_empty() && threads() >= 1 && !instruction_set().is_empty());
    }
}
