//! One stage of a candidate: what it must know from calibration data, then the pass that uses it. Decides no number itself.

use super::{
    Error, Step, goal,
    likeness::likeness,
    quantization::{Form, Quantization},
};
use crate::{
    calibrate::{self, Batches, Channels, Gram, Key, Learned, Method, Observed, Rows, Samples, Tables, Unused, Wanted},
    onnx::{Limits, Model, Tensor},
    passes::{
        self, Blocks, Choice, Format, Inputs, Mode, Quantize, Raise, Recovery, Report, Simplify, Smoothing, choice,
        damage::Probe, equalize, float16, smooth,
    },
    session::Runtime,
};
use assayer_crds::stages::MAX_PATTERNS;
use std::{collections::BTreeMap, path::Path};

/// One stage of a candidate.
#[derive(Debug, Clone, PartialEq)]
pub enum Stage {
    /// How the model is simplified; only as the first stage, every pass with its defaults without it.
    Simplify(Simplify),
    /// Leave everything but these nodes to the next stage as they are.
    Choose(Choice),
    /// Even out the inputs of matrix products, for a stage that quantizes them.
    Smooth(Smoothing),
    /// Even out channels between layers, for a stage that gives each weight one scale.
    Equalize,
    /// Quantize weights and activations to 8 bits.
    Quantize(Quantize),
    /// Keep weights in blocks of 8 or 4 bits.
    QuantizeBlocks(Blocks),
    /// Keep weights, and compute, in 16-bit floats.
    Float16,
}

/// What a stage that quantizes chose by what it measured, in patterns that choose the same again.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Chosen {
    /// Matrix products that were raised to blocks.
    pub raised: Vec<String>,
    /// Nodes that were left as floats, although nobody named them.
    pub left: Vec<String>,
}

/// What came of a stage.
#[derive(Debug)]
pub(super) struct Applied {
    /// One for each pass that ran.
    pub(super) reports: Vec<Report>,
    /// Of stages that quantize.
    pub(super) chosen: Option<Chosen>,
}

impl Applied {
    fn plain(report: Report) -> Self {
        Self {
            reports: vec![report],
            chosen: None,
        }
    }
}

/// What a stage can calibrate with.
pub(super) struct Calibration<'r, 's, 'p> {
    /// A file that may be written and is removed again.
    pub(super) scratch: &'r Path,
    pub(super) limits: &'r Limits,
    pub(super) runtime: &'r Runtime,
    pub(super) threads: usize,
    /// Whether the user says which nodes the stage is about.
    pub(super) asked: bool,
    /// Patterns by which nodes are left already.
    pub(super) excepted: usize,
    pub(super) samples: Samples<'s>,
    /// Where ranges are kept for the next run, and may lie from an earlier one.
    pub(super) tables: Option<&'r Tables>,
    /// What the model is tried on where there are no samples.
    pub(super) probe: &'r [Tensor],
    pub(super) progress: &'p mut dyn FnMut(Step),
}

impl Stage {
    /// Whether it needs samples.
    pub(super) fn calibrates(&self) -> bool {
        match self {
            // Of `Float16`, too: made-up inputs tell less of how large values become, and still more than nothing.
            Self::Simplify(_) | Self::Choose(_) | Self::Equalize | Self::Float16 => false,
            Self::Smooth(_) => true,
            Self::Quantize(settings) => settings.mode == Mode::Static || settings.recovery.calibrates(),
            Self::QuantizeBlocks(settings) => settings.recovery.calibrates(),
        }
    }

    /// Whether it makes integers of weights.
    pub(super) fn quantizes(&self) -> bool {
        matches!(self, Self::Quantize(_) | Self::QuantizeBlocks(_))
    }

    /// Whether it promises to use no operator but ONNX's own.
    pub(super) fn is_standard(&self) -> bool {
        matches!(self, Self::Quantize(settings) if settings.format == Format::Qdq)
    }

