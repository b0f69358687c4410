//! One stage of a candidate: what it must know from calibration data, then the pass that uses it. Decides no number itself.

use super::{
    Error, Step, goal,
    likeness::likeness,
    quantization::{Form, Quantization},
};
use crate::{
    calibrate::{self, Batches, Gram, Samples},
    onnx::Model,
    passes::{
        self, Blocks, Choice, Mode, Quantize, Recovery, Report, Simplify, Smoothing, choice, quantize_static,
        quantize_tables, smooth,
    },
    session::Runtime,
};
use std::collections::BTreeMap;

/// One stage of a candidate.
#[derive(Debug, Clone, PartialEq)]
pub enum Stage {
    /// How the model is simplified; only as the first stage, every pass with its defaults without it.
    Simplify(Simplify),
    /// Leave everything but these nodes to the next stage as they are.
    Choose(Choice),
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
            Self::Simplify(_) | Self::Choose(_) => false,
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
        let reports = match self {
            Self::Simplify(_) => {
                return Err(passes::Error::Setting {
                    pass: "simplify",
                    field: "stages",
                    value: "simplify".to_owned(),
                    hint: "it goes before every other stage: put it first",
                }
                .into());
            }
            Self::Choose(choice) => return Ok(vec![choice.pin(model)?]),
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
                let observed = match settings.mode {
                    Mode::Dynamic => BTreeMap::new(),
                    Mode::Static => {
                        let taps = quantize_static::taps(model);
                        calibration.of(&taps, |batches: Batches<'_>, told: Told<'_>| {
                            calibrate::calibrate(runtime, threads, model, &taps, settings.calibration, batches, told)
                        })?
                    }
                };
                let form = Form::Integers(settings, &observed);
                reports.extend(calibration.quantize(model, &Quantization { form, grams: &grams })?);
                Ok(reports)
            }
            Self::QuantizeBlocks(settings) => {
                let grams = calibration.grams(model, settings.recovery)?;
                let form = Form::Blocks(settings);
                calibration.quantize(model, &Quantization { form, grams: &grams })
            }
        };
        choice::unpin(model);
        reports
    }
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

    /// Quantizes with as many products raised as the goal asks for.
    fn quantize(&mut self, model: &mut Model, quantization: &Quantization<'_>) -> Result<Vec<Report>, Error> {
        (self.progress)(Step::Quantize);
        let (Some(worst), Some(raise)) = (quantization.worst(model)?, quantization.recovery().raise) else {
            return Ok(quantization.apply(model, None)?);
        };
        let Some(goal) = raise.goal else {
            return Ok(quantization.apply(model, Some((&worst, worst.count())))?);
        };
        let float = model.clone();
        let settled = goal::fewest(goal, worst.count(), |count| {
            let mut tried = float.clone();
            quantization.apply(&mut tried, Some((&worst, count)))?;
            likeness(self.runtime, self.threads, (&float, &tried), &mut *(self.samples)())
        })?;
        let mut reports = quantization.apply(model, Some((&worst, settled.count)))?;
        if let Some(report) = reports.first_mut() {
            report.note = settled.told(goal, worst.count());
        }
        Ok(reports)
    }
}
