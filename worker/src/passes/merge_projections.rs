//! Matrix products that read one value become one product and a `Split`: query, key and value of attention.
//!
//! `x [A B] + [a b] = [x A + a, x B + b]`, column by column the same numbers. A runtime then reads `x` once, rounds it once where it
//! quantizes, and starts one kernel instead of several, which is what small products cost. Large ones are left: their kernels outweigh
//! what is saved, and joining their weights would copy what is only mapped.

use super::{
    Error, Report,
    site::{Kind, Site, sites},
};
use crate::onnx::{AttributeValue, Index, Model, Names, Node, Patch, Shapes, Tensor, rewrite_main};
use std::collections::BTreeMap;

pub(super) const NAME: &str = "merge-projections";
/// Most weights of a merged product (4 MiB).
const MOST_WEIGHTS: usize = 1 << 20;

/// Merges all products of the main graph that read the same value.
pub fn apply(model: &mut Model) -> Result<Report, Error> {
    let mut report = Report::new(NAME);
    let patch = {
        let index = Index::new(&model.graph);
        let shapes = Shapes::new(&index);
        let mut names = Names::new(&model.graph);
        let mut patch = Patch::new(NAME);
        let mut groups: BTreeMap<(String, bool), Vec<Site<'_>>> = BTreeMap::new();
        // What is no product of constant weights is nothing that this pass looks at.
        for site in sites(&index, &mut Report::new(NAME)) {
            if !site.is_convolution() {
                let key = (site.input().to_owned(), site.kind == Kind::MatMul);
                groups.entry(key).or_default().push(site);
            }
        }
        for ((input, _), group) in groups.iter().filter(|(_, group)| group.len() > 1) {
            let rank = shapes.rank(input).unwrap_or(1);
            match Merge::of(&index, group, rank) {
                Ok(merge) => {
                    merge.write(&index, input, &mut names, &mut patch)?;
                    report.changed += group.len();
                }
                Err(why) => group.iter().for_each(|site| report.leave(site.node, why)),
            }
        }
        patch
    };
    if report.changed > 0 {
        rewrite_main(model, patch)?;
    }
    Ok(report)
}

/// Products that can be merged, first one first.
struct Merge<'m, 'g> {
    first: &'m Site<'g>,
    parts: Vec<Part<'m, 'g>>,
    /// Rows of every matrix.
    rows: usize,
}

/// One of the products.
struct Part<'m, 'g> {
    site: &'m Site<'g>,
    columns: usize,
    /// What is added to each row.
    bias: Option<&'g Tensor>,
    /// Position of the node that adds it.
    sum: Option<usize>,
}

