//! Brings a valid graph into the one shape that passes expect, without changing what it computes.
//!
//! Weights are initializers of the main graph that nobody can override, every value and every node has a name of its own, also
//! between bodies of control flow, nothing is dead, and no type is noted that could be stale.

use super::{
    carried,
    error::Error,
    index::captured,
    model::{AttributeValue, Graph, Model, Node, Tensor, ValueInfo, visit_graphs},
    patch::Names,
};
use std::collections::{HashMap, HashSet};

/// File format in which initializers need not be graph inputs.
const INITIALIZERS_ALONE_IR: i64 = 4;

/// What normalization did.
#[derive(Debug, Default, Clone, PartialEq, Eq)]
pub struct Normalized {
    /// Graph inputs that were weights.
    pub inputs_made_constant: usize,
    /// `Constant` nodes whose value became an initializer.
    pub constants_lifted: usize,
    /// Values inside bodies that got another name, because a value elsewhere has it too.
    pub values_renamed: usize,
    /// Values that loops carried around unchanged.
    pub no_longer_carried: usize,
    /// Initializers of bodies that became the main graph's.
    pub brought_home: usize,
    /// Nodes that got a (new) name.
    pub nodes_named: usize,
    /// Nodes that nothing depended on.
    pub dead_nodes: usize,
    /// Types that exporters noted at intermediate values: real files have wrong ones, and runtimes believe them.
    pub types_dropped: usize,
    /// Imported domains that no node is of.
    pub domains_dropped: usize,
}

/// Normalizes the main graph and every graph inside it.
pub fn normalize(model: &mut Model) -> Result<Normalized, Error> {
    let mut done = Normalized {
        inputs_made_constant: close_inputs(&mut model.graph),
        ..Normalized::default()
    };
    model.ir_version = model.ir_version.max(INITIALIZERS_ALONE_IR);
    lift_constants(&mut model.graph, &mut done.constants_lifted)?;
    done.values_renamed = tell_apart(&mut model.graph);
    done.no_longer_carried = carried::read_from_outside(&mut model.graph);
    let mut home = Vec::new();
    for node in &mut model.graph.nodes {
        node.bodies_mut().for_each(|body| bring_home(body, &mut home));
    }
    done.brought_home = home.len();
    model.graph.initializers.append(&mut home);
    drop_types(&mut model.graph, &mut done.types_dropped);
    done.dead_nodes = prune(&mut model.graph);
    name_nodes(&mut model.graph, &mut HashSet::new(), &mut done.nodes_named);
    done.domains_dropped = drop_domains(model);
    Ok(done)
}

/// Runtimes that save a model import every domain that they know; the next one may not know them.
fn drop_domains(model: &mut Model) -> usize {
    let mut used = HashSet::from([String::new()]);
    visit_graphs(&model.graph, &mut |graph: &Graph| {
        used.extend(graph.nodes.iter().map(|node| node.domain.clone()));
    });
    let before = model.opsets.len();
    model.opsets.retain(|opset| used.contains(&opset.domain));
    before - model.opsets.len()
}

/// Old files list weights as inputs too; runtimes must then treat them as variable and cannot fold them.
fn close_inputs(graph: &mut Graph) -> usize {
    let initializers: HashSet<&str> = graph.initializers.iter().map(|tensor| tensor.name.as_str()).collect();
    let before = graph.inputs.len();
    graph.inputs.retain(|input| !initializers.contains(input.name.as_str()));
    before - graph.inputs.len()
}

fn lift_constants(graph: &mut Graph, lifted: &mut usize) -> Result<(), Error> {
    let outputs: HashSet<String> = graph.outputs.iter().map(|output| output.name.clone()).collect();
    let mut kept = Vec::with_capacity(graph.nodes.len());
    for mut node in std::mem::take(&mut graph.nodes) {
        if node.is("Constant")
            && !outputs.contains(node.output())
            && let Some(tensor) = constant(&node)?
        {
            graph.initializers.push(tensor);
            *lifted += 1;
            continue;
        }
        node.bodies_mut().try_for_each(|body| lift_constants(body, lifted))?;
        kept.push(node);
    }
    graph.nodes = kept;
    Ok(())
}

