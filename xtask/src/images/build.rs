//! Builds our programs with plain `cargo build` and puts each into an image: one profile, so nothing compiles twice.

use std::{
    collections::BTreeMap,
    fs,
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context, Result, bail};
use serde_json::Value;

use super::{
    base,
    image::{Image, Start},
    layer::{Contents, Layer},
};
use crate::{
    cache, process,
    progress::{Progress, Step},
    tools::pypi,
};

const SCANNER_CONFIG: &str = "/etc/scanner/config.min.json";
const ONNX_RUNTIME: &str = "/usr/lib/libonnxruntime.so";

/// An image of ours.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub enum Ours {
    /// `assayer-operator`
    Operator,
    /// `assayer-worker`, with ONNX Runtime
    Worker,
    /// The examples' model server, with ONNX Runtime
    Scanner,
}

/// What one build of the workspace gave.
#[derive(Debug, Clone)]
pub struct Built {
    /// With the name of its repository.
    pub images: Vec<(Ours, Image)>,
    /// The `assayer` program, which is in no image.
    pub assayer: PathBuf,
}

impl Ours {
    /// All of them.
    pub const ALL: [Self; 3] = [Self::Operator, Self::Worker, Self::Scanner];

    /// The last part of its repository's name.
    pub fn name(self) -> &'static str {
        match self {
            Self::Operator => "assayer-operator",
            Self::Worker => "assayer-worker",
            Self::Scanner => "assayer-scanner",
        }
    }

    fn package_and_binary(self) -> (&'static str, &'static str) {
        match self {
            Self::Operator => ("assayer-operator", "assayer-operator"),
            Self::Worker => ("assayer-worker", "assayer-worker"),
            Self::Scanner => ("scanner", "scanner"),
        }
    }

    fn runs_models(self) -> bool {
        matches!(self, Self::Worker | Self::Scanner)
    }
}

/// Builds a program of ours that is in no image, and gives its path.
pub fn program(name: &str, progress: &Progress) -> Result<PathBuf> {
    let step = progress.step(format!("compile {name} with cargo"));
    let found = executables_of_the_workspace(&step)?;
    step.done("");
    named(&found, name)
}

fn named(programs: &BTreeMap<String, PathBuf>, name: &str) -> Result<PathBuf> {
    let found = programs.get(name).cloned();
    found.with_context(|| format!("cargo built no program {name}"))
}

/// Builds the images `wanted`, from the source tree this program was built from.
pub fn build(wanted: &[Ours], progress: &Progress) -> Result<Built> {
    let programs = compile(wanted, progress)?;
    let runtime = pypi::onnx_runtime(progress)?;
    pypi::ensure(&pypi::MAGIKA, progress)?;
    let step = progress.step("build images");
    let mut libraries_of: Vec<&Path> = programs.values().map(PathBuf::as_path).collect();
    libraries_of.push(&runtime);
    let base = base::layer(&libraries_of)?;
    let runtime_layer = Contents::default().file(ONNX_RUNTIME, 0o755, read(&runtime)?).build()?;
    let mut images = Vec::new();
    for &ours in wanted {
        let (_, binary) = ours.package_and_binary();
        let program = named(&programs, binary)?;
        images.push((ours, assemble(ours, &program, &base, &runtime_layer)?));
    }
    step.done(
        images
            .iter()
            .map(|(ours, _)| ours.name())
            .collect::<Vec<_>>()
            .join(", "),
    );
    Ok(Built {
        images,
        assayer: named(&programs, "assayer")?,
    })
}

fn assemble(ours: Ours, program: &Path, base: &Layer, runtime: &Layer) -> Result<Image> {
    let (_, binary) = ours.package_and_binary();
    let path = format!("/usr/bin/{binary}");
    let mut layers = vec![base.clone()];
    let mut environment = vec!["PATH=/usr/bin".to_owned()];
    if ours.runs_models() {
        layers.push(runtime.clone());
        environment.push(format!("ORT_DYLIB_PATH={ONNX_RUNTIME}"));
    }
    let mut contents = Contents::default().file(&path, 0o755, stripped(program)?);
    if ours == Ours::Scanner {
        contents = contents.file(SCANNER_CONFIG, 0o644, read(&pypi::magika_config_path()?)?);
    }
    layers.push(contents.build()?);
    Image::new(
        layers,
        &Start {
            entrypoint: vec![path],
            environment,
            user: base::USER.into(),
        },
    )
}

/// Without debug information, which is most of its size and differs with the folder it was built in.
fn stripped(program: &Path) -> Result<Vec<u8>> {
    let folder = tempfile::tempdir_in(cache::folder("images")?)?;
    let copy = folder.path().join("program");
    let mut strip = Command::new("strip");
    process::run(
        strip
            .args(["--strip-debug", "--enable-deterministic-archives", "-o"])
            .arg(&copy)
            .arg(program),
    )
    .context("strip a program (Debian package binutils)")?;
    read(&copy)
}

fn read(path: &Path) -> Result<Vec<u8>> {
    fs::read(path).with_context(|| format!("read {}", path.display()))
}

/// Each program's path by its name, as cargo reports it.
fn compile(wanted: &[Ours], progress: &Progress) -> Result<BTreeMap<String, PathBuf>> {
    let step = progress.step("compile programs with cargo");
    let programs = executables_of_the_workspace(&step)?;
    if programs.is_empty() {
        bail!("cargo built nothing for {wanted:?}");
    }
    step.done("");
    Ok(programs)
}

/// All of them at once: cargo unifies features over what it builds, so that asking for single packages compiles their
/// dependencies once more for each choice.
fn executables_of_the_workspace(step: &Step) -> Result<BTreeMap<String, PathBuf>> {
    let mut cargo = process::cargo();
    cargo.args([
        "build",
        "--workspace",
        "--bins",
        "--message-format=json-render-diagnostics",
    ]);
    executables(&process::read_shown(&mut cargo, step)?)
}

fn executables(messages: &str) -> Result<BTreeMap<String, PathBuf>> {
    let mut found = BTreeMap::new();
    for line in messages.lines().filter(|line| line.starts_with('{')) {
        let message: Value = serde_json::from_str(line).context("read what cargo reports")?;
        let name = message["target"]["name"].as_str();
        if let (Some(name), Some(path)) = (name, message["executable"].as_str()) {
            found.insert(name.to_owned(), PathBuf::from(path));
        }
    }
    Ok(found)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn programs_are_found_in_what_cargo_reports() {
        let said = "   Compiling x\n{\"reason\":\"compiler-artifact\",\"target\":{\"name\":\"a\"},\"executable\":\"/t/a\"}\n\
            {\"reason\":\"compiler-artifact\",\"target\":{\"name\":\"lib\"},\"executable\":null}\n\
            {\"reason\":\"build-finished\",\"success\":true}\n";
        let found = executables(said).unwrap();
        assert_eq!(
            found.into_iter().collect::<Vec<_>>(),
            [("a".to_owned(), PathBuf::from("/t/a"))]
        );
        assert!(executables("{not json").is_err());
    }

    #[test]
    fn only_images_that_run_models_carry_the_runtime() {
        let runs: Vec<_> = Ours::ALL
            .into_iter()
            .filter(|ours| ours.runs_models())
            .map(Ours::name)
            .collect();
        assert_eq!(runs, ["assayer-worker", "assayer-scanner"]);
    }
}
