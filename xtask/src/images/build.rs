//! Builds our programs with plain `cargo build` and puts each into an image: one profile, so nothing compiles twice.

use std::{
    collections::BTreeMap,
    fs,
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context, Result};
use serde_json::Value;

use super::{
    base,
    image::{Image, Start},
    layer::{Contents, Layer},
};
use crate::{cache, process, progress::Progress, tools::pypi};

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

/// Images by what they are, and the programs that were compiled on the way.
#[derive(Debug, Clone)]
pub struct Built {
    /// With the name of its repository.
    pub images: Vec<(Ours, Image)>,
    /// Every program of the workspace, those that are in no image too.
    pub programs: Programs,
}

/// Each program's path by its name, as cargo reports it.
#[derive(Debug, Clone)]
pub struct Programs(BTreeMap<String, PathBuf>);

impl Programs {
    /// The path of one.
    pub fn path(&self, name: &str) -> Result<&Path> {
        let path = self.0.get(name);
        path.map(PathBuf::as_path)
            .with_context(|| format!("cargo built no program {name}"))
    }
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

/// Compiles all programs of the workspace at once: cargo unifies features over what it builds, so that asking for single packages
/// compiles their dependencies once more for each choice.
pub fn compile(progress: &Progress) -> Result<Programs> {
    let step = progress.step("compile programs with cargo");
    let mut cargo = process::cargo();
    cargo.args([
        "build",
        "--workspace",
        "--bins",
        "--message-format=json-render-diagnostics",
    ]);
    let programs = executables(&process::read_shown(&mut cargo, &step)?)?;
    step.done("");
    Ok(Programs(programs))
}

/// Builds the images `wanted`, from the source tree this program was built from.
pub fn build(wanted: &[Ours], progress: &Progress) -> Result<Built> {
    let programs = compile(progress)?;
    let runtime = pypi::onnx_runtime(progress)?;
    pypi::ensure(&pypi::MAGIKA, progress)?;
    let step = progress.step("build images");
    let mut libraries_of: Vec<&Path> = programs.0.values().map(PathBuf::as_path).collect();
    libraries_of.push(&runtime);
    let base = base::layer(&libraries_of)?;
    let runtime_layer = Contents::default().file(ONNX_RUNTIME, 0o755, read(&runtime)?).build()?;
    let mut images = Vec::new();
    for &ours in wanted {
        let (_, binary) = ours.package_and_binary();
        let program = programs.path(binary)?;
        images.push((ours, assemble(ours, program, &base, &runtime_layer)?));
    }
    step.done(
        images
            .iter()
            .map(|(ours, _)| ours.name())
            .collect::<Vec<_>>()
            .join(", "),
    );
    Ok(Built { images, programs })
}

fn assemble(ours: Ours, program: &Path, base: &Layer, runtime: &Layer) -> Result<Image> {
    let (_, binary) = ours.package_and_binary();
    let path = format!("/usr/bin/{binary}");
    let mut layers = vec![base.clone()];
    let mut environment = vec!["PATH=/usr/bin".to_owned()];
    if ours.runs_models() {
        layers.push(runtime.clone());
        environment.push(format!("ORT_DYLIB_PATH={ONNX_RUNTIME}"));
        // It opens a database and looks for a way out before it can be told in any other way.
        environment.push("ORT_DISABLE_TELEMETRY=1".to_owned());
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
    strip(program, &copy)?;
    read(&copy)
}

/// Writes `program` to `copy` as images have it: without debug information.
pub fn strip(program: &Path, copy: &Path) -> Result<()> {
    let mut strip = Command::new("strip");
    process::run(
        strip
            .args(["--strip-debug", "--enable-deterministic-archives", "-o"])
            .arg(copy)
            .arg(program),
    )
    .context("strip a program (Debian package binutils)")?;
    Ok(())
}

fn read(path: &Path) -> Result<Vec<u8>> {
    fs::read(path).with_context(|| format!("read {}", path.display()))
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