    /// Changes the model.
    pub(super) fn apply(&self, model: &mut Model, calibration: &mut Calibration<'_, '_, '_>) -> Result<Applied, Error> {
        let applied = match self {
            Self::Simplify(_) => {
                return Err(passes::Error::Setting {
                    pass: "simplify",
                    field: "stages",
                    value: "simplify".to_owned(),
                    hint: "it goes before every other stage: put it first",
                }
                .into());
            }
            Self::Choose(choice) => return Ok(Applied::plain(choice.pin(model)?)),
            Self::Smooth(settings) => {
                let seen = calibration.learn(model, &[], Method::MinMax, &Sought::products(true, model))?;
                Applied::plain(smooth::apply(model, *settings, &seen.rows)?)
            }
            Self::Equalize => Applied::plain(equalize::apply(model)?),
            Self::Quantize(settings) => calibration.integers(model, settings)?,
            Self::Float16 => {
                let probe = calibration.probe;
                let mut tried = std::iter::once_with(|| Ok::<_, calibrate::DataError>(probe.to_vec()));
                let mut samples = (calibration.samples)().peekable();
                let given = samples.peek().is_some();
                let batches: Batches<'_> = if given { &mut samples } else { &mut tried };
                let mut told = |done| (calibration.progress)(Step::Calibrate(done));
                let seen = calibrate::magnitudes(calibration.runtime, calibration.threads, model, batches, &mut told)?;
                (calibration.progress)(Step::Quantize);
                Applied {
                    chosen: Some(Chosen::default()),
                    ..Applied::plain(float16::apply(model, &seen)?)
                }
            }
            Self::QuantizeBlocks(settings) => {
                let sought = Sought::products(settings.recovery.calibrates(), model);
                let learned = calibration.learn(model, &[], Method::MinMax, &sought)?;
                let (form, inputs) = (Form::Blocks(settings), &inputs(learned).1);
                calibration.quantize(model, &Quantization { form, inputs })?
            }
        };
        choice::unpin(model);
        Ok(applied)
    }
}

/// Inputs of which more must be known than a range.
#[derive(Default)]
pub(super) struct Sought {
    products: Vec<String>,
    convolutions: Vec<String>,
}

impl Sought {
    /// Those of matrix products, if anything is to be known of them.
    fn products(sought: bool, model: &Model) -> Self {
        Self {
            products: if sought {
                passes::product_inputs(model)
            } else {
                Vec::new()
            },
            ..Self::default()
        }
    }

    /// What `recovery` goes by in a stage that quantizes convolutions, too.
    pub(super) fn by(recovery: &Recovery, model: &Model) -> Self {
        let mut sought = Self::products(recovery.calibrates(), model);
        if recovery.bias_correction {
            sought.convolutions = passes::convolution_inputs(model);
        }
        sought
    }

    /// Whether nothing is.
    pub(super) fn is_empty(&self) -> bool {
        self.products.is_empty() && self.convolutions.is_empty()
    }
}

/// What was learned, for a stage that quantizes.
pub(super) fn inputs(learned: Learned<Gram>) -> (BTreeMap<String, Observed>, Inputs) {
    let Learned { ranges, rows, means } = learned;
    (ranges, Inputs { grams: rows, means })
}

