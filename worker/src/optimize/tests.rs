//! The whole path on the real model: faithful, small, and the same bytes every time.

use super::*;
use crate::{
    calibrate::Method,
    onnx::ElementType,
    passes::{Activations, Bits, Blocks, Format, Granularity, Mode, Quantize, Raise, Recovery},
    testing,
};

/// Features as the model takes them: first and last 1,024 bytes of a text, padded with 256 in between.
fn features(text: &[u8]) -> Vec<Tensor> {
    let mut ids = vec![256_i32; 2048];
    let (head, tail) = (&text[..text.len().min(1024)], &text[text.len().saturating_sub(1024)..]);
    ids.iter_mut().zip(head).for_each(|(id, &byte)| *id = i32::from(byte));
    let start = 2048 - tail.len();
    ids[start..]
        .iter_mut()
        .zip(tail)
        .for_each(|(id, &byte)| *id = i32::from(byte));
    vec![Tensor::int32s("bytes", &[1, 2048], &ids).unwrap()]
}

/// Real text of several kinds: this crate's sources, its manifests, and binary data made from them.
fn samples() -> Vec<Vec<Tensor>> {
    let mut texts: Vec<Vec<u8>> = Vec::new();
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    for folder in ["src", "src/onnx", "src/passes", "src/calibrate", "."] {
        let mut files: Vec<PathBuf> = std::fs::read_dir(root.join(folder))
            .unwrap()
            .map(|entry| entry.unwrap().path())
            .filter(|path| {
                path.extension()
                    .is_some_and(|extension| extension == "rs" || extension == "toml")
            })
            .collect();
        files.sort();
        texts.extend(files.iter().map(|file| std::fs::read(file).unwrap()));
    }
    let json = texts
        .iter()
        .map(|text| format!("{{\"text\": {:?}}}", String::from_utf8_lossy(text)).into_bytes());
    let all: Vec<Vec<u8>> = texts.iter().cloned().chain(json).collect();
    all.iter().map(|text| features(text.trim_ascii())).collect()
}

fn make(settings: Quantize, threads: usize, output: &Path) -> Result<OptimizeReport, Error> {
    make_stages(&[Stage::Quantize(settings)], threads, output)
}

fn make_stages(stages: &[Stage], threads: usize, output: &Path) -> Result<OptimizeReport, Error> {
    let request = Request {
        model: &testing::magika(),
        output,
        stages,
        threads,
        limits: Limits::default(),
        given: Given::default(),
    };
    let batches = samples();
    optimize(
        &testing::runtime(),
        &request,
        &|| Box::new(batches.iter().take(12).cloned().map(Ok)),
        &mut |_| {},
    )
}

fn top(model: &Path, samples: &[Vec<Tensor>]) -> Vec<usize> {
    let mut session = testing::runtime()
        .open(model, &crate::session::Options::default())
        .unwrap();
    let mut best = Vec::new();
    for sample in samples {
        session
            .run::<session::Error>(sample, |output| {
                let scores = output.floats().unwrap();
                best.push(
                    (0..scores.len())
                        .max_by(|&a, &b| scores[a].total_cmp(&scores[b]))
                        .unwrap(),
                );
                Ok(())
            })
            .unwrap();
    }
    best
}

