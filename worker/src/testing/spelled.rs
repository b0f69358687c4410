//! What exporters spell out in smaller operators, as tests need it. Decides no number but the constants of the formulas.

use super::Build;
use crate::onnx::AttributeValue as A;

impl Build {
    /// An operator whose axes were an attribute before operator set `since`.
    pub(crate) fn along(&mut self, op_type: &str, since: i64, x: &str, axes: &[i64]) -> String {
        if self.model.opsets[0].version < since {
            return self.node_with(op_type, &[x], &[("axes", A::Ints(axes.to_vec()))]);
        }
        let axes = self.ints(axes);
        self.node(op_type, &[x, &axes])
    }

    /// `x (1 + erf(x / sqrt 2)) / 2`.
    pub(crate) fn spelled_gelu(&mut self, x: &str) -> String {
        let (root, one, half) = (
            self.scalar(std::f32::consts::SQRT_2),
            self.scalar(1.0),
            self.scalar(0.5),
        );
        let scaled = self.node("Div", &[x, &root]);
        let erf = self.node("Erf", &[&scaled]);
        let plus = self.node("Add", &[&erf, &one]);
        let product = self.node("Mul", &[x, &plus]);
        self.node("Mul", &[&product, &half])
    }

    /// Layer normalization of the last dimension.
    pub(crate) fn spelled_norm(&mut self, x: &str, scale: &str, bias: &str) -> String {
        let mean = self.along("ReduceMean", 18, x, &[-1]);
        let centred = self.node("Sub", &[x, &mean]);
        let (two, small) = (self.scalar(2.0), self.scalar(1e-5));
        let squares = self.node("Pow", &[&centred, &two]);
        let variance = self.along("ReduceMean", 18, &squares, &[-1]);
        let sum = self.node("Add", &[&variance, &small]);
        let root = self.node("Sqrt", &[&sum]);
        let even = self.node("Div", &[&centred, &root]);
        let scaled = self.node("Mul", &[&even, scale]);
        self.node("Add", &[&scaled, bias])
    }
}
