//! What 8 bits do to a convolution, or to what lies between convolutions, measured: the error of its own output where all that it reads is
//! exact but for its own rounding.
//!
//! Writes a copy of each next to the float one, behind Quantize and Dequantize nodes, and sums squares of the difference; no node reads
//! another's rounded values, so that one run tells of all. Chooses nothing, and never changes the model that is quantized.

use super::{
    Error, Quantize, Report,
    layout::{self, Layout},
    raise_precision::NAME,
    region::{Member, Rounding},
    site::Site,
    static_plan::Plan,
    weights,
};
use crate::{
    calibrate::Observed,
    onnx::{AttributeValue, Index, Model, Names, Node, Patch, Tensor, apply, shown},
};
use std::collections::{BTreeMap, HashMap};

/// A channel with less of the mean power of all (30 dB) counts as if it had so much: there is nothing in it to lose.
const QUIET: f64 = 1e-3;
/// From here on a sum gets its axes as an input.
const AXES_INPUT_OPSET: i64 = 18;

/// The float model with values that tell what 8 bits would do.
#[derive(Debug)]
pub struct Probe {
    /// To be run with [`taps`](Self::taps).
    pub model: Model,
    suspects: Vec<Suspect>,
}

/// A node that 8 bits may hurt.
#[derive(Debug)]
struct Suspect {
    /// Its output, by which it is found again.
    output: String,
    /// Values of the probe: sums of squares, for each channel, of its error and of the output itself.
    sums: [String; 2],
}

impl Probe {
    /// Of what mode Static makes of `model`; nothing where no convolution is quantized.
    pub fn new(
        model: &Model,
        settings: &Quantize,
        observed: &BTreeMap<String, Observed>,
    ) -> Result<Option<Self>, Error> {
        let opset = model.opset("").unwrap_or(0);
        let index = Index::new(&model.graph);
        let plan = Plan::new(&index, settings, opset, observed, &mut Report::new(NAME));
        let mut writing = Writing {
            index: &index,
            plan: &plan,
            settings,
            layout: Layout::new(Patch::new(NAME), Names::new(&model.graph)),
            axes_as_input: opset >= AXES_INPUT_OPSET,
            rounded: HashMap::new(),
            nodes: Vec::new(),
            suspects: Vec::new(),
        };
        for site in plan.sites.iter().filter(|site| site.is_convolution()) {
            writing.convolution(site)?;
        }
        if writing.suspects.is_empty() {
            return Ok(None);
        }
        for member in plan.members.iter().filter(|member| member.rounding == Rounding::Own) {
            writing.member(member)?;
        }
        let (mut patch, nodes, suspects) = (writing.layout.take_patch(NAME), writing.nodes, writing.suspects);
        patch.insert_before(model.graph.nodes.len(), nodes);
        let mut model = model.clone();
        apply(&mut model.graph, patch)?;
        Ok(Some(Self { model, suspects }))
    }

    /// Values to sum over samples.
    pub fn taps(&self) -> Vec<String> {
        self.suspects.iter().flat_map(|suspect| suspect.sums.clone()).collect()
    }

    /// The error of each node relative to its output, by the name of that: the mean over channels of `sum (y - y')^2 / sum y^2`, from the
    /// sums that were found. Each channel counts as much as another, because what follows may scale it up; outputs of operators other than
    /// convolutions count as one channel. None where nothing was seen, or is no number.
    pub fn losses(&self, sums: &BTreeMap<String, Vec<f64>>) -> BTreeMap<String, f64> {
        let loss = |suspect: &Suspect| {
            let [error, power] = suspect.sums.each_ref().map(|name| sums.get(name));
            let (error, power) = (error?, power?);
            #[allow(
                clippy::cast_precision_loss,
                reason = "channels are counted, and far fewer than 2^52"
            )]
            let channels = power.len() as f64;
            let least = QUIET * power.iter().sum::<f64>() / channels;
            let relative = error.iter().zip(power).map(|(error, power)| error / power.max(least));
            let loss = relative.sum::<f64>() / channels;
            loss.is_finite().then(|| (suspect.output.clone(), loss))
        };
        self.suspects.iter().filter_map(loss).collect()
    }
}

struct Writing<'w, 'g, 'o> {
    index: &'w Index<'g>,
    plan: &'w Plan<'g, 'o>,
    settings: &'w Quantize,
    layout: Layout,
    axes_as_input: bool,
    /// A value to what is left of it in 8 bits.
    rounded: HashMap<String, String>,
    nodes: Vec<Node>,
    suspects: Vec<Suspect>,
}

