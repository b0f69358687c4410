//! A `quantize` to 8 bits where nobody says which nodes: those that ONNX Runtime computes with floats all the same are left as they are.
//!
//! Leaves a node in the way in which `quantize.except` does, and starts again: a recipe that names it gives the same bytes. Decides by what
//! ONNX Runtime fuses, never by how long it takes.

use super::{
    Error, kernels,
    quantization::{Form, Quantization},
    stage::{Applied, Calibration, rows_for},
};
use crate::{
    onnx::Model,
    passes::{Format, Mode, Quantize, Report, choice, quantize_static, quantize_tables},
};
use std::collections::BTreeSet;

/// Why a node is left.
const FLOATS: &str = "ONNX Runtime's own graph computes it with floats between Dequantize and Quantize nodes, slower than as it was";
/// Times that nodes are left: what is left may be what another node was to fuse with.
const MOST_ROUNDS: usize = 3;

impl Calibration<'_, '_, '_> {
    /// Quantizes `model`, but for nodes that would stay floats between conversions.
    pub(super) fn integers(&mut self, model: &mut Model, settings: &Quantize) -> Result<Applied, Error> {
        if settings.mode == Mode::Dynamic || settings.format == Format::Qdq || choice::is_made(model) {
            return self.once(model, settings);
        }
        let (float, mut left) = (model.clone(), BTreeSet::new());
        let mut round = 0;
        loop {
            round += 1;
            let words = choice::leave(model, &left, FLOATS);
            let mut applied = self.once(model, settings)?;
            let before = left.len();
            match kernels::floats(self.runtime, &float, model, self.scratch, self.limits) {
                Ok(found) => left.extend(found),
                Err(unknown) => tell(&mut applied, |report| {
                    report.add_note(&format!("which nodes ONNX Runtime computes with floats is not known: {unknown}"));
                }),
            }
            if left.len() == before || round == MOST_ROUNDS {
                tell(&mut applied, |report| {
                    for node in choice::matched(&float, &words) {
                        report.leave_once(node, FLOATS);
                    }
                });
                if let Some(chosen) = &mut applied.chosen {
                    chosen.left = words;
                }
                return Ok(applied);
            }
            *model = float.clone();
        }
    }

    /// Quantizes what is not pinned.
    fn once(&mut self, model: &mut Model, settings: &Quantize) -> Result<Applied, Error> {
        // First: calibration then sees the activations that rounded rows give.
        let tables = quantize_tables::apply(model)?;
        let ranges = match settings.mode {
            Mode::Static => quantize_static::taps(model),
            Mode::Dynamic => Vec::new(),
        };
        let rows = rows_for(model, &settings.recovery);
        let learned = self.learn(model, &ranges, settings.calibration, &rows)?;
        let form = Form::Integers(settings, &learned.ranges);
        let grams = &learned.rows;
        let mut applied = self.quantize(model, &Quantization { form, grams })?;
        applied.reports.insert(0, tables);
        Ok(applied)
    }
}

/// Lets `say` add to the report of the pass that quantized.
fn tell(applied: &mut Applied, say: impl FnOnce(&mut Report)) {
    let mut reports = applied.reports.iter_mut();
    if let Some(report) = reports.find(|report| report.name == quantize_static::NAME) {
        say(report);
    }
}