#[test]
fn the_real_model_becomes_a_quarter_and_agrees() {
    let folder = tempfile::tempdir().unwrap();
    let held_out: Vec<Vec<Tensor>> = samples().split_off(12);
    let baseline = top(&testing::magika(), &held_out);
    for mode in [Mode::Static, Mode::Dynamic] {
        let output = folder.path().join("candidate.onnx");
        let report = make(
            Quantize {
                mode,
                ..Quantize::default()
            },
            1,
            &output,
        )
        .unwrap();
        assert_eq!((report.opset_before, report.opset_after), (15, 17));
        assert!(report.bytes_after * 100 < report.bytes_before * 28, "{report:?}");
        assert_eq!(report.bytes_after, std::fs::metadata(&output).unwrap().len());
        assert_eq!(
            report.passes.last().unwrap().changed,
            if mode == Mode::Static { 5 } else { 2 },
            "Conv and MatMul: the other product is a lookup; what moves values around the convolution moves bytes"
        );
        assert!(
            report
                .passes
                .iter()
                .any(|pass| pass.name == "fuse-gelu" && pass.changed == 2)
        );
        let agree = top(&output, &held_out)
            .iter()
            .zip(&baseline)
            .filter(|(a, b)| a == b)
            .count();
        assert!(agree * 100 >= baseline.len() * 95, "{agree} of {}", baseline.len());
        let left: Vec<_> = std::fs::read_dir(folder.path())
            .unwrap()
            .map(|entry| entry.unwrap().file_name())
            .collect();
        assert_eq!(left, ["candidate.onnx"], "nothing else stays behind");
    }
}

#[test]
fn the_real_model_in_blocks_is_small_and_agrees() {
    let folder = tempfile::tempdir().unwrap();
    let held_out: Vec<Vec<Tensor>> = samples().split_off(12);
    let baseline = top(&testing::magika(), &held_out);
    let plain = Recovery::default();
    let gptq = Recovery {
        gptq: true,
        ..plain.clone()
    };
    for (bits, recovery, least) in [
        (Bits::Eight, plain.clone(), 98),
        (Bits::Four, plain, 90),
        (Bits::Four, gptq, 90),
    ] {
        let output = folder.path().join("candidate.onnx");
        let stages = [Stage::QuantizeBlocks(Blocks {
            bits,
            size: 32,
            recovery: recovery.clone(),
        })];
        let report = make_stages(&stages, 1, &output).unwrap();
        let pass = |name| report.passes.iter().find(|pass| pass.name == name);
        assert_eq!(
            pass("quantize-blocks").unwrap().changed,
            2,
            "a MatMul and a lookup; the Conv stays"
        );
        assert_eq!(
            pass("gptq").map(|pass| (pass.changed, pass.left.clone())),
            recovery.gptq.then_some((1, vec![]))
        );
        assert!(report.bytes_after < report.bytes_before, "{report:?}");
        let agree = top(&output, &held_out)
            .iter()
            .zip(&baseline)
            .filter(|(a, b)| a == b)
            .count();
        assert!(
            agree * 100 >= baseline.len() * least,
            "{bits:?}: {agree} of {}",
            baseline.len()
        );
    }
}

#[test]
fn entropy_agrees_as_well_as_the_extremes_do() {
    let folder = tempfile::tempdir().unwrap();
    let held_out: Vec<Vec<Tensor>> = samples().split_off(12);
    let baseline = top(&testing::magika(), &held_out);
    for calibration in [Method::MinMax, Method::Entropy] {
        let output = folder.path().join("candidate.onnx");
        let settings = Quantize {
            calibration,
            ..Quantize::default()
        };
        make(settings, 1, &output).unwrap();
        let different = top(&output, &held_out)
            .iter()
            .zip(&baseline)
            .filter(|(a, b)| a != b)
            .count();
        assert!(
            different * 100 <= baseline.len() * 3,
            "{calibration:?}: {different} of {}",
            baseline.len()
        );
    }
}

#[test]
fn dynamic_stages_need_no_data() {
    let folder = tempfile::tempdir().unwrap();
    let output = folder.path().join("candidate.onnx");
    let settings = Quantize {
        mode: Mode::Dynamic,
        ..Quantize::default()
    };
    let request = Request {
        model: &testing::magika(),
        output: &output,
        stages: &[Stage::Quantize(settings.clone())],
        threads: 1,
        limits: Limits::default(),
        given: Given::default(),
    };
    let report = optimize(
        &testing::runtime(),
        &request,
        &|| Box::new(std::iter::empty()),
        &mut |_| {},
    )
    .unwrap();
    assert_eq!(report.calibration_batches, 0);
    let alone = std::fs::read(&output).unwrap();
    make(settings, 1, &output).unwrap();
    assert_eq!(
        alone,
        std::fs::read(&output).unwrap(),
        "data that is not needed changes nothing"
    );
}

