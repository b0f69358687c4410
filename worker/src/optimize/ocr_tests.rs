//! Real readers of text, which nobody made for this: one that finds lines in an image, one that reads a line. Hard swish, squeeze and
//! excitation, transposed convolutions and attention; a softmax over 6,625 characters for each of some thirty steps.
#![allow(
    clippy::cast_precision_loss,
    clippy::cast_possible_truncation,
    clippy::cast_sign_loss,
    reason = "steps and pixels are counted in thousands, and digits from 0 to 9"
)]

use crate::{
    onnx::{Limits, Tensor},
    optimize::{Error, Given, OptimizeReport, Request, Stage, optimize},
    passes::{Bits, Blocks, Format, Granularity, Mode, Quantize, Raise, Recovery},
    session, testing,
};
use std::path::{Path, PathBuf};

/// Rows of dots, from the top; the highest of five bits is on the left.
const DIGITS: [[u8; 7]; 10] = [
    [14, 17, 19, 21, 25, 17, 14],
    [4, 12, 4, 4, 4, 4, 14],
    [14, 17, 1, 2, 4, 8, 31],
    [31, 2, 4, 2, 1, 17, 14],
    [2, 6, 10, 18, 31, 2, 2],
    [31, 16, 30, 1, 1, 17, 14],
    [6, 8, 16, 30, 17, 17, 14],
    [31, 1, 2, 4, 8, 8, 8],
    [14, 17, 17, 14, 17, 17, 14],
    [14, 17, 17, 15, 1, 2, 12],
];
/// Width of a digit with the gap behind it, in dots.
const PITCH: usize = 6;
/// Digits of a line.
const COUNT: usize = 10;
/// Lines to calibrate with, and others to read.
const LINES: u64 = 8;
/// What each digit is called by the reader, where it is sure.
const SURE: f32 = 0.5;

/// An image from -1 to 1, as three equal colours.
struct Image {
    height: usize,
    width: usize,
    pixels: Vec<f32>,
}

impl Image {
    /// Paper that is not quite even.
    fn new(seed: u64, height: usize, width: usize) -> Self {
        let noise = testing::noise(seed, height * width);
        Self {
            height,
            width,
            pixels: noise.into_iter().map(|noise| 0.85 + 0.1 * noise).collect(),
        }
    }

    /// Digits by `seed`, dots of `dot` pixels, from the corner at `top` and `left`.
    fn write(&mut self, seed: u64, dot: usize, top: usize, left: usize) {
        for (place, number) in testing::noise(seed, COUNT).into_iter().enumerate() {
            let digit = DIGITS[((number + 1.0) * 4.999) as usize];
            for (row, bits) in digit.into_iter().enumerate() {
                for column in (0..5).filter(|column| bits >> (4 - column) & 1 == 1) {
                    let (y, x) = (top + row * dot, left + (place * PITCH + column) * dot);
                    for y in y..y + dot {
                        self.pixels[y * self.width + x..][..dot].fill(-0.8);
                    }
                }
            }
        }
    }

    fn batch(self) -> Vec<Tensor> {
        let dims = [1, 3, self.height, self.width];
        vec![Tensor::floats("x", &dims, &self.pixels.repeat(3)).unwrap()]
    }
}

/// Lines for the reader, from `first` on.
fn lines(first: u64) -> Vec<Vec<Tensor>> {
    let line = |seed| {
        let mut image = Image::new(seed, 48, 4 * PITCH * COUNT + 12);
        image.write(seed, 4, 10, 6);
        image.batch()
    };
    (first..first + LINES).map(line).collect()
}

/// Pages of three lines for the finder, from `first` on.
fn pages(first: u64) -> Vec<Vec<Tensor>> {
    let page = |seed| {
        let mut image = Image::new(seed, 96, 160);
        for line in 0..3 {
            let at = usize::try_from(seed % 5).unwrap() + line;
            image.write(seed * 3 + line as u64, 2, 8 + 30 * line, 4 + 5 * at);
        }
        image.batch()
    };
    (first..first + LINES).map(page).collect()
}

/// The model's only output for each batch, one behind the other.
fn outputs(model: &Path, batches: &[Vec<Tensor>]) -> Vec<Vec<f32>> {
    let mut session = testing::runtime().open(model, &session::Options::default()).unwrap();
    let mut outputs = Vec::new();
    for batch in batches {
        let run = session.run::<session::Error>(batch, |output| {
            outputs.push(output.floats().unwrap().to_vec());
            Ok(())
        });
        run.unwrap();
    }
    outputs
}

/// A model's candidates, in a folder of their own, and the rows that they are judged by.
struct Trial {
    model: PathBuf,
    folder: tempfile::TempDir,
    rows: fn(u64) -> Vec<Vec<Tensor>>,
}

impl Trial {
    fn new(model: PathBuf, rows: fn(u64) -> Vec<Vec<Tensor>>) -> Self {
        let folder = tempfile::tempdir().unwrap();
        Self { model, folder, rows }
    }

    fn baseline(&self) -> Vec<Vec<f32>> {
        outputs(&self.model, &(self.rows)(0))
    }

    fn make(&self, stage: &Stage) -> Result<(PathBuf, OptimizeReport), Error> {
        let output = self.folder.path().join("candidate.onnx");
        let request = Request {
            model: &self.model,
            output: &output,
            stages: std::slice::from_ref(stage),
            threads: 1,
            limits: Limits::default(),
            given: Given::default(),
        };
        let samples = || -> Box<dyn Iterator<Item = _>> { Box::new((self.rows)(100).into_iter().map(Ok)) };
        let report = optimize(&testing::runtime(), &request, &samples, &mut |_| {})?;
        Ok((output, report))
    }

