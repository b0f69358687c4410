//! Accuracy control: what few bits hurt most is kept more precise, matrix products in 8-bit blocks at first and in floats at last,
//! convolutions and what lies between them in floats; or the products that a recipe names. Where weights of 4 bits run on kernels of 8,
//! products and convolutions get weights of 8 bits at first, on the same kernels.
//!
//! Goes before the pass that quantizes the rest, and works on nodes in the order of the graph, so that only their set counts. Products that
//! share weights are raised together: these would be written twice otherwise. Products are ranked by what they are expected to lose
//! ([`loss`]), convolutions by what they were seen to ([`damage`](super::damage)): both relative to the power of their output. How many steps
//! are taken is decided elsewhere.

use super::{
    Bits, Error, Grid, Report,
    choice::{self, Words},
    loss::loss,
    nbits::{self, Known, Rewrite},
    recovery::Recovering,
    shared::{self, Matrix},
    site::{Site, leave_bodies, sites},
};
use crate::onnx::{Index, Model, Names, Node, Patch, Tensor, rewrite_main, shown};
use assayer_crds::stages::MAX_PATTERNS;
use std::collections::{BTreeMap, HashMap, HashSet};

pub(super) const NAME: &str = "raise-precision";
/// Weights that share a scale where other products have one for each channel: the fastest of the sizes that ONNX Runtime has.
const BLOCK: usize = 128;
/// What loses less (of its output's power) is sound in 8 bits, where no goal says otherwise: its floats cost time and bytes.
const SOUND: f64 = 0.01;
/// Products that an error lists.
const MOST_SHOWN: usize = 8;
/// Why a node that loses much is left.
const UNNAMED: &str =
    "a recipe could not name it: neither its name nor its output's is its own, free of *, and short enough";
/// Why a node is not quantized.
const FLOATS: &str = "RaisePrecision keeps it in floats";

/// What becomes of the products that are not raised.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Otherwise {
    /// Weights and inputs in 8 bits.
    Integers(Grid),
    /// Weights in blocks of 4 bits of this size.
    FourBits(usize),
}

impl Otherwise {
    /// Whether weights get 4 bits for kernels of 8: then weights of 8 bits are the first step, for convolutions as well.
    pub fn unpacks(self) -> bool {
        matches!(self, Self::Integers(grid) if grid.four_bits.is_some())
    }

    /// Weights that share a scale in a raised product.
    fn block(self) -> usize {
        match self {
            Self::Integers(_) => BLOCK,
            Self::FourBits(size) => size,
        }
    }
}

/// What may be raised.
#[derive(Debug, Clone, Copy)]
pub struct Bounds {
    /// Share of all weights, above 0 and below 1.
    pub share: f64,
    /// Whether raising goes on, in floats, until a goal is reached.
    pub goal: bool,
    /// Whether there is something between few bits and floats: 8-bit blocks are ONNX Runtime's own.
    pub blocks: bool,
    /// Nodes that may be left as floats: as many as a recipe can name beside what the user does.
    pub floats: usize,
}

/// Ways to raise precision, those first that help most.
#[derive(Debug)]
pub struct Ladder {
    steps: Vec<Step>,
    report: Report,
}

#[derive(Debug, Clone)]
struct Step {
    /// The outputs of its nodes, by which these are found again.
    outputs: Vec<String>,
    /// The patterns that match them and nothing else.
    words: Vec<String>,
    why: String,
    to: To,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum To {
    /// Blocks of 8 bits, or weights of 8 bits where others have 4.
    Blocks,
    Floats,
}

/// A node that could be raised, or several that share weights.
struct Hurt<'g> {
    loss: f64,
    weights: usize,
    nodes: Vec<&'g Node>,
    to: To,
}