#[test]
fn equal_inputs_give_equal_bytes_at_any_number_of_threads() {
    let folder = tempfile::tempdir().unwrap();
    let quantize = |calibration, granularity, recovery| {
        Stage::Quantize(Quantize {
            granularity,
            calibration,
            recovery,
            ..Quantize::default()
        })
    };
    let gptq = Recovery {
        gptq: true,
        bias_correction: true,
        raise: None,
    };
    let plain = Recovery::default();
    let four = Blocks {
        bits: Bits::Four,
        size: 32,
        recovery: gptq.clone(),
    };
    for stages in [
        vec![quantize(Method::MinMax, Granularity::PerTensor, plain.clone())],
        vec![quantize(
            Method::MovingAverage(0.1),
            Granularity::PerTensor,
            plain.clone(),
        )],
        vec![quantize(
            Method::Percentile(99.99),
            Granularity::PerTensor,
            plain.clone(),
        )],
        vec![quantize(Method::MeanSquaredError, Granularity::PerTensor, plain)],
        vec![quantize(Method::Entropy, Granularity::PerChannel, gptq)],
        vec![Stage::QuantizeBlocks(four)],
    ] {
        let files: Vec<Vec<u8>> = [1, 2, 2]
            .iter()
            .enumerate()
            .map(|(index, &threads)| {
                let output = folder.path().join(format!("{index}.onnx"));
                // Both ONNX Runtime's threads and those that reduce what it gives.
                let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
                pool.install(|| make_stages(&stages, threads, &output).unwrap());
                std::fs::read(output).unwrap()
            })
            .collect();
        assert!(files.windows(2).all(|pair| pair[0] == pair[1]), "{stages:?}");
    }
}

#[test]
fn settings_that_make_no_sense_and_missing_data_are_refused() {
    let folder = tempfile::tempdir().unwrap();
    let output = folder.path().join("candidate.onnx");
    let refused = |settings: Quantize| make(settings, 1, &output).unwrap_err().to_string();
    let text = refused(Quantize {
        calibration: Method::Percentile(120.0),
        ..Quantize::default()
    });
    assert!(text.contains("120"), "{text}");
    let text = refused(Quantize {
        mode: Mode::Dynamic,
        activations: Activations::Int8,
        ..Quantize::default()
    });
    assert!(text.contains("activations Int8"), "{text}");

    let request = Request {
        model: &testing::magika(),
        output: &output,
        stages: &[Stage::Quantize(Quantize::default())],
        threads: 1,
        limits: Limits::default(),
        given: Given::default(),
    };
    let runtime = testing::runtime();
    let error = optimize(&runtime, &request, &|| Box::new(std::iter::empty()), &mut |_| {}).unwrap_err();
    assert!(matches!(error, Error::NoSample), "{error}");
    assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 0);
    let wrong = Tensor::new("bytes", ElementType::Float, &[1, 2], vec![0; 8]).unwrap();
    let error = optimize(
        &runtime,
        &request,
        &|| Box::new(std::iter::once(Ok(vec![wrong.clone()]))),
        &mut |_| {},
    )
    .unwrap_err();
    assert!(matches!(error, Error::Run { which: "baseline", .. }), "{error}");
    assert_eq!(
        std::fs::read_dir(folder.path()).unwrap().count(),
        0,
        "a refused request leaves nothing behind"
    );
}

