//! A `quantize` to 8 bits where nobody says which nodes: those that ONNX Runtime computes with floats all the same are left as they are, and so
//! are regions that are slower than floats.
//!
//! Leaves a node in the way in which `quantize.except` does, and starts again: a recipe that names it gives the same bytes. Decides when
//! there is something to read or to measure; `kernels` and `regions` decide what it says.

use super::{
    Error, kernels, pace,
    quantization::{Form, Quantization},
    regions,
    stage::{Applied, Calibration, Sought, inputs},
};
use crate::{
    calibrate::Observed,
    onnx::Model,
    passes::{
        Format, Inputs, Mode, Quantize, Recovery, Report, choice, integer_ends, quantize_blocks, quantize_static,
        quantize_tables,
    },
};
use assayer_crds::stages::MAX_PATTERNS;
use std::collections::{BTreeMap, BTreeSet};

/// Why a node is left that has no integer kernel.
const FLOATS: &str =
    "ONNX Runtime's own graph computes it with floats between Dequantize and Quantize nodes, slower than as it was";
/// Why a region is left that has.
const SLOW: &str =
    "measured: its region is slower with integers and the conversions around it than with floats, by more than 3 %";
/// Times that nodes are left: what is left may be what another node was to fuse with.
const MOST_ROUNDS: usize = 4;

/// Names of nodes that are left, by reason.
#[derive(Default)]
struct Left {
    floats: BTreeSet<String>,
    slow: BTreeSet<String>,
}

impl Left {
    /// Pins them in `model`, and gives the patterns that do so.
    fn pin(&self, model: &mut Model) -> Vec<String> {
        let mut patterns = choice::leave(model, &self.floats, FLOATS, MAX_PATTERNS);
        let room = MAX_PATTERNS - patterns.len();
        patterns.extend(choice::leave(model, &self.slow, SLOW, room));
        patterns
    }

    fn len(&self) -> usize {
        self.floats.len() + self.slow.len()
    }
}

impl Calibration<'_, '_, '_> {
    /// Quantizes `model`, but for what is better left.
    pub(super) fn integers(&mut self, model: &mut Model, settings: &Quantize) -> Result<Applied, Error> {
        if settings.mode == Mode::Dynamic || settings.format == Format::Qdq || settings.integer_ends || self.asked {
            return self.once(model, settings).map(|(applied, _)| applied);
        }
        let (float, mut left) = (model.clone(), Left::default());
        let (mut round, mut measured) = (0, false);
        loop {
            round += 1;
            let patterns = left.pin(model);
            self.excepted = patterns.len();
            let (mut applied, ranges) = self.once(model, settings)?;
            let before = left.len();
            match kernels::floats(self.runtime, &float, model, self.scratch, self.limits) {
                Ok(found) => left.floats.extend(found),
                Err(unknown) => tell(&mut applied, |report| {
                    report.tell(&format!(
                        "which nodes ONNX Runtime computes with floats is not known: {unknown}"
                    ));
                }),
            }
            if left.len() == before && !measured {
                measured = true;
                left.slow = self.slow(&float, model, settings, &ranges, &left)?;
            }
            if left.len() == before || round == MOST_ROUNDS {
                tell(&mut applied, |report| {
                    for node in choice::matched(&float, &patterns) {
                        let why = if left.slow.contains(&node.name) { SLOW } else { FLOATS };
                        report.leave_once(node, why);
                    }
                });
                if let Some(chosen) = &mut applied.chosen {
                    chosen.left.extend(patterns);
                }
                return Ok(applied);
            }
            *model = float.clone();
        }
    }

    /// Quantizes what is not pinned; with what was learned for that.
    fn once(&mut self, model: &mut Model, settings: &Quantize) -> Result<(Applied, BTreeMap<String, Observed>), Error> {
        settings.recovery.require_sites(model)?;
        // First: calibration then sees the activations that rounded rows give.
        let tables = tables(model, settings)?;
        let mut ranges = match settings.mode {
            Mode::Static => quantize_static::taps(model),
            Mode::Dynamic => Vec::new(),
        };
        if settings.integer_ends {
            ranges.extend(integer_ends::taps(model));
        }
        let sought = Sought::by(&settings.recovery, model);
        let (ranges, inputs, told) = match self.tables {
            Some(kept) if sought.is_empty() && !ranges.is_empty() => {
                let (ranges, told) = self.look_up(kept, model, &ranges, settings.calibration)?;
                (ranges, Inputs::default(), told)
            }
            _ => {
                let (ranges, inputs) = inputs(self.learn(model, &ranges, settings.calibration, &sought)?);
                (ranges, inputs, String::new())
            }
        };
        let quantization = Quantization {
            form: Form::Integers(settings, &ranges),
            inputs: &inputs,
        };
        let mut applied = self.quantize(model, &quantization)?;
        applied.reports.splice(0..0, tables);
        tell(&mut applied, |report| report.tell(&told));
        if settings.integer_ends {
            let left: Vec<_> = applied.reports.iter().flat_map(|report| report.left.clone()).collect();
            applied.reports.push(integer_ends::apply(model, &ranges, &left)?);
        }
        Ok((applied, ranges))
    }

    /// The nodes of regions that are slower than floats. What is tried is rounded to the nearest: that takes no longer to run.
    fn slow(
        &self,
        float: &Model,
        quantized: &Model,
        settings: &Quantize,
        ranges: &BTreeMap<String, Observed>,
        left: &Left,
    ) -> Result<BTreeSet<String>, Error> {
        let names: Vec<String> = kernels::between(float, quantized)
            .into_iter()
            .map(|(name, _)| name)
            .collect();
        let plain = Quantize {
            recovery: Recovery::default(),
            ..settings.clone()
        };
        let form = Form::Integers(&plain, ranges);
        let quantization = Quantization {
            form,
            inputs: &Inputs::default(),
        };
        let without = |slow: &BTreeSet<String>| -> Result<Model, Error> {
            let mut model = float.clone();
            let left = Left {
                floats: left.floats.clone(),
                slow: slow.clone(),
            };
            left.pin(&mut model);
            tables(&mut model, settings)?;
            quantization.apply(&mut model, None)?;
            Ok(model)
        };
        regions::slow(regions::connected(float, &names), |before, after| {
            let before = before.map_or_else(|| Ok(float.clone()), &without)?;
            let after = without(after)?;
            pace::ratio(self.runtime, self.threads, (&before, &after), self.probe).map_err(|source| Error::Run {
                which: "candidate",
                source,
            })
        })
    }
}

/// Quantizes embeddings, those in blocks of 4 bits where weights are kept so and the operators may be ONNX Runtime's own.
fn tables(model: &mut Model, settings: &Quantize) -> Result<Vec<Report>, Error> {
    let mut reports = Vec::new();
    let standard = settings.format == Format::Qdq;
    if let Some(size) = settings.four_bits.filter(|_| !standard) {
        reports.push(quantize_blocks::tables(model, size)?);
    }
    reports.push(quantize_tables::apply(model, settings.four_bits.filter(|_| standard))?);
    Ok(reports)
}

/// Lets `say` add to the report of the pass that quantized.
fn tell(applied: &mut Applied, say: impl FnOnce(&mut Report)) {
    let mut reports = applied.reports.iter_mut();
    if let Some(report) = reports.find(|report| report.name == quantize_static::NAME) {
        say(report);
    }
}