impl Ladder {
    /// Ranks the products of `model`, and the nodes whose outputs have measured `losses`; takes the worst, as many as hold at most
    /// `bounds.share` of the weights of all. With a goal, the products follow once more, as floats.
    ///
    /// Takes none that a recipe could not name, nor more than it may have patterns.
    pub fn worst(
        model: &Model,
        bounds: Bounds,
        otherwise: Otherwise,
        recovering: &Recovering<'_>,
        losses: &BTreeMap<String, f64>,
    ) -> Result<Self, Error> {
        if !(bounds.share > 0.0 && bounds.share < 1.0) {
            return Err(Error::Setting {
                pass: NAME,
                field: "share",
                value: bounds.share.to_string(),
                hint: "use a decimal number above 0 and below 1, such as \"0.2\"",
            });
        }
        let mut report = Report::new(NAME);
        let index = Index::new(&model.graph);
        let sites = sites(&index, &mut report);
        let mut known = HashSet::new();
        let each = sites.iter().map(|site| site.weights);
        let each = each.filter(|weights| known.insert(weights.name.as_str()));
        let total: usize = each.map(Tensor::len).sum();
        let mut hurt = hurt(&index, &sites, otherwise, recovering, losses, &mut report);
        if !bounds.blocks {
            for hurt in &mut hurt {
                hurt.to = To::Floats;
            }
        }
        // Ties go to what costs fewer bytes, then to the first.
        hurt.sort_by(|a, b| b.loss.total_cmp(&a.loss).then(a.weights.cmp(&b.weights)));
        leave_bodies(model, &mut report);
        let words = Words::new(&model.graph);
        let steps = steps(&hurt, total, bounds, &words, &mut report);
        report.changed = steps.iter().map(|step| step.outputs.len()).sum();
        let mut report = super::require_effect(report)?;
        report.changed = 0;
        Ok(Self { steps, report })
    }

    /// The products that `patterns` match, in blocks; with weights of 4 bits for kernels of 8, convolutions, too. A pattern that matches none
    /// is an error.
    pub fn named(model: &Model, patterns: &[String], otherwise: Otherwise) -> Result<Self, Error> {
        let mut report = Report::new(NAME);
        let index = Index::new(&model.graph);
        let mut sites = sites(&index, &mut report);
        sites.retain(|site| otherwise.unpacks() || !site.is_convolution());
        let mut steps: Vec<Step> = Vec::new();
        for pattern in patterns {
            let mut matched = sites
                .iter()
                .filter(|site| choice::matches(pattern, site.node))
                .peekable();
            if matched.peek().is_none() {
                let labels = sites.iter().take(MOST_SHOWN).map(|site| site.node.label());
                return Err(Error::Pattern {
                    field: "recover.nodes",
                    what: if otherwise.unpacks() {
                        "matrix product or convolution that can be raised"
                    } else {
                        "matrix product that can be raised"
                    },
                    pattern: shown(pattern),
                    known: shown(&labels.collect::<Vec<_>>().join(", ")),
                });
            }
            steps.extend(matched.map(|site| Step {
                outputs: vec![site.node.output().to_owned()],
                words: vec![pattern.clone()],
                why: "recover.nodes names it".to_owned(),
                to: To::Blocks,
            }));
        }
        Ok(Self { steps, report })
    }

    /// How many steps there are: at least one.
    pub fn count(&self) -> usize {
        self.steps.len()
    }

    /// Patterns that match what the first `count` steps keep in 8 bits, and nothing else.
    pub fn in_blocks(&self, count: usize) -> Vec<String> {
        self.words(count, To::Blocks)
    }

    /// Patterns that match what they keep in floats, and nothing else.
    pub fn in_floats(&self, count: usize) -> Vec<String> {
        self.words(count, To::Floats)
    }

    fn words(&self, count: usize, to: To) -> Vec<String> {
        let steps = self.taken(count).into_iter().filter(|step| step.to == to);
        let mut words: Vec<String> = steps.flat_map(|step| step.words.clone()).collect();
        words.dedup();
        words
    }

    /// The last of the first `count` steps for the same nodes.
    fn taken(&self, count: usize) -> Vec<&Step> {
        let mut seen = HashSet::new();
        let steps = self.steps[..count.min(self.count())].iter().rev();
        let mut taken: Vec<&Step> = steps.filter(|step| seen.insert(&step.outputs)).collect();
        taken.reverse();
        taken
    }