impl<'g> Writing<'_, 'g, '_> {
    fn convolution(&mut self, site: &Site<'g>) -> Result<(), Error> {
        let (axis, grid) = (site.channel_axis(), self.settings.grid());
        let weights = weights::quantize(site.weights, axis, grid, |_| 0.0).ok_or_else(|| Error::NotFinite {
            name: shown(&site.weights.name),
        })?;
        let packed = self.layout.weights(site.weights, axis, weights)?;
        let name = self.layout.names.fresh(&site.weights.name, "/rounded");
        // As Dequantize nodes write them: floats would be rounded once more, with one scale for all, where ONNX Runtime fuses.
        let granularity = self.settings.granularity;
        self.nodes.push(layout::dequantize(&packed, axis, granularity, &name));
        let mut node = site.node.clone();
        node.inputs[0] = self.rounded(site.input())?;
        node.inputs[1] = name;
        let summed: Vec<usize> = (0..site.weights.dims.len()).filter(|dim| *dim != 1).collect();
        self.compare(node, site.activation, Some(&summed))
    }

    fn member(&mut self, member: &Member<'g>) -> Result<(), Error> {
        let mut node = member.node.clone();
        for slot in 0..member.values {
            node.inputs[slot] = self.rounded(&node.inputs[slot].clone())?;
        }
        self.compare(node, member.activation, None)
    }

    /// Adds `node`, the activation behind it and what compares the end with the same value in floats.
    fn compare(&mut self, mut node: Node, activation: Option<usize>, axes: Option<&[usize]>) -> Result<(), Error> {
        let own = node.output().to_owned();
        let mut output = own.clone();
        let mut made = self.rename(&mut node);
        self.nodes.push(node);
        if let Some(position) = activation {
            let mut node = self.index.graph.nodes[position].clone();
            output = node.output().to_owned();
            node.inputs
                .iter_mut()
                .filter(|name| **name == own)
                .for_each(|name| name.clone_from(&made));
            made = self.rename(&mut node);
            self.nodes.push(node);
        }
        let end = self.eight_bits(&output, &made)?;
        let error = self.layout.names.fresh(&output, "/error");
        self.nodes.push(Node::new("Sub", &[&output, &end], &[&error]));
        let sums = [self.sum(&error, axes)?, self.sum(&output, axes)?];
        self.suspects.push(Suspect { output: own, sums });
        Ok(())
    }

    fn rename(&mut self, node: &mut Node) -> String {
        let name = self.layout.names.fresh(node.output(), "/probe");
        node.name.clone_from(&name);
        node.outputs = vec![name.clone()];
        name
    }

    fn rounded(&mut self, value: &str) -> Result<String, Error> {
        if let Some(known) = self.rounded.get(value) {
            return Ok(known.clone());
        }
        let rounded = self.eight_bits(value, value)?;
        self.rounded.insert(value.to_owned(), rounded.clone());
        Ok(rounded)
    }

    /// What is left of `made` in the 8 bits of `value`.
    fn eight_bits(&mut self, value: &str, made: &str) -> Result<String, Error> {
        let affine = self.plan.affine(value)?;
        let (nodes, rounded) = self.layout.rounded(value, made, affine, self.settings.activations)?;
        self.nodes.extend(nodes);
        Ok(rounded)
    }

    /// A node that sums the squares of `value` over `axes`, or over all.
    fn sum(&mut self, value: &str, axes: Option<&[usize]>) -> Result<String, Error> {
        let sum = self.layout.names.fresh(value, "/squares");
        let mut node = Node::new("ReduceSumSquare", &[value], &[&sum]).with("keepdims", AttributeValue::Int(0));
        if let Some(axes) = axes {
            let axes: Vec<i64> = axes.iter().filter_map(|axis| i64::try_from(*axis).ok()).collect();
            if self.axes_as_input {
                let name = self.layout.names.fresh(value, "/axes");
                let name = self.layout.add(Tensor::int64s(&name, &[axes.len()], &axes)?);
                node.inputs.push(name);
            } else {
                node = node.with("axes", AttributeValue::Ints(axes));
            }
        }
        self.nodes.push(node);
        Ok(sum)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        calibrate::{self, Batches, DataError, Method},
        onnx::Limits,
        passes::quantize_static,
        testing::{Build, noise, run, run_optimized, runtime},
    };

    fn sample(seed: u64) -> Result<Vec<Tensor>, DataError> {
        Ok(vec![Tensor::floats("x", &[1, 8, 12, 12], &noise(seed, 8 * 144))?])
    }

