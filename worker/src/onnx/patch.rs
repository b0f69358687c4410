//! A rewrite as a value: what a pass wants changed, applied by one function that refuses what does not fit.
//!
//! Matchers read the graph through [`Index`](super::Index) and build a patch; nothing else changes a graph.

use super::{
    error::Error,
    index::Index,
    model::{Graph, Model, Node, Tensor, ValueInfo},
    normalize::{prune, rename},
};
use std::collections::{BTreeMap, HashSet};

/// Changes to one graph. Positions are those of the graph it was built from.
#[derive(Debug, Default, Clone)]
pub struct Patch {
    label: &'static str,
    /// Position to what takes its place: nothing, or nodes in order.
    replaced: BTreeMap<usize, Vec<Node>>,
    /// Position to nodes that go in front of it; the number of nodes appends.
    before: BTreeMap<usize, Vec<Node>>,
    rewired: BTreeMap<(usize, usize), String>,
    tensors: Vec<Tensor>,
    /// Nodes that read nothing but initializers and each other; they go in front of all.
    constants: Vec<Node>,
    outputs: Vec<String>,
}

impl Patch {
    /// An empty patch of the pass `label`.
    pub fn new(label: &'static str) -> Self {
        Self {
            label,
            ..Self::default()
        }
    }

    /// Whether it changes nothing.
    pub fn is_empty(&self) -> bool {
        self.replaced.is_empty() && self.before.is_empty() && self.rewired.is_empty() && self.outputs.is_empty()
    }

    /// Puts `nodes` in the place of the node at `position`. The last call for a position wins.
    pub fn replace(&mut self, position: usize, nodes: Vec<Node>) {
        self.replaced.insert(position, nodes);
    }

    /// Removes the node at `position`.
    pub fn remove(&mut self, position: usize) {
        self.replace(position, Vec::new());
    }

    /// Puts `nodes` in front of the node at `position`, after those put there before.
    pub fn insert_before(&mut self, position: usize, nodes: impl IntoIterator<Item = Node>) {
        self.before.entry(position).or_default().extend(nodes);
    }

    /// Lets input `slot` of the node at `position` read `value`. Applies to nodes that stay.
    pub fn rewire(&mut self, position: usize, slot: usize, value: &str) {
        self.rewired.insert((position, slot), value.to_owned());
    }

    /// Adds an initializer.
    pub fn add_tensor(&mut self, tensor: Tensor) {
        self.tensors.push(tensor);
    }

    /// Adds nodes that read nothing but initializers and each other, in front of all others.
    pub fn add_constants(&mut self, nodes: impl IntoIterator<Item = Node>) {
        self.constants.extend(nodes);
    }

    /// Lets `value` leave the graph as an additional output, its type left to inference.
    pub fn add_output(&mut self, value: &str) {
        self.outputs.push(value.to_owned());
    }
}

