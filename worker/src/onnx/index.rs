//! Who computes and who reads each value of a graph. Built once a pass, thrown away after its patch.

use super::model::{Graph, Node, Tensor, visit_graphs};
use std::{
    collections::{HashMap, HashSet},
    rc::Rc,
};

/// Lookups over one graph.
#[derive(Debug)]
pub struct Index<'g> {
    /// The graph.
    pub graph: &'g Graph,
    producers: HashMap<&'g str, usize>,
    consumers: HashMap<&'g str, Vec<Use>>,
    scope: Rc<Scope<'g>>,
    outputs: HashSet<&'g str>,
}

/// What a graph brings along, and the graph around it. Values of inner graphs never hide those of outer ones.
#[derive(Debug)]
struct Scope<'g> {
    initializers: HashMap<&'g str, &'g Tensor>,
    inputs: HashSet<&'g str>,
    outer: Option<Rc<Scope<'g>>>,
}

/// One reading of a value.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Use {
    /// Index of the node.
    pub node: usize,
    /// Index of its input; `None` where a body inside the node reads the value.
    pub slot: Option<usize>,
}

impl<'g> Index<'g> {
    /// Indexes a main graph. Values read by bodies of control flow count as read by the node that holds the body.
    pub fn new(graph: &'g Graph) -> Self {
        Self::within(graph, None)
    }

    /// Indexes a main graph and every body inside it, in the order of [`visit_graphs`]: the main graph first.
    pub fn all(graph: &'g Graph) -> Vec<Self> {
        let mut all = Vec::new();
        collect(graph, None, &mut all);
        all
    }

    fn within(graph: &'g Graph, outer: Option<Rc<Scope<'g>>>) -> Self {
        let initializers = graph.initializers.iter();
        let mut index = Self {
            graph,
            producers: HashMap::new(),
            consumers: HashMap::new(),
            scope: Rc::new(Scope {
                initializers: initializers.map(|tensor| (tensor.name.as_str(), tensor)).collect(),
                inputs: graph.inputs.iter().map(|input| input.name.as_str()).collect(),
                outer,
            }),
            outputs: graph.outputs.iter().map(|output| output.name.as_str()).collect(),
        };
        for (position, node) in graph.nodes.iter().enumerate() {
            for output in node.outputs.iter().filter(|name| !name.is_empty()) {
                index.producers.insert(output, position);
            }
            for (slot, input) in node.inputs.iter().enumerate().filter(|(_, name)| !name.is_empty()) {
                index.consumers.entry(input).or_default().push(Use {
                    node: position,
                    slot: Some(slot),
                });
            }
            for name in captured(node) {
                index.consumers.entry(name).or_default().push(Use {
                    node: position,
                    slot: None,
                });
            }
        }
        index
    }

    /// The node that computes `value`, with its position.
    pub fn producer(&self, value: &str) -> Option<(usize, &'g Node)> {
        let position = *self.producers.get(value)?;
        Some((position, &self.graph.nodes[position]))
    }

    /// Everything that reads `value` inside the graph.
    pub fn uses(&self, value: &str) -> &[Use] {
        self.consumers.get(value).map_or(&[], Vec::as_slice)
    }

    /// The one node that reads `value` directly, if nothing else does and it is no graph output.
    pub fn only_use(&self, value: &str) -> Option<(usize, &'g Node)> {
        match self.uses(value) {
            [Use { node, slot: Some(_) }] if !self.is_output(value) => Some((*node, &self.graph.nodes[*node])),
            _ => None,
        }
    }

    /// The tensor behind a constant value: an initializer, of this graph or one around it, that no caller can override.
    pub fn constant(&self, value: &str) -> Option<&'g Tensor> {
        let mut scope = Some(&self.scope);
        while let Some(here) = scope {
            if here.inputs.contains(value) {
                return None;
            }
            if let Some(tensor) = here.initializers.get(value) {
                return Some(tensor);
            }
            scope = here.outer.as_ref();
        }
        None
    }

    /// Whether the graph is a body of control flow: what its inputs will be, nobody outside declares.
    pub fn in_body(&self) -> bool {
        self.scope.outer.is_some()
    }

    /// Whether `value` leaves the graph.
    pub fn is_output(&self, value: &str) -> bool {
        self.outputs.contains(value)
    }

    /// Whether `value` is an input of the graph.
    pub fn is_input(&self, value: &str) -> bool {
        self.scope.inputs.contains(value)
    }
}

fn collect<'g>(graph: &'g Graph, outer: Option<Rc<Scope<'g>>>, all: &mut Vec<Index<'g>>) {
    let index = Index::within(graph, outer);
    let scope = Rc::clone(&index.scope);
    all.push(index);
    for body in graph.nodes.iter().flat_map(Node::bodies) {
        collect(body, Some(Rc::clone(&scope)), all);
    }
}

/// Values of outer graphs that bodies inside `node` read (names defined inside them excluded).
pub fn captured(node: &Node) -> Vec<&str> {
    let mut names = Vec::new();
    for body in node.bodies() {
        let mut defined = HashSet::new();
        let mut read = Vec::new();
        visit_graphs(body, &mut |graph: &Graph| {
            defined.extend(graph.inputs.iter().map(|input| input.name.as_str()));
            defined.extend(graph.initializers.iter().map(|tensor| tensor.name.as_str()));
            for inner in &graph.nodes {
                defined.extend(inner.outputs.iter().map(String::as_str));
                read.extend(inner.inputs.iter().map(String::as_str).filter(|name| !name.is_empty()));
            }
            read.extend(graph.outputs.iter().map(|output| output.name.as_str()));
        });
        names.extend(read.into_iter().filter(|name| !defined.contains(name)));
    }
    names.sort_unstable();
    names.dedup();
    names
}
