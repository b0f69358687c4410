//! Against a real OCI registry (`crane registry serve`), and against answers that a real one gives only when it is ill.

use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::net::{TcpListener, TcpStream};
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};

use super::super::{Location, candidate_tag, fetch, pack, push, resolve};
use super::*;
use crate::failure::{Failure, FailureClass, reasons};

/// A registry on this machine; it ends with this value.
struct Registry {
    child: Child,
    disk: tempfile::TempDir,
    host: String,
}

impl Registry {
    fn start() -> Self {
        let (disk, port) = (tempfile::tempdir().unwrap(), free_port());
        let crane = std::env::var_os("ASSAYER_CRANE")
            .map(PathBuf::from)
            .expect("ASSAYER_CRANE names no crane binary: run the tests with `cargo xtask test`");
        let host = format!("127.0.0.1:{port}");
        let mut child = Command::new(crane)
            .args(["registry", "serve", "--address", &host, "--disk"])
            .arg(disk.path())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        let mut log = BufReader::new(child.stderr.take().unwrap());
        let mut said = String::new();
        while !said.contains("serving") {
            assert_ne!(log.read_line(&mut said).unwrap(), 0, "the registry ended: {said}");
        }
        std::thread::spawn(move || std::io::copy(&mut log, &mut std::io::sink()));
        Self { child, disk, host }
    }

    fn location(&self, name: &str) -> Location {
        Location::parse(&format!("oci://{}/models/{name}", self.host)).unwrap()
    }

    /// Every stored blob's file.
    fn blobs(&self) -> Vec<PathBuf> {
        let mut found = Vec::new();
        let mut folders = vec![self.disk.path().to_owned()];
        while let Some(folder) = folders.pop() {
            for entry in std::fs::read_dir(folder).unwrap() {
                let path = entry.unwrap().path();
                if path.is_dir() {
                    folders.push(path);
                } else {
                    found.push(path);
                }
            }
        }
        found
    }

    /// Puts a manifest of our own making there.
    async fn put(&self, name: &str, blobs: &[&[u8]], manifest: &serde_json::Value) -> String {
        let location = self.location(name);
        let repository = Repository::open(&location, &Access::default()).await.unwrap();
        let reference = location.by_tag("t");
        for blob in blobs {
            let chunks = std::iter::once(Ok(Bytes::copy_from_slice(blob)));
            let named = (&Digest::of(blob), blob.len() as u64);
            repository.send_blob("test", &reference, named, chunks).await.unwrap();
        }
        let bytes = serde_json::to_vec(manifest).unwrap();
        let kind = manifest["mediaType"].as_str().unwrap_or(MANIFEST_TYPE).parse().unwrap();
        repository
            .client
            .push_manifest_raw(&reference, bytes.clone(), kind)
            .await
            .unwrap();
        location.at(&Digest::of(&bytes))
    }
}

impl Drop for Registry {
    fn drop(&mut self) {
        self.child.kill().ok();
        self.child.wait().ok();
    }
}

fn free_port() -> u16 {
    TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port()
}

fn model(text: &str) -> tempfile::TempDir {
    let folder = tempfile::tempdir().unwrap();
    std::fs::write(folder.path().join("model.onnx"), text).unwrap();
    std::fs::write(folder.path().join("weights.bin"), text.repeat(300_000)).unwrap();
    folder
}

async fn pull(uri: &str) -> (Result<super::super::Fetched, Error>, tempfile::TempDir) {
    let into = tempfile::tempdir().unwrap();
    (fetch(uri, into.path(), false, &Access::default()).await, into)
}

fn descriptor(kind: &str, blob: &[u8]) -> serde_json::Value {
    serde_json::json!({"mediaType": kind, "digest": Digest::of(blob), "size": blob.len()})
}

#[tokio::test]
async fn what_is_pushed_comes_back_and_pushing_again_changes_nothing() {
    let registry = Registry::start();
    let (location, folder) = (registry.location("m"), model("m"));
    let packed = pack(folder.path()).unwrap();
    let tag = candidate_tag("int8", &packed.artifact_digest);
    let pushed = push(&packed, &location, &tag, &Access::default()).await.unwrap();
    let stored = registry.blobs().len();
    assert_eq!(
        push(&packed, &location, &tag, &Access::default()).await.unwrap(),
        pushed
    );
    assert_eq!(registry.blobs().len(), stored);
    let (fetched, into) = pull(&pushed.uri).await;
    let fetched = fetched.unwrap();
    assert_eq!(
        (fetched.model_digest, fetched.artifact_digest),
        (pushed.model_digest, Some(pushed.artifact_digest.clone()))
    );
    assert_eq!(std::fs::read(into.path().join("model.onnx")).unwrap(), b"m");
    let tagged = Location::parse(&location.tagged(&tag)).unwrap();
    assert_eq!(
        resolve(&tagged, &Access::default()).await.unwrap(),
        pushed.artifact_digest
    );
}

