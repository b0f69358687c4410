//! `assayer optimize` as a user runs it: real model, real ONNX Runtime, real processes, small data.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::sync::OnceLock;
use std::time::{Duration, Instant};

use serde_json::{Value, json};
use tempfile::TempDir;
use xtask::example::{self, ExampleData};
use xtask::progress::Progress;

/// Enough for every kind of file to be there once or so.
const ROWS: usize = 64;

fn data() -> &'static ExampleData {
    static DATA: OnceLock<(TempDir, ExampleData)> = OnceLock::new();
    let made = DATA.get_or_init(|| {
        let folder = tempfile::tempdir().unwrap();
        let data = example::make(folder.path(), ROWS, &Progress::silent()).unwrap();
        (folder, data)
    });
    &made.1
}

fn library() -> PathBuf {
    let path = std::env::var_os("ASSAYER_ORT").map(PathBuf::from);
    path.expect("ASSAYER_ORT must name ONNX Runtime's library: `cargo xtask test` gets it and sets the variable")
}

/// A folder with a manifest, and a temporary folder for the program.
struct Scene {
    folder: TempDir,
}

impl Scene {
    /// The example's manifest with gates that don't depend on how busy this machine is, and one candidate.
    fn new(change: impl FnOnce(&mut Value)) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let text = include_str!("../../examples/magika/modeloptimization.yaml");
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

    fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    fn assayer(&self, arguments: &[&str]) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_assayer"));
        command
            .args(arguments)
            .env("TMPDIR", self.path("tmp"))
            .env("ORT_DYLIB_PATH", library())
            .env("HOME", self.path("tmp"));
        command.stdin(Stdio::null());
        command
    }

    fn optimize(&self) -> Output {
        self.assayer(&["optimize", "-f", self.path("mopt.yaml").to_str().unwrap()])
            .output()
            .unwrap()
    }

    fn left_over(&self) -> usize {
        fs::read_dir(self.path("tmp")).unwrap().count()
    }

    fn verify(&self, evidence: &Path, model: &Path) -> Output {
        let key = self.path("out/signing.pub");
        let [evidence, key, model] = [evidence, &key, model].map(|path| path.to_str().unwrap());
        self.assayer(&["verify", evidence, "--key", key, "--model", model])
            .output()
            .unwrap()
    }
}

fn said(output: &Output) -> String {
    format!(
        "{}{}",
        String::from_utf8_lossy(&output.stdout),
        String::from_utf8_lossy(&output.stderr)
    )
}

fn refused(change: impl FnOnce(&mut Value), words: &[&str]) {
    let scene = Scene::new(change);
    let output = scene.optimize();
    let said = said(&output);
    assert_eq!(output.status.code(), Some(1), "{said}");
    for word in words {
        assert!(said.contains(word), "expected `{word}` in: {said}");
    }
    assert!(
        !scene.path("out").join("static-int8").exists(),
        "nothing may be published"
    );
    assert_eq!(scene.left_over(), 0, "work folders are removed");
}

#[test]
fn a_selected_candidate_has_evidence_that_holds_for_it_and_for_nothing_else() {
    let scene = Scene::new(|_| {});
    for round in ["first", "again over the first"] {
        let output = scene.optimize();
        let said = said(&output);
        assert_eq!(output.status.code(), Some(0), "{round}: {said}");
        assert!(
            said.contains("selected: static-int8") && said.contains("Passed"),
            "{said}"
        );
        assert!(!said.contains('\u{1b}'), "colours are for terminals: {said:?}");
    }
    assert_eq!(scene.left_over(), 0);
    let names: Vec<_> = fs::read_dir(scene.folder.path())
        .unwrap()
        .map(|entry| entry.unwrap().file_name())
        .collect();
    assert_eq!(names.len(), 3, "manifest, tmp and out: {names:?}");

    let (evidence, model) = (
        scene.path("out/static-int8/evidence.dsse.json"),
        scene.path("out/static-int8/magika.onnx"),
    );
    for model in [&model, &scene.path("out/static-int8")] {
        let verified = scene.verify(&evidence, model);
        assert!(verified.status.success(), "{}", said(&verified));
        assert!(said(&verified).contains("by local"));
    }

    let other = scene.verify(&evidence, &data().model);
    assert_eq!(other.status.code(), Some(1));
    assert!(said(&other).contains("model digest"), "{}", said(&other));

    let tampered = scene.path("tampered.json");
    fs::write(&tampered, tamper(&fs::read_to_string(&evidence).unwrap())).unwrap();
    let forged = scene.verify(&tampered, &model);
    assert_eq!(forged.status.code(), Some(1));
    assert!(said(&forged).contains("signature"), "{}", said(&forged));
}

/// Changes one letter of the signed payload.
fn tamper(envelope: &str) -> String {
    let mut value: Value = serde_json::from_str(envelope).unwrap();
    let payload = value["payload"].as_str().unwrap().to_owned();
    let (at, old) = (payload.len() / 2, payload.as_bytes()[payload.len() / 2]);
    let new = if old == b'A' { "B" } else { "A" };
    value["payload"] = json!(format!("{}{new}{}", &payload[..at], &payload[at + 1..]));
    value.to_string()
}

