//! `assayer optimize` as a user runs it: real model, real ONNX Runtime, real processes, small data.

use std::fs;
use std::process::Stdio;
use std::time::{Duration, Instant};

use serde_json::{Value, json};

use crate::scene::{Scene, changed, data, said};

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
    fs::write(&tampered, changed(&fs::read_to_string(&evidence).unwrap())).unwrap();
    let forged = scene.verify(&tampered, &model);
    assert_eq!(forged.status.code(), Some(1));
    assert!(said(&forged).contains("signature"), "{}", said(&forged));
}

#[test]
fn ranges_are_kept_and_found_again_where_the_user_says() {
    let scene = Scene::new(|_| {});
    let (file, tables) = (scene.path("mopt.yaml"), scene.path("made/tables"));
    let [file, folder] = [&file, &tables].map(|path| path.to_str().unwrap());
    let mut models = Vec::new();
    for words in ["kept in calibration table", "are from calibration table"] {
        let output = scene
            .assayer(&["optimize", "-v", "-f", file, "--calibration-tables", folder])
            .output()
            .unwrap();
        let said = said(&output);
        assert_eq!(output.status.code(), Some(0), "{said}");
        assert!(said.contains(words), "{words}: {said}");
        assert_eq!(fs::read_dir(&tables).unwrap().count(), 1);
        models.push(fs::read(scene.path("out/static-int8/magika.onnx")).unwrap());
    }
    assert!(models[0] == models[1], "the same bytes, calibrated or looked up");
}

#[test]
fn the_stages_of_a_recipe_can_be_pasted_and_give_the_same_model() {
    let scene = Scene::new(|manifest| {
        manifest["spec"]["candidates"][0]["stages"] = json!([
            {"quantize": {"mode": "Static", "calibration": {"method": "Percentile"}}},
        ]);
    });
    let first = scene.optimize();
    assert_eq!(first.status.code(), Some(0), "{}", said(&first));
    let recipe: Value =
        serde_saphyr::from_str(&fs::read_to_string(scene.path("out/static-int8/recipe.yaml")).unwrap()).unwrap();
    assert!(
        recipe["rows"].as_u64() > Some(0)
            && recipe["calibration"]
                .as_str()
                .is_some_and(|digest| digest.starts_with("sha256:"))
    );
    let model = fs::read(scene.path("out/static-int8/magika.onnx")).unwrap();
    let pasted = Scene::new(|manifest| manifest["spec"]["candidates"][0]["stages"] = recipe["stages"].clone());
    let second = pasted.optimize();
    assert_eq!(second.status.code(), Some(0), "{}", said(&second));
    assert!(
        fs::read(pasted.path("out/static-int8/magika.onnx")).unwrap() == model,
        "{recipe}"
    );
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
        |manifest| {
            let stages = json!([{"recover": {"method": "GPTQ"}}, {"quantize": {"mode": "Dynamic"}}]);
            manifest["spec"]["candidates"][0]["stages"] = stages;
        },
        &["GPTQ does not follow", "right after"],
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

/// Even for root: no folder can be made there.
#[test]
fn a_place_that_can_not_be_written_is_refused_before_any_work() {
    let scene = Scene::new(|_| {});
    let file = scene.path("mopt.yaml").display().to_string();
    for place in ["/proc/assayer/out", "/dev/null/out", "/dev/null"] {
        let output = scene
            .assayer(&["optimize", "-f", &file, "--output", place])
            .output()
            .unwrap();
        assert_eq!(output.status.code(), Some(1));
        let said = said(&output);
        assert!(said.contains("--output") && !said.contains("baseline"), "{said}");
    }
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
    let until = Instant::now() + Duration::from_mins(1);
    while !there() {
        assert!(Instant::now() < until, "no {what}");
        std::thread::sleep(Duration::from_millis(5));
    }
}
