//! Bias correction on small graphs whose inputs are far from zero on average, so that errors of weights add up.

use super::{tests::valid, *};
use crate::{
    calibrate::{self, Gram, Learned, Rows as _, Wanted},
    onnx::{AttributeValue as A, Model, Tensor},
    testing::{self, Build, relative_difference, run},
};

fn image(channels: usize, seed: u64) -> Vec<Tensor> {
    let values: Vec<f32> = testing::noise(seed, channels * 144)
        .iter()
        .enumerate()
        .map(|(at, value)| value * 0.2 + if at / 144 % 2 == 0 { 1.0 } else { 2.0 })
        .collect();
    vec![Tensor::floats("x", &[1, channels, 12, 12], &values).unwrap()]
}

/// A convolution of as many channels as it gives, in `groups`, with a bias or without.
#[allow(clippy::cast_possible_wrap, reason = "small numbers")]
fn convolution(channels: usize, groups: usize, with_bias: bool) -> Model {
    let mut b = Build::opset(17);
    let x = b.input("x", &[1, channels as i64, 12, 12]);
    let (w, bias) = (b.weights(&[channels, channels / groups, 3, 3]), b.weights(&[channels]));
    let inputs = if with_bias {
        vec![x.as_str(), &w, &bias]
    } else {
        vec![x.as_str(), &w]
    };
    let y = b.node_with("Conv", &inputs, &[("group", A::Int(groups as i64))]);
    b.finish(&[&y])
}

#[allow(clippy::cast_precision_loss, reason = "small numbers")]
/// Mean over all samples and places of each channel's error, squared and summed; and what bias correction changed.
fn bias_left((float, channels): (&Model, usize), settings: &Quantize) -> (f64, Option<Report>) {
    let (taps, means) = (quantize_static::taps(float), convolution_inputs(float));
    let wanted = Wanted {
        ranges: &taps,
        method: settings.calibration,
        rows: &[],
        means: &means,
    };
    let mut batches = (0..8).map(|seed| Ok(image(channels, seed)));
    let Learned::<Gram> { ranges, means, .. } =
        calibrate::observe(&testing::runtime(), 1, float, &wanted, &mut batches, &mut |_| {}).unwrap();
    assert_eq!(means.len(), 1);
    let inputs = Inputs {
        means,
        ..Inputs::default()
    };
    let (mut candidate, mut recovering) = (float.clone(), Recovering::new(&settings.recovery, &inputs, float));
    match settings.mode {
        Mode::Static => {
            quantize_static::apply_recovering(&mut candidate, settings, &ranges, &mut recovering).unwrap();
        }
        Mode::Dynamic => {
            quantize_dynamic::apply_recovering(&mut candidate, settings, &mut recovering).unwrap();
        }
    }
    valid(&candidate);
    let mut sums = vec![0.0_f64; channels];
    for seed in 0..8 {
        let [left, right] = [float, &candidate].map(|model| run(model, &image(channels, seed))[0].to_floats().unwrap());
        let plane = left.len() / channels;
        for (at, (left, right)) in left.iter().zip(&right).enumerate() {
            sums[at / plane] += f64::from(left - right) / (8 * plane) as f64;
        }
    }
    let report = recovering.finish().unwrap().pop();
    (sums.iter().map(|sum| sum * sum).sum(), report)
}

/// The same, without groups, but with each position giving 2 x 2 of the output.
fn transposed(channels: usize) -> Model {
    let mut b = Build::opset(17);
    let x = b.input("x", &[1, i64::try_from(channels).unwrap(), 12, 12]);
    let (w, bias) = (b.weights(&[channels, channels, 2, 2]), b.weights(&[channels]));
    let y = b.node_with("ConvTranspose", &[&x, &w, &bias], &[("strides", A::Ints(vec![2, 2]))]);
    b.finish(&[&y])
}

