//! Whether a decoded model makes sense: known domains and operators, unique names, every value defined before use.
//!
//! Run before ONNX Runtime sees a byte, and again after every pass. Reads only; repairs nothing.

use super::{
    error::{Error, shown},
    limits::Limits,
    model::{Function, Graph, Model, Node, Opset},
    ops,
};
use std::collections::{HashMap, HashSet};

/// Oldest file format that imports operator sets.
const OLDEST_IR: i64 = 3;
/// Newest file format known here.
const NEWEST_IR: i64 = 13;
/// Oldest operator set of ONNX itself that ONNX Runtime promises to run.
const OLDEST_OPSET: i64 = 7;

/// Refuses a model that is not valid, naming what and where.
pub fn check(model: &Model, limits: &Limits) -> Result<(), Error> {
    if !(OLDEST_IR..=NEWEST_IR).contains(&model.ir_version) {
        let reason = format!("IR version {} is outside {OLDEST_IR} to {NEWEST_IR}", model.ir_version);
        return Err(Error::graph(&model.graph.name, reason));
    }
    let functions = Functions::new(model)?;
    let used = domains(model);
    check_opsets(&model.opsets, &functions, &used, &model.graph.name)?;
    functions.check(limits, &used)?;
    let mut scope = Scope {
        functions: &functions,
        opsets: &model.opsets,
        visible: HashSet::new(),
    };
    scope.graph(&model.graph, true)
}

/// Domains of all nodes, those of bodies and functions included.
fn domains(model: &Model) -> HashSet<&str> {
    let mut nodes = Vec::new();
    collect(&model.graph.nodes, &mut nodes);
    model
        .functions
        .iter()
        .for_each(|function| collect(&function.nodes, &mut nodes));
    nodes.into_iter().map(|node| node.domain.as_str()).collect()
}

/// A domain that no node is of does no harm: runtimes import all that they know when they save a model.
fn check_opsets(opsets: &[Opset], functions: &Functions<'_>, used: &HashSet<&str>, place: &str) -> Result<(), Error> {
    let mut seen = HashSet::new();
    for opset in opsets {
        let (domain, version) = (opset.domain.as_str(), opset.version);
        if !seen.insert(domain) {
            return Err(Error::graph(
                place,
                format!("domain {} is imported twice", shown(domain)),
            ));
        }
        if used.contains(domain) && !ops::DOMAINS.contains(&domain) && !functions.domains.contains(domain) {
            let construct = format!("operator domain {}", shown(domain));
            return Err(Error::unsupported(
                construct,
                "only ONNX, ai.onnx.ml and com.microsoft are accepted",
            ));
        }
        if domain.is_empty() && !(OLDEST_OPSET..=ops::NEWEST_OPSET).contains(&version) {
            let (oldest, newest) = (OLDEST_OPSET, ops::NEWEST_OPSET);
            return Err(Error::graph(
                place,
                format!("operator set {version} is outside {oldest} to {newest}"),
            ));
        }
    }
    if seen.contains("") {
        Ok(())
    } else {
        Err(Error::graph(place, "no operator set of ONNX is imported"))
    }
}

/// Local functions by (domain, name).
struct Functions<'m> {
    by_name: HashMap<(&'m str, &'m str), &'m Function>,
    domains: HashSet<&'m str>,
    ordered: &'m [Function],
    graph: &'m Graph,
}

impl<'m> Functions<'m> {
    fn new(model: &'m Model) -> Result<Self, Error> {
        let mut by_name = HashMap::new();
        let mut domains = HashSet::new();
        for function in &model.functions {
            let key = (function.domain.as_str(), function.name.as_str());
            if by_name.insert(key, function).is_some() {
                return Err(Error::graph(key.1, "function is defined twice"));
            }
            domains.insert(key.0);
        }
        Ok(Self {
            by_name,
            domains,
            ordered: &model.functions,
            graph: &model.graph,
        })
    }

    /// Bodies are valid, no function reaches itself, and what inlining would produce stays within the limit on nodes.
    fn check(&self, limits: &Limits, used: &HashSet<&str>) -> Result<(), Error> {
        let mut sizes = HashMap::new();
        for function in self.ordered {
            check_opsets(&function.opsets, self, used, &function.name)?;
            self.inlined(function, &mut sizes, 0, limits)?;
            let mut scope = Scope {
                functions: self,
                opsets: &function.opsets,
                visible: HashSet::new(),
            };
            scope.function(function)?;
        }
        if self.ordered.is_empty() {
            return Ok(());
        }
        let mut nodes = Vec::new();
        collect(&self.graph.nodes, &mut nodes);
        self.sum(&nodes, &mut sizes, 0, limits).map(drop)
    }

    /// Nodes that one call becomes. `sizes` holds finished functions, and `None` for those in progress.
    fn inlined(
        &self,
        function: &'m Function,
        sizes: &mut HashMap<(&'m str, &'m str), Option<u64>>,
        depth: u32,
        limits: &Limits,
    ) -> Result<u64, Error> {
        let key = (function.domain.as_str(), function.name.as_str());
        match sizes.get(&key) {
            Some(Some(size)) => return Ok(*size),
            Some(None) => return Err(Error::graph(key.1, "function calls itself")),
            None => {}
        }
        if depth >= limits.nesting {
            let (value, limit) = (u64::from(depth) + 1, u64::from(limits.nesting));
            return Err(Error::Limit {
                what: "depth of function calls",
                value,
                limit,
            });
        }
        sizes.insert(key, None);
        let mut nodes = Vec::new();
        collect(&function.nodes, &mut nodes);
        let size = self.sum(&nodes, sizes, depth, limits)?;
        sizes.insert(key, Some(size));
        Ok(size)
    }