impl Calibration<'_, '_, '_> {
    /// What one pass over the samples says of `ranges` and of what is `sought`; no pass where there is none of them.
    pub(super) fn learn<T: Rows + Send>(
        &mut self,
        model: &Model,
        ranges: &[String],
        method: Method,
        sought: &Sought,
    ) -> Result<Learned<T>, Error> {
        let mut learned = Learned {
            ranges: BTreeMap::new(),
            rows: BTreeMap::new(),
            means: BTreeMap::new(),
        };
        if !(ranges.is_empty() && sought.is_empty()) {
            let wanted = Wanted {
                ranges,
                method,
                rows: &sought.products,
                means: &sought.convolutions,
            };
            let mut told = |done| (self.progress)(Step::Calibrate(done));
            let batches = &mut *(self.samples)();
            learned = calibrate::observe(self.runtime, self.threads, model, &wanted, batches, &mut told)?;
        }
        (self.progress)(Step::Quantize);
        Ok(learned)
    }

    /// Ranges from a table that an earlier run left for the same question; what one pass over the samples says where there is no sound
    /// one, and a table for the next run. And where they come from, in words.
    pub(super) fn look_up(
        &mut self,
        tables: &Tables,
        model: &Model,
        ranges: &[String],
        method: Method,
    ) -> Result<(BTreeMap<String, Observed>, String), Error> {
        let machine = (self.runtime.build_info(), tables.instruction_set.as_str());
        let key = Key::of(machine, model, ranges, method, &mut *(self.samples)())?;
        let (digest, count) = (key.digest(), ranges.len());
        let name = digest.short(12);
        let unused = match calibrate::load(&tables.folder, &key, ranges) {
            Ok(ranges) => {
                // As many samples stand behind them, although none of them ran.
                (self.progress)(Step::Calibrate(key.batches()));
                (self.progress)(Step::Quantize);
                let told = format!("{count} ranges are from calibration table {name}");
                tracing::info!("{told}");
                return Ok((ranges, told));
            }
            Err(unused) => unused,
        };
        let learned = self
            .learn::<Channels>(model, ranges, method, &Sought::default())?
            .ranges;
        let told = match calibrate::save(&tables.folder, &key, &learned) {
            Ok(()) => format!("{count} ranges are calibrated anew, and kept in calibration table {name}"),
            Err(error) => {
                format!("{count} ranges are calibrated anew; calibration table {name} is not written: {error}")
            }
        };
        let told = match unused {
            Unused::Absent => told,
            unused => format!("{told}; the table that was there is not used: {unused}"),
        };
        tracing::info!("{told}");
        Ok((learned, told))
    }

    /// Quantizes with precision raised as far as the goal asks for.
    pub(super) fn quantize(&mut self, model: &mut Model, quantization: &Quantization<'_>) -> Result<Applied, Error> {
        let losses = match quantization.probe(model)? {
            Some(probe) => self.losses(&probe)?,
            None => BTreeMap::new(),
        };
        let floats = MAX_PATTERNS.saturating_sub(self.excepted);
        let Some(ladder) = quantization.ladder(model, &losses, floats)? else {
            return Ok(Applied {
                reports: quantization.apply(model, None)?,
                chosen: Some(Chosen::default()),
            });
        };
        let applied = |reports, count| Applied {
            reports,
            chosen: Some(Chosen {
                raised: ladder.in_blocks(count),
                left: ladder.in_floats(count),
            }),
        };
        let most = ladder.count();
        let Some(Raise::Worst { goal: Some(goal), .. }) = quantization.recovery().raise else {
            return Ok(applied(quantization.apply(model, Some((&ladder, most)))?, most));
        };
        let float = &*model;
        let settled = goal::fewest(goal, most, |count| {
            let mut tried = float.clone();
            let reports = quantization.apply(&mut tried, Some((&ladder, count)))?;
            let alike = likeness(self.runtime, self.threads, (float, &tried), &mut *(self.samples)())?;
            Ok::<_, Error>(((tried, reports), alike))
        })?;
        let (note, count) = (settled.told(goal, most), settled.count);
        let (chosen, mut reports) = settled.made;
        *model = chosen;
        if let Some(report) = reports.first_mut() {
            report.note = note;
        }
        Ok(applied(reports, count))
    }

    /// What rounding is seen to take from outputs.
    fn losses(&mut self, probe: &Probe) -> Result<BTreeMap<String, f64>, Error> {
        let mut told = |done| (self.progress)(Step::Calibrate(done));
        let samples = &mut *(self.samples)();
        let sums = calibrate::sums(
            self.runtime,
            self.threads,
            &probe.model,
            &probe.taps(),
            samples,
            &mut told,
        )?;
        (self.progress)(Step::Quantize);
        Ok(probe.losses(&sums))
    }
}
