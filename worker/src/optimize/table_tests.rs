//! Tables give the bytes that calibrating gives, or are not used.

use super::padding_tests::{encoder, feed};
use super::{trial::made_of_rows, *};
use crate::{
    calibrate::{Method, Tables},
    data::Feed,
    passes::{Mode, Quantize, Recovery},
};

fn fixed(calibration: Method) -> Quantize {
    Quantize {
        mode: Mode::Static,
        calibration,
        ..Quantize::default()
    }
}

/// The candidate's bytes, what its report says, and how many times a batch was calibrated.
fn made(model: &Model, settings: &Quantize, feed: &Feed, folder: Option<&Path>) -> (Vec<u8>, String, u64) {
    let tables = folder.map(|folder| Tables {
        folder: folder.to_owned(),
        instruction_set: "here".to_owned(),
    });
    let given = Given {
        tables,
        ..Given::default()
    };
    let (bytes, report) = made_of_rows(model, &[Stage::Quantize(settings.clone())], given, feed);
    let notes: Vec<String> = report.passes.into_iter().map(|pass| pass.note).collect();
    (bytes, notes.concat(), report.calibration_batches)
}

fn files(folder: &Path) -> Vec<PathBuf> {
    let mut files: Vec<PathBuf> = std::fs::read_dir(folder)
        .unwrap()
        .map(|file| file.unwrap().path())
        .collect();
    files.sort();
    files
}

#[test]
fn what_one_run_learned_the_next_one_looks_up() {
    let (model, folder) = (encoder(), tempfile::tempdir().unwrap());
    let feed_of = |width| feed(&model, width, false);
    for (count, method) in (1..).zip([Method::MinMax, Method::Percentile(99.9), Method::MovingAverage(0.1)]) {
        let (settings, rows) = (fixed(method), feed_of(0));
        let (wanted, told, batches) = made(&model, &settings, &rows, None);
        assert!(!told.contains("calibration table"), "{told}");
        let run = || made(&model, &settings, &rows, Some(folder.path()));
        let (first, told, _) = run();
        assert!(told.contains("kept in calibration table"), "{told}");
        assert_eq!(files(folder.path()).len(), count);
        let (second, told, behind) = run();
        assert!(told.contains("are from calibration table"), "{told}");
        assert_eq!(behind, batches, "as many batches stand behind the ranges");
        assert!(first == wanted && second == wanted, "{method:?}");
    }
    let before = files(folder.path());
    let (_, told, _) = made(&model, &fixed(Method::MinMax), &feed_of(9), Some(folder.path()));
    assert!(told.contains("kept in"), "other rows are another question: {told}");
    assert_eq!(files(folder.path()).len(), before.len() + 1);
}

#[test]
fn a_table_is_used_where_it_is_sound_and_replaced_where_it_is_not() {
    let (model, folder) = (encoder(), tempfile::tempdir().unwrap());
    let rows = feed(&model, 0, false);
    let run = || made(&model, &fixed(Method::MinMax), &rows, Some(folder.path()));
    let (wanted, ..) = run();
    let [path] = files(folder.path()).try_into().unwrap();
    let good = std::fs::read(&path).unwrap();
    let mut narrower: serde_json::Value = serde_json::from_slice(&good).unwrap();
    for kept in narrower["ranges"].as_object_mut().unwrap().values_mut() {
        for end in 0..2 {
            let half = kept["range"][end].as_f64().unwrap() / 2.0;
            kept["range"][end] = half.into();
        }
    }
    std::fs::write(&path, narrower.to_string()).unwrap();
    assert!(run().0 != wanted, "a table that fits decides");
    std::fs::write(&path, &good[..good.len() / 2]).unwrap();
    let (bytes, told, _) = run();
    assert!(
        told.contains("calibrated anew") && told.contains("is not used"),
        "{told}"
    );
    assert!(bytes == wanted);
    assert_eq!(std::fs::read(&path).unwrap(), good);
    let gone = folder.path().join("gone");
    let (bytes, told, _) = made(&model, &fixed(Method::MinMax), &rows, Some(&gone));
    assert!(told.contains("is not written"), "{told}");
    assert!(bytes == wanted);
}

#[test]
fn what_needs_the_rows_calibrates() {
    let (model, folder) = (encoder(), tempfile::tempdir().unwrap());
    let settings = Quantize {
        recovery: Recovery {
            gptq: true,
            ..Recovery::default()
        },
        ..fixed(Method::MinMax)
    };
    made(&model, &settings, &feed(&model, 0, false), Some(folder.path()));
    assert_eq!(files(folder.path()), Vec::<PathBuf>::new());
}
