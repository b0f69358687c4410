//! A folder with a manifest and a temporary folder for the program, and what the program says there.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::sync::OnceLock;

use serde_json::{Value, json};
use tempfile::TempDir;
use xtask::example::{self, ExampleData};
use xtask::progress::Progress;

/// Enough for every kind of file to be there once or so.
const ROWS: usize = 64;

pub(crate) fn data() -> &'static ExampleData {
    static DATA: OnceLock<(TempDir, ExampleData)> = OnceLock::new();
    let made = DATA.get_or_init(|| {
        let folder = tempfile::tempdir().unwrap();
        let data = example::make(folder.path(), ROWS, &Progress::silent()).unwrap();
        (folder, data)
    });
    &made.1
}

pub(crate) fn library() -> PathBuf {
    let path = std::env::var_os("ASSAYER_ORT").map(PathBuf::from);
    path.expect("ASSAYER_ORT must name ONNX Runtime's library: `cargo xtask test` gets it and sets the variable")
}

/// A folder with a manifest, and a temporary folder for the program.
pub(crate) struct Scene {
    pub(crate) folder: TempDir,
}

impl Scene {
    /// The example's manifest with gates that don't depend on how busy this machine is, and one candidate.
    pub(crate) fn new(change: impl FnOnce(&mut Value)) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let text = include_str!("../../../examples/magika/modeloptimization.yaml");
        let mut manifest: Value = serde_saphyr::from_str(text).unwrap();
        let spec = &mut manifest["spec"];
        spec["model"]["uri"] = json!(data().model);
        spec["data"]["calibration"]["uri"] = json!(data().calibration);
        spec["data"]["evaluation"]["uri"] = json!(data().evaluation);
        spec["output"]["uri"] = json!("out");
        spec["candidates"]
            .as_array_mut()
            .unwrap()
            .retain(|candidate| candidate["name"] == "static-int8");
        spec["gates"] = json!([
            {"name": "accuracy", "metric": "accuracy", "maxDrop": "0.1"},
            {"name": "size", "metric": "artifactSize", "maxRatio": "0.35"},
        ]);
        change(&mut manifest);
        // JSON is YAML.
        fs::write(folder.path().join("mopt.yaml"), manifest.to_string()).unwrap();
        fs::create_dir(folder.path().join("tmp")).unwrap();
        Self { folder }
    }

    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    pub(crate) fn assayer(&self, arguments: &[&str]) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_assayer"));
        command
            .args(arguments)
            .env("TMPDIR", self.path("tmp"))
            .env("ORT_DYLIB_PATH", library())
            .env("HOME", self.path("tmp"));
        command.stdin(Stdio::null());
        command
    }

    pub(crate) fn optimize(&self) -> Output {
        self.assayer(&["optimize", "-f", self.path("mopt.yaml").to_str().unwrap()])
            .output()
            .unwrap()
    }

    pub(crate) fn left_over(&self) -> usize {
        fs::read_dir(self.path("tmp")).unwrap().count()
    }

    pub(crate) fn verify(&self, evidence: &Path, model: &Path) -> Output {
        let key = self.path("out/signing.pub");
        let [evidence, key, model] = [evidence, &key, model].map(|path| path.to_str().unwrap());
        self.assayer(&["verify", evidence, "--key", key, "--model", model])
            .output()
            .unwrap()
    }
}

pub(crate) fn said(output: &Output) -> String {
    format!(
        "{}{}",
        String::from_utf8_lossy(&output.stdout),
        String::from_utf8_lossy(&output.stderr)
    )
}

/// Changes one letter of the signed payload.
pub(crate) fn changed(envelope: &str) -> String {
    let mut value: Value = serde_json::from_str(envelope).unwrap();
    let payload = value["payload"].as_str().unwrap().to_owned();
    let (at, old) = (payload.len() / 2, payload.as_bytes()[payload.len() / 2]);
    let new = if old == b'A' { "B" } else { "A" };
    value["payload"] = json!(format!("{}{new}{}", &payload[..at], &payload[at + 1..]));
    value.to_string()
}