    fn sum(
        &self,
        nodes: &[&'m Node],
        sizes: &mut HashMap<(&'m str, &'m str), Option<u64>>,
        depth: u32,
        limits: &Limits,
    ) -> Result<u64, Error> {
        let mut total = 0_u64;
        for node in nodes {
            let called = self.by_name.get(&(node.domain.as_str(), node.op_type.as_str()));
            let size = called.map_or(Ok(1), |called| self.inlined(called, sizes, depth + 1, limits))?;
            total = total.saturating_add(size);
            if total > limits.nodes {
                return Err(Error::Limit {
                    what: "nodes after inlining functions",
                    value: total,
                    limit: limits.nodes,
                });
            }
        }
        Ok(total)
    }
}

fn collect<'m>(nodes: &'m [Node], all: &mut Vec<&'m Node>) {
    for node in nodes {
        all.push(node);
        node.bodies().for_each(|body| collect(&body.nodes, all));
    }
}

/// Values that can be named at one place, outer graphs included.
struct Scope<'m> {
    functions: &'m Functions<'m>,
    opsets: &'m [Opset],
    visible: HashSet<&'m str>,
}

impl<'m> Scope<'m> {
    fn graph(&mut self, graph: &'m Graph, outermost: bool) -> Result<(), Error> {
        let mut added = Vec::new();
        for input in &graph.inputs {
            self.define(&input.name, &mut added, &graph.name)?;
        }
        let inputs: HashSet<&str> = added.iter().copied().collect();
        let mut initializers = HashSet::new();
        for tensor in &graph.initializers {
            if !initializers.insert(tensor.name.as_str()) {
                return Err(Error::graph(
                    &graph.name,
                    format!("initializer {} appears twice", shown(&tensor.name)),
                ));
            }
            if !inputs.contains(tensor.name.as_str()) {
                self.define(&tensor.name, &mut added, &graph.name)?;
            }
        }
        self.nodes(&graph.nodes, &mut added, &graph.name)?;
        if outermost && graph.outputs.is_empty() {
            return Err(Error::graph(&graph.name, "no outputs"));
        }
        let mut outputs = HashSet::new();
        for output in &graph.outputs {
            if !self.visible.contains(output.name.as_str()) {
                return Err(Error::graph(
                    &graph.name,
                    format!("output {} is never computed", shown(&output.name)),
                ));
            }
            if !outputs.insert(output.name.as_str()) {
                return Err(Error::graph(
                    &graph.name,
                    format!("output {} appears twice", shown(&output.name)),
                ));
            }
        }
        for name in added {
            self.visible.remove(name);
        }
        Ok(())
    }

    fn function(&mut self, function: &'m Function) -> Result<(), Error> {
        let mut added = Vec::new();
        for input in &function.inputs {
            self.define(input, &mut added, &function.name)?;
        }
        self.nodes(&function.nodes, &mut added, &function.name)?;
        match function
            .outputs
            .iter()
            .find(|output| !self.visible.contains(output.as_str()))
        {
            Some(output) => Err(Error::graph(
                &function.name,
                format!("output {} is never computed", shown(output)),
            )),
            None => Ok(()),
        }
    }

    fn nodes(&mut self, nodes: &'m [Node], added: &mut Vec<&'m str>, place: &str) -> Result<(), Error> {
        for node in nodes {
            self.operator(node, place)?;
            if let Some(input) = node
                .inputs
                .iter()
                .find(|name| !name.is_empty() && !self.visible.contains(name.as_str()))
            {
                return Err(Error::graph(place, undefined(node, input, nodes)));
            }
            for body in node.bodies() {
                self.graph(body, false)?;
            }
            for output in node.outputs.iter().filter(|output| !output.is_empty()) {
                self.define(output, added, place)?;
            }
        }
        Ok(())
    }

    fn define(&mut self, name: &'m str, added: &mut Vec<&'m str>, place: &str) -> Result<(), Error> {
        if name.is_empty() {
            return Err(Error::graph(place, "a value without a name"));
        }
        if !self.visible.insert(name) {
            return Err(Error::graph(place, format!("value {} is defined twice", shown(name))));
        }
        added.push(name);
        Ok(())
    }

    fn operator(&self, node: &Node, place: &str) -> Result<(), Error> {
        let (domain, op_type) = (node.domain.as_str(), node.op_type.as_str());
        if !self.opsets.iter().any(|opset| opset.domain == domain) {
            let label = shown(node.label());
            return Err(Error::graph(
                place,
                format!("domain {} of node {label} is not imported", shown(domain)),
            ));
        }
        if ops::known(domain, op_type) || self.functions.by_name.contains_key(&(domain, op_type)) {
            return Ok(());
        }
        let separator = if domain.is_empty() { "" } else { "::" };
        let construct = format!(
            "operator {} of node {}",
            shown(&format!("{domain}{separator}{op_type}")),
            shown(node.label())
        );
        Err(Error::unsupported(
            construct,
            "export the model with standard ONNX operators",
        ))
    }
}

fn undefined(node: &Node, input: &str, nodes: &[Node]) -> String {
    let later = nodes
        .iter()
        .any(|other| other.outputs.iter().any(|output| output == input));
    let why = if later {
        "before it is computed: the nodes are cyclic or not in order"
    } else {
        "which nothing computes"
    };
    format!("node {} reads {} {why}", shown(node.label()), shown(input))
}
