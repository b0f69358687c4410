//! One stage of a candidate: what it must know from calibration data, then the pass that uses it. Decides no number itself.

use super::{Error, Step};
use crate::{
    calibrate::{self, Batches, Samples},
    onnx::Model,
    passes::{
        self, Blocks, Mode, Quantize, Report, Rounding, quantize_blocks, quantize_dynamic, quantize_static,
        quantize_tables, smooth,
    },
    session::Runtime,
};
use std::collections::BTreeMap;

/// One stage of a candidate.
#[derive(Debug, Clone, PartialEq)]
pub enum Stage {
    /// Even out the inputs of matrix products, for a stage that quantizes them.
    Smooth,
    /// Quantize weights and activations to 8 bits.
    Quantize(Quantize),
    /// Keep weights in blocks of 8 or 4 bits.
    QuantizeBlocks(Blocks),
}

/// What a stage can calibrate with.
pub(super) struct Calibration<'r, 's, 'p> {
    pub(super) runtime: &'r Runtime,
    pub(super) threads: usize,
    pub(super) samples: Samples<'s>,
    pub(super) progress: &'p mut dyn FnMut(Step),
}

/// Reads batches and says how many it has read.
type Told<'t> = &'t mut dyn FnMut(u64);

impl Stage {
    /// Whether it needs samples.
    pub(super) fn calibrates(&self) -> bool {
        match self {
            Self::Smooth => true,
            Self::Quantize(settings) => settings.mode == Mode::Static,
            Self::QuantizeBlocks(settings) => settings.rounding == Rounding::Gptq,
        }
    }

    /// Changes the model; one report for each pass that ran.
    pub(super) fn apply(
        &self,
        model: &mut Model,
        calibration: &mut Calibration<'_, '_, '_>,
    ) -> Result<Vec<Report>, Error> {
        let (runtime, threads) = (calibration.runtime, calibration.threads);
        match self {
            Self::Smooth => {
                let taps = passes::product_inputs(model);
                let seen = calibration.of(&taps, |batches: Batches<'_>, told: Told<'_>| {
                    calibrate::rows(runtime, threads, model, &taps, batches, told)
                })?;
                Ok(vec![smooth::apply(model, &seen)?])
            }
            Self::Quantize(settings) => {
                // First: calibration then sees the activations that rounded rows give.
                let tables = quantize_tables::apply(model)?;
                let products = match settings.mode {
                    Mode::Dynamic => {
                        (calibration.progress)(Step::Quantize);
                        quantize_dynamic::apply(model, settings)?
                    }
                    Mode::Static => {
                        let taps = quantize_static::taps(model);
                        let observed = calibration.of(&taps, |batches: Batches<'_>, told: Told<'_>| {
                            calibrate::calibrate(runtime, threads, model, &taps, settings.calibration, batches, told)
                        })?;
                        quantize_static::apply(model, settings, &observed)?
                    }
                };
                Ok(vec![tables, products])
            }
            Self::QuantizeBlocks(settings) => {
                let taps = match settings.rounding {
                    Rounding::Nearest => Vec::new(),
                    Rounding::Gptq => passes::product_inputs(model),
                };
                let grams = calibration.of(&taps, |batches: Batches<'_>, told: Told<'_>| {
                    calibrate::rows(runtime, threads, model, &taps, batches, told)
                })?;
                Ok(vec![quantize_blocks::apply(model, settings, &grams)?])
            }
        }
    }
}

impl Calibration<'_, '_, '_> {
    /// What `observe` learns of `taps`; nothing where there is none.
    fn of<T>(
        &mut self,
        taps: &[String],
        observe: impl FnOnce(Batches<'_>, Told<'_>) -> Result<BTreeMap<String, T>, calibrate::Error>,
    ) -> Result<BTreeMap<String, T>, Error> {
        let mut observed = BTreeMap::new();
        if !taps.is_empty() {
            let mut told = |done| (self.progress)(Step::Calibrate(done));
            observed = observe(&mut *(self.samples)(), &mut told)?;
        }
        (self.progress)(Step::Quantize);
        Ok(observed)
    }
}