/// Runtimes infer what they need from inputs and operators.
fn drop_types(graph: &mut Graph, dropped: &mut usize) {
    *dropped += std::mem::take(&mut graph.value_info).len();
    for body in graph.nodes.iter_mut().flat_map(Node::bodies_mut) {
        drop_types(body, dropped);
    }
}

/// The tensor of a `Constant` node; none for strings and sparse values.
fn constant(node: &Node) -> Result<Option<Tensor>, Error> {
    let [attribute] = node.attributes.as_slice() else {
        return Ok(None);
    };
    let name = node.output();
    Ok(match (attribute.name.as_str(), &attribute.value) {
        ("value", AttributeValue::Tensor(tensor)) => Some(Tensor {
            name: name.to_owned(),
            ..tensor.clone()
        }),
        ("value_float", AttributeValue::Float(value)) => Some(Tensor::floats(name, &[], &[*value])?),
        ("value_floats", AttributeValue::Floats(values)) => Some(Tensor::floats(name, &[values.len()], values)?),
        ("value_int", AttributeValue::Int(value)) => Some(Tensor::int64s(name, &[], &[*value])?),
        ("value_ints", AttributeValue::Ints(values)) => Some(Tensor::int64s(name, &[values.len()], values)?),
        _ => None,
    })
}

/// Renames values of bodies that share their name with a value of another scope, which is allowed where neither sees the other.
fn tell_apart(graph: &mut Graph) -> usize {
    let mut renaming = Renaming {
        names: Names::new(graph),
        taken: defined(graph).into_iter().map(str::to_owned).collect(),
        current: HashMap::new(),
        renamed: 0,
    };
    for node in &mut graph.nodes {
        node.bodies_mut().for_each(|body| renaming.body(body));
    }
    renaming.renamed
}

/// Names of the values that a graph itself brings about.
fn defined(graph: &Graph) -> Vec<&str> {
    let inputs = graph.inputs.iter().map(|input| input.name.as_str());
    let initializers = graph.initializers.iter().map(|tensor| tensor.name.as_str());
    let outputs = graph
        .nodes
        .iter()
        .flat_map(|node| node.outputs.iter().map(String::as_str));
    let mut seen = HashSet::new();
    let all = inputs.chain(initializers).chain(outputs);
    all.filter(|name| !name.is_empty() && seen.insert(*name)).collect()
}

struct Renaming {
    names: Names,
    /// Names of scopes that were visited.
    taken: HashSet<String>,
    /// From the names in the file to new ones, for the scopes around the present place.
    current: HashMap<String, String>,
    renamed: usize,
}

impl Renaming {
    fn body(&mut self, graph: &mut Graph) {
        let mut before = Vec::new();
        for name in defined(graph) {
            let new = if self.taken.insert(name.to_owned()) {
                None
            } else {
                self.renamed += 1;
                let new = self.names.fresh(name, "");
                self.taken.insert(new.clone());
                Some(new)
            };
            let old = match new {
                Some(new) => self.current.insert(name.to_owned(), new),
                None => self.current.remove(name),
            };
            before.push((name.to_owned(), old));
        }
        let infos = graph
            .inputs
            .iter_mut()
            .chain(&mut graph.outputs)
            .chain(&mut graph.value_info);
        infos.for_each(|info| self.name(&mut info.name));
        graph
            .initializers
            .iter_mut()
            .for_each(|tensor| self.name(&mut tensor.name));
        for node in &mut graph.nodes {
            node.inputs
                .iter_mut()
                .chain(&mut node.outputs)
                .for_each(|name| self.name(name));
            node.bodies_mut().for_each(|body| self.body(body));
        }
        for (name, old) in before {
            match old {
                Some(old) => self.current.insert(name, old),
                None => self.current.remove(&name),
            };
        }
    }

    fn name(&self, name: &mut String) {
        if let Some(new) = self.current.get(name) {
            name.clone_from(new);
        }
    }
}

/// Takes the initializers of a body and of those inside it, but for what a body gives back: that must be its own.
fn bring_home(graph: &mut Graph, home: &mut Vec<Tensor>) {
    let own: HashSet<&str> = graph
        .inputs
        .iter()
        .chain(&graph.outputs)
        .map(|info| info.name.as_str())
        .collect();
    home.extend(
        graph
            .initializers
            .extract_if(.., |tensor| !own.contains(tensor.name.as_str())),
    );
    for node in &mut graph.nodes {
        node.bodies_mut().for_each(|body| bring_home(body, home));
    }
}

