//! What mode Static quantizes, and to which scale and zero point: sites that pay with integers, what lies between them, and the range of each
//! value. Chooses by the graph and by what calibration saw; writes nothing.

use super::{
    Activations, Error, Quantize, Report, convolution, logarithm,
    quantize_static::NAME,
    region::{self, Member, Rounding},
    saturation,
    site::{Kind, Site, sites},
    weights::{self, Affine},
};
use crate::{
    calibrate::{Observed, Range},
    onnx::{Index, Model, shown},
};
use std::collections::{BTreeMap, BTreeSet, HashMap};

/// From here on `QuantizeLinear` may name its type. ONNX Runtime 1.32 does where it moves one across a `Reshape` of its own, which it puts
/// around a product of more than two dimensions and its sum, and then trips over it when it turns Int8 into the faster `UInt8`.
const TYPED_QUANTIZE_OPSET: i64 = 21;

/// Tensors whose ranges a plan needs: inputs of all sites, outputs of convolutions, and what operators between them read and make.
pub fn taps(model: &Model) -> Vec<String> {
    let index = Index::new(&model.graph);
    let sites = chosen(&index, &mut Report::new(NAME));
    let members = region::candidates(&index, &sites);
    let taps: BTreeSet<&str> = sites
        .iter()
        .map(Site::input)
        .chain(members.iter().flat_map(Member::inputs))
        .chain(ranged(&index, &sites, &members))
        .collect();
    taps.into_iter().map(str::to_owned).collect()
}

/// The sites that pay with integers.
fn chosen<'g>(index: &Index<'g>, report: &mut Report) -> Vec<Site<'g>> {
    let mut chosen = sites(index, report);
    let logarithms = logarithm::feeding(index);
    chosen.retain(|site| {
        let slow = site.is_convolution().then(|| convolution::slow(site)).flatten();
        let why = slow.or_else(|| logarithms.contains(site.node.output()).then_some(logarithm::WHY));
        if let Some(why) = why {
            report.leave(site.node, why);
        }
        why.is_none()
    });
    chosen
}

/// Values that integer kernels make with a range of their own.
fn ranged<'g>(index: &Index<'g>, sites: &[Site<'g>], members: &[Member<'g>]) -> Vec<&'g str> {
    let convolutions = sites.iter().filter(|site| site.is_convolution());
    let members = members.iter().filter(|member| member.rounding != Rounding::Kept);
    convolutions
        .map(|site| site.result(index))
        .chain(members.flat_map(|member| member.outputs(index)))
        .collect()
}

/// What is quantized in one graph, and what its values become.
pub(super) struct Plan<'g, 'o> {
    /// Convolutions and products, in order.
    pub(super) sites: Vec<Site<'g>>,
    /// Operators between them that compute with integers, too, in order.
    pub(super) members: Vec<Member<'g>>,
    values: Values<'g, 'o>,
}

impl<'g, 'o> Plan<'g, 'o> {
    /// Of the main graph, whose operator set is `opset`. Why nodes are left goes to `report`.
    pub(super) fn new(
        index: &Index<'g>,
        settings: &Quantize,
        opset: i64,
        observed: &'o BTreeMap<String, Observed>,
        report: &mut Report,
    ) -> Self {
        let mut sites = chosen(index, report);
        if settings.activations == Activations::Int8 {
            // ONNX Runtime turns signed values into the unsigned ones that its convolutions want, but not past a node that takes bytes itself.
            sites.retain(|site| {
                let moved = site.kind == Kind::ConvTranspose;
                if moved {
                    report.leave(site.node, "it has no integer kernel with activations Int8: use UInt8");
                }
                !moved
            });
        }
        let mut members = region::candidates(index, &sites);
        if settings.activations == Activations::Int8 {
            members.retain(|member| !member.node.is("Pad"));
        }
        let values = Values::new(index, settings.activations, observed, &ranged(index, &sites, &members));
        sites.retain(|site| {
            let narrow = std::iter::once(site.input())
                .chain(site.is_convolution().then(|| site.result(index)))
                .find(|name| values.affine(name).is_none());
            if let Some(name) = narrow {
                report.leave(
                    site.node,
                    format!("{} is zero or nearly so in all calibration data", shown(name)),
                );
            }
            narrow.is_none()
        });
        if settings.activations == Activations::Int8 && opset >= TYPED_QUANTIZE_OPSET {
            sites.retain(|site| {
                let loads = site.sum.is_none() || values.rank(site.input()) == Some(2);
                if !loads {
                    report.leave(
                        site.node,
                        "ONNX Runtime fails to load this product and its sum with activations Int8 at operator set 21 and newer: use UInt8",
                    );
                }
                loads
            });
        }
        members.retain(|member| {
            let own = member.outputs(index).filter(|_| member.rounding != Rounding::Kept);
            member.inputs().chain(own).all(|name| values.affine(name).is_some())
        });
        let members = region::grow(index, &sites, members, settings.integer_ends, |member| {
            report.leave(
                member.node,
                "with integers, more values around it would have to be converted",
            );
        });
        Self { sites, members, values }
    }

    /// Scale and zero point of a value. Those that what is quantized reads and makes have one.
    pub(super) fn affine(&self, name: &str) -> Result<Affine, Error> {
        self.values.affine(name).ok_or_else(|| Error::NoEffect {
            pass: NAME,
            why: format!("{} has no range", shown(name)),
        })
    }

    /// Its number of dimensions, where that never varies.
    pub(super) fn rank(&self, name: &str) -> Option<usize> {
        self.values.rank(name)
    }
}

/// What is known of values.
struct Values<'g, 'o> {
    activations: Activations,
    observed: &'o BTreeMap<String, Observed>,
    /// Below it, what reads the value sees no difference.
    floors: HashMap<&'g str, f32>,
    /// Those that a maximum reads.
    peaks: BTreeSet<&'g str>,
    /// Those that leave the model.
    answers: BTreeSet<&'g str>,
}

impl<'g, 'o> Values<'g, 'o> {
    fn new(
        index: &Index<'g>,
        activations: Activations,
        observed: &'o BTreeMap<String, Observed>,
        ranged: &[&'g str],
    ) -> Self {
        let floor = |name: &&'g str| (*name, saturation::floor(index, name));
        let peaks = ranged.iter().filter(|name| saturation::feeds_maximum(index, name));
        let answers = index.graph.outputs.iter().map(|output| output.name.as_str());
        Self {
            activations,
            observed,
            floors: ranged.iter().map(floor).collect(),
            peaks: peaks.copied().collect(),
            answers: answers.collect(),
        }
    }

    /// None where it has no usable range.
    fn affine(&self, name: &str) -> Option<Affine> {
        let seen = self.observed.get(name)?;
        // What leaves the model is an answer: it is never cut where an answer may lie.
        let Range { mut min, mut max } = if self.answers.contains(name) {
            seen.reach
        } else {
            seen.range
        };
        if let Some(floor) = self.floors.get(name) {
            min = min.max(*floor);
        }
        if self.peaks.contains(name) {
            max = max.max(seen.full.max);
        }
        weights::affine(Range { min, max }, self.activations)
    }

    fn rank(&self, name: &str) -> Option<usize> {
        self.observed.get(name).and_then(|seen| seen.rank)
    }
}