impl<'m, 'g> Merge<'m, 'g> {
    /// `rank`: a number of dimensions that the input has at least.
    fn of(index: &Index<'g>, group: &'m [Site<'g>], rank: usize) -> Result<Self, &'static str> {
        let first = group.first().ok_or("there is nothing to merge")?;
        let rows = |site: &Site<'_>| site.weights.dims[1 - site.channel_axis()];
        if group.iter().any(|site| rows(site) != rows(first)) {
            return Err("the products of its input have weights of different heights");
        }
        if group.iter().map(|site| site.weights.len()).sum::<usize>() > MOST_WEIGHTS {
            return Err("merging products of this size saves too little");
        }
        if group.iter().any(|site| index.uses(&site.weights.name).len() > 1) {
            return Err("weights of a product of its input are used elsewhere too");
        }
        let parts = group.iter().map(|site| {
            // A vector with more dimensions than the product would lift the result's rank.
            let sum = site.sum.filter(|(_, vector)| vector.dims.len() <= rank.max(1));
            Part {
                site,
                columns: site.weights.dims[site.channel_axis()],
                bias: sum.map_or(site.bias, |(_, vector)| Some(vector)),
                sum: sum.map(|(position, _)| position),
            }
        });
        Ok(Self {
            first,
            parts: parts.collect(),
            rows: rows(first),
        })
    }

    fn write(&self, index: &Index<'_>, input: &str, names: &mut Names, patch: &mut Patch) -> Result<(), Error> {
        let columns: usize = self.parts.iter().map(|part| part.columns).sum();
        let weights = names.fresh(&self.first.weights.name, "/merged");
        let weights = Tensor::floats(&weights, &[self.rows, columns], &self.weights())?;
        let bias = self
            .bias()
            .map(|bias| Tensor::floats(&names.fresh(&weights.name, "/bias"), &[columns], &bias));
        let bias = bias.transpose()?;
        let sizes: Vec<i64> = self
            .parts
            .iter()
            .filter_map(|part| i64::try_from(part.columns).ok())
            .collect();
        let sizes = Tensor::int64s(&names.fresh(&weights.name, "/split"), &[sizes.len()], &sizes)?;

        let mut product = names.fresh(self.first.node.output(), "/merged");
        let mut inputs = vec![input, &weights.name];
        let is_gemm = self.first.kind != Kind::MatMul;
        if let Some(bias) = bias.as_ref().filter(|_| is_gemm) {
            inputs.push(&bias.name);
        }
        let mut node = Node::new(if is_gemm { "Gemm" } else { "MatMul" }, &inputs, &[&product]);
        node.name.clone_from(&self.first.node.name);
        let mut nodes = vec![node];
        if let Some(bias) = bias.as_ref().filter(|_| !is_gemm) {
            let sum = names.fresh(self.first.node.output(), "/merged_sum");
            nodes.push(Node::new("Add", &[&product, &bias.name], &[&sum]));
            product = sum;
        }
        let outputs: Vec<&str> = self
            .parts
            .iter()
            .map(|part| index.graph.nodes[part.sum.unwrap_or(part.site.position)].output())
            .collect();
        let split = Node::new("Split", &[&product, &sizes.name], &outputs);
        nodes.push(split.with("axis", AttributeValue::Int(-1)));

        for part in &self.parts {
            patch.remove(part.site.position);
            if let Some(position) = part.sum {
                patch.remove(position);
            }
        }
        patch.replace(self.first.position, nodes);
        for tensor in [Some(weights), bias, Some(sizes)].into_iter().flatten() {
            patch.add_tensor(tensor);
        }
        Ok(())
    }

    /// `[rows, columns]` of all matrices beside each other.
    fn weights(&self) -> Vec<f32> {
        let columns: usize = self.parts.iter().map(|part| part.columns).sum();
        let mut merged = vec![0.0; self.rows * columns];
        let mut offset = 0;
        for part in &self.parts {
            let matrix = part.site.matrix();
            part.site.weights.release();
            for (merged, row) in merged
                .chunks_exact_mut(columns.max(1))
                .zip(matrix.chunks_exact(part.columns.max(1)))
            {
                merged[offset..offset + part.columns].copy_from_slice(row);
            }
            offset += part.columns;
        }
        merged
    }

    /// All vectors behind each other, zeros where there is none; nothing where there is none at all.
    fn bias(&self) -> Option<Vec<f32>> {
        self.parts.iter().any(|part| part.bias.is_some()).then(|| {
            let vector = |part: &Part<'_, '_>| {
                let vector = part.bias.and_then(Tensor::to_floats);
                vector.unwrap_or_else(|| vec![0.0; part.columns])
            };
            self.parts.iter().flat_map(vector).collect()
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        onnx::{AttributeValue as A, Limits},
        passes::{Bits, Blocks, Mode, Quantize, Recovering, Recovery, quantize_blocks, quantize_dynamic},
        testing::{Build, noise, relative_difference, run, run_optimized},
    };

    fn x() -> [Tensor; 1] {
        [Tensor::floats("x", &[2, 7, 64], &noise(3, 14 * 64)).unwrap()]
    }

    /// Query and value with a bias, key without, as speech models have them; the query leaves the graph.
    fn projections() -> Model {
        let mut b = Build::opset(17);
        let x = b.input("x", &[-1, -1, 64]);
        let weights = [32, 32, 48].map(|columns| b.weights(&[64, columns]));
        let [query, key, value] = weights.map(|weights| b.node("MatMul", &[&x, &weights]));
        let (query_bias, value_bias) = (b.weights(&[32]), b.weights(&[1, 1, 48]));
        let query = b.node("Add", &[&query_bias, &query]);
        let key = b.node("Relu", &[&key]);
        let value = b.node("Add", &[&value, &value_bias]);
        b.finish(&[&query, &key, &value])
    }

    fn count(model: &Model, op_type: &str) -> usize {
        model.graph.nodes.iter().filter(|node| node.op_type == op_type).count()
    }

    #[test]
    fn products_of_one_value_become_one_with_the_same_numbers() {
        let model = projections();
        let mut merged = model.clone();
        assert_eq!(apply(&mut merged).unwrap().changed, 3);
        crate::onnx::check(&merged, &Limits::default()).unwrap();
        assert_eq!(
            (count(&merged, "MatMul"), count(&merged, "Add"), count(&merged, "Split")),
            (1, 1, 1)
        );
        assert_eq!(
            Shapes::new(&Index::new(&merged.graph)).rank(merged.graph.outputs[2].name.as_str()),
            Some(3)
        );
        assert!(relative_difference(&run(&model, &x()), &run(&merged, &x())) < 1e-6);
    }

    #[test]
    fn modes_that_come_later_quantize_the_merged_product() {
        let mut merged = projections();
        apply(&mut merged).unwrap();
        let before = run(&merged, &x());
        let mut dynamic = merged.clone();
        let settings = Quantize {
            mode: Mode::Dynamic,
            ..Quantize::default()
        };
        assert_eq!(quantize_dynamic::apply(&mut dynamic, &settings).unwrap().changed, 1);
        let (after, _) = run_optimized(&dynamic, &x());
        assert!(relative_difference(&before, &after) < 0.05);
        let mut blocks = merged.clone();
        let settings = Blocks {
            bits: Bits::Eight,
            size: 32,
            recovery: Recovery::default(),
        };
        quantize_blocks::apply(&mut blocks, &settings, &mut Recovering::default()).unwrap();
        assert_eq!(count(&blocks, "MatMulNBits"), 1);
        assert!(relative_difference(&before, &run(&blocks, &x())) < 0.2);
    }

    #[test]
    fn turned_products_with_their_bias_are_merged_too() {
        let mut b = Build::opset(17);
        let x = b.input("x", &[-1, 64]);
        let (first, second, bias) = (b.weights(&[40, 64]), b.weights(&[64, 24]), b.weights(&[40]));
        let turned = [("transB", A::Int(1))];
        let first = b.node_with("Gemm", &[&x, &first, &bias], &turned);
        let second = b.node("Gemm", &[&x, &second]);
        let model = b.finish(&[&second, &first]);
        let mut merged = model.clone();
        assert_eq!(apply(&mut merged).unwrap().changed, 2);
        assert_eq!((count(&merged, "Gemm"), count(&merged, "Split")), (1, 1));
        let x = [Tensor::floats("x", &[5, 64], &noise(4, 5 * 64)).unwrap()];
        assert!(relative_difference(&run(&model, &x), &run(&merged, &x)) < 1e-6);
    }

    #[test]
    fn what_does_not_pay_is_left_with_a_reason() {
        let mut b = Build::opset(17);
        let x = b.input("x", &[-1, 1024]);
        let (first, second) = (b.weights(&[1024, 1024]), b.weights(&[1024, 8]));
        let (first, second) = (b.node("MatMul", &[&x, &first]), b.node("MatMul", &[&x, &second]));
        let model = b.finish(&[&first, &second]);
        let mut same = model.clone();
        let report = apply(&mut same).unwrap();
        assert_eq!((report.changed, report.left_count), (0, 2));
        assert!(report.left[0].why.contains("saves too little"));
        assert_eq!(same, model);
    }
}
