//! What calibration data says of a product's inputs, put to use where its weights are rounded. Rewrites no graph itself.
//!
//! Bias correction (Nagel et al., 2019, arXiv:1906.04721, section 4.2): what rounding takes from each output on average,
//! `E[(W - Q(W))^T x] = (W - Q(W))^T E[x]`, is added to its bias. The paper derives `E[x]` from batch normalization; here it was seen.
//! Of a convolution it is that of each channel of the input, as if there were no borders. With GPTQ, rounding then only minds the errors
//! around their mean: the bias makes good the rest.

use super::{
    Error, Grid, Report,
    gptq::{Errors, Factor},
    shared::{self, Matrix},
    site::{IN_BODY, Kind, Site, convolution_inputs, product_inputs},
    weights::{self, QuantizedWeights},
};
use crate::{
    calibrate::{Gram, Means, Rows as _},
    onnx::{Model, Tensor, shown},
};
use std::{collections::BTreeMap, rc::Rc};

/// Share of a node's expected squared error that a bias must make good to be worth it.
const WORTH: f64 = 0.01;

/// Names in reports.
const GPTQ: &str = "gptq";
const BIAS_CORRECTION: &str = "bias-correction";

/// How a stage that quantizes wins back accuracy.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Recovery {
    /// Round the weights of matrix products by GPTQ.
    pub gptq: bool,
    /// Move the mean error of products and convolutions into their bias.
    pub bias_correction: bool,
    /// Which matrix products are kept in 8-bit blocks instead.
    pub raise: Option<Raise>,
}

/// Whose precision is raised.
#[derive(Debug, Clone, PartialEq)]
pub enum Raise {
    /// Those that lose most.
    Worst {
        /// Share of the weights of all matrix products, above 0 and below 1.
        share: f64,
        /// Likeness to the float model that is enough, above 0 and below 1; none to use up the share.
        goal: Option<f64>,
    },
    /// Those that a pattern of [`super::Choice`] matches.
    Named(Vec<String>),
}

impl Recovery {
    /// Whether it needs samples.
    pub fn calibrates(&self) -> bool {
        self.gptq || self.bias_correction || matches!(self.raise, Some(Raise::Worst { .. }))
    }

    /// An error where a method has nothing in `model` to work on, which is known before anything is calibrated.
    pub fn require_sites(&self, model: &Model) -> Result<(), Error> {
        let none = |pass, why: &str| {
            Err(Error::NoEffect {
                pass,
                why: why.to_owned(),
            })
        };
        let products = || !product_inputs(model).is_empty();
        if self.gptq && !products() {
            return none(
                GPTQ,
                "the model has no matrix product with constant weights outside of bodies, and convolutions are rounded to the nearest step: \
                 remove it",
            );
        }
        if self.bias_correction && !products() && convolution_inputs(model).is_empty() {
            return none(
                BIAS_CORRECTION,
                "the model has neither matrix product nor convolution with constant weights outside of bodies: remove it",
            );
        }
        Ok(())
    }
}

/// What was seen of the inputs of sites, by name.
#[derive(Debug, Default)]
pub struct Inputs {
    /// Of matrix products.
    pub grams: BTreeMap<String, Gram>,
    /// Of convolutions.
    pub means: BTreeMap<String, Means>,
}

/// A recovery while sites are rounded.
#[derive(Debug)]
pub struct Recovering<'s> {
    gptq: bool,
    bias_correction: bool,
    inputs: &'s Inputs,
    /// Of all inputs of weights that several products share: rounded in one way, they stay one.
    together: BTreeMap<Matrix, Gram>,
    /// These weights in 8 bits, with the smallest scales that were asked for, and whether GPTQ rounded them.
    eight: BTreeMap<Matrix, (Vec<f32>, QuantizedWeights, bool)>,
    /// Of the last input: products that share one follow each other, and a factor is as large as the weights.
    last: Option<(String, Option<Rc<Factor>>)>,
    rounded: Report,
    corrected: Report,
}

/// No calibration data.
static NOTHING: Inputs = Inputs {
    grams: BTreeMap::new(),
    means: BTreeMap::new(),
};

impl Default for Recovering<'static> {
    /// To the nearest, and nothing else.
    fn default() -> Self {
        Self::new(&Recovery::default(), &NOTHING, &Model::default())
    }
}