#[test]
fn precision_is_raised_until_the_goal_is_reached_and_the_best_is_kept_when_it_is_missed() {
    let folder = tempfile::tempdir().unwrap();
    let mut b = testing::Build::opset(17);
    let mut x = b.input("x", &[-1, 64]);
    for _ in 0..4 {
        let w = b.weights(&[64, 64]);
        let product = b.node("MatMul", &[&x, &w]);
        x = b.node("Tanh", &[&product]);
    }
    let (model, output) = (folder.path().join("model.onnx"), folder.path().join("candidate.onnx"));
    onnx::write(&b.finish(&[&x]), &model).unwrap();
    let raised = |goal| {
        let settings = Blocks {
            bits: Bits::Four,
            size: 32,
            recovery: Recovery {
                raise: Some(Raise::Worst { share: 0.8, goal }),
                ..Recovery::default()
            },
        };
        let request = Request {
            model: &model,
            output: &output,
            stages: &[Stage::QuantizeBlocks(settings)],
            threads: 1,
            limits: Limits::default(),
            given: Given::default(),
        };
        let batch = |seed| Ok(vec![Tensor::floats("x", &[4, 64], &testing::noise(seed, 256)).unwrap()]);
        let report = optimize(
            &testing::runtime(),
            &request,
            &|| Box::new((0..4).map(batch)),
            &mut |_| {},
        )
        .unwrap();
        let pass = report
            .passes
            .iter()
            .find(|pass| pass.name == "raise-precision")
            .unwrap();
        (pass.changed, pass.note.clone())
    };
    assert_eq!(raised(None), (3, String::new()));
    let (count, note) = raised(Some(0.5));
    assert!(
        count == 0 && note.contains("after 0 of at most 6 steps") && note.contains("reaches the goal of 0.5"),
        "{note}"
    );
    let (count, note) = raised(Some(0.999_999));
    assert!(count == 3 && note.contains("misses the goal of 0.999999"), "{note}");
}

#[test]
fn in_onnx_own_operators_the_real_model_needs_no_other() {
    let folder = tempfile::tempdir().unwrap();
    let output = folder.path().join("candidate.onnx");
    let held_out: Vec<Vec<Tensor>> = samples().split_off(12);
    let baseline = top(&testing::magika(), &held_out);
    for mode in [Mode::Static, Mode::Dynamic] {
        let settings = Quantize {
            mode,
            format: Format::Qdq,
            ..Quantize::default()
        };
        make(settings, 1, &output).unwrap();
        let candidate = onnx::read(&output, &Limits::default()).unwrap();
        assert_eq!(candidate.opset("com.microsoft"), None);
        let agree = top(&output, &held_out)
            .iter()
            .zip(&baseline)
            .filter(|(a, b)| a == b)
            .count();
        assert!(
            agree * 100 >= baseline.len() * 95,
            "{mode:?}: {agree} of {}",
            baseline.len()
        );
    }
}

#[test]
fn the_real_model_in_sixteen_bits_is_half_and_agrees_with_and_without_data() {
    let folder = tempfile::tempdir().unwrap();
    let output = folder.path().join("candidate.onnx");
    let held_out: Vec<Vec<Tensor>> = samples().split_off(12);
    let baseline = top(&testing::magika(), &held_out);
    for given in [12, 0] {
        let batches = samples();
        let request = Request {
            model: &testing::magika(),
            output: &output,
            stages: &[Stage::Float16],
            threads: 1,
            limits: Limits::default(),
            given: Given::default(),
        };
        let open = || -> Box<dyn Iterator<Item = _>> { Box::new(batches.iter().take(given).cloned().map(Ok)) };
        let report = optimize(&testing::runtime(), &request, &open, &mut |_| {}).unwrap();
        assert!(report.bytes_after * 100 < report.bytes_before * 52, "{report:?}");
        let agree = top(&output, &held_out)
            .iter()
            .zip(&baseline)
            .filter(|(a, b)| a == b)
            .count();
        assert_eq!(agree, baseline.len(), "{given}");
    }
}