#[test]
fn a_mean_error_of_a_convolution_goes_into_its_bias() {
    for (mode, granularity, channels, groups, with_bias) in [
        (Mode::Static, Granularity::PerTensor, 8, 1, true),
        // Filled up with channels of zeros.
        (Mode::Static, Granularity::PerTensor, 7, 1, true),
        (Mode::Static, Granularity::PerTensor, 64, 2, true),
        (Mode::Static, Granularity::PerTensor, 8, 8, false),
        (Mode::Static, Granularity::PerChannel, 8, 1, false),
        // Transposed.
        (Mode::Static, Granularity::PerTensor, 8, 0, true),
        (Mode::Dynamic, Granularity::PerTensor, 96, 1, true),
        (Mode::Dynamic, Granularity::PerTensor, 96, 1, false),
    ] {
        let float = match groups {
            0 => transposed(channels),
            _ => convolution(channels, groups, with_bias),
        };
        let corrected = |bias_correction| {
            let recovery = Recovery {
                bias_correction,
                ..Recovery::default()
            };
            let settings = Quantize {
                mode,
                granularity,
                recovery,
                ..Quantize::default()
            };
            bias_left((&float, channels), &settings)
        };
        let ((plain, nothing), (left, report)) = (corrected(false), corrected(true));
        assert_eq!((nothing, report.map(|report| report.changed)), (None, Some(1)));
        assert!(
            left < 0.2 * plain,
            "{mode:?} {granularity:?} {channels} {groups} {with_bias}: {left} {plain}"
        );
    }
}

#[test]
fn what_has_nothing_to_work_on_is_known_beforehand() {
    let methods = |gptq, bias_correction| Recovery {
        gptq,
        bias_correction,
        ..Recovery::default()
    };
    let float = convolution(8, 1, true);
    methods(false, true).require_sites(&float).unwrap();
    let error = methods(true, true).require_sites(&float).unwrap_err().to_string();
    assert!(
        error.starts_with("gptq changed nothing") && error.contains("convolutions"),
        "{error}"
    );
    let mut b = Build::opset(17);
    let x = b.input("x", &[4]);
    let y = b.node("Relu", &[&x]);
    let error = methods(false, true)
        .require_sites(&b.finish(&[&y]))
        .unwrap_err()
        .to_string();
    assert!(error.starts_with("bias-correction changed nothing"), "{error}");
}

#[test]
fn in_onnx_own_operators_a_mean_error_goes_into_the_sum_behind_a_product() {
    for with_sum in [true, false] {
        let mut b = Build::opset(17);
        let x = b.input("x", &[2, 5, 32]);
        let (w, bias) = (b.weights(&[32, 64]), b.weights(&[64]));
        let product = b.node("MatMul", &[&x, &w]);
        let y = if with_sum {
            b.node("Add", &[&product, &bias])
        } else {
            product
        };
        let model = b.finish(&[&y]);
        // Inputs that are far from zero on average, so that errors of weights add up.
        let rows = |seed| {
            let values: Vec<f32> = testing::noise(seed, 320)
                .iter()
                .map(|value| value * 0.1 + 2.0)
                .collect();
            vec![Tensor::floats("x", &[2, 5, 32], &values).unwrap()]
        };
        let mut gram = Gram::new(32);
        (0..8).for_each(|seed| gram.add(&rows(seed)[0].to_floats().unwrap()));
        gram.finish();
        let inputs = Inputs {
            grams: [("x".to_owned(), gram)].into(),
            ..Inputs::default()
        };
        let lost = |bias_correction| {
            let recovery = Recovery {
                bias_correction,
                ..Recovery::default()
            };
            let settings = Quantize {
                format: Format::Qdq,
                recovery: recovery.clone(),
                ..Quantize::default()
            };
            let mut batches = (0..8).map(|seed| Ok(rows(seed)));
            let (taps, method) = (quantize_static::taps(&model), settings.calibration);
            let seen =
                calibrate::calibrate(&testing::runtime(), 1, &model, &taps, method, &mut batches, &mut |_| {}).unwrap();
            let mut candidate = model.clone();
            let mut recovering = Recovering::new(&recovery, &inputs, &model);
            quantize_static::apply_recovering(&mut candidate, &settings, &seen, &mut recovering).unwrap();
            assert_eq!(recovering.finish().unwrap().len(), usize::from(bias_correction));
            valid(&candidate);
            relative_difference(&run(&model, &rows(50)), &run(&candidate, &rows(50)))
        };
        let (plain, corrected) = (lost(false), lost(true));
        assert!(corrected < 0.7 * plain, "{with_sum} {corrected} {plain}");
    }
}
