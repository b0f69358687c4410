//! How alike a candidate and the float model answer on calibration samples. Judges numbers only, never what they stand for.

use super::Error;
use crate::{
    calibrate::Batches,
    onnx::{Model, Tensor},
    session::{self, Options, Runtime},
};
use std::collections::BTreeMap;

/// The cosine between two answers, as sums.
#[derive(Debug, Default, Clone, Copy)]
struct Angle {
    both: f64,
    left: f64,
    right: f64,
}

impl Angle {
    fn of(left: &[f32], right: &[f32]) -> Self {
        let mut angle = Self::default();
        for (left, right) in left.iter().zip(right).map(|(l, r)| (f64::from(*l), f64::from(*r))) {
            angle.both += left * right;
            angle.left += left * left;
            angle.right += right * right;
        }
        angle
    }

    /// 1 where both answers are zero, 0 where one is or where a number is not finite.
    fn cosine(self) -> f64 {
        if self.left == 0.0 && self.right == 0.0 {
            return 1.0;
        }
        let cosine = self.both / (self.left.sqrt() * self.right.sqrt());
        if cosine.is_finite() { cosine } else { 0.0 }
    }
}

/// The mean over `batches` of the cosine between the outputs of both models, of the least alike output: at most 1.
///
/// An output that is missing, of another length or not of floats on one side only counts as 0. Nothing of a batch is kept.
pub(super) fn likeness(
    runtime: &Runtime,
    threads: usize,
    (float, candidate): (&Model, &Model),
    batches: Batches<'_>,
) -> Result<f64, Error> {
    let options = Options {
        threads,
        ..Options::default()
    };
    let failed = |which| move |source| Error::Run { which, source };
    let mut left = runtime.open_model(float, &options).map_err(failed("baseline"))?;
    let mut right = runtime.open_model(candidate, &options).map_err(failed("candidate"))?;
    let mut sums: BTreeMap<String, f64> = BTreeMap::new();
    let mut count = 0_u32;
    for batch in batches {
        let batch = batch.map_err(Error::Data)?;
        count += 1;
        let mut answers = floats(&mut left, &batch).map_err(failed("baseline"))?;
        right
            .run::<session::Error>(&batch, |output| {
                if let Some(answer) = answers.remove(output.name) {
                    let other = output.floats().unwrap_or_default();
                    let same = answer.len() == other.len();
                    *sums.entry(output.name.to_owned()).or_default() +=
                        if same { Angle::of(&answer, other).cosine() } else { 0.0 };
                }
                Ok(())
            })
            .map_err(failed("candidate"))?;
        for missing in answers.into_keys() {
            sums.entry(missing).or_default();
        }
    }
    let least = sums.values().copied().reduce(f64::min).unwrap_or(0.0);
    Ok(least / f64::from(count.max(1)))
}

fn floats(session: &mut session::Session, batch: &[Tensor]) -> Result<BTreeMap<String, Vec<f32>>, session::Error> {
    let mut answers = BTreeMap::new();
    session.run::<session::Error>(batch, |output| {
        if let Some(values) = output.floats() {
            answers.insert(output.name.to_owned(), values.to_vec());
        }
        Ok(())
    })?;
    Ok(answers)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::{Build, noise, runtime};

    #[test]
    fn what_is_not_finite_is_not_alike() {
        for (left, right, cosine) in [
            ([1.0, 0.0], [2.0, 0.0], 1.0),
            ([1.0, 0.0], [0.0, 1.0], 0.0),
            ([0.0, 0.0], [0.0, 0.0], 1.0),
            ([0.0, 0.0], [0.0, 1.0], 0.0),
            ([1.0, f32::NAN], [1.0, f32::NAN], 0.0),
            ([1.0, 1.0], [f32::INFINITY, 1.0], 0.0),
        ] {
            let found = Angle::of(&left, &right).cosine();
            assert!((found - cosine).abs() < 1e-12, "{left:?} {right:?}: {found}");
        }
    }

    #[test]
    fn the_least_alike_output_counts() {
        let model = |factor: f32| {
            let mut b = Build::opset(17);
            let x = b.input("x", &[1, 4]);
            let offsets = b.floats(&[4], &[factor, 0.0, 0.0, 0.0]);
            let same = b.node("Relu", &[&x]);
            let other = b.node("Add", &[&x, &offsets]);
            b.finish(&[&same, &other])
        };
        let batches = || {
            let batch = |seed| Ok(vec![Tensor::floats("x", &[1, 4], &noise(seed, 4)).unwrap()]);
            (1..4).map(batch)
        };
        let of = |candidate: &Model| likeness(&runtime(), 1, (&model(0.0), candidate), &mut batches()).unwrap();
        assert!((of(&model(0.0)) - 1.0).abs() < 1e-9);
        let far = of(&model(100.0));
        assert!(far < 0.9, "{far}");
    }
}
