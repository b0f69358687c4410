//! The server with ONNX Runtime and the model it was written for. `cargo xtask test` fetches both and names them in
//! `ASSAYER_ORT` (the shared library) and `ASSAYER_MAGIKA` (`model.onnx`, its configuration beside it).

// clippy's exception for tests does not reach the functions that they share.
#![allow(clippy::unwrap_used)]

use std::env;
use std::fs;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::TcpStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::{Arc, OnceLock};

use axum::body::{Body, to_bytes};
use axum::http::Request;
use ort::environment::Environment;
use scanner::features::Config;
use scanner::model::{Model, ModelError};
use scanner::server::Server;
use serde_json::Value;
use tempfile::TempDir;
use tower::ServiceExt;

const SAMPLE: &[u8] = include_bytes!("../selftest/sample.py");
const MAX_BODY: usize = 64 * 1024;

fn named(variable: &str) -> PathBuf {
    let path = env::var_os(variable).unwrap_or_else(|| panic!("{variable} is not set: run `cargo xtask test`"));
    PathBuf::from(path)
}

fn runtime() -> &'static Environment {
    static RUNTIME: OnceLock<Environment> = OnceLock::new();
    RUNTIME.get_or_init(|| {
        ort::init_from(named("ASSAYER_ORT"))
            .unwrap()
            .with_telemetry(false)
            .build()
            .unwrap()
    })
}

fn config_path() -> PathBuf {
    named("ASSAYER_MAGIKA").with_file_name("config.min.json")
}

fn config() -> Config {
    Config::parse(&fs::read(config_path()).unwrap()).unwrap()
}

/// A folder with the model's bytes after `change`.
fn folder(change: impl FnOnce(Vec<u8>) -> Vec<u8>) -> TempDir {
    let folder = tempfile::tempdir().unwrap();
    fs::write(
        folder.path().join("model.onnx"),
        change(fs::read(named("ASSAYER_MAGIKA")).unwrap()),
    )
    .unwrap();
    folder
}

fn load(path: &Path) -> Result<Model, ModelError> {
    Model::load(runtime(), path, config(), 1)
}

/// The model with its output under another name: what a second exporter of the same weights delivers.
fn renamed(model: Vec<u8>) -> Vec<u8> {
    let (from, to) = (b"target_label", b"model_scores");
    let mut model = model;
    let places: Vec<usize> = (0..model.len() - from.len())
        .filter(|at| model[*at..].starts_with(from))
        .collect();
    assert!(!places.is_empty());
    for at in places {
        model[at..at + to.len()].copy_from_slice(to);
    }
    model
}

async fn ask(server: &Arc<Server>, method: &str, path: &str, body: Vec<u8>) -> (u16, String) {
    let request = Request::builder()
        .method(method)
        .uri(path)
        .body(Body::from(body))
        .unwrap();
    let response = Arc::clone(server).router(MAX_BODY).oneshot(request).await.unwrap();
    let status = response.status().as_u16();
    let body = to_bytes(response.into_body(), 1 << 20).await.unwrap();
    (status, String::from_utf8(body.to_vec()).unwrap())
}

