//! Evidence in the hands of somebody who has no program of ours: the commands of docs/evidence.md, run as they stand there.

use std::fs;
use std::path::Path;
use std::process::{Command, Output};

use serde_json::Value;

use crate::scene::{Scene, changed, said};

/// Info string of the blocks that belong together.
const BLOCK: &str = "```sh verify\n";

fn documented() -> String {
    let page = fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join("../docs/evidence.md")).unwrap();
    let blocks: Vec<&str> = page
        .split(BLOCK)
        .skip(1)
        .map(|rest| rest.split("```").next().unwrap())
        .collect();
    assert!(blocks.len() >= 4, "docs/evidence.md lacks the commands");
    blocks.concat()
}

fn follow(folder: &Path) -> Output {
    let script = format!("set -eu\n{}", documented());
    Command::new("sh")
        .args(["-c", &script])
        .current_dir(folder)
        .output()
        .unwrap()
}

#[test]
fn stock_tools_verify_what_optimize_signed_and_refuse_what_was_changed() {
    let scene = Scene::new(|_| {});
    let key = scene.path("signing.key");
    let made = Command::new("openssl")
        .args([
            "genpkey",
            "-algorithm",
            "EC",
            "-pkeyopt",
            "ec_paramgen_curve:P-256",
            "-out",
        ])
        .arg(&key)
        .output()
        .expect("openssl is not installed: apt-get install openssl jq");
    assert!(made.status.success(), "{}", said(&made));
    let manifest = scene.path("mopt.yaml");
    let [manifest, key] = [&manifest, &key].map(|path| path.to_str().unwrap());
    let output = scene
        .assayer(&["optimize", "--json", "-f", manifest, "--key", key])
        .output()
        .unwrap();
    assert!(output.status.success(), "{}", said(&output));
    let result: Value = serde_json::from_slice(&output.stdout).unwrap();
    let digest = result["candidates"][0]["evidence"]["digest"].as_str().unwrap();

    let folder = scene.path("out/static-int8");
    fs::copy(scene.path("out/signing.pub"), folder.join("signing.pub")).unwrap();
    let verified = follow(&folder);
    let told = said(&verified);
    assert!(verified.status.success(), "{told}");
    for words in ["Verified OK", digest, "magika.onnx: OK", "Passed  accuracy"] {
        assert!(told.contains(words), "`{words}` is not in: {told}");
    }
    let public = Command::new("openssl")
        .args(["pkey", "-in", key, "-pubout"])
        .output()
        .unwrap();
    assert_eq!(
        String::from_utf8_lossy(&public.stdout),
        fs::read_to_string(folder.join("signing.pub")).unwrap(),
        "it is the user's own key"
    );

    let evidence = folder.join("evidence.dsse.json");
    let honest = fs::read_to_string(&evidence).unwrap();
    fs::write(&evidence, changed(&honest)).unwrap();
    let forged = follow(&folder);
    assert!(
        !forged.status.success() && !said(&forged).contains("Verified OK"),
        "{}",
        said(&forged)
    );
    fs::write(&evidence, honest).unwrap();

    fs::write(folder.join("magika.onnx"), "another model").unwrap();
    let other = follow(&folder);
    assert!(
        !other.status.success() && said(&other).contains("magika.onnx: FAILED"),
        "{}",
        said(&other)
    );
}
