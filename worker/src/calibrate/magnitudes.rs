//! How large every value of a model becomes, and with that which values are 32-bit floats: what a change of their type must know.
//!
//! Decides nothing about types. Keeps one number for each value, whatever the number of samples.

use super::{Batches, Error, Extent};
use crate::{
    onnx::{Model, ValueInfo},
    session::{self, Options, Runtime},
};
use std::collections::{BTreeMap, HashSet};

/// Runs `batches` through `model`; gives the largest magnitude of every value of its main graph that is a tensor of 32-bit floats, infinity
/// where one was not finite, and says nothing of values of other types.
///
/// `progress` is told the number of batches done.
pub fn magnitudes(
    runtime: &Runtime,
    threads: usize,
    model: &Model,
    batches: Batches<'_>,
    progress: &mut dyn FnMut(u64),
) -> Result<BTreeMap<String, f32>, Error> {
    let mut tapped = model.clone();
    let outputs = tapped.graph.nodes.iter().flat_map(|node| &node.outputs);
    let computed: HashSet<&String> = outputs.filter(|name| !name.is_empty()).collect();
    let mut computed: Vec<ValueInfo> = computed.into_iter().map(|name| ValueInfo::untyped(name)).collect();
    computed.sort_by(|left, right| left.name.cmp(&right.name));
    tapped.graph.outputs = computed;
    let options = Options {
        threads,
        ..Options::default()
    };
    let mut session = runtime.open_model(&tapped, &options)?;
    let mut largest = BTreeMap::new();
    let mut add = |name: &str, values: &[f32]| {
        let seen = Extent::of(values).map_or(f32::INFINITY, Extent::magnitude);
        let largest = largest.entry(name.to_owned()).or_insert(0.0_f32);
        *largest = largest.max(seen);
    };
    let mut done = 0_u64;
    for batch in batches {
        let batch = batch.map_err(Error::Data)?;
        for tensor in &batch {
            if let Some(values) = tensor.to_floats() {
                add(&tensor.name, &values);
            }
        }
        session.run(&batch, |output| {
            if let Some(values) = output.floats() {
                add(output.name, values);
            }
            Ok::<_, session::Error>(())
        })?;
        done += 1;
        progress(done);
    }
    if done == 0 {
        return Err(Error::Empty);
    }
    Ok(largest)
}
