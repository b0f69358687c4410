//! Debian packages: installed when root and missing, or unpacked into the cache where installing would start a service.
//! Never removes or upgrades a package.

use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context, Result, bail};

use crate::{
    cache::{self, Lock},
    process,
    progress::Progress,
};

/// To build runc.
pub const TO_BUILD: [&str; 4] = ["gcc", "libc6-dev", "libseccomp-dev", "pkg-config"];

/// To run a node and its images.
pub const TO_RUN_A_NODE: [&str; 6] = [
    "iptables",
    "iproute2",
    "containernetworking-plugins",
    "ca-certificates",
    "binutils",
    "util-linux",
];

/// To verify evidence as an auditor does, without any program of ours.
pub const TO_VERIFY: [&str; 2] = ["jq", "openssl"];

/// Installs those of `packages` that are missing, saying which; needs root only if one is.
pub fn ensure(packages: &[&str], progress: &Progress) -> Result<()> {
    if missing(packages)?.is_empty() {
        return Ok(());
    }
    let _one_installer = Lock::wait("apt", progress)?;
    let missing = missing(packages)?;
    if missing.is_empty() {
        return Ok(());
    }
    let list = missing.join(" ");
    if !rustix::process::geteuid().is_root() {
        bail!("Debian packages are missing and only root can install them: run `apt-get install {list}`");
    }
    let step = progress.step(format!("install Debian packages {list}"));
    if install(&missing).is_err() {
        // The package lists may be old or absent (containers come without); an error after this is the real one.
        step.doing("apt-get update");
        process::run(Command::new("apt-get").args(["update", "-q"]))?;
        install(&missing)?;
    }
    step.done("");
    Ok(())
}

fn install(packages: &[&str]) -> Result<()> {
    let mut command = Command::new("apt-get");
    command
        .env("DEBIAN_FRONTEND", "noninteractive")
        .args(["install", "-y", "-q", "--no-install-recommends"]);
    process::run(command.args(packages))?;
    Ok(())
}

fn missing<'a>(packages: &[&'a str]) -> Result<Vec<&'a str>> {
    let mut query = Command::new("dpkg-query");
    query
        .args(["--show", "--showformat", "${Package} ${db:Status-Status}\n"])
        .args(packages);
    // It exits 1 when it knows nothing of one of them, and still lists the others.
    let output = query
        .output()
        .context("run dpkg-query: this command supports Debian and its relatives")?;
    let listed = String::from_utf8_lossy(&output.stdout).into_owned();
    Ok(packages
        .iter()
        .filter(|package| !is_installed(&listed, package))
        .copied()
        .collect())
}

fn is_installed(listed: &str, package: &str) -> bool {
    listed.lines().any(|line| line == format!("{package} installed"))
}

/// A file of a package, unpacked into the cache without installing it: its services never start. Needs no root.
pub fn unpacked(package: &str, file: &str, progress: &Progress) -> Result<PathBuf> {
    let folder = cache::folder("debian")?.join(package);
    let wanted = folder.join(file);
    if wanted.exists() {
        return Ok(wanted);
    }
    let _one_at_a_time = Lock::wait("debian-unpack", progress)?;
    if !wanted.exists() {
        let step = progress.step(format!("fetch Debian package {package}"));
        unpack(package, &folder)?;
        step.done("");
    }
    if !wanted.exists() {
        bail!(
            "Debian package {package} has no file {file} (looked in {})",
            folder.display()
        );
    }
    Ok(wanted)
}

fn unpack(package: &str, folder: &Path) -> Result<()> {
    let cache = cache::folder("debian")?;
    let aside = tempfile::tempdir_in(&cache)?;
    let download = || {
        process::run(
            Command::new("apt-get")
                .args(["download", "-q", package])
                .current_dir(aside.path()),
        )
    };
    if download().is_err() {
        process::run(Command::new("apt-get").args(["update", "-q"]))
            .with_context(|| format!("update the package lists to find {package}"))?;
        download()?;
    }
    let archive = fs::read_dir(aside.path())?
        .filter_map(Result::ok)
        .map(|entry| entry.path())
        .find(|path| path.extension().is_some_and(|extension| extension == "deb"))
        .with_context(|| format!("apt-get download {package} left no file"))?;
    let tree = aside.path().join("tree");
    process::run(Command::new("dpkg-deb").arg("--extract").arg(&archive).arg(&tree))?;
    if folder.exists() {
        fs::remove_dir_all(folder)?;
    }
    fs::rename(&tree, folder).with_context(|| format!("rename to {}", folder.display()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_package_counts_only_when_dpkg_calls_it_installed() {
        let listed = "gcc installed\niptables config-files\ngcc-12 installed\n";
        assert!(is_installed(listed, "gcc"));
        assert!(!is_installed(listed, "iptables"));
        assert!(!is_installed(listed, "gcc-1"));
        assert!(!is_installed(listed, "runc"));
    }
}