    /// Takes the first `count` steps. The model is the one that they were found in; what stays float is pinned for the pass that follows.
    pub fn raise(
        &self,
        model: &mut Model,
        count: usize,
        otherwise: Otherwise,
        recovering: &mut Recovering<'_>,
    ) -> Result<Report, Error> {
        let mut report = self.report.clone();
        let taken = self.taken(count);
        let step = |node: &Node, to| {
            let mut taken = taken.iter();
            taken.find(|step| step.to == to && step.outputs.iter().any(|output| output == node.output()))
        };
        let patch = {
            let index = Index::new(&model.graph);
            let (mut names, mut known) = (Names::new(&model.graph), Known::default());
            let mut rewrite = Rewrite {
                index: &index,
                names: &mut names,
                known: &mut known,
                patch: Patch::new(NAME),
            };
            for site in sites(&index, &mut Report::new(NAME)) {
                if let Some(product) = step(site.node, To::Blocks).filter(|_| !otherwise.unpacks()) {
                    rewrite.product(&site, false, Bits::Eight, otherwise.block(), recovering)?;
                    report.raise(site.node, product.why.as_str());
                    report.changed += 1;
                }
            }
            rewrite.patch
        };
        for node in &mut model.graph.nodes {
            if let Some(kept) = step(node, To::Blocks).filter(|_| otherwise.unpacks()) {
                node.eight_bits = true;
                report.raise(node, format!("weights of 8 bits: {}", kept.why));
                report.changed += 1;
            }
            if let Some(float) = step(node, To::Floats) {
                node.pinned = Some(FLOATS);
                report.raise(node, format!("in floats: {}", float.why));
                report.changed += 1;
            }
        }
        if !patch.is_empty() {
            rewrite_main(model, patch)?;
            model.import(nbits::DOMAIN, 1);
        }
        Ok(report)
    }
}

/// All that could be raised, in order.
fn hurt<'g>(
    index: &Index<'g>,
    sites: &[Site<'g>],
    otherwise: Otherwise,
    recovering: &Recovering<'_>,
    losses: &BTreeMap<String, f64>,
    report: &mut Report,
) -> Vec<Hurt<'g>> {
    let mut hurt: Vec<Hurt<'g>> = Vec::new();
    let mut own = HashSet::new();
    // Of products, by what they are multiplied with.
    let mut places: HashMap<Matrix, usize> = HashMap::new();
    for site in sites {
        own.insert(site.position);
        let convolution = site.is_convolution();
        let place = places.get(&shared::matrix(site)).filter(|_| !convolution);
        if let Some(first) = place.and_then(|place| hurt.get_mut(*place)) {
            first.nodes.push(site.node);
            continue;
        }
        if !convolution && shared::with_bodies(index, site) {
            report.leave(site.node, "a body of a control-flow node shares its weights");
            continue;
        }
        let loss = if convolution {
            losses.get(site.node.output()).copied()
        } else {
            recovering.seen(site).and_then(|gram| loss(site, gram, otherwise))
        };
        match loss {
            Some(loss) => {
                places.insert(shared::matrix(site), hurt.len());
                hurt.push(Hurt {
                    loss,
                    weights: site.weights.len(),
                    nodes: vec![site.node],
                    to: if convolution && !otherwise.unpacks() {
                        To::Floats
                    } else {
                        To::Blocks
                    },
                });
            }
            None if convolution => report.leave(
                site.node,
                "only convolutions to which mode Static gives integers are raised",
            ),
            None => report.leave(site.node, "calibration data says nothing about its input"),
        }
    }
    let others = index.graph.nodes.iter().enumerate();
    let others = others.filter(|(position, _)| !own.contains(position));
    hurt.extend(others.filter_map(|(_, node)| {
        Some(Hurt {
            loss: *losses.get(node.output())?,
            weights: 0,
            nodes: vec![node],
            to: To::Floats,
        })
    }));
    hurt
}

