//! Dynamic INT8: weights packed once, activations quantized at run time from the extremes of each input. Needs no data.
//!
//! Matrix products become ONNX Runtime's own integer products with their bias; convolutions become products of rows where
//! that pays and stay float where it does not, because ONNX Runtime's dynamic integer convolution is slower than its float
//! one. An input that several products read is quantized once. In ONNX's own operators it says the same, and ONNX Runtime runs the same.

use super::{
    Activations, Error, Format, Quantize, Report,
    layout::{Layout, Packed},
    logarithm,
    product::{self, Product},
    progressive, quantize_lstm,
    recovery::Recovering,
    site::{Kind, Site, sites},
    windows::Windows,
};
use crate::onnx::{Index, Model, Names, Node, Patch, Shapes, rewrite};
use std::collections::HashMap;

const NAME: &str = "quantize-dynamic";

/// Quantizes every site that pays, weights to the nearest step.
pub fn apply(model: &mut Model, settings: &Quantize) -> Result<Report, Error> {
    apply_recovering(model, settings, &mut Recovering::default())
}

/// The same with the help of `recovering`.
pub fn apply_recovering(
    model: &mut Model,
    settings: &Quantize,
    recovering: &mut Recovering<'_>,
) -> Result<Report, Error> {
    if settings.activations != Activations::UInt8 {
        return Err(Error::Setting {
            pass: NAME,
            field: "activations",
            value: "Int8".to_owned(),
            hint: "DynamicQuantizeLinear gives UInt8; use UInt8, or mode Static",
        });
    }
    let mut report = Report::new(NAME);
    let mut layout = Layout::new(Patch::new(NAME), Names::new(&model.graph));
    rewrite(model, |index| {
        let quantized = quantize(index, settings, &mut layout, recovering, &mut report)?;
        report.changed += quantized.len();
        Ok::<_, Error>(layout.take_patch(NAME))
    })?;
    let mut report = super::require_effect(report)?;
    settings.note(&mut report);
    product::import(model);
    Ok(report)
}

/// Quantizes every site of one graph that pays, as a patch of `layout`; their positions.
pub(super) fn quantize(
    index: &Index<'_>,
    settings: &Quantize,
    layout: &mut Layout,
    recovering: &mut Recovering<'_>,
    report: &mut Report,
) -> Result<Vec<usize>, Error> {
    let mut chosen = Vec::new();
    let logarithms = logarithm::feeding(index);
    for site in sites(index, report) {
        if logarithms.contains(site.node.output()) {
            report.leave(site.node, logarithm::WHY);
            continue;
        }
        match windows(&site) {
            Ok(windows) => chosen.push((site, windows)),
            Err(why) => report.leave(site.node, why),
        }
    }
    let mut readers: HashMap<&str, usize> = HashMap::new();
    for (site, _) in &chosen {
        *readers.entry(site.input()).or_default() += 1;
    }
    let mut rewrite = Rewrite {
        shapes: Shapes::new(index),
        layout,
        index,
        settings,
        activations: HashMap::new(),
    };
    for (site, windows) in &chosen {
        progressive::tell(site, settings.grid(), report);
        match windows {
            Some(windows) => rewrite.convolution(site, windows, recovering)?,
            None => rewrite.product(site, readers[site.input()] > 1, recovering)?,
        }
    }
    let mut positions = quantize_lstm::quantize(index, settings, rewrite.layout, report)?;
    positions.extend(chosen.iter().map(|(site, _)| site.position));
    Ok(positions)
}

/// The windows of a convolution; none for products.
fn windows(site: &Site<'_>) -> Result<Option<Windows>, &'static str> {
    match site.kind {
        Kind::Conv => Windows::of(site.node, site.weights).map(Some),
        Kind::ConvTranspose => Err("there is no dynamic kernel for transposed convolution"),
        Kind::MatMul | Kind::Gemm { .. } => Ok(None),
    }
}

struct Rewrite<'i, 'g> {
    index: &'i Index<'g>,
    shapes: Shapes<'g>,
    settings: &'i Quantize,
    layout: &'i mut Layout,
    /// Of this graph only: what a body quantizes exists only where that body runs.
    activations: HashMap<String, Packed>,
}

impl Rewrite<'_, '_> {
    fn activation(&mut self, value: &str) -> Packed {
        if let Some(known) = self.activations.get(value) {
            return known.clone();
        }
        let names = &mut self.layout.names;
        let packed = Packed {
            values: names.fresh(value, "/q"),
            scale: names.fresh(value, "/scale"),
            zero_point: names.fresh(value, "/zero_point"),
        };
        let outputs = [packed.values.as_str(), &packed.scale, &packed.zero_point];
        let node = Node::new("DynamicQuantizeLinear", &[value], &outputs);
        let after = self.index.producer(value).map_or(0, |(position, _)| position + 1);
        self.layout.patch.insert_before(after, [node]);
        self.activations.insert(value.to_owned(), packed.clone());
        packed
    }

    /// `shared`: other sites read the same input.
    fn product(&mut self, site: &Site<'_>, shared: bool, recovering: &mut Recovering<'_>) -> Result<(), Error> {
        let rank = self.shapes.rank(site.input());
        let product = Product::new(self.layout, self.index, site, self.settings, rank, recovering)?;
        let nodes = if shared || self.settings.format == Format::Qdq {
            let activation = self.activation(site.input());
            product.of_quantized(self.layout, &activation)
        } else {
            vec![product.of_float(site.input())]
        };
        self.layout.patch.replace(site.position, nodes);
        Ok(())
    }

    fn convolution(
        &mut self,
        site: &Site<'_>,
        windows: &Windows,
        recovering: &mut Recovering<'_>,
    ) -> Result<(), Error> {
        let activation = self.activation(site.input());
        let output = site.node.output().to_owned();
        let (mut nodes, rows) = windows.rows(self.layout, &activation)?;
        let turned = self.layout.names.fresh(&output, "/channels_last");
        let matrix = windows.matrix(site.weights)?;
        let product = Product::of_windows(self.layout, site, &matrix, self.settings, &turned, recovering)?;
        let rows = Packed {
            values: rows,
            ..activation
        };
        nodes.extend(product.of_quantized(self.layout, &rows));
        nodes.push(windows.back(&turned, &output));
        self.layout.patch.replace(site.position, nodes);
        Ok(())
    }
}
