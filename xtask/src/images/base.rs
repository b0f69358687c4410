//! What lies under every program of ours: exactly the shared libraries it needs, taken from this machine (it was linked
//! against them), roots of trust, and a user that is not root. No shell, no package manager.

use std::{collections::BTreeMap, fs, path::Path, process::Command};

use anyhow::{Context, Result, bail};

use super::layer::{Contents, Layer};
use crate::process;

/// The user and group of every container.
pub const USER: &str = "65532:65532";

const CERTIFICATES: &str = "/etc/ssl/certs/ca-certificates.crt";

/// The layer under `programs`: one and the same for all images, so that a node holds it once.
pub(super) fn layer(programs: &[&Path]) -> Result<Layer> {
    let mut libraries = BTreeMap::new();
    for program in programs {
        libraries.extend(needed_libraries(program)?);
    }
    let certificates =
        fs::read(CERTIFICATES).with_context(|| format!("read {CERTIFICATES} (Debian package ca-certificates)"))?;
    let mut contents = Contents::default()
        .folder("/tmp", 0o1777)
        .file(
            "/etc/passwd",
            0o644,
            b"root:x:0:0:root:/:/sbin/nologin\nnonroot:x:65532:65532:nonroot:/:/sbin/nologin\n".to_vec(),
        )
        .file("/etc/group", 0o644, b"root:x:0:\nnonroot:x:65532:\n".to_vec())
        .file("/etc/nsswitch.conf", 0o644, b"hosts: files dns\n".to_vec())
        .file(CERTIFICATES, 0o644, certificates);
    for (path, content) in libraries {
        contents = contents.file(&path, 0o755, content);
    }
    contents.build()
}

/// By the path at which the loader looks, with what is there once links are followed.
fn needed_libraries(program: &Path) -> Result<BTreeMap<String, Vec<u8>>> {
    let listed = process::read(Command::new("ldd").arg(program))?;
    let mut libraries = BTreeMap::new();
    for path in paths(&listed, program)? {
        let content = fs::read(&path).with_context(|| format!("read {path}"))?;
        libraries.insert(path, content);
    }
    Ok(libraries)
}

/// What `ldd` prints: `name => path (address)`, or `path (address)` for the loader; the kernel's own has no path.
fn paths(listed: &str, program: &Path) -> Result<Vec<String>> {
    let mut paths = Vec::new();
    for line in listed.lines().map(str::trim) {
        if line.contains("=> not found") {
            bail!("{} needs a library that this machine lacks: {line}", program.display());
        }
        let after_arrow = line.split_once(" => ").map_or(line, |(_, path)| path);
        let path = after_arrow.split_whitespace().next().unwrap_or_default();
        if path.starts_with('/') {
            paths.push(path.to_owned());
        }
    }
    Ok(paths)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn libraries_are_read_from_what_ldd_prints() {
        let listed = "\tlinux-vdso.so.1 (0x00007ffc)\n\tlibc.so.6 => /lib/x86_64-linux-gnu/libc.so.6 (0x00007f)\n\
            \t/lib64/ld-linux-x86-64.so.2 (0x00007f)\n\tstatically linked\n";
        let found = paths(listed, Path::new("a")).unwrap();
        assert_eq!(
            found,
            ["/lib/x86_64-linux-gnu/libc.so.6", "/lib64/ld-linux-x86-64.so.2"]
        );
        let error = paths("\tlibx.so => not found\n", Path::new("a"))
            .unwrap_err()
            .to_string();
        assert!(error.contains("libx.so"), "{error}");
    }
}