/// The steps that `bounds` leave room for, of nodes of which the worst are the first.
fn steps(hurt: &[Hurt<'_>], total: usize, bounds: Bounds, words: &Words<'_>, report: &mut Report) -> Vec<Step> {
    #[allow(clippy::cast_precision_loss, reason = "weights are counted, and far fewer than 2^52")]
    let fits = |weights: usize| weights as f64 <= bounds.share * total as f64;
    let (mut taken, mut blocks, mut floats) = (0, 0, 0);
    let mut steps: Vec<Step> = Vec::new();
    for Hurt {
        loss,
        weights,
        nodes,
        to,
    } in hurt
    {
        let lost = format!("{:.4} % of its output's power", 100.0 * loss);
        let why = match to {
            To::Blocks => format!("expected to lose {lost}"),
            To::Floats => format!("8 bits lose {lost}"),
        };
        let (count, most) = match to {
            To::Blocks => (&mut blocks, MAX_PATTERNS),
            To::Floats => (&mut floats, bounds.floats),
        };
        let named: Option<Vec<String>> = nodes.iter().map(|node| words.of(node)).collect();
        let left = if *to == To::Floats && !bounds.goal && *loss < SOUND {
            format!("{why}: without a goal, only what loses 1 % is kept in floats")
        } else if !fits(taken + weights) {
            format!("{why}, and the share is used up by what loses more")
        } else if *count + nodes.len() > most {
            format!("{why}, and what loses more leaves no room among the {most} nodes that a recipe can name")
        } else if let Some(words) = named {
            *count += nodes.len();
            taken += weights;
            steps.push(Step {
                outputs: nodes.iter().map(|node| node.output().to_owned()).collect(),
                words,
                why,
                to: *to,
            });
            continue;
        } else {
            UNNAMED.to_owned()
        };
        for node in nodes {
            report.leave(node, left.as_str());
        }
    }
    if bounds.goal {
        let mut room = bounds.floats.saturating_sub(floats);
        let products = steps.iter().filter(|step| step.to == To::Blocks);
        let fitting = products.take_while(|step| {
            let left = room.checked_sub(step.words.len());
            room = left.unwrap_or(0);
            left.is_some()
        });
        let products: Vec<Step> = fitting.cloned().collect();
        steps.extend(products.into_iter().map(|step| Step { to: To::Floats, ..step }));
    }
    steps
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        calibrate::{Gram, Rows as _},
        passes::{Inputs, Quantize, Raise, Recovery},
        testing::{Build, noise},
    };

    /// Two products of equal size; the input of the second has one channel that is far larger than the others.
    fn products() -> (Model, Inputs) {
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
        let inputs = Inputs {
            grams: [(x, seen(1.0)), (y, seen(100.0))].into(),
            ..Inputs::default()
        };
        (b.finish(&[&outputs[0], &outputs[1]]), inputs)
    }

    fn worst(float: &Model, share: f64, recovering: &Recovering<'_>) -> Result<Ladder, Error> {
        let otherwise = Otherwise::Integers(Quantize::default().grid());
        let bounds = Bounds {
            share,
            goal: false,
            blocks: true,
            floats: MAX_PATTERNS,
        };
        Ladder::worst(float, bounds, otherwise, recovering, &BTreeMap::new())
    }

    #[test]
    fn the_worst_is_raised_and_the_other_does_not_fit() {
        let (float, inputs) = products();
        let otherwise = Otherwise::Integers(Quantize::default().grid());
        let recovery = Recovery {
            raise: Some(Raise::Worst { share: 0.5, goal: None }),
            ..Recovery::default()
        };
        let mut recovering = Recovering::new(&recovery, &inputs, &float);
        let ladder = worst(&float, 0.5, &recovering).unwrap();
        assert_eq!(ladder.count(), 1);
        for count in [0, 1, 9] {
            let mut model = float.clone();
            let report = ladder.raise(&mut model, count, otherwise, &mut recovering).unwrap();
            assert_eq!((report.changed, report.raised.len()), (count.min(1), count.min(1)));
            let kinds: Vec<&str> = model.graph.nodes.iter().map(|node| node.op_type.as_str()).collect();
            assert_eq!(kinds, ["MatMul", ["MatMul", "MatMulNBits"][count.min(1)]], "{count}");
            assert!(report.left[0].why.contains("the share is used up"), "{:?}", report.left);
        }
        let error = worst(&float, 0.3, &recovering).unwrap_err().to_string();
        assert!(error.contains("raise-precision changed nothing"), "{error}");
        let error = worst(&float, 1.5, &recovering).unwrap_err().to_string();
        assert!(error.contains("share 1.5"), "{error}");
    }

    #[test]
    fn where_four_bits_are_for_kernels_of_eight_weights_get_eight_at_first() {
        let mut b = Build::opset(17);
        let (x, filters) = (
            b.input("x", &[1, 8, 6, 6]),
            [[16, 8, 3, 3], [4, 16, 3, 3]].map(|dims| b.weights(&dims)),
        );
        let first = b.node("Conv", &[&x, &filters[0]]);
        let y = b.node("Conv", &[&first, &filters[1]]);
        let float = b.finish(&[&y]);
        let otherwise = Otherwise::Integers(Grid {
            four_bits: Some(32),
            ..Quantize::default().grid()
        });
        let losses = [(first.clone(), 0.001), (y.clone(), 0.002)].into();
        let bounds = Bounds {
            share: 0.9,
            goal: true,
            blocks: true,
            floats: MAX_PATTERNS,
        };
        let mut recovering = Recovering::default();
        let ladder = Ladder::worst(&float, bounds, otherwise, &recovering, &losses).unwrap();
        let mut raise = |count| {
            let mut model = float.clone();
            ladder.raise(&mut model, count, otherwise, &mut recovering).unwrap();
            let nodes = model.graph.nodes.iter();
            nodes
                .map(|node| (node.eight_bits, node.pinned.is_some()))
                .collect::<Vec<_>>()
        };
        assert_eq!(raise(1), [(false, false), (true, false)], "the worst first");
        assert_eq!(
            raise(ladder.count()),
            [(false, false), (false, true)],
            "and as floats at last"
        );
        assert_eq!(
            (ladder.in_blocks(1).len(), ladder.in_floats(ladder.count()).len()),
            (1, 1)
        );
        assert!(Ladder::named(&float, &ladder.in_blocks(1), otherwise).is_ok());
    }

    #[test]
    fn words_name_what_was_raised_in_any_order_and_nothing_else_is_named() {
        let (float, inputs) = products();
        let otherwise = Otherwise::Integers(Quantize::default().grid());
        let mut recovering = Recovering::new(&Recovery::default(), &inputs, &float);
        let raised = |products: &Ladder, recovering: &mut Recovering<'_>| {
            let mut model = float.clone();
            let report = products
                .raise(&mut model, products.count(), otherwise, recovering)
                .unwrap();
            assert_eq!(report.changed, products.count());
            crate::onnx::to_bytes(&model)
        };
        let ladder = worst(&float, 0.5, &recovering).unwrap();
        let again = Ladder::named(&float, &ladder.in_blocks(1), otherwise).unwrap();
        assert_eq!(again.in_blocks(1), ladder.in_blocks(1));
        assert_eq!(raised(&again, &mut recovering), raised(&ladder, &mut recovering));

        let all = Ladder::named(&float, &["MatMul".to_owned()], otherwise).unwrap();
        assert_eq!((all.count(), all.in_blocks(2)), (2, vec!["MatMul".to_owned()]));
        let mut outputs: Vec<String> = float.graph.nodes.iter().map(|node| node.output().to_owned()).collect();
        outputs.reverse();
        let reversed = Ladder::named(&float, &outputs, otherwise).unwrap();
        assert_eq!(raised(&reversed, &mut recovering), raised(&all, &mut recovering));

        let error = Ladder::named(&float, &["Gemm".to_owned()], otherwise)
            .unwrap_err()
            .to_string();
        assert!(
            error.contains("recover.nodes: no matrix product") && error.contains(&outputs[0]),
            "{error}"
        );
    }
}