/// A registry that answers each path with the bytes that somebody chose for it.
fn lying(answers: Vec<(String, Vec<u8>)>) -> String {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let host = listener.local_addr().unwrap().to_string();
    std::thread::spawn(move || {
        for stream in listener.incoming() {
            let mut stream = stream.unwrap();
            let mut request = String::new();
            BufReader::new(&stream).read_line(&mut request).unwrap();
            let path = request.split(' ').nth(1).unwrap_or_default();
            let body = answers
                .iter()
                .find(|(end, _)| path.ends_with(end))
                .map_or(&[][..], |(_, body)| body);
            let head = format!(
                "HTTP/1.1 200 OK\r\ncontent-length: {}\r\nconnection: close\r\n\r\n",
                body.len()
            );
            let _gone = stream.write_all(head.as_bytes()).and_then(|()| stream.write_all(body));
        }
    });
    host
}

#[tokio::test]
async fn bytes_that_are_not_those_of_their_digest_are_noticed_and_nothing_is_kept() {
    let folder = model("m");
    let packed = pack(folder.path()).unwrap();
    let layer: Vec<u8> = packed.layer().flat_map(|chunk| chunk.unwrap()).collect();
    let flipped = |bytes: &[u8]| {
        let mut bytes = bytes.to_vec();
        let middle = bytes.len() / 2;
        bytes[middle] ^= 1;
        bytes
    };
    let honest = [packed.manifest.clone(), packed.config.clone(), layer.clone()];
    let longer = [&layer[..], b"more"].concat();
    for (changed, bytes, reason) in [
        (0, flipped(&packed.manifest), reasons::DIGEST_MISMATCH),
        (1, flipped(&packed.config), reasons::DIGEST_MISMATCH),
        (2, flipped(&layer), reasons::DIGEST_MISMATCH),
        (2, layer[..5_000].to_vec(), reasons::DIGEST_MISMATCH),
        (2, longer, reasons::ARTIFACT_REFUSED),
    ] {
        let mut answers = honest.clone();
        answers[changed] = bytes;
        let digests = [
            &packed.artifact_digest,
            &Digest::of(&packed.config),
            &packed.layer_digest,
        ];
        let answers = digests.iter().map(ToString::to_string).zip(answers).collect();
        let location = Location::parse(&format!("oci://{}/m", lying(answers))).unwrap();
        let (result, into) = pull(&location.at(&packed.artifact_digest)).await;
        let failure = Failure::from(result.unwrap_err());
        assert_eq!(failure.reason, reason, "{changed}: {}", failure.message);
        assert!(!into.path().join("model.onnx").exists());
    }
    let answers = [
        &packed.artifact_digest,
        &Digest::of(&packed.config),
        &packed.layer_digest,
    ];
    let answers = answers.iter().map(ToString::to_string).zip(honest).collect();
    let location = Location::parse(&format!("oci://{}/m", lying(answers))).unwrap();
    assert!(
        pull(&location.at(&packed.artifact_digest)).await.0.is_ok(),
        "the same, told honestly"
    );
}

#[tokio::test]
async fn what_is_not_there_is_not_found() {
    let registry = Registry::start();
    let uri = registry.location("none").at(&Digest::of(b"none"));
    let failure = Failure::from(pull(&uri).await.0.unwrap_err());
    assert_eq!(
        (failure.reason.as_str(), failure.class),
        (reasons::NOT_FOUND, FailureClass::Refused),
        "{}",
        failure.message
    );
}

#[tokio::test]
async fn shapes_that_mount_as_an_empty_folder_are_refused() {
    let registry = Registry::start();
    let manifest = |config: serde_json::Value, layers: serde_json::Value| serde_json::json!({"schemaVersion": 2, "mediaType": MANIFEST_TYPE, "config": config, "layers": layers});
    let (empty, raw) = (&b"{}"[..], &b"raw model bytes"[..]);
    let layer = descriptor(TAR[0], raw);
    for (name, manifest, why) in [
        (
            "raw",
            manifest(
                descriptor("application/vnd.oci.empty.v1+json", empty),
                serde_json::json!([descriptor("application/octet-stream", raw)]),
            ),
            "not image-shaped",
        ),
        (
            "modelpack",
            manifest(
                descriptor("application/vnd.cncf.model.config.v1+json", empty),
                serde_json::json!([descriptor("application/vnd.cncf.model.weight.v1.raw", raw)]),
            ),
            "assayer push",
        ),
        (
            "mixed",
            manifest(
                descriptor(CONFIG_TYPE, empty),
                serde_json::json!([descriptor("application/vnd.cncf.model.weight.v1.raw", raw)]),
            ),
            "can't be mounted",
        ),
        (
            "none",
            manifest(descriptor(CONFIG_TYPE, empty), serde_json::json!([])),
            "no layer",
        ),
        (
            "diffs",
            manifest(descriptor(CONFIG_TYPE, empty), serde_json::json!([layer])),
            "another number of layers",
        ),
    ] {
        let uri = registry.put(name, &[empty, raw], &manifest).await;
        let failure = Failure::from(pull(&uri).await.0.unwrap_err());
        assert_eq!(failure.reason, reasons::ARTIFACT_REFUSED, "{}", failure.message);
        assert!(failure.message.contains(why), "{why}: {}", failure.message);
    }
}