    /// What the candidate gives, whose size is below so many hundredths.
    fn candidate(&self, stage: &Stage, size: u64) -> Vec<Vec<f32>> {
        let (output, report) = self.make(stage).unwrap();
        assert!(
            report.bytes_after * 100 < report.bytes_before * size,
            "{stage:?}: {} of {}",
            report.bytes_after,
            report.bytes_before
        );
        outputs(&output, &(self.rows)(0))
    }
}

/// In ONNX's own operators, so that nothing is chosen by what it takes on a busy machine.
fn integers(mode: Mode, recovery: Recovery) -> Stage {
    Stage::Quantize(Quantize {
        mode,
        format: Format::Qdq,
        recovery,
        ..Quantize::default()
    })
}

fn four_bits(gptq: bool) -> Stage {
    Stage::QuantizeBlocks(Blocks {
        bits: Bits::Four,
        size: 32,
        recovery: Recovery {
            gptq,
            ..Recovery::default()
        },
    })
}

/// What is read: one character for each run of steps that are sure of the same one.
fn text(steps: &[f32]) -> Vec<usize> {
    let mut text = Vec::new();
    let mut before = 0;
    for step in steps.chunks_exact(6625) {
        let best = step.iter().enumerate().max_by(|left, right| left.1.total_cmp(right.1));
        let (character, _) = best.filter(|(_, share)| **share > SURE).unwrap_or((0, &0.0));
        if character != 0 && character != before {
            text.push(character);
        }
        before = character;
    }
    text
}

fn cosine(left: &[f32], right: &[f32]) -> f64 {
    let dot = |left: &[f32], right: &[f32]| -> f64 {
        let pairs = left.iter().zip(right);
        pairs.map(|(left, right)| f64::from(*left) * f64::from(*right)).sum()
    };
    dot(left, right) / (dot(left, left) * dot(right, right)).sqrt()
}

/// The mean cosine of what both gave for each row.
fn alike(before: &[Vec<f32>], after: &[Vec<f32>]) -> f64 {
    let pairs = before.iter().zip(after);
    pairs.map(|(left, right)| cosine(left, right)).sum::<f64>() / before.len() as f64
}

#[test]
fn a_real_reader_reads_the_same_lines() {
    let trial = Trial::new(testing::ocr_reader(), lines);
    let before = trial.baseline();
    let read: Vec<Vec<usize>> = before.iter().map(|steps| text(steps)).collect();
    let digits: usize = read.iter().map(Vec::len).sum();
    assert!(
        digits * 10 > before.len() * COUNT * 8,
        "there is something to read: {read:?}"
    );
    for (stage, size, least) in [
        (integers(Mode::Dynamic, Recovery::default()), 45, 0.99),
        (integers(Mode::Static, Recovery::default()), 32, 0.97),
        (four_bits(false), 72, 0.99),
        (four_bits(true), 72, 0.99),
    ] {
        let after = trial.candidate(&stage, size);
        let alike = alike(&before, &after);
        let pairs = read.iter().zip(&after);
        let same = pairs.filter(|(read, steps)| **read == text(steps)).count();
        assert!(alike > least, "{stage:?}: {alike}, {same} of {} the same", read.len());
        assert!(
            same * 4 >= read.len() * 3,
            "{stage:?}: {same} of {} the same, {alike}",
            read.len()
        );
    }
}

#[test]
fn a_bias_makes_good_what_one_scale_for_all_takes_from_a_reader() {
    let trial = Trial::new(testing::ocr_reader(), lines);
    let before = trial.baseline();
    let [plain, corrected] = [false, true].map(|bias_correction| {
        let stage = Stage::Quantize(Quantize {
            mode: Mode::Static,
            format: Format::Qdq,
            granularity: Granularity::PerTensor,
            recovery: Recovery {
                bias_correction,
                ..Recovery::default()
            },
            ..Quantize::default()
        });
        alike(&before, &trial.candidate(&stage, 32))
    });
    assert!(corrected > 0.9 && corrected > plain + 0.1, "{plain} {corrected}");
}

#[test]
fn a_real_finder_finds_the_same_lines() {
    let trial = Trial::new(testing::ocr_finder(), pages);
    let before = trial.baseline();
    let ink = before.iter().flatten().filter(|share| **share > SURE).count();
    let all: usize = before.iter().map(Vec::len).sum();
    assert!(
        ink * 20 > all && ink * 2 < all,
        "there is something to find: {ink} of {all}"
    );
    let found = |maps: Vec<Vec<f32>>| -> Vec<Vec<f32>> {
        let sure = |share: f32| f32::from(u8::from(share > SURE));
        maps.into_iter()
            .map(|map| map.into_iter().map(sure).collect())
            .collect()
    };
    let before = found(before);
    let raised = Recovery {
        raise: Some(Raise::Worst {
            share: 0.5,
            goal: Some(0.999),
        }),
        ..Recovery::default()
    };
    for (stage, size, least) in [
        (integers(Mode::Dynamic, Recovery::default()), 52, 0.98),
        // Thin lines of a map lose at their rims what decides between text and paper.
        (integers(Mode::Static, Recovery::default()), 35, 0.88),
        (integers(Mode::Static, raised), 70, 0.97),
    ] {
        let alike = alike(&before, &found(trial.candidate(&stage, size)));
        assert!(alike > least, "{stage:?}: {alike}");
    }
    let error = trial.make(&four_bits(true)).unwrap_err().to_string();
    assert!(error.contains("no convolution with block-wise weights"), "{error}");
}
