//! Where built programs, downloaded packages and the local cluster's state live, outside the source tree.
//! Decides paths and who may write to one at a time; never what is written there.

use std::{
    fs::{self, File, TryLockError},
    path::{Path, PathBuf},
    thread,
    time::Duration,
};

use anyhow::{Context, Result};

use crate::{foreground, progress::Progress};

/// Names the cache folder when it is not the default one.
pub const CACHE_VARIABLE: &str = "ASSAYER_CACHE";
/// How long to wait between two looks at a lock that another process holds.
const AGAIN_AFTER: Duration = Duration::from_millis(200);

/// The cache folder: `$ASSAYER_CACHE`, else `$XDG_CACHE_HOME/assayer`, else `~/.cache/assayer`.
pub fn root() -> Result<PathBuf> {
    root_from(|name| {
        std::env::var_os(name)
            .filter(|value| !value.is_empty())
            .map(PathBuf::from)
    })
}

fn root_from(variable: impl Fn(&str) -> Option<PathBuf>) -> Result<PathBuf> {
    if let Some(chosen) = variable(CACHE_VARIABLE) {
        // Sockets and mounts below it need an absolute path.
        return std::path::absolute(&chosen).with_context(|| format!("{CACHE_VARIABLE}={}", chosen.display()));
    }
    // The XDG specification says to ignore relative paths.
    if let Some(base) = variable("XDG_CACHE_HOME").filter(|path| path.is_absolute()) {
        return Ok(base.join("assayer"));
    }
    let home = variable("HOME")
        .with_context(|| format!("no cache folder: neither {CACHE_VARIABLE}, XDG_CACHE_HOME nor HOME is set"))?;
    Ok(home.join(".cache/assayer"))
}

/// A folder in the cache, made if it was not there.
pub fn folder(name: &str) -> Result<PathBuf> {
    let path = root()?.join(name);
    fs::create_dir_all(&path).with_context(|| format!("create {}", path.display()))?;
    Ok(path)
}

/// A lock between processes, held until it is dropped (or its process is gone).
#[derive(Debug)]
pub struct Lock {
    _file: File,
}

impl Lock {
    /// Takes the lock `name`, waiting for another process that holds it and saying so.
    pub fn wait(name: &str, progress: &Progress) -> Result<Self> {
        let (path, file) = Self::open(name)?;
        let mut said = false;
        // Asked again and again: no interrupt would end a call that waits.
        loop {
            match file.try_lock() {
                Ok(()) => return Ok(Self { _file: file }),
                Err(TryLockError::WouldBlock) => foreground::check()?,
                Err(TryLockError::Error(error)) => {
                    return Err(error).with_context(|| format!("lock {}", path.display()));
                }
            }
            if !said {
                progress.say(&format!("waiting for another process that holds {}", path.display()));
                said = true;
            }
            thread::sleep(AGAIN_AFTER);
        }
    }

    /// Takes the lock `name`, or says `None` when another process holds it.
    pub fn try_take(name: &str) -> Result<Option<Self>> {
        let (path, file) = Self::open(name)?;
        match file.try_lock() {
            Ok(()) => Ok(Some(Self { _file: file })),
            Err(TryLockError::WouldBlock) => Ok(None),
            Err(TryLockError::Error(error)) => Err(error).with_context(|| format!("lock {}", path.display())),
        }
    }

    fn open(name: &str) -> Result<(PathBuf, File)> {
        let path = folder("locks")?.join(name);
        let file = File::options()
            .create(true)
            .append(true)
            .open(&path)
            .with_context(|| format!("open {}", path.display()))?;
        Ok((path, file))
    }
}

/// The source tree this program was built from.
pub fn workspace() -> &'static Path {
    let package = Path::new(env!("CARGO_MANIFEST_DIR"));
    package.parent().unwrap_or(package)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(variables: &[(&str, &str)], expected: &str) {
        let found = root_from(|name| {
            variables
                .iter()
                .find(|(key, _)| *key == name)
                .map(|(_, value)| PathBuf::from(value))
        });
        assert_eq!(found.unwrap(), PathBuf::from(expected));
    }

    #[test]
    fn the_first_variable_that_is_set_names_the_cache() {
        check(&[("HOME", "/home/a")], "/home/a/.cache/assayer");
        check(&[("HOME", "/home/a"), ("XDG_CACHE_HOME", "/var/c")], "/var/c/assayer");
        check(
            &[("HOME", "/home/a"), ("XDG_CACHE_HOME", "relative")],
            "/home/a/.cache/assayer",
        );
        check(&[("XDG_CACHE_HOME", "/var/c"), ("ASSAYER_CACHE", "/big")], "/big");
        assert!(root_from(|_| None).unwrap_err().to_string().contains("HOME"));
    }
}
