//! Products that are multiplied with the same weights: time steps that were unrolled, layers that are repeated. Says which they are, and puts
//! together what was seen of their inputs, so that whoever changes weights changes them once for all. Changes nothing itself.

use super::{
    Report,
    site::{Site, sites},
};
use crate::{
    calibrate::{Gram, Rows as _},
    onnx::{Index, Model},
};
use std::collections::{BTreeMap, BTreeSet, HashMap};

/// Weights, and which of their dimensions counts outputs: what is multiplied from its other side is another matrix.
pub(super) type Matrix = (String, usize);

/// The matrix that a product is multiplied with.
pub(super) fn matrix(site: &Site<'_>) -> Matrix {
    (site.weights.name.clone(), site.channel_axis())
}

/// Whether products in bodies of control flow may be multiplied with the weights of `site`, too.
pub(super) fn with_bodies(index: &Index<'_>, site: &Site<'_>) -> bool {
    let uses = index.uses(&site.weights.name);
    uses.iter().any(|usage| usage.slot.is_none())
}

/// Inputs, each with the products that read it.
pub(super) type Group<'g> = BTreeMap<&'g str, Vec<Site<'g>>>;

/// Groups of inputs that only change together, because some of their products share weights; in the order of their first names.
pub(super) fn groups(products: Vec<Site<'_>>) -> Vec<Group<'_>> {
    let mut inputs = Group::new();
    for site in products {
        inputs.entry(site.input()).or_default().push(site);
    }
    let mut groups: Vec<Group<'_>> = Vec::new();
    let mut places: HashMap<&str, usize> = HashMap::new();
    for (input, sites) in inputs {
        let known = sites.iter().filter_map(|site| places.get(site.weights.name.as_str()));
        let mut known: BTreeSet<usize> = known.copied().collect();
        let place = known.pop_first().unwrap_or(groups.len());
        if place == groups.len() {
            groups.push(Group::new());
        }
        let mut joined = Group::from([(input, sites)]);
        for other in known {
            joined.append(&mut groups[other]);
        }
        let weights = joined.values().flatten().map(|site| site.weights.name.as_str());
        places.extend(weights.map(|name| (name, place)));
        groups[place].append(&mut joined);
    }
    groups.retain(|group| !group.is_empty());
    groups
}

/// What was seen of all inputs together, for each matrix of the main graph that several inputs, or bodies of control flow as well, are
/// multiplied with.
pub(super) fn together(model: &Model, grams: &BTreeMap<String, Gram>) -> BTreeMap<Matrix, Gram> {
    if grams.is_empty() {
        return BTreeMap::new();
    }
    let mut seen: BTreeMap<Matrix, BTreeMap<&str, &Gram>> = BTreeMap::new();
    let mut read_by_bodies = BTreeSet::new();
    let index = Index::new(&model.graph);
    for site in sites(&index, &mut Report::new("shared")) {
        let gram = grams.get(site.input()).filter(|_| !site.is_convolution());
        if let Some(gram) = gram.filter(|gram| gram.size() == site.weights.dims[1 - site.channel_axis()]) {
            seen.entry(matrix(&site)).or_default().insert(site.input(), gram);
            if with_bodies(&index, &site) {
                read_by_bodies.insert(matrix(&site));
            }
        }
    }
    let shared = seen.into_iter();
    let shared = shared.filter(|(matrix, inputs)| inputs.len() > 1 || read_by_bodies.contains(matrix));
    let summed = shared.filter_map(|(matrix, inputs)| {
        let mut grams = inputs.into_values();
        let mut sum = grams.next()?.clone();
        grams.for_each(|gram| sum.join(gram));
        Some((matrix, sum))
    });
    summed.collect()
}
