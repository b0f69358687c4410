//! Pinning, pushing and optimizing with a real registry.

use std::fs;
use std::net::Ipv4Addr;
use std::path::Path;

use serde_json::Value;
use tempfile::TempDir;
use xtask::cluster::Registry;

use crate::scene::{Scene, said};

struct Running {
    registry: Registry,
    folder: TempDir,
}

async fn registry() -> Running {
    let folder = tempfile::tempdir().unwrap();
    let storage = folder.path().join("blobs");
    let mut registry = Registry::start(Ipv4Addr::LOCALHOST, None, &storage, folder.path()).unwrap();
    registry.wait_until_ready().await.unwrap();
    Running { registry, folder }
}

/// A manifest as people write it, with paths; the scene's own is one line of JSON.
fn written(scene: &Scene) -> String {
    let manifest: Value = serde_json::from_str(&fs::read_to_string(scene.path("mopt.yaml")).unwrap()).unwrap();
    let text = serde_saphyr::to_string(&manifest).unwrap();
    fs::write(scene.path("mopt.yaml"), format!("# mine\n{text}")).unwrap();
    scene.path("mopt.yaml").display().to_string()
}

#[tokio::test]
async fn a_manifest_is_pinned_and_what_was_pushed_can_be_optimized() {
    let running = registry().await;
    let host = running.registry.host();
    let scene = Scene::new(|_| {});
    let file = written(&scene);
    let prefix = format!("oci://{host}/team");

    let plain = scene.assayer(&["pin", "-f", &file]).output().unwrap();
    assert_eq!(plain.status.code(), Some(1));
    assert!(
        said(&plain).contains("--push oci://registry/prefix"),
        "{}",
        said(&plain)
    );
    let wrong = scene.assayer(&["pin", "-f", &file, "--push", &host]).output().unwrap();
    assert!(said(&wrong).contains("--push"), "{}", said(&wrong));

    let pinned = scene
        .assayer(&["pin", "-f", &file, "--push", &prefix])
        .output()
        .unwrap();
    assert!(pinned.status.success(), "{}", said(&pinned));
    let text = String::from_utf8(pinned.stdout.clone()).unwrap();
    assert!(text.starts_with("# mine\n"), "comments stay: {text}");
    let object: Value = serde_saphyr::from_str(&text).unwrap();
    for field in [
        "/spec/model/uri",
        "/spec/data/calibration/uri",
        "/spec/data/evaluation/uri",
    ] {
        let uri = object.pointer(field).unwrap().as_str().unwrap();
        assert!(uri.starts_with(&prefix) && uri.contains("@sha256:"), "{field}: {uri}");
    }
    assert_eq!(object["spec"]["output"]["uri"], format!("{prefix}/out"));

    fs::write(scene.path("pinned.yaml"), &text).unwrap();
    let file = scene.path("pinned.yaml").display().to_string();
    let again = scene.assayer(&["pin", "-f", &file]).output().unwrap();
    assert_eq!(
        String::from_utf8_lossy(&again.stdout),
        text,
        "what is pinned stays as it is"
    );

    let nowhere = scene.assayer(&["optimize", "-f", &file]).output().unwrap();
    assert_eq!(nowhere.status.code(), Some(1));
    assert!(said(&nowhere).contains("--output DIR"), "{}", said(&nowhere));
    let results = scene.path("results").display().to_string();
    let output = scene
        .assayer(&["optimize", "--json", "-f", &file, "--output", &results])
        .output()
        .unwrap();
    assert!(output.status.success(), "{}", said(&output));
    let result: Value = serde_json::from_slice(&output.stdout).unwrap();
    let uri = result["candidates"][0]["artifact"]["uri"].as_str().unwrap();
    let digest = result["candidates"][0]["artifact"]["artifactDigest"].as_str().unwrap();
    assert_eq!(uri, format!("{prefix}/out@{digest}"));
    let model = Path::new(&results).join("static-int8/magika.onnx");
    assert!(model.is_file() && scene.left_over() == 0);
}

#[tokio::test]
async fn what_a_cluster_would_refuse_is_refused_before_anything_is_pushed() {
    let running = registry().await;
    let prefix = format!("oci://{}/team", running.registry.host());
    let scene = Scene::new(|manifest| manifest["spec"]["serch"] = serde_json::json!({}));
    let file = written(&scene);
    let refused = scene
        .assayer(&["pin", "-f", &file, "--push", &prefix])
        .output()
        .unwrap();
    assert_eq!(refused.status.code(), Some(1));
    assert!(
        said(&refused).contains(".spec.serch: unknown field") && !said(&refused).contains("->"),
        "{}",
        said(&refused)
    );
    assert!(refused.stdout.is_empty());
    let blobs = running.folder.path().join("blobs/docker/registry/v2/repositories");
    assert!(!blobs.exists(), "something was pushed");
}