    /// A convolution of `x` and one of `x` with one channel far larger than the others, and the sum of both.
    fn branches(opset: i64) -> (Model, [String; 3]) {
        let mut b = Build::opset(opset);
        let x = b.input("x", &[1, 8, 12, 12]);
        let mut factors = vec![1.0; 8];
        factors[3] = 300.0;
        let factors = b.floats(&[1, 8, 1, 1], &factors);
        let wide = b.node("Mul", &[&x, &factors]);
        let mut spread = noise(9, 8 * 8 * 9);
        // The first half of the outputs does not look at the large channel.
        for (place, weight) in spread.iter_mut().enumerate() {
            if place / 9 % 8 == 3 && place / 72 < 4 {
                *weight = 0.0;
            }
        }
        let (even, spread) = (b.weights(&[8, 8, 3, 3]), b.floats(&[8, 8, 3, 3], &spread));
        let [first, second] = [(&x, &even), (&wide, &spread)].map(|(input, weights)| b.node("Conv", &[input, weights]));
        let relu = b.node("Relu", &[&first]);
        let sum = b.node("Add", &[&relu, &second]);
        (b.finish(&[&sum]), [first, second, sum])
    }

    fn losses(float: &Model, settings: &Quantize) -> (BTreeMap<String, f64>, BTreeMap<String, Observed>) {
        let taps = quantize_static::taps(float);
        let (runtime, mut batches) = (runtime(), (0..4).map(sample));
        let batches: Batches<'_> = &mut batches;
        let seen = calibrate::calibrate(&runtime, 1, float, &taps, Method::MinMax, batches, &mut |_| {}).unwrap();
        let probe = Probe::new(float, settings, &seen).unwrap().unwrap();
        crate::onnx::check(&probe.model, &Limits::default()).unwrap();
        let batches: Batches<'_> = &mut (0..4).map(sample);
        let sums = calibrate::sums(&runtime, 1, &probe.model, &probe.taps(), batches, &mut |_| {}).unwrap();
        (probe.losses(&sums), seen)
    }

    #[test]
    fn the_convolution_behind_an_outlier_loses_most_at_every_operator_set() {
        for opset in [13, 17, 18, 21] {
            let (float, [first, second, _]) = branches(opset);
            let (losses, _) = losses(&float, &Quantize::default());
            assert!(
                losses[&second] > 0.02 && losses[&second] > 100.0 * losses[&first],
                "{losses:?}"
            );
        }
    }

    #[test]
    fn what_is_measured_is_what_the_candidate_loses() {
        let mut b = Build::opset(17);
        let x = b.input("x", &[1, 8, 12, 12]);
        let weights = b.weights(&[8, 8, 3, 3]);
        let y = b.node("Conv", &[&x, &weights]);
        let float = b.finish(&[&y]);
        let settings = Quantize::default();
        let (losses, seen) = losses(&float, &settings);
        let mut candidate = float.clone();
        quantize_static::apply(&mut candidate, &settings, &seen).unwrap();
        let (mut error, mut power) = (vec![0.0; 8], vec![0.0; 8]);
        for seed in 0..4 {
            let inputs = sample(seed).unwrap();
            let (before, (after, _)) = (run(&float, &inputs), run_optimized(&candidate, &inputs));
            let pairs = before[0]
                .to_floats()
                .unwrap()
                .into_iter()
                .zip(after[0].to_floats().unwrap());
            for (place, (before, after)) in pairs.enumerate() {
                error[place / 100] += f64::from(before - after).powi(2);
                power[place / 100] += f64::from(before).powi(2);
            }
        }
        let wanted = error
            .iter()
            .zip(&power)
            .map(|(error, power)| error / power)
            .sum::<f64>()
            / 8.0;
        assert!((losses[&y] / wanted - 1.0).abs() < 0.1, "{losses:?} {wanted}");
    }

    #[test]
    fn without_a_convolution_there_is_nothing_to_measure_and_no_number_is_no_loss() {
        let mut b = Build::opset(17);
        let x = b.input("x", &[4, 64]);
        let weights = b.weights(&[64, 64]);
        let y = b.node("MatMul", &[&x, &weights]);
        let model = b.finish(&[&y]);
        assert!(
            Probe::new(&model, &Quantize::default(), &BTreeMap::new())
                .unwrap()
                .is_none()
        );
        let probe = Probe {
            model,
            suspects: vec![Suspect {
                output: y.clone(),
                sums: ["error".to_owned(), "power".to_owned()],
            }],
        };
        for sums in [
            vec![],
            vec![("error", f64::NAN), ("power", 1.0)],
            vec![("error", 1.0), ("power", 0.0)],
        ] {
            let sums = sums
                .into_iter()
                .map(|(name, sum)| (name.to_owned(), vec![sum]))
                .collect();
            assert!(probe.losses(&sums).is_empty(), "{sums:?}");
        }
    }
}