impl<'s> Recovering<'s> {
    /// With what was seen of the inputs of sites of `model`.
    pub fn new(settings: &Recovery, inputs: &'s Inputs, model: &Model) -> Self {
        Self {
            gptq: settings.gptq,
            bias_correction: settings.bias_correction,
            inputs,
            together: shared::together(model, &inputs.grams),
            eight: BTreeMap::new(),
            last: None,
            rounded: Report::new(GPTQ),
            corrected: Report::new(BIAS_CORRECTION),
        }
    }

    /// What was done, by method; an error where one that was asked for has changed nothing.
    pub fn finish(self) -> Result<Vec<Report>, Error> {
        let asked = [(self.gptq, self.rounded), (self.bias_correction, self.corrected)];
        let asked = asked.into_iter().filter(|(asked, _)| *asked);
        asked.map(|(_, report)| super::require_effect(report)).collect()
    }

    /// Whether the weights of `site` are to be rounded by what was seen; says why not where that was asked for. In a body, they are where
    /// a product outside shares them.
    pub(super) fn calibrates(&mut self, site: &Site<'_>) -> bool {
        let (gptq, bias) = (self.gptq, self.bias_correction);
        let unseen = site.in_body && !self.together.contains_key(&shared::matrix(site));
        if unseen {
            let reports = [(gptq, &mut self.rounded), (bias, &mut self.corrected)];
            let reports = reports.into_iter().filter(|(asked, _)| *asked);
            reports.for_each(|(_, report)| report.leave(site.node, IN_BODY));
        }
        !unseen && (gptq || bias)
    }

    /// What was seen of the input of `site`, if it is a product: of all inputs that its weights are multiplied with.
    pub(super) fn seen(&self, site: &Site<'_>) -> Option<&Gram> {
        let inputs = site.weights.dims[1 - site.channel_axis()];
        let together = self.together.get(&shared::matrix(site));
        let gram = together.or_else(|| self.inputs.grams.get(site.input()));
        gram.filter(|gram| !site.is_convolution() && gram.size() == inputs)
    }

