//! One `quantize` once everything is known that it goes by: a pure function of that and of how many steps it takes to raise precision. Reads
//! no samples.

use crate::{
    calibrate::Observed,
    onnx::Model,
    passes::{
        Bits, Blocks, Error, Format, Inputs, Mode, Quantize, Raise, Recovering, Recovery, Report,
        damage::Probe,
        quantize_blocks, quantize_dynamic, quantize_static, quantize_tables,
        raise_precision::{Bounds, Ladder, Otherwise},
    },
};
use std::collections::BTreeMap;

/// What becomes of the weights.
#[derive(Debug, Clone, Copy)]
pub(super) enum Form<'k> {
    /// Integers of 8 bits, with what was seen of activations.
    Integers(&'k Quantize, &'k BTreeMap<String, Observed>),
    /// Blocks of their own scale.
    Blocks(&'k Blocks),
}

/// A quantization that is ready to be carried out.
#[derive(Debug)]
pub(super) struct Quantization<'k> {
    pub(super) form: Form<'k>,
    /// What was seen of inputs, besides.
    pub(super) inputs: &'k Inputs,
}

impl<'k> Quantization<'k> {
    /// How accuracy is won back.
    pub(super) fn recovery(&self) -> &'k Recovery {
        match self.form {
            Form::Integers(settings, _) => &settings.recovery,
            Form::Blocks(settings) => &settings.recovery,
        }
    }

    /// What becomes of products that are not raised; none where all are as precise as raised ones.
    fn otherwise(&self) -> Option<Otherwise> {
        match self.form {
            Form::Integers(settings, _) => Some(Otherwise::Integers(settings.grid())),
            Form::Blocks(settings) => (settings.bits == Bits::Four).then_some(Otherwise::FourBits(settings.size)),
        }
    }

    /// What must be run to know what rounding does to convolutions, where precision is to be raised by that.
    pub(super) fn probe(&self, model: &Model) -> Result<Option<Probe>, Error> {
        match (&self.recovery().raise, self.form) {
            (Some(Raise::Worst { .. }), Form::Integers(settings, observed)) if settings.mode == Mode::Static => {
                Probe::new(model, settings, observed)
            }
            _ => Ok(None),
        }
    }

    /// The steps of raising precision, where that was asked for; `losses` are those of the probe, and at most `floats` nodes may be left as
    /// they are.
    pub(super) fn ladder(
        &self,
        model: &Model,
        losses: &BTreeMap<String, f64>,
        floats: usize,
    ) -> Result<Option<Ladder>, Error> {
        let (Some(raise), Some(otherwise)) = (&self.recovery().raise, self.otherwise()) else {
            return Ok(None);
        };
        let (share, goal) = match raise {
            Raise::Worst { share, goal } => (*share, goal.is_some()),
            Raise::Named(patterns) => return Ladder::named(model, patterns, otherwise).map(Some),
        };
        let bounds = Bounds {
            share,
            goal,
            blocks: otherwise.unpacks()
                || !matches!(self.form, Form::Integers(settings, _) if settings.format == Format::Qdq),
            floats,
        };
        let recovering = Recovering::new(self.recovery(), self.inputs, model);
        Ladder::worst(model, bounds, otherwise, &recovering, losses).map(Some)
    }

    /// Quantizes `model`, with so many steps of raising precision taken. Their report, if there are any, is the first.
    pub(super) fn apply(&self, model: &mut Model, raised: Option<(&Ladder, usize)>) -> Result<Vec<Report>, Error> {
        let mut recovering = Recovering::new(self.recovery(), self.inputs, model);
        let mut reports = Vec::new();
        if let (Some((ladder, count)), Some(otherwise)) = (raised, self.otherwise()) {
            reports.push(ladder.raise(model, count, otherwise, &mut recovering)?);
        }
        match self.form {
            Form::Integers(settings, observed) => reports.push(match settings.mode {
                Mode::Dynamic => quantize_dynamic::apply_recovering(model, settings, &mut recovering)?,
                Mode::Static => quantize_static::apply_recovering(model, settings, observed, &mut recovering)?,
            }),
            Form::Blocks(settings) => {
                reports.push(quantize_blocks::apply(model, settings, &mut recovering)?);
                // What has no blocks: rows that can't be cut evenly, and those that are sliced out.
                reports.push(quantize_tables::apply(model, None)?);
            }
        }
        reports.extend(recovering.finish()?);
        Ok(reports)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        onnx::{ElementType, Limits, Tensor},
        testing::{Build, relative_difference, run_optimized},
    };

    #[test]
    fn tables_that_blocks_do_not_fit_have_eight_bits_all_the_same() {
        let mut b = Build::opset(17);
        let ids = b.typed_input("ids", ElementType::Int64, &[1, 6]);
        // Rows of 100 are no multiple of 16, and positions are cut out.
        let (words, positions) = (b.weights(&[300, 100]), b.weights(&[200, 100]));
        let (start, end, axis) = (b.ints(&[0]), b.ints(&[6]), b.ints(&[0]));
        let length = b.typed_input("length", ElementType::Int64, &[1]);
        let end = b.node("Min", &[&end, &length]);
        let (word, position) = (
            b.node("Gather", &[&words, &ids]),
            b.node("Slice", &[&positions, &start, &end, &axis]),
        );
        let (sum, weights) = (b.node("Add", &[&word, &position]), b.weights(&[100, 64]));
        let y = b.node("MatMul", &[&sum, &weights]);
        let float = b.finish(&[&y]);
        let settings = Blocks {
            bits: Bits::Eight,
            size: 32,
            recovery: Recovery::default(),
        };
        let quantization = Quantization {
            form: Form::Blocks(&settings),
            inputs: &Inputs::default(),
        };
        let mut model = float.clone();
        let reports = quantization.apply(&mut model, None).unwrap();
        let changed: Vec<_> = reports.iter().map(|report| report.changed).collect();
        assert_eq!(changed, [1, 2]);
        crate::onnx::check(&model, &Limits::default()).unwrap();
        assert!(crate::onnx::to_bytes(&model).len() * 3 < crate::onnx::to_bytes(&float).len());
        let inputs = [
            Tensor::int64s("ids", &[1, 6], &[0, 7, 299, 3, 3, 12]).unwrap(),
            Tensor::int64s("length", &[1], &[9]).unwrap(),
        ];
        let (before, _) = run_optimized(&float, &inputs);
        let (after, operators) = run_optimized(&model, &inputs);
        assert!(relative_difference(&before, &after) < 0.01, "{operators:?}");
    }
}
