//! Batch normalization behind a convolution becomes part of its weights and bias.
//!
//! `y = (conv(x) - mean) * f + beta` with `f = scale / sqrt(variance + epsilon)` is `conv'(x)` with `w' = w * f` and
//! `b' = (b - mean) * f + beta`, channel by channel. Computed in 64 bits, stored in 32.
#![allow(
    clippy::cast_possible_truncation,
    reason = "weights are 32-bit floats; the sum is rounded to that once"
)]

use super::{Error, Report};
use crate::onnx::{Index, Model, Names, Node, Patch, Tensor, rewrite};

pub(super) const NAME: &str = "fold-batch-norm";

/// Folds every batch normalization that alone reads a convolution with constant weights.
pub fn apply(model: &mut Model) -> Result<Report, Error> {
    let mut report = Report::new(NAME);
    let mut names = Names::new(&model.graph);
    rewrite(model, |index| -> Result<Patch, Error> {
        let mut patch = Patch::new(NAME);
        for (position, node) in index.graph.nodes.iter().enumerate() {
            if !node.is("BatchNormalization") {
                continue;
            }
            match Fold::find(index, node) {
                Ok(fold) => {
                    fold.write(node, position, &mut names, &mut patch)?;
                    report.changed += 1;
                }
                Err(why) => report.leave(node, why),
            }
        }
        Ok(patch)
    })?;
    Ok(report)
}

struct Fold<'g> {
    position: usize,
    convolution: &'g Node,
    weights: &'g Tensor,
    /// Dimension of the weights that counts output channels.
    axis: usize,
    /// Factor and offset of each channel.
    channels: Vec<(f64, f64)>,
}

impl<'g> Fold<'g> {
    fn find(index: &Index<'g>, node: &Node) -> Result<Self, &'static str> {
        if node.int("training_mode", 0) != Some(0) || node.outputs.iter().filter(|name| !name.is_empty()).count() != 1 {
            return Err("it is in training form");
        }
        let input = node.input(0).ok_or("no input")?;
        let (position, convolution) = index.producer(input).ok_or("its input comes from no convolution")?;
        let transposed = convolution.is("ConvTranspose");
        if !convolution.is("Conv") && !transposed {
            return Err("its input comes from no convolution");
        }
        if index.only_use(input).is_none() {
            return Err("the convolution's output is used elsewhere too");
        }
        if transposed && convolution.int("group", 1) != Some(1) {
            return Err("it follows a grouped transposed convolution");
        }
        let constant = |name: Option<&str>| name.and_then(|name| index.constant(name));
        let weights = constant(convolution.input(1)).ok_or("the convolution's weights are computed at run time")?;
        let axis = usize::from(transposed);
        let count = *weights
            .dims
            .get(axis)
            .ok_or("the convolution's weights have no channels")?;
        let vector = |slot: usize| {
            let values = constant(node.input(slot)).and_then(Tensor::to_floats);
            values
                .filter(|values| values.len() == count)
                .ok_or("its parameters are no constant 32-bit floats")
        };
        let (scale, beta, mean, variance) = (vector(1)?, vector(2)?, vector(3)?, vector(4)?);
        let bias = match convolution.input(2) {
            None => vec![0.0; count],
            name => constant(name)
                .and_then(Tensor::to_floats)
                .filter(|bias| bias.len() == count)
                .ok_or("the convolution's bias is no constant of 32-bit floats")?,
        };
        let epsilon = f64::from(node.float("epsilon", 1e-5).ok_or("its epsilon is no number")?);
        let channels: Vec<(f64, f64)> = (0..count)
            .map(|c| {
                let factor = f64::from(scale[c]) / (f64::from(variance[c]) + epsilon).sqrt();
                (
                    factor,
                    (f64::from(bias[c]) - f64::from(mean[c])) * factor + f64::from(beta[c]),
                )
            })
            .collect();
        if channels
            .iter()
            .any(|(factor, offset)| !(factor.is_finite() && offset.is_finite()))
        {
            return Err("its variance is negative or its parameters are not finite");
        }
        weights
            .float_bytes()
            .ok_or("the convolution's weights are not 32-bit floats")?;
        Ok(Self {
            position,
            convolution,
            weights,
            axis,
            channels,
        })
    }

    fn write(&self, norm: &Node, position: usize, names: &mut Names, patch: &mut Patch) -> Result<(), Error> {
        let mut floats = self.weights.to_floats().unwrap_or_default();
        let inner: usize = self.weights.dims[self.axis + 1..].iter().product();
        for (row, values) in floats.chunks_exact_mut(inner.max(1)).enumerate() {
            let (factor, _) = self.channels[row % self.channels.len()];
            for value in values.iter_mut() {
                *value = (f64::from(*value) * factor) as f32;
            }
        }
        let bias: Vec<f32> = self.channels.iter().map(|(_, offset)| *offset as f32).collect();
        let weights = Tensor::floats(&names.fresh(&self.weights.name, "/folded"), &self.weights.dims, &floats)?;
        let bias = Tensor::floats(&names.fresh(norm.output(), "/bias"), &[bias.len()], &bias)?;
        let mut node = self.convolution.clone();
        node.inputs = vec![node.inputs[0].clone(), weights.name.clone(), bias.name.clone()];
        node.outputs = vec![norm.output().to_owned()];
        patch.add_tensor(weights);
        patch.add_tensor(bias);
        patch.replace(self.position, vec![node]);
        patch.remove(position);
        Ok(())
    }
}