#[tokio::test]
async fn a_layer_that_is_not_what_its_config_says_is_refused() {
    let registry = Registry::start();
    let mut builder = tar::Builder::new(Vec::new());
    let mut header = tar::Header::new_gnu();
    header.set_size(1);
    builder.append_data(&mut header, "model.onnx", &b"m"[..]).unwrap();
    let layer = builder.into_inner().unwrap();
    let config =
        serde_json::to_vec(&serde_json::json!({"rootfs": {"type": "layers", "diff_ids": [Digest::of(b"other")]}}))
            .unwrap();
    let manifest = serde_json::json!({
        "schemaVersion": 2, "mediaType": MANIFEST_TYPE,
        "config": descriptor(CONFIG_TYPE, &config), "layers": [descriptor(TAR[0], &layer)],
    });
    let uri = registry.put("m", &[&config, &layer], &manifest).await;
    assert!(matches!(pull(&uri).await.0, Err(Error::DigestMismatch { .. })));
    let mut big = manifest.clone();
    big["layers"][0]["size"] = serde_json::json!(1_u64 << 50);
    let uri = registry.put("big", &[&config, &layer], &big).await;
    assert!(pull(&uri).await.0.unwrap_err().to_string().contains("at most"));
}

#[tokio::test]
async fn a_registry_that_comes_back_is_waited_for() {
    let registry = Registry::start();
    let (location, folder) = (registry.location("m"), model("m"));
    let pushed = push(&pack(folder.path()).unwrap(), &location, "t", &Access::default())
        .await
        .unwrap();
    let (port, behind) = (free_port(), registry.host.clone());
    std::thread::spawn(move || {
        std::thread::sleep(Duration::from_millis(600));
        for stream in TcpListener::bind(("127.0.0.1", port)).unwrap().incoming() {
            let (mut near, mut far) = (stream.unwrap(), TcpStream::connect(&behind).unwrap());
            let (mut near_too, mut far_too) = (near.try_clone().unwrap(), far.try_clone().unwrap());
            std::thread::spawn(move || std::io::copy(&mut near, &mut far));
            std::thread::spawn(move || std::io::copy(&mut far_too, &mut near_too));
        }
    });
    let away = Location::parse(&format!("oci://127.0.0.1:{port}/models/m")).unwrap();
    let (fetched, _into) = pull(&away.at(&pushed.artifact_digest)).await;
    assert_eq!(fetched.unwrap().model_digest, pushed.model_digest);
}

/// Answers every request with `status`.
fn answering(status: &'static str) -> String {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let host = listener.local_addr().unwrap().to_string();
    std::thread::spawn(move || {
        for stream in listener.incoming() {
            let mut stream = stream.unwrap();
            let mut request = [0; 4_096];
            let _read = stream.read(&mut request);
            let _written = write!(
                stream,
                "HTTP/1.1 {status}\r\ncontent-length: 0\r\nconnection: close\r\n\r\n"
            );
        }
    });
    host
}

#[tokio::test]
async fn refused_credentials_and_dead_registries_are_told_apart() {
    for (status, reason) in [
        ("401 Unauthorized", reasons::STORAGE_FORBIDDEN),
        ("403 Forbidden", reasons::STORAGE_FORBIDDEN),
        ("404 Not Found", reasons::NOT_FOUND),
        ("503 Service Unavailable", reasons::STORAGE_UNAVAILABLE),
    ] {
        let location = Location::parse(&format!("oci://{}/m", answering(status))).unwrap();
        let failure = Failure::from(pull(&location.at(&Digest::of(b"x"))).await.0.unwrap_err());
        assert_eq!(failure.reason, reason, "{status}: {}", failure.message);
    }
    let nobody = Location::parse(&format!("oci://127.0.0.1:{}/m", free_port())).unwrap();
    let failure = Failure::from(pull(&nobody.at(&Digest::of(b"x"))).await.0.unwrap_err());
    assert_eq!(
        (failure.class, failure.reason.as_str()),
        (FailureClass::Storage, reasons::STORAGE_UNAVAILABLE)
    );
    assert!(
        failure.message.contains("refused"),
        "the cause is named: {}",
        failure.message
    );
}
