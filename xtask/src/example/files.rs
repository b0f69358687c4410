//! Real files of this machine whose kind their name gives away.
//!
//! Decides which extensions and names are evidence enough, and where to look: only where packages and toolchains put files,
//! never in people's own folders. The model is not asked, so what it gets wrong stays in the data.

use std::{
    collections::BTreeMap,
    env,
    fs::{self, File},
    io::{Read, Seek, SeekFrom},
    path::{Path, PathBuf},
};

use anyhow::{Context, Result};
use scanner::features::{Config, Content};
use sha2::{Digest, Sha256};

/// Most files of one kind that are read; which ones, the digests of their paths say.
const MOST_OF_A_KIND: usize = 128;

/// Extensions that mean one kind. Left out are those that mean several (`h`, `m`, `ts`, `txt`, `v`, `pl`, `s`) and those that
/// packages use for something else (`snap`, `sum`, `crt`, `mod`, `lock`).
const EXTENSIONS: &[(&str, &str)] = &[
    ("S", "asm"),
    ("awk", "awk"),
    ("bat", "batch"),
    ("bmp", "bmp"),
    ("bz2", "bzip"),
    ("c", "c"),
    ("cc", "cpp"),
    ("cpp", "cpp"),
    ("cxx", "cpp"),
    ("class", "javabytecode"),
    ("cmake", "cmake"),
    ("cs", "cs"),
    ("css", "css"),
    ("csv", "csv"),
    ("dart", "dart"),
    ("diff", "diff"),
    ("patch", "diff"),
    ("docx", "docx"),
    ("erl", "erlang"),
    ("f90", "fortran"),
    ("gif", "gif"),
    ("go", "go"),
    ("gradle", "gradle"),
    ("groovy", "groovy"),
    ("gz", "gzip"),
    ("tgz", "gzip"),
    ("h5", "h5"),
    ("hs", "haskell"),
    ("htm", "html"),
    ("html", "html"),
    ("ico", "ico"),
    ("ini", "ini"),
    ("ipynb", "ipynb"),
    ("jar", "jar"),
    ("java", "java"),
    ("jl", "julia"),
    ("jpeg", "jpeg"),
    ("jpg", "jpeg"),
    ("js", "javascript"),
    ("mjs", "javascript"),
    ("json", "json"),
    ("kt", "kotlin"),
    ("lua", "lua"),
    ("m4", "m4"),
    ("md", "markdown"),
    ("mp3", "mp3"),
    ("npy", "npy"),
    ("npz", "npz"),
    ("ogg", "ogg"),
    ("otf", "otf"),
    ("parquet", "parquet"),
    ("pas", "pascal"),
    ("pdf", "pdf"),
    ("pem", "pem"),
    ("php", "php"),
    ("pm", "perl"),
    ("png", "png"),
    ("po", "po"),
    ("pptx", "pptx"),
    ("proto", "proto"),
    ("ps", "postscript"),
    ("ps1", "powershell"),
    ("py", "python"),
    ("pyc", "pythonbytecode"),
    ("rb", "ruby"),
    ("rs", "rust"),
    ("rst", "rst"),
    ("rtf", "rtf"),
    ("scala", "scala"),
    ("scss", "scss"),
    ("sh", "shell"),
    ("sql", "sql"),
    ("svg", "svg"),
    ("swift", "swift"),
    ("tar", "tar"),
    ("tcl", "tcl"),
    ("tex", "latex"),
    ("tif", "tiff"),
    ("tiff", "tiff"),
    ("toml", "toml"),
    ("ttf", "ttf"),
    ("vue", "vue"),
    ("wasm", "wasm"),
    ("wav", "wav"),
    ("webp", "webp"),
    ("woff", "woff"),
    ("woff2", "woff2"),
    ("xlsx", "xlsx"),
    ("xml", "xml"),
    ("xz", "xz"),
    ("yaml", "yaml"),
    ("yml", "yaml"),
    ("zig", "zig"),
    ("zip", "zip"),
];

/// Whole names that mean one kind.
const NAMES: &[(&str, &str)] = &[
    (".gitattributes", "gitattributes"),
    (".gitignore", "ignorefile"),
    (".gitmodules", "gitmodules"),
    ("BUILD.bazel", "bazel"),
    ("CMakeLists.txt", "cmake"),
    ("Dockerfile", "dockerfile"),
    ("Gemfile", "gemfile"),
    ("Makefile", "makefile"),
];

/// The kind that a program or shared library has if its first bytes say so.
const ELF: (&str, &[u8]) = ("elf", b"\x7fELF");