/// Lets `make` write a patch for the main graph and then for every body of control flow inside it, applies them all, and tidies up.
/// Initializers that a patch adds for a body, and what is computed of these alone, become the main graph's, where every body can read them.
/// False where nothing changes.
pub fn rewrite<E: From<Error>>(model: &mut Model, make: impl FnMut(&Index<'_>) -> Result<Patch, E>) -> Result<bool, E> {
    let mut patches: Vec<Patch> = Index::all(&model.graph).iter().map(make).collect::<Result<_, E>>()?;
    if patches.iter().all(Patch::is_empty) {
        return Ok(false);
    }
    let added: Vec<Tensor> = patches
        .iter_mut()
        .flat_map(|patch| std::mem::take(&mut patch.tensors))
        .collect();
    let constants: Vec<Node> = patches
        .iter_mut()
        .flat_map(|patch| std::mem::take(&mut patch.constants))
        .collect();
    let mut patches = patches.into_iter();
    if let Some(mut main) = patches.next() {
        main.tensors = added;
        main.constants = constants;
        bodies(&mut model.graph, &mut patches)?;
        rewrite_main(model, main)?;
    }
    Ok(true)
}

/// Applies a patch to the main graph, and tidies up.
pub fn rewrite_main(model: &mut Model, patch: Patch) -> Result<(), Error> {
    apply(&mut model.graph, patch)?;
    prune(&mut model.graph);
    rename(model);
    Ok(())
}

/// Applies the patches of all bodies inside `graph`, before positions in it change.
fn bodies(graph: &mut Graph, patches: &mut impl Iterator<Item = Patch>) -> Result<(), Error> {
    for body in graph.nodes.iter_mut().flat_map(Node::bodies_mut) {
        let own = patches.next();
        bodies(body, patches)?;
        own.map_or(Ok(()), |patch| apply(body, patch))?;
    }
    Ok(())
}

/// Applies a patch. The graph is untouched where an error is returned.
pub fn apply(graph: &mut Graph, patch: Patch) -> Result<(), Error> {
    let fail = |reason: String| Error::Patch {
        label: patch.label,
        reason,
    };
    let count = graph.nodes.len();
    if let Some((position, slot)) = patch.rewired.keys().find(|(position, slot)| {
        patch.replaced.contains_key(position)
            || graph.nodes.get(*position).is_none_or(|node| *slot >= node.inputs.len())
    }) {
        return Err(fail(format!("no input {slot} at node {position} to rewire")));
    }
    if let Some(position) = patch.replaced.keys().find(|position| **position >= count) {
        return Err(fail(format!("no node {position} to replace")));
    }
    if let Some(position) = patch.before.keys().find(|position| **position > count) {
        return Err(fail(format!("no node {position} to insert before")));
    }
    let mut names: HashSet<&str> = graph.initializers.iter().map(|tensor| tensor.name.as_str()).collect();
    if let Some(tensor) = patch.tensors.iter().find(|tensor| !names.insert(&tensor.name)) {
        return Err(fail(format!("initializer {} exists already", tensor.name)));
    }
    let Patch {
        mut replaced,
        mut before,
        rewired,
        tensors,
        constants,
        outputs,
        ..
    } = patch;
    for ((position, slot), value) in rewired {
        graph.nodes[position].inputs[slot] = value;
    }
    let old = std::mem::replace(&mut graph.nodes, constants);
    for (position, node) in old.into_iter().enumerate() {
        graph.nodes.extend(before.remove(&position).unwrap_or_default());
        match replaced.remove(&position) {
            Some(nodes) => graph.nodes.extend(nodes),
            None => graph.nodes.push(node),
        }
    }
    graph.nodes.extend(before.remove(&count).unwrap_or_default());
    graph.initializers.extend(tensors);
    graph
        .outputs
        .extend(outputs.iter().map(|name| ValueInfo::untyped(name)));
    Ok(())
}

/// New names that no value of the graph (nor of a graph inside it) has.
#[derive(Debug)]
pub struct Names {
    taken: HashSet<String>,
}

impl Names {
    /// Collects the names in use.
    pub fn new(graph: &Graph) -> Self {
        let mut taken = HashSet::new();
        super::model::visit_graphs(graph, &mut |graph: &Graph| {
            taken.extend(graph.inputs.iter().chain(&graph.outputs).map(|info| info.name.clone()));
            taken.extend(graph.initializers.iter().map(|tensor| tensor.name.clone()));
            taken.extend(graph.nodes.iter().flat_map(|node| node.outputs.iter().cloned()));
        });
        Self { taken }
    }

    /// `base` + `suffix`, numbered if that is taken; never given twice.
    pub fn fresh(&mut self, base: &str, suffix: &str) -> String {
        let mut name = format!("{base}{suffix}");
        let mut number = 1_u32;
        while !self.taken.insert(name.clone()) {
            number += 1;
            name = format!("{base}{suffix}_{number}");
        }
        name
    }
}
