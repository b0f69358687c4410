//! One stage of a candidate: what it must know from calibration data, then the pass that uses it. Decides no number itself.

use super::{Error, Step};
use crate::{
    calibrate::{self, Batches, Gram, Samples},
    onnx::Model,
    passes::{
        self, Bits, Blocks, Mode, Quantize, Recovering, Recovery, Report, Smoothing, quantize_blocks, quantize_dynamic,
        quantize_static, quantize_tables,
        raise_precision::{self, Otherwise},
        smooth,
    },
    session::Runtime,
};
use std::collections::BTreeMap;

/// One stage of a candidate.
#[derive(Debug, Clone, PartialEq)]
pub enum Stage {
    /// Even out the inputs of matrix products, for a stage that quantizes them.
    Smooth(Smoothing),
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
            Self::Smooth(_) => true,
            Self::Quantize(settings) => settings.mode == Mode::Static || settings.recovery.calibrates(),
            Self::QuantizeBlocks(settings) => settings.recovery.calibrates(),
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
            Self::Smooth(settings) => {
                let taps = passes::product_inputs(model);
                let seen = calibration.of(&taps, |batches: Batches<'_>, told: Told<'_>| {
                    calibrate::rows(runtime, threads, model, &taps, batches, told)
                })?;
                Ok(vec![smooth::apply(model, *settings, &seen)?])
            }
            Self::Quantize(settings) => {
                // First: calibration then sees the activations that rounded rows give.
                let mut reports = vec![quantize_tables::apply(model)?];
                let grams = calibration.grams(model, settings.recovery)?;
                let mut recovering = Recovering::new(settings.recovery, &grams);
                let otherwise = Otherwise::Integers(settings.granularity);
                reports.extend(raise(model, settings.recovery, otherwise, &mut recovering)?);
                reports.push(match settings.mode {
                    Mode::Dynamic => {
                        (calibration.progress)(Step::Quantize);
                        quantize_dynamic::apply_recovering(model, settings, &mut recovering)?
                    }
                    Mode::Static => {
                        let taps = quantize_static::taps(model);
                        let observed = calibration.of(&taps, |batches: Batches<'_>, told: Told<'_>| {
                            calibrate::calibrate(runtime, threads, model, &taps, settings.calibration, batches, told)
                        })?;
                        quantize_static::apply_recovering(model, settings, &observed, &mut recovering)?
                    }
                });
                reports.extend(recovering.finish()?);
                Ok(reports)
            }
            Self::QuantizeBlocks(settings) => {
                let grams = calibration.grams(model, settings.recovery)?;
                let mut recovering = Recovering::new(settings.recovery, &grams);
                let mut reports = Vec::new();
                if settings.bits == Bits::Four {
                    let otherwise = Otherwise::FourBits(settings.size);
                    reports.extend(raise(model, settings.recovery, otherwise, &mut recovering)?);
                }
                reports.push(quantize_blocks::apply(model, settings, &mut recovering)?);
                reports.extend(recovering.finish()?);
                Ok(reports)
            }
        }
    }
}

/// Keeps the worst products more precise, where that was asked for.
fn raise(
    model: &mut Model,
    recovery: Recovery,
    otherwise: Otherwise,
    recovering: &mut Recovering<'_>,
) -> Result<Option<Report>, passes::Error> {
    let share = recovery.raise;
    share
        .map(|share| raise_precision::apply(model, share, otherwise, recovering))
        .transpose()
}

impl Calibration<'_, '_, '_> {
    /// Which inputs of the products of `model` go together, where `recovery` needs it.
    fn grams(&mut self, model: &Model, recovery: Recovery) -> Result<BTreeMap<String, Gram>, Error> {
        if !recovery.calibrates() {
            return Ok(BTreeMap::new());
        }
        let (runtime, threads) = (self.runtime, self.threads);
        let taps = passes::product_inputs(model);
        self.of(&taps, |batches: Batches<'_>, told: Told<'_>| {
            calibrate::rows(runtime, threads, model, &taps, batches, told)
        })
    }

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