/// Where packages and toolchains put files: the folders of these that are there.
pub(super) fn folders() -> Vec<PathBuf> {
    let home = env::var_os("HOME").map(PathBuf::from);
    let below = |variable: &str, default: &str, rest: &str| {
        let base = env::var_os(variable)
            .map(PathBuf::from)
            .or_else(|| Some(home.as_ref()?.join(default)));
        base.map(|base| base.join(rest))
    };
    let fixed =
        ["/usr/bin", "/usr/include", "/usr/lib", "/usr/local", "/usr/share"].map(|path| Some(PathBuf::from(path)));
    let toolchains = [
        below("CARGO_HOME", ".cargo", "registry/src"),
        below("RUSTUP_HOME", ".rustup", "toolchains"),
        below("GOPATH", "go", "pkg/mod"),
    ];
    fixed
        .into_iter()
        .chain(toolchains)
        .flatten()
        .filter(|path| path.is_dir())
        .collect()
}

/// A file as the model sees it.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Sample {
    /// sha256 of the row: the order of everything, and what makes two samples the same.
    pub(super) digest: [u8; 32],
    /// One row of the model's input.
    pub(super) row: Vec<i32>,
}

/// The kind that a path's name gives away.
fn kind(path: &Path) -> Option<&'static str> {
    let name = path.file_name()?.to_str()?;
    if let Some((_, kind)) = NAMES.iter().find(|(known, _)| *known == name) {
        return Some(kind);
    }
    match path.extension().and_then(|extension| extension.to_str()) {
        Some("so" | "o") => Some(ELF.0),
        None if path.parent().is_some_and(|folder| folder.ends_with("bin")) => Some(ELF.0),
        extension => EXTENSIONS
            .iter()
            .find(|(known, _)| Some(*known) == extension)
            .map(|(_, kind)| *kind),
    }
}

/// Files by kind; of each kind the ones whose paths have the smallest digests, so that one large package can't crowd out the rest.
pub(super) fn find(folders: &[PathBuf]) -> BTreeMap<&'static str, BTreeMap<[u8; 32], PathBuf>> {
    let mut found: BTreeMap<&'static str, BTreeMap<[u8; 32], PathBuf>> = BTreeMap::new();
    let mut left = folders.to_vec();
    while let Some(folder) = left.pop() {
        // What can't be listed (another user's, gone meanwhile) can't be in the data either.
        let Ok(entries) = fs::read_dir(&folder) else { continue };
        for entry in entries.filter_map(Result::ok) {
            let path = entry.path();
            match entry.file_type() {
                // Test data is broken on purpose.
                Ok(kind) if kind.is_dir() && !path.ends_with("testdata") => left.push(path),
                Ok(file) if file.is_file() => {
                    let Some(kind) = kind(&path) else { continue };
                    let kept = found.entry(kind).or_default();
                    kept.insert(Sha256::digest(path.as_os_str().as_encoded_bytes()).into(), path);
                    if kept.len() > MOST_OF_A_KIND {
                        kept.pop_last();
                    }
                }
                _ => {}
            }
        }
    }
    found
}

/// What the model sees of the file; none where it is too small for a model or, called a program, is none.
pub(super) fn read(config: &Config, kind: &str, path: &Path) -> Result<Option<Sample>> {
    let (first, last, size) = ends(path, config.block()).with_context(|| format!("read {}", path.display()))?;
    if kind == ELF.0 && !first.starts_with(ELF.1) {
        return Ok(None);
    }
    let Content::Features(row) = config.read_ends(&first, &last, size) else {
        return Ok(None);
    };
    let bytes: Vec<u8> = row.iter().flat_map(|token| token.to_le_bytes()).collect();
    Ok(Some(Sample {
        digest: Sha256::digest(&bytes).into(),
        row,
    }))
}

fn ends(path: &Path, block: usize) -> std::io::Result<(Vec<u8>, Vec<u8>, usize)> {
    let mut file = File::open(path)?;
    let size = usize::try_from(file.metadata()?.len()).unwrap_or(usize::MAX);
    let mut first = vec![0; size.min(block)];
    file.read_exact(&mut first)?;
    let mut last = first.clone();
    file.seek(SeekFrom::End(-i64::try_from(last.len()).unwrap_or(0)))?;
    file.read_exact(&mut last)?;
    Ok((first, last, size))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_names_that_mean_one_kind_count() {
        for (path, expected) in [
            ("a/b.py", Some("python")),
            ("a/CMakeLists.txt", Some("cmake")),
            ("usr/bin/true", Some("elf")),
            ("lib/libc.so", Some("elf")),
            ("a/start.S", Some("asm")),
            ("a/b.h", None),
            ("a/b.txt", None),
            ("a/README", None),
        ] {
            assert_eq!(kind(Path::new(path)), expected, "{path}");
        }
    }

    #[test]
    fn a_kind_is_capped_and_test_data_skipped() {
        let folder = tempfile::tempdir().unwrap();
        fs::create_dir(folder.path().join("testdata")).unwrap();
        fs::write(folder.path().join("testdata/broken.json"), "{").unwrap();
        for number in 0..MOST_OF_A_KIND + 5 {
            fs::write(folder.path().join(format!("{number}.py")), "").unwrap();
        }
        let found = find(&[folder.path().to_owned()]);
        assert_eq!(found.keys().copied().collect::<Vec<_>>(), ["python"]);
        assert_eq!(found["python"].len(), MOST_OF_A_KIND);
    }
}
