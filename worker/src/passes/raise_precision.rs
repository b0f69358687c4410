//! Mixed precision by sensitivity: the matrix products that would lose most keep their weights in 8-bit blocks, within a share of all weights;
//! or those that a recipe names.
//!
//! Goes before the pass that quantizes the rest, and works on products in the order of the graph, so that only their set counts. A product `y = W^T x` is ranked by its expected squared error relative to the power of its
//! output, `E|dy|^2 / E|y|^2`, from the sums `H = X X^T` over the `n` rows seen. With steps `s` small against what is rounded, an error has
//! the variance `s^2 / 12` (Widrow and Kollár, 2008, chapter 4), and at most the square of the value:
//! weights lose `sum_ij H_ii / n s_ij^2 / 12`; an input in 8 bits, `sum_i min(s_x^2 / 12, H_ii / n) |W_i|^2`; the output has the power
//! `tr(W^T H W) / n`. It is HAWQ's idea (Dong et al., 2019, arXiv:1905.03696) with a product's own output in the place of the loss, which a
//! file without labels does not have.

use super::{
    Bits, Error, Granularity, Grid, Report,
    choice::{self, Words},
    nbits::{self, Known, Rewrite},
    recovery::Recovering,
    site::{Kind, Site, leave_bodies, sites},
};
use crate::{
    calibrate::{Gram, Rows as _},
    onnx::{Index, Model, Names, Patch, rewrite_main, shown},
};
use assayer_crds::stages::MAX_PATTERNS;

const NAME: &str = "raise-precision";
/// Weights that share a scale where other products have one for each channel: the fastest of the sizes that ONNX Runtime has.
const BLOCK: usize = 128;
/// Steps of an 8-bit range.
const STEPS: f64 = 255.0;
/// A rounding error is spread evenly over a step.
const UNIFORM: f64 = 12.0;
/// Products that an error lists.
const MOST_SHOWN: usize = 8;
/// Why a product that loses much is left.
const UNNAMED: &str =
    "a recipe could not name it: neither its name nor its output's is its own, free of *, and short enough";

/// What becomes of the products that are not raised.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Otherwise {
    /// Weights and inputs in 8 bits.
    Integers(Grid),
    /// Weights in blocks of 4 bits of this size.
    FourBits(usize),
}

impl Otherwise {
    /// Weights that share a scale in a raised product.
    fn block(self) -> usize {
        match self {
            Self::Integers(_) => BLOCK,
            Self::FourBits(size) => size,
        }
    }
}

/// Products to raise, those first that need it most.
#[derive(Debug)]
pub struct Products {
    products: Vec<Product>,
    report: Report,
}

#[derive(Debug)]
struct Product {
    /// Its output, by which it is found again.
    output: String,
    /// The pattern that matches it and nothing else.
    word: String,
    why: String,
}

impl Products {
    /// Ranks the products of `model`, and takes as many of the worst as hold at most `share` of the weights of all.
    ///
    /// Takes none that a recipe could not name, nor more than it may have patterns.
    pub fn worst(model: &Model, share: f64, otherwise: Otherwise, recovering: &Recovering<'_>) -> Result<Self, Error> {
        if !(share > 0.0 && share < 1.0) {
            return Err(Error::Setting {
                pass: NAME,
                field: "share",
                value: share.to_string(),
                hint: "use a decimal number above 0 and below 1, such as \"0.2\"",
            });
        }
        let mut report = Report::new(NAME);
        let index = Index::new(&model.graph);
        let words = Words::new(&model.graph);
        let mut ranked = Vec::new();
        let mut total = 0;
        for site in sites(&index, &mut report) {
            if site.kind == Kind::Conv {
                report.leave(site.node, "there is no convolution with block-wise weights");
                continue;
            }
            total += site.weights.len();
            match recovering.seen(&site).and_then(|gram| loss(&site, gram, otherwise)) {
                Some(loss) => ranked.push((loss, site)),
                None => report.leave(site.node, "calibration data says nothing about its input"),
            }
        }
        // Ties go to the site that costs fewer bytes, then to the first.
        ranked.sort_by(|(left, a), (right, b)| right.total_cmp(left).then(a.weights.len().cmp(&b.weights.len())));
        leave_bodies(model, &mut report);
        #[allow(clippy::cast_precision_loss, reason = "weights are counted, and far fewer than 2^52")]
        let fits = |weights: usize| weights as f64 <= share * total as f64;
        let (mut taken, mut products) = (0, Vec::new());
        for (loss, site) in &ranked {
            let expected = format!("expected to lose {:.4} % of its output's power", 100.0 * loss);
            if !fits(taken + site.weights.len()) {
                let why = format!("{expected}, and the share is used up by products that lose more");
                report.leave(site.node, why);
            } else if products.len() == MAX_PATTERNS {
                let why = format!("{expected}, and {MAX_PATTERNS} others, as many as a recipe can name, lose more");
                report.leave(site.node, why);
            } else if let Some(word) = words.of(site.node) {
                taken += site.weights.len();
                products.push(Product {
                    output: site.node.output().to_owned(),
                    word,
                    why: expected,
                });
            } else {
                report.leave(site.node, UNNAMED);
            }
        }
        report.changed = products.len();
        let mut report = super::require_effect(report)?;
        report.changed = 0;
        Ok(Self { products, report })
    }