#[test]
fn a_missed_gate_rejects_with_number_and_limit_and_evidence_is_kept() {
    let scene = Scene::new(|manifest| {
        manifest["spec"]["gates"] = json!([{"name": "tiny", "metric": "artifactSize", "max": "1k"}]);
        manifest["spec"]["candidates"][0]["stages"][0]["quantize"] = json!({"mode": "Dynamic"});
    });
    let file = scene.path("mopt.yaml");
    let output = scene
        .assayer(&["optimize", "--json", "-f", file.to_str().unwrap()])
        .output()
        .unwrap();
    assert_eq!(output.status.code(), Some(3), "{}", said(&output));
    let result: Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!(
        (&result["selected"], &result["candidates"][0]["state"]),
        (&Value::Null, &json!("Rejected"))
    );
    let verdict = &result["candidates"][0]["verdicts"][0];
    assert_eq!(verdict["verdict"], "Failed");
    assert!(
        verdict["limit"].as_str().unwrap().contains("1000 B")
            || verdict["message"].as_str().unwrap().contains("at most"),
        "{verdict}"
    );
    assert!(scene.path("out/static-int8/evidence.dsse.json").is_file());
}

#[test]
fn bad_manifests_are_refused_with_field_and_way_out() {
    refused(
        |manifest| manifest["spec"]["serch"] = json!({}),
        &[".spec.serch: unknown field"],
    );
    refused(
        |manifest| manifest["spec"]["gates"][0]["maxRatio"] = json!("1"),
        &["exactly one bound"],
    );
    refused(
        |manifest| manifest["spec"]["candidates"][0]["name"] = json!("../out"),
        &["candidates[0].name", "does not match"],
    );
    refused(
        |manifest| manifest["spec"]["model"]["uri"] = json!("no.onnx"),
        &["spec.model.uri", "no.onnx does not exist"],
    );
    refused(
        |manifest| manifest["spec"]["model"]["uri"] = json!("oci://127.0.0.1:1/m:latest"),
        &["assayer pin"],
    );
    refused(
        |manifest| manifest["kind"] = json!("Deployment"),
        &["kind is Deployment"],
    );
}

#[test]
fn bad_data_is_refused_with_the_workers_words() {
    refused(
        |manifest| manifest["spec"]["data"]["inputs"][0]["column"] = json!("featurs"),
        &["ColumnMissing", "featurs"],
    );
    refused(
        |manifest| manifest["spec"]["data"]["evaluation"]["uri"] = json!(data().calibration),
        &["DataShared"],
    );
}

#[test]
fn an_accelerator_that_is_not_there_is_an_error_and_never_a_fallback() {
    let scene = Scene::new(|manifest| {
        let mut gpu = manifest["spec"]["environments"][0].clone();
        gpu["name"] = json!("gpu");
        gpu["executionProvider"] = json!("CUDA");
        manifest["spec"]["environments"].as_array_mut().unwrap().push(gpu);
    });
    let file = scene.path("mopt.yaml");
    let output = scene
        .assayer(&["optimize", "--json", "-f", file.to_str().unwrap()])
        .output()
        .unwrap();
    assert_eq!(output.status.code(), Some(1), "{}", said(&output));
    let result: Value = serde_json::from_slice(&output.stdout).unwrap();
    let candidate = &result["candidates"][0];
    assert_eq!(
        (&result["selected"], &candidate["state"]),
        (&Value::Null, &json!("Failed"))
    );
    assert_eq!(candidate["verdicts"][0]["verdict"], "Error");
    let message = candidate["message"].as_str().unwrap();
    assert!(
        message.contains("ProviderUnavailable") && message.contains("ONNX Runtime"),
        "{message}"
    );
}

#[test]
fn foreign_folders_are_not_replaced() {
    let scene = Scene::new(|_| {});
    fs::create_dir(scene.path("out")).unwrap();
    fs::write(scene.path("out/mine"), "x").unwrap();
    let output = scene.optimize();
    assert_eq!(output.status.code(), Some(1));
    assert!(said(&output).contains("choose another folder"), "{}", said(&output));
    assert!(scene.path("out/mine").is_file());
}

#[test]
fn without_the_library_it_says_how_to_get_it() {
    let scene = Scene::new(|_| {});
    let file = scene.path("mopt.yaml");
    let output = scene
        .assayer(&["optimize", "-f", file.to_str().unwrap()])
        .env_remove("ORT_DYLIB_PATH")
        .output()
        .unwrap();
    assert_eq!(output.status.code(), Some(1));
    assert!(said(&output).contains("pip download"), "{}", said(&output));
}

#[test]
fn a_request_to_end_stops_the_workers_and_leaves_nothing() {
    let scene = Scene::new(|_| {});
    let file = scene.path("mopt.yaml");
    let mut command = scene.assayer(&["optimize", "-f", file.to_str().unwrap()]);
    let mut child = command.stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
    wait_for("a work folder", || scene.left_over() > 0);
    let pid = i32::try_from(child.id())
        .ok()
        .and_then(rustix::process::Pid::from_raw)
        .unwrap();
    rustix::process::kill_process(pid, rustix::process::Signal::TERM).unwrap();
    assert_eq!(child.wait().unwrap().code(), Some(130));
    assert_eq!(scene.left_over(), 0);
    assert!(!scene.path("out").exists());
}

fn wait_for(what: &str, mut there: impl FnMut() -> bool) {
    let until = Instant::now() + Duration::from_secs(60);
    while !there() {
        assert!(Instant::now() < until, "no {what}");
        std::thread::sleep(Duration::from_millis(5));
    }
}

#[test]
fn completions_and_wrong_use() {
    let scene = Scene::new(|_| {});
    for shell in ["bash", "zsh", "fish"] {
        let output = scene.assayer(&["completion", shell]).output().unwrap();
        assert!(output.status.success() && said(&output).contains("optimize"), "{shell}");
    }
    assert_eq!(scene.assayer(&["optimize"]).output().unwrap().status.code(), Some(2));
    assert_eq!(
        scene
            .assayer(&["optimize", "-f", "x", "--threads", "0"])
            .output()
            .unwrap()
            .status
            .code(),
        Some(2)
    );
}
