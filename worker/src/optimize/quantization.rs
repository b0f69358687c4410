//! One `quantize` once everything is known that it goes by: a pure function of that and of how many products it raises. Reads no samples.

use crate::{
    calibrate::{Gram, Observed},
    onnx::Model,
    passes::{
        Bits, Blocks, Error, Mode, Quantize, Raise, Recovering, Recovery, Report, quantize_blocks, quantize_dynamic,
        quantize_static,
        raise_precision::{Otherwise, Products},
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
    /// What was seen of the inputs of products.
    pub(super) grams: &'k BTreeMap<String, Gram>,
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

    /// The products that may be raised, where that was asked for.
    pub(super) fn products(&self, model: &Model) -> Result<Option<Products>, Error> {
        let (Some(raise), Some(otherwise)) = (&self.recovery().raise, self.otherwise()) else {
            return Ok(None);
        };
        let recovering = Recovering::new(self.recovery(), self.grams);
        match raise {
            Raise::Worst { share, .. } => Products::worst(model, *share, otherwise, &recovering),
            Raise::Named(patterns) => Products::named(model, patterns),
        }
        .map(Some)
    }

    /// Quantizes `model`, with so many of the products raised. Their report, if there are any, is the first.
    pub(super) fn apply(&self, model: &mut Model, raised: Option<(&Products, usize)>) -> Result<Vec<Report>, Error> {
        let mut recovering = Recovering::new(self.recovery(), self.grams);
        let mut reports = Vec::new();
        if let (Some((products, count)), Some(otherwise)) = (raised, self.otherwise()) {
            reports.push(products.raise(model, count, otherwise, &mut recovering)?);
        }
        reports.push(match self.form {
            Form::Integers(settings, observed) => match settings.mode {
                Mode::Dynamic => quantize_dynamic::apply_recovering(model, settings, &mut recovering)?,
                Mode::Static => quantize_static::apply_recovering(model, settings, observed, &mut recovering)?,
            },
            Form::Blocks(settings) => quantize_blocks::apply(model, settings, &mut recovering)?,
        });
        reports.extend(recovering.finish()?);
        Ok(reports)
    }
}