    /// Those that `patterns` match. One that matches no product is an error.
    pub fn named(model: &Model, patterns: &[String]) -> Result<Self, Error> {
        let mut report = Report::new(NAME);
        let index = Index::new(&model.graph);
        let mut sites = sites(&index, &mut report);
        sites.retain(|site| site.kind != Kind::Conv);
        let mut products: Vec<Product> = Vec::new();
        for pattern in patterns {
            let mut matched = sites
                .iter()
                .filter(|site| choice::matches(pattern, site.node))
                .peekable();
            if matched.peek().is_none() {
                let labels = sites.iter().take(MOST_SHOWN).map(|site| site.node.label());
                return Err(Error::Pattern {
                    field: "recover.nodes",
                    what: "matrix product that can be raised",
                    pattern: shown(pattern),
                    known: shown(&labels.collect::<Vec<_>>().join(", ")),
                });
            }
            products.extend(matched.map(|site| Product {
                output: site.node.output().to_owned(),
                word: pattern.clone(),
                why: "recover.nodes names it".to_owned(),
            }));
        }
        Ok(Self { products, report })
    }

    /// How many they are: at least one.
    pub fn count(&self) -> usize {
        self.products.len()
    }

    /// Patterns that match the first `count` and nothing else.
    pub fn words(&self, count: usize) -> Vec<String> {
        let mut words: Vec<String> = self.first(count).iter().map(|product| product.word.clone()).collect();
        words.dedup();
        words
    }

    fn first(&self, count: usize) -> &[Product] {
        &self.products[..count.min(self.count())]
    }

    /// Keeps the first `count` in 8-bit blocks. The model is the one that they were found in.
    pub fn raise(
        &self,
        model: &mut Model,
        count: usize,
        otherwise: Otherwise,
        recovering: &mut Recovering<'_>,
    ) -> Result<Report, Error> {
        let mut report = self.report.clone();
        let patch = {
            let index = Index::new(&model.graph);
            let (mut names, mut known) = (Names::new(&model.graph), Known::new());
            let mut rewrite = Rewrite {
                index: &index,
                names: &mut names,
                known: &mut known,
                patch: Patch::new(NAME),
            };
            for site in sites(&index, &mut Report::new(NAME)) {
                let Some(product) = self
                    .first(count)
                    .iter()
                    .find(|product| product.output == site.node.output())
                else {
                    continue;
                };
                rewrite.product(&site, Bits::Eight, otherwise.block(), recovering)?;
                report.raise(site.node, product.why.as_str());
                report.changed += 1;
            }
            rewrite.patch
        };
        if report.changed > 0 {
            rewrite_main(model, patch)?;
            model.import(nbits::DOMAIN, 1);
        }
        Ok(report)
    }
}

/// Expected squared error relative to the output's power; `None` where there is no output to speak of.
fn loss(site: &Site<'_>, gram: &Gram, otherwise: Otherwise) -> Option<f64> {
    let weights = site.matrix();
    let (inputs, columns) = (gram.size(), weights.len() / gram.size().max(1));
    let squares: Vec<f64> = (0..inputs).map(|input| gram.mean_square(input)).collect();
    let error = match otherwise {
        Otherwise::Integers(grid) => {
            let step = gram.square_range() / (STEPS * STEPS * UNIFORM);
            let of_input: f64 = weights
                .chunks_exact(columns)
                .zip(&squares)
                .map(|(row, square)| step.min(*square) * row.iter().map(|w| f64::from(*w).powi(2)).sum::<f64>())
                .sum();
            of_input
                + of_weights(
                    &weights,
                    columns,
                    &squares,
                    inputs,
                    |low, high| high.max(-low) / f64::from(grid.weights.largest()),
                    grid.granularity,
                )
        }
        Otherwise::FourBits(block) => {
            let step = |low: f64, high: f64| (high - low) / 15.0;
            of_weights(&weights, columns, &squares, block, step, Granularity::PerChannel)
        }
    };
    let power = gram.power(&weights, columns);
    (power > 0.0 && error.is_finite()).then_some(error / power)
}