    /// What was seen of the input of `site`, whatever it is.
    fn moments(&self, site: &Site<'_>) -> Option<Moments<'_>> {
        if site.is_convolution() {
            self.inputs.means.get(site.input()).map(Moments::Channels)
        } else {
            self.seen(site).map(Moments::Rows)
        }
    }

    /// What GPTQ must know to round the weights of `site`; none to round to the nearest.
    pub(super) fn factor(&mut self, site: &Site<'_>) -> Option<Rc<Factor>> {
        if !self.gptq {
            return None;
        }
        if site.is_convolution() {
            self.rounded
                .leave(site.node, "convolutions are rounded to the nearest step");
            return None;
        }
        let of = if self.together.contains_key(&shared::matrix(site)) {
            site.weights.name.as_str()
        } else {
            site.input()
        };
        let known = self.last.as_ref().filter(|(last, _)| last == of);
        let factor = if let Some((_, factor)) = known {
            factor.clone()
        } else {
            let errors = if self.bias_correction {
                Errors::AroundMean
            } else {
                Errors::All
            };
            self.seen(site).and_then(|gram| Factor::new(gram, errors)).map(Rc::new)
        };
        self.last = Some((of.to_owned(), factor.clone()));
        match &factor {
            Some(_) => self.rounded.changed += 1,
            None => self
                .rounded
                .leave(site.node, "calibration data says nothing about its input"),
        }
        factor
    }

    /// Tells that GPTQ leaves `site`, whose weights are an embedding's, too: there is no factor.
    pub(super) fn tied(&mut self, site: &Site<'_>) -> Option<Rc<Factor>> {
        if self.gptq {
            let why = "an embedding shares its weights: they are rounded to the nearest step, and stay one";
            self.rounded.leave(site.node, why);
        }
        None
    }

    /// The weights of `site`, given as `matrix` with channels along `axis`, in 8 bits; and what belongs into its bias.
    ///
    /// `least` gives, for a channel, the smallest scale that it may have.
    pub(super) fn weights(
        &mut self,
        site: &Site<'_>,
        matrix: &Tensor,
        axis: usize,
        grid: Grid,
        least: impl Fn(usize) -> f32,
    ) -> Result<(QuantizedWeights, Option<Vec<f32>>), Error> {
        let calibrates = self.calibrates(site);
        let four_bits = grid.four_bits.filter(|_| !site.node.eight_bits);
        let grid = Grid { four_bits, ..grid };
        let of = shared::matrix(site);
        let bounds: Vec<f32> = (0..matrix.dims[axis]).map(least).collect();
        let known = self.eight.get(&of).filter(|(before, ..)| *before == bounds);
        let quantized = if let Some((_, quantized, by_gptq)) = known {
            self.rounded.changed += usize::from(*by_gptq);
            quantized.clone()
        } else {
            let factor = calibrates.then(|| self.factor(site)).flatten();
            let quantized = match &factor {
                Some(factor) => weights::round(matrix, axis, grid, |channel| bounds[channel], factor),
                None => weights::quantize(matrix, axis, grid, |channel| bounds[channel]),
            };
            let quantized = quantized.ok_or_else(|| Error::NotFinite {
                name: shown(&matrix.name),
            })?;
            if self.together.contains_key(&of) {
                self.eight.insert(of, (bounds, quantized.clone(), factor.is_some()));
            }
            quantized
        };
        let rounded = || quantized.floats(&matrix.dims, axis);
        let correction = calibrates
            .then(|| self.correction(site, matrix, axis, rounded))
            .flatten();
        Ok((quantized, correction))
    }

    /// What rounding takes from each channel on average, where that is worth a bias. `matrix` has its channels along `axis`, and is the
    /// weights of `site` as they are or as `[inputs, channels]`, those of a convolution tap by tap; `rounded` gives what became of it, in the
    /// same order.
    #[allow(clippy::cast_possible_truncation, reason = "biases are 32-bit floats")]
    pub(super) fn correction(
        &mut self,
        site: &Site<'_>,
        matrix: &Tensor,
        axis: usize,
        rounded: impl FnOnce() -> Vec<f32>,
    ) -> Option<Vec<f32>> {
        if !self.bias_correction {
            return None;
        }
        let (Some(moments), Some(floats)) = (self.moments(site), matrix.to_floats()) else {
            self.corrected.leave(site.node, "nothing was seen of its input's mean");
            return None;
        };
        let mut lost = vec![0.0_f64; matrix.dims[axis]];
        let mut expected = 0.0;
        for (position, (float, rounded)) in floats.iter().zip(rounded()).enumerate() {
            let (channel, input) = place(site, &matrix.dims, axis, position);
            let error = f64::from(*float) - f64::from(rounded);
            lost[channel] += error * moments.mean(input);
            expected += error * error * moments.mean_square(input);
        }
        let good: f64 = lost.iter().map(|lost| lost * lost).sum();
        if good <= WORTH * expected {
            self.corrected.leave(
                site.node,
                "the mean of its error is less than a hundredth of the squares: rounding is even",
            );
            return None;
        }
        self.corrected.changed += 1;
        Some(lost.into_iter().map(|lost| lost as f32).collect())
    }
}

/// Mean and mean square of inputs.
enum Moments<'s> {
    Rows(&'s Gram),
    Channels(&'s Means),
}

impl Moments<'_> {
    fn mean(&self, input: usize) -> f64 {
        match self {
            Self::Rows(gram) => gram.mean(input),
            Self::Channels(means) => means.mean(input),
        }
    }

    fn mean_square(&self, input: usize) -> f64 {
        match self {
            Self::Rows(gram) => gram.mean_square(input),
            Self::Channels(means) => means.mean_square(input),
        }
    }
}

/// Output channel and input of the weight at `position` of weights of shape `dims`.
fn place(site: &Site<'_>, dims: &[usize], axis: usize, position: usize) -> (usize, usize) {
    let [first, second, taps @ ..] = dims else {
        return (0, 0);
    };
    let taps: usize = taps.iter().product();
    let (row, column) = (position / taps / second, position / taps % second);
    if site.kind != Kind::Conv {
        return if axis == 0 { (row, column) } else { (column, row) };
    }
    if axis == 1 {
        // A row for each tap and input.
        return (column, row % site.weights.dims[1]);
    }
    let groups = site
        .node
        .int("group", 1)
        .and_then(|groups| usize::try_from(groups).ok());
    let group = row / (first / groups.unwrap_or(1).max(1)).max(1);
    (row, group * second + column)
}

/// `bias`, if there is one, and `correction`, if there is one: as many values each as there are channels.
pub(super) fn corrected(bias: Option<&Tensor>, correction: Option<Vec<f32>>) -> Result<Option<Vec<f32>>, Error> {
    let Some(bias) = bias else {
        return Ok(correction);
    };
    let mut values = bias.to_floats().unwrap_or_default();
    if values.iter().any(|value| !value.is_finite()) {
        return Err(Error::NotFinite {
            name: shown(&bias.name),
        });
    }
    for (value, lost) in values.iter_mut().zip(correction.iter().flatten()) {
        *value += lost;
    }
    Ok(Some(values))
}
