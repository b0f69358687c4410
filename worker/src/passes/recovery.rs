//! What calibration data says of a product's inputs, put to use where its weights are rounded. Rewrites no graph itself.
//!
//! Bias correction (Nagel et al., 2019, arXiv:1906.04721, section 4.2): what rounding takes from each output on average,
//! `E[(W - Q(W))^T x] = (W - Q(W))^T E[x]`, is added to its bias. The paper derives `E[x]` from batch normalization; here it was seen.
//! With GPTQ, rounding then only minds the errors around their mean: the bias makes good the rest.

use super::{
    Error, Grid, Report,
    gptq::{Errors, Factor},
    site::{IN_BODY, Kind, Site},
    weights::{self, QuantizedWeights},
};
use crate::{
    calibrate::{Gram, Rows as _},
    onnx::{Tensor, shown},
};
use std::{collections::BTreeMap, rc::Rc};

/// Share of a product's expected squared error that a bias must make good to be worth it.
const WORTH: f64 = 0.01;

/// How a stage that quantizes wins back accuracy.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Recovery {
    /// Round the weights of matrix products by GPTQ.
    pub gptq: bool,
    /// Move the mean error of products into their bias.
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
}

/// A recovery while sites are rounded.
#[derive(Debug)]
pub struct Recovering<'s> {
    gptq: bool,
    bias_correction: bool,
    grams: &'s BTreeMap<String, Gram>,
    /// Of the last input: products that share one follow each other, and a factor is as large as the weights.
    last: Option<(String, Option<Rc<Factor>>)>,
    rounded: Report,
    corrected: Report,
}

/// No calibration data.
static NOTHING: BTreeMap<String, Gram> = BTreeMap::new();

impl Default for Recovering<'static> {
    /// To the nearest, and nothing else.
    fn default() -> Self {
        Self::new(&Recovery::default(), &NOTHING)
    }
}

impl<'s> Recovering<'s> {
    /// With what was seen of the inputs of products.
    pub fn new(settings: &Recovery, grams: &'s BTreeMap<String, Gram>) -> Self {
        Self {
            gptq: settings.gptq,
            bias_correction: settings.bias_correction,
            grams,
            last: None,
            rounded: Report::new("gptq"),
            corrected: Report::new("bias-correction"),
        }
    }

    /// What was done, by method; an error where one that was asked for has changed nothing.
    pub fn finish(self) -> Result<Vec<Report>, Error> {
        let asked = [(self.gptq, self.rounded), (self.bias_correction, self.corrected)];
        let asked = asked.into_iter().filter(|(asked, _)| *asked);
        asked.map(|(_, report)| super::require_effect(report)).collect()
    }

    /// Whether the weights of `site` are to be rounded by what was seen; says why not where that was asked for.
    pub(super) fn calibrates(&mut self, site: &Site<'_>) -> bool {
        let (gptq, bias) = (self.gptq, self.bias_correction);
        if site.in_body {
            let reports = [(gptq, &mut self.rounded), (bias, &mut self.corrected)];
            let reports = reports.into_iter().filter(|(asked, _)| *asked);
            reports.for_each(|(_, report)| report.leave(site.node, IN_BODY));
        }
        !site.in_body && (gptq || bias)
    }

    /// What was seen of the input of `site`, if it is a product.
    pub(super) fn seen(&self, site: &Site<'_>) -> Option<&'s Gram> {
        let inputs = site.weights.dims[1 - site.channel_axis()];
        let gram = self.grams.get(site.input()).filter(|_| site.kind != Kind::Conv);
        gram.filter(|gram| gram.size() == inputs)
    }

    /// What GPTQ must know to round the weights of `site`; none to round to the nearest.
    pub(super) fn factor(&mut self, site: &Site<'_>) -> Option<Rc<Factor>> {
        if !self.gptq {
            return None;
        }
        if site.kind == Kind::Conv {
            self.rounded
                .leave(site.node, "convolutions are rounded to the nearest step");
            return None;
        }
        let known = self.last.as_ref().filter(|(last, _)| last == site.input());
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
        self.last = Some((site.input().to_owned(), factor.clone()));
        match &factor {
            Some(_) => self.rounded.changed += 1,
            None => self
                .rounded
                .leave(site.node, "calibration data says nothing about its input"),
        }
        factor
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
        least: impl Fn(usize) -> f32 + Sync,
    ) -> Result<(QuantizedWeights, Option<Vec<f32>>), Error> {
        let calibrates = self.calibrates(site);
        let quantized = match calibrates.then(|| self.factor(site)).flatten() {
            Some(factor) => weights::round(matrix, axis, grid, least, &factor),
            None => weights::quantize(matrix, axis, grid, least),
        };
        let quantized = quantized.ok_or_else(|| Error::NotFinite {
            name: shown(&matrix.name),
        })?;
        let rounded = || quantized.floats(&matrix.dims, axis);
        let correction = calibrates
            .then(|| self.correction(site, matrix, axis, rounded))
            .flatten();
        Ok((quantized, correction))
    }

    /// What rounding takes from each channel on average, where that is worth a bias. `matrix` has its channels along `axis`; `rounded`
    /// gives what became of it, in the same order.
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
        let (Some(gram), Some(floats)) = (self.seen(site), matrix.to_floats()) else {
            self.corrected.leave(site.node, "nothing was seen of its input's mean");
            return None;
        };
        let width = matrix.dims[1];
        let mut lost = vec![0.0_f64; matrix.dims[axis]];
        let mut expected = 0.0;
        for (position, (float, rounded)) in floats.iter().zip(rounded()).enumerate() {
            let (row, column) = (position / width, position % width);
            let (channel, input) = if axis == 0 { (row, column) } else { (column, row) };
            let error = f64::from(*float) - f64::from(rounded);
            lost[channel] += error * gram.mean(input);
            expected += error * error * gram.mean_square(input);
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