#[tokio::test]
async fn a_good_model_answers_with_its_digest() {
    let folder = folder(|model| model);
    let server = Server::new().unwrap();
    server.decide(load(folder.path()).map_err(|error| error.to_string()));
    let (status, ready) = ask(&server, "GET", "/readyz", vec![]).await;
    assert_eq!(status, 200, "{ready}");
    let digest = serde_json::from_str::<Value>(&ready).unwrap()["modelDigest"].clone();

    let (status, answer) = ask(&server, "POST", "/classify", SAMPLE.to_vec()).await;
    assert_eq!(status, 200, "{answer}");
    let answer: Value = serde_json::from_str(&answer).unwrap();
    assert_eq!(
        (&answer["label"], &answer["confident"], &answer["modelDigest"]),
        (&"python".into(), &true.into(), &digest)
    );
    // Python's package says 0.99999881.
    assert!(
        (answer["score"].as_f64().unwrap() - 0.999_998_81).abs() < 1e-5,
        "{answer}"
    );

    let (_, answer) = ask(&server, "POST", "/classify", include_bytes!("serve.rs").to_vec()).await;
    assert!(answer.contains(r#""label":"rust""#), "{answer}");
    let (_, answer) = ask(&server, "POST", "/classify", vec![]).await;
    assert!(answer.contains(r#""label":"empty","score":null"#), "{answer}");
    let (status, _) = ask(&server, "POST", "/classify", vec![0; MAX_BODY + 1]).await;
    assert_eq!(status, 413);

    let (_, text) = ask(&server, "GET", "/metrics", vec![]).await;
    let series = [
        r#"http_requests_total{code="200",path="/classify"} 3"#.to_owned(),
        r#"http_requests_total{code="413",path="/classify"} 1"#.to_owned(),
        r#"http_request_duration_seconds_count{path="/classify"} 4"#.to_owned(),
        "scanner_ready 1".to_owned(),
        format!("model_digest={digest}"),
    ];
    for line in series {
        assert!(text.contains(&line), "{line} is missing in\n{text}");
    }
}

#[tokio::test]
async fn a_server_without_a_model_lives_and_is_not_ready() {
    let server = Server::new().unwrap();
    assert_eq!(ask(&server, "GET", "/healthz", vec![]).await.0, 200);
    assert_eq!(ask(&server, "GET", "/readyz", vec![]).await.0, 503);
    assert_eq!(ask(&server, "POST", "/classify", SAMPLE.to_vec()).await.0, 503);
}

#[tokio::test]
async fn a_model_with_another_output_is_refused_for_good() {
    let folder = folder(renamed);
    let server = Server::new().unwrap();
    server.decide(load(folder.path()).map_err(|error| error.to_string()));
    let (status, reason) = ask(&server, "GET", "/readyz", vec![]).await;
    assert_eq!(status, 503);
    assert!(reason.contains("the model's output is `model_scores`"), "{reason}");
    assert!(reason.contains("this server needs `target_label`"), "{reason}");
    assert_eq!(ask(&server, "POST", "/classify", SAMPLE.to_vec()).await.0, 503);
    assert!(
        ask(&server, "GET", "/metrics", vec![])
            .await
            .1
            .contains("scanner_ready 0")
    );
}

#[test]
fn anything_but_one_model_of_the_right_classes_is_refused() {
    let refused = |path: &Path, words: &str| {
        let error = load(path).map(|_| ()).unwrap_err().to_string();
        assert!(error.contains(words), "{error}");
    };
    let empty = tempfile::tempdir().unwrap();
    refused(empty.path(), "0 files named *.onnx");
    let two = folder(|model| model);
    fs::write(two.path().join("other.onnx"), b"").unwrap();
    refused(two.path(), "2 files named *.onnx");
    refused(
        folder(|model| model[..model.len() / 2].to_vec()).path(),
        "ONNX Runtime refuses the model",
    );

    let fewer = fs::read_to_string(config_path()).unwrap().replace(r#""3gp","#, "");
    let good = folder(|model| model);
    let error = Model::load(runtime(), good.path(), Config::parse(fewer.as_bytes()).unwrap(), 1)
        .unwrap_err()
        .to_string();
    assert!(error.contains("with 213 columns"), "{error}");
}

#[test]
fn the_digest_is_over_every_file_of_the_model() {
    let one = folder(|model| model);
    let model = load(one.path()).unwrap();
    assert_eq!(model.digest(), load(&one.path().join("model.onnx")).unwrap().digest());
    fs::write(one.path().join("model.data"), b"weights").unwrap();
    let other = load(one.path()).unwrap();
    assert_ne!(model.digest(), other.digest());
    assert_eq!(model.file_digest(), other.file_digest());
}

/// A program that does not outlive a test that fails.
struct Program(Child);

impl Drop for Program {
    fn drop(&mut self) {
        // Already gone where the test went well.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

#[test]
fn the_program_serves_and_leaves_when_told_to() {
    let folder = folder(|model| model);
    let program = Command::new(env!("CARGO_BIN_EXE_scanner"))
        .args(["--listen", "127.0.0.1:0", "--model"])
        .arg(folder.path())
        .arg("--config")
        .arg(config_path())
        .arg("--onnxruntime")
        .arg(named("ASSAYER_ORT"))
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let mut program = Program(program);
    let mut lines = BufReader::new(program.0.stderr.take().unwrap()).lines();
    let mut wait_for = |message: &str| loop {
        let line: Value = serde_json::from_str(&lines.next().unwrap().unwrap()).unwrap();
        if line["fields"]["message"] == message {
            return line["fields"].clone();
        }
        assert_ne!(line["level"], "ERROR", "{line}");
    };
    let address = wait_for("listening")["address"].as_str().unwrap().to_owned();
    wait_for("ready");
    let mut connection = TcpStream::connect(address).unwrap();
    let head = format!(
        "POST /classify HTTP/1.1\r\nhost: a\r\nconnection: close\r\ncontent-length: {}\r\n\r\n",
        SAMPLE.len()
    );
    connection.write_all(head.as_bytes()).unwrap();
    connection.write_all(SAMPLE).unwrap();
    let mut answer = String::new();
    connection.read_to_string(&mut answer).unwrap();
    assert!(
        answer.starts_with("HTTP/1.1 200") && answer.contains("python"),
        "{answer}"
    );

    let told = Command::new("kill")
        .args(["-TERM", &program.0.id().to_string()])
        .status()
        .unwrap();
    assert!(told.success());
    assert!(program.0.wait().unwrap().success());
}
