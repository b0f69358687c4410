//! Brings a valid graph into the one shape that passes expect, without changing what it computes.
//!
//! Weights are initializers that nobody can override, every node has a unique name, and nothing is dead.

use super::{
    error::Error,
    index::captured,
    model::{AttributeValue, Graph, Model, Node, Tensor, ValueInfo},
};
use std::collections::HashSet;

/// File format in which initializers need not be graph inputs.
const INITIALIZERS_ALONE_IR: i64 = 4;

/// What normalization did.
#[derive(Debug, Default, Clone, PartialEq, Eq)]
pub struct Normalized {
    /// Graph inputs that were weights.
    pub inputs_made_constant: usize,
    /// `Constant` nodes whose value became an initializer.
    pub constants_lifted: usize,
    /// Nodes that got a (new) name.
    pub nodes_named: usize,
    /// Nodes that nothing depended on.
    pub dead_nodes: usize,
}

/// Normalizes the main graph and every graph inside it.
pub fn normalize(model: &mut Model) -> Result<Normalized, Error> {
    let mut done = Normalized {
        inputs_made_constant: close_inputs(&mut model.graph),
        ..Normalized::default()
    };
    model.ir_version = model.ir_version.max(INITIALIZERS_ALONE_IR);
    lift_constants(&mut model.graph, &mut done.constants_lifted)?;
    done.dead_nodes = prune(&mut model.graph);
    name_nodes(&mut model.graph, &mut HashSet::new(), &mut done.nodes_named);
    Ok(done)
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

/// Removes nodes and initializers that nothing depends on, and types of values that are gone. Returns nodes removed.
pub fn prune(graph: &mut Graph) -> usize {
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
    before - graph.nodes.len()
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
