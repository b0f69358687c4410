//! A real speech model, which nobody made for this: an `If` on the sampling rate with a network in each branch, the gates of its LSTM
//! reordered in the graph, a `Constant` node for every weight, a scalar and states among its inputs.
#![allow(clippy::cast_precision_loss, reason = "samples are counted in thousands")]

use super::*;
use crate::{
    passes::{Bits, Blocks, Mode, Quantize, Recovery},
    testing,
};

/// Samples that the model takes at once, those before them included.
const WINDOW: usize = 576;
const RATE: u16 = 16_000;

/// Centre, width and strength of what a mouth lets through, in hertz.
const FORMANTS: [[f32; 3]; 3] = [[600.0, 150.0, 1.0], [1200.0, 200.0, 0.6], [2500.0, 300.0, 0.3]];
/// Pitch in hertz.
const PITCH: f32 = 110.0;

/// A voice with a vibrato that comes and goes, and a little noise.
fn windows() -> Vec<Vec<Tensor>> {
    let strength = |hertz: f32| {
        let through = |[centre, width, strength]: [f32; 3]| (-((hertz - centre) / width).powi(2)).exp() * strength;
        FORMANTS.into_iter().map(through).sum::<f32>() + 0.02
    };
    let turn = |hertz: f32, at: usize| (std::f32::consts::TAU * hertz * at as f32 / f32::from(RATE)).sin();
    let (noise, mut phase) = (testing::noise(11, 24 * WINDOW), 0.0);
    let mut sound = Vec::with_capacity(noise.len());
    for (at, noise) in noise.into_iter().enumerate() {
        phase = (phase + std::f32::consts::TAU * PITCH * (1.0 + 0.04 * turn(5.0, at)) / f32::from(RATE))
            % std::f32::consts::TAU;
        let harmonic = |number: u8| strength(f32::from(number) * PITCH) * (f32::from(number) * phase).sin();
        let voice: f32 = (1..25).map(harmonic).sum();
        sound.push(0.15 * voice * turn(2.5, at).max(0.0) + 0.003 * noise);
    }
    let window = |sound: &[f32]| {
        vec![
            Tensor::floats("input", &[1, WINDOW], sound).unwrap(),
            Tensor::floats("state", &[2, 1, 128], &[0.0; 256]).unwrap(),
            Tensor::int64s("sr", &[], &[i64::from(RATE)]).unwrap(),
        ]
    };
    sound.chunks_exact(WINDOW).map(window).collect()
}

/// Whether there is a voice, for each window, the state carried on.
fn heard(model: &Path) -> Vec<f32> {
    let mut session = testing::runtime().open(model, &session::Options::default()).unwrap();
    let mut state = None;
    let mut heard = Vec::new();
    for mut window in windows() {
        if let Some(state) = state.take() {
            window[1] = state;
        }
        session
            .run::<session::Error>(&window, |output| {
                if output.name == "output" {
                    heard.push(output.floats().unwrap()[0]);
                } else {
                    state = Some(Tensor::floats("state", &[2, 1, 128], output.floats().unwrap()).unwrap());
                }
                Ok(())
            })
            .unwrap();
    }
    heard
}

fn make(stage: Stage, output: &Path) -> Result<OptimizeReport, Error> {
    let request = Request {
        model: &testing::silero(),
        output,
        stages: &[stage],
        threads: 1,
        limits: Limits::default(),
        given: Given::default(),
    };
    optimize(
        &testing::runtime(),
        &request,
        &|| Box::new(windows().into_iter().take(8).map(Ok)),
        &mut |_| {},
    )
}

#[test]
fn a_real_speech_model_hears_the_same_in_8_bits() {
    let folder = tempfile::tempdir().unwrap();
    let output = folder.path().join("candidate.onnx");
    let before = heard(&testing::silero());
    let (least, most) = before.iter().fold((1.0_f32, 0.0_f32), |(least, most), heard| {
        (least.min(*heard), most.max(*heard))
    });
    assert!(most - least > 0.3, "there is something to tell apart: {before:?}");
    for mode in [Mode::Dynamic, Mode::Static] {
        let settings = Quantize {
            mode,
            ..Quantize::default()
        };
        let report = make(Stage::Quantize(settings), &output).unwrap();
        assert!(
            report.bytes_after * 100 < report.bytes_before * 60,
            "{mode:?}: {report:?}"
        );
        let after = heard(&output);
        let pairs = before.iter().zip(&after);
        let apart = pairs.map(|(before, after)| (before - after).abs()).fold(0.0, f32::max);
        assert!(apart < 0.1, "{mode:?}: {apart}\n{before:?}\n{after:?}");
    }
}

#[test]
fn a_model_without_products_has_nothing_to_keep_in_blocks() {
    let folder = tempfile::tempdir().unwrap();
    let blocks = Blocks {
        bits: Bits::Four,
        size: 32,
        recovery: Recovery::default(),
    };
    let error = make(Stage::QuantizeBlocks(blocks), &folder.path().join("candidate.onnx")).unwrap_err();
    assert!(
        error.to_string().contains("no convolution with block-wise weights"),
        "{error}"
    );
}