/// What rounding blocks of `size` inputs of each column loses: `step` gives the distance of two values from the block's range.
fn of_weights(
    weights: &[f32],
    columns: usize,
    squares: &[f64],
    size: usize,
    step: impl Fn(f64, f64) -> f64,
    granularity: Granularity,
) -> f64 {
    let mut sum = 0.0;
    for (rows, squares) in weights.chunks(size * columns).zip(squares.chunks(size)) {
        let (mut low, mut high) = (vec![0.0_f64; columns], vec![0.0_f64; columns]);
        for row in rows.chunks_exact(columns) {
            for ((low, high), value) in low.iter_mut().zip(&mut high).zip(row) {
                *low = low.min(f64::from(*value));
                *high = high.max(f64::from(*value));
            }
        }
        let steps = low.iter().zip(&high).map(|(low, high)| step(*low, *high).powi(2));
        #[allow(clippy::cast_precision_loss, reason = "columns of a matrix")]
        let steps: f64 = match granularity {
            Granularity::PerChannel => steps.sum(),
            Granularity::PerTensor => steps.fold(0.0, f64::max) * columns as f64,
        };
        sum += squares.iter().sum::<f64>() * steps / UNIFORM;
    }
    sum
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        passes::{Quantize, Raise, Recovery},
        testing::{Build, noise},
    };
    use std::collections::BTreeMap;

    /// Two products of equal size; the input of the second has one channel that is far larger than the others.
    fn products() -> (Model, BTreeMap<String, Gram>) {
        let mut b = Build::opset(17);
        let (x, y) = (b.input("x", &[8, 64]), b.input("y", &[8, 64]));
        let outputs = [&x, &y].map(|input| {
            let weights = b.weights(&[64, 32]);
            b.node("MatMul", &[input, &weights])
        });
        let seen = |outlier: f32| {
            let mut rows = noise(5, 8 * 64);
            rows.iter_mut().step_by(64).for_each(|value| *value *= outlier);
            let mut gram = Gram::new(64);
            gram.add(&rows);
            gram.finish();
            gram
        };
        let grams = BTreeMap::from([(x, seen(1.0)), (y, seen(100.0))]);
        (b.finish(&[&outputs[0], &outputs[1]]), grams)
    }

    #[test]
    fn the_worst_is_raised_and_the_other_does_not_fit() {
        let (float, grams) = products();
        let otherwise = Otherwise::Integers(Quantize::default().grid());
        let recovery = Recovery {
            raise: Some(Raise::Worst { share: 0.5, goal: None }),
            ..Recovery::default()
        };
        let mut recovering = Recovering::new(&recovery, &grams);
        let worst = Products::worst(&float, 0.5, otherwise, &recovering).unwrap();
        assert_eq!(worst.count(), 1);
        for count in [0, 1, 9] {
            let mut model = float.clone();
            let report = worst.raise(&mut model, count, otherwise, &mut recovering).unwrap();
            assert_eq!((report.changed, report.raised.len()), (count.min(1), count.min(1)));
            let kinds: Vec<&str> = model.graph.nodes.iter().map(|node| node.op_type.as_str()).collect();
            assert_eq!(kinds, ["MatMul", ["MatMul", "MatMulNBits"][count.min(1)]], "{count}");
            assert!(report.left[0].why.contains("the share is used up"), "{:?}", report.left);
        }
        let error = Products::worst(&float, 0.3, otherwise, &recovering)
            .unwrap_err()
            .to_string();
        assert!(error.contains("raise-precision changed nothing"), "{error}");
        let error = Products::worst(&float, 1.5, otherwise, &recovering)
            .unwrap_err()
            .to_string();
        assert!(error.contains("share 1.5"), "{error}");
    }

    #[test]
    fn words_name_what_was_raised_in_any_order_and_nothing_else_is_named() {
        let (float, grams) = products();
        let otherwise = Otherwise::Integers(Quantize::default().grid());
        let mut recovering = Recovering::new(&Recovery::default(), &grams);
        let raised = |products: &Products, recovering: &mut Recovering<'_>| {
            let mut model = float.clone();
            let report = products
                .raise(&mut model, products.count(), otherwise, recovering)
                .unwrap();
            assert_eq!(report.changed, products.count());
            crate::onnx::to_bytes(&model)
        };
        let worst = Products::worst(&float, 0.5, otherwise, &recovering).unwrap();
        let again = Products::named(&float, &worst.words(1)).unwrap();
        assert_eq!(again.words(1), worst.words(1));
        assert_eq!(raised(&again, &mut recovering), raised(&worst, &mut recovering));

        let all = Products::named(&float, &["MatMul".to_owned()]).unwrap();
        assert_eq!((all.count(), all.words(2)), (2, vec!["MatMul".to_owned()]));
        let mut outputs: Vec<String> = float.graph.nodes.iter().map(|node| node.output().to_owned()).collect();
        outputs.reverse();
        let reversed = Products::named(&float, &outputs).unwrap();
        assert_eq!(raised(&reversed, &mut recovering), raised(&all, &mut recovering));

        let error = Products::named(&float, &["Gemm".to_owned()]).unwrap_err().to_string();
        assert!(
            error.contains("recover.nodes: no matrix product") && error.contains(&outputs[0]),
            "{error}"
        );
    }
}