/// Gives bodies the weights of convolutions that nothing else reads, once passes are done: ONNX Runtime brings only those that lie in the
/// graph itself into the order of its fast float kernels, and a convolution that captures them takes twice as long.
pub fn settle(graph: &mut Graph) {
    let mut readers: HashMap<&str, Option<usize>> = HashMap::new();
    let mut number = 0;
    visit_graphs(graph, &mut |graph: &Graph| {
        for node in &graph.nodes {
            let convolves = number > 0 && (node.is("Conv") || node.is("ConvTranspose"));
            for (slot, name) in node.inputs.iter().enumerate() {
                let reader = (convolves && slot > 0).then_some(number);
                let known = readers.entry(name).or_insert(reader);
                *known = known.filter(|_| *known == reader);
            }
        }
        readers.extend(graph.outputs.iter().map(|output| (output.name.as_str(), None)));
        number += 1;
    });
    let mut settled: HashMap<String, usize> = HashMap::new();
    for tensor in &graph.initializers {
        settled.extend(
            readers
                .get(tensor.name.as_str())
                .copied()
                .flatten()
                .map(|to| (tensor.name.clone(), to)),
        );
    }
    let mut moved: HashMap<usize, Vec<Tensor>> = HashMap::new();
    for tensor in graph
        .initializers
        .extract_if(.., |tensor| settled.contains_key(&tensor.name))
    {
        moved.entry(settled[&tensor.name]).or_default().push(tensor);
    }
    hand_out(graph, &mut moved, &mut 0);
}

/// Adds to every graph the initializers under its number, counted as [`visit_graphs`] meets it.
fn hand_out(graph: &mut Graph, moved: &mut HashMap<usize, Vec<Tensor>>, number: &mut usize) {
    graph.initializers.extend(moved.remove(number).unwrap_or_default());
    *number += 1;
    for body in graph.nodes.iter_mut().flat_map(Node::bodies_mut) {
        hand_out(body, moved, number);
    }
}

/// Removes nodes and initializers that nothing depends on, and types of values that are gone, here and in bodies. Returns nodes removed.
pub fn prune(graph: &mut Graph) -> usize {
    let inner: usize = graph.nodes.iter_mut().flat_map(Node::bodies_mut).map(prune).sum();
    let mut needed: HashSet<String> = graph.outputs.iter().map(|output| output.name.clone()).collect();
    let mut keep = vec![false; graph.nodes.len()];
    for (position, node) in graph.nodes.iter().enumerate().rev() {
        if node.outputs.iter().any(|output| needed.contains(output)) {
            keep[position] = true;
            needed.extend(node.inputs.iter().filter(|input| !input.is_empty()).cloned());
            needed.extend(captured(node).into_iter().map(str::to_owned));
        }
    }
    let before = graph.nodes.len();
    let mut kept = keep.into_iter();
    graph.nodes.retain(|_| kept.next().unwrap_or(true));
    graph.initializers.retain(|tensor| needed.contains(&tensor.name));
    let defined: HashSet<&str> = graph
        .nodes
        .iter()
        .flat_map(|node| node.outputs.iter().map(String::as_str))
        .collect();
    graph
        .value_info
        .retain(|info: &ValueInfo| defined.contains(info.name.as_str()));
    inner + before - graph.nodes.len()
}

/// Files have unnamed and doubly named nodes; outputs are unique, so a name can come from them.
fn name_nodes(graph: &mut Graph, taken: &mut HashSet<String>, named: &mut usize) {
    for node in &mut graph.nodes {
        if node.name.is_empty() || taken.contains(&node.name) {
            let base = node
                .outputs
                .iter()
                .find(|output| !output.is_empty())
                .map_or("node", String::as_str);
            let mut name = base.to_owned();
            let mut number = 1_u32;
            while taken.contains(&name) {
                number += 1;
                name = format!("{base}_{number}");
            }
            node.name = name;
            *named += 1;
        }
        taken.insert(node.name.clone());
        node.bodies_mut().for_each(|body| name_nodes(body, taken, named));
    }
}

/// Names nodes that a pass added.
pub fn rename(model: &mut Model) {
    name_nodes(&mut model.graph, &mut HashSet::new(), &mut 0);
}
