//! Values that a `Loop` or `Scan` hands from one turn to the next as they were: its body reads them from outside instead.
//!
//! Exporters carry every variable of a loop along, weights included, which hides that they are constant. Changes no value, whatever the
//! number of turns.

use super::model::{Graph, Node};
use std::collections::{HashMap, HashSet};

/// Lets bodies read what loops carry unchanged from outside. Every value must have a name of its own, over all graphs.
/// Returns how many values are no longer carried.
pub(super) fn read_from_outside(graph: &mut Graph) -> usize {
    let outputs: HashSet<String> = graph.outputs.iter().map(|output| output.name.clone()).collect();
    let (mut freed, mut same) = (0, HashMap::new());
    for mut node in std::mem::take(&mut graph.nodes) {
        rename(&mut node, &same);
        freed += node.bodies_mut().map(read_from_outside).sum::<usize>();
        let mut left = Vec::new();
        for Carried { outside, result } in unchanged(&mut node) {
            freed += 1;
            if outputs.contains(&result) {
                left.push(Node::new("Identity", &[&outside], &[&result]));
            } else {
                same.insert(result, outside);
            }
        }
        // All that it did was to carry.
        if node.outputs.iter().any(|output| !output.is_empty()) {
            graph.nodes.push(node);
        }
        graph.nodes.append(&mut left);
    }
    freed
}

/// A value that was carried.
struct Carried {
    /// Its name around the loop.
    outside: String,
    /// The name that the loop gave it afterwards; may be empty.
    result: String,
}

/// Where the carried values of a loop begin: among its inputs, and among the inputs and outputs of its body.
fn layout(node: &Node) -> Option<(usize, usize, usize)> {
    match node.op_type.as_str() {
        // Number of turns and condition; number of the turn and condition; condition.
        "Loop" if node.domain.is_empty() => Some((2, 2, 1)),
        "Scan" if node.domain.is_empty() => Some((0, 0, 0)),
        _ => None,
    }
}

/// How many values it carries.
fn count(node: &Node, first: usize) -> Option<usize> {
    let scanned = usize::try_from(node.int("num_scan_inputs", 0)?).ok()?;
    node.inputs.len().checked_sub(first + scanned)
}

/// Takes what a loop carries unchanged out of it.
fn unchanged(node: &mut Node) -> Vec<Carried> {
    let Some((first, given, kept)) = layout(node) else {
        return Vec::new();
    };
    let Some(count) = count(node, first) else {
        return Vec::new();
    };
    let mut found = Vec::new();
    // From the last, so that what is taken out moves none that is still to be looked at.
    for at in (0..count).rev() {
        let outside = node.inputs[first + at].clone();
        let freed = match node.bodies_mut().next() {
            Some(body) => !outside.is_empty() && free(body, given + at, kept + at, &outside),
            None => false,
        };
        if freed {
            node.inputs.remove(first + at);
            let result = if at < node.outputs.len() {
                node.outputs.remove(at)
            } else {
                String::new()
            };
            found.push(Carried { outside, result });
        }
    }
    found
}

/// Lets a body read `outside` in the place of its input number `given`, which it gives back as output number `kept`; false where it gives
/// back something else.
fn free(body: &mut Graph, given: usize, kept: usize, outside: &str) -> bool {
    let (Some(input), Some(output)) = (body.inputs.get(given), body.outputs.get(kept)) else {
        return false;
    };
    // What else the body gives back must be its own.
    let given_back = body.outputs.iter().filter(|other| other.name == input.name).count();
    if given_back != usize::from(output.name == input.name) || origin(body, &output.name) != input.name {
        return false;
    }
    body.outputs.remove(kept);
    let input = body.inputs.remove(given).name;
    read(body, &HashMap::from([(input, outside.to_owned())]));
    true
}

/// What a value of `graph` is the same as.
fn origin<'g>(graph: &'g Graph, mut value: &'g str) -> &'g str {
    for node in graph.nodes.iter().rev() {
        if node.is("Identity") && node.output() == value {
            value = node.input(0).unwrap_or(value);
        }
    }
    value
}

/// Renames what the nodes of a body read, and what bodies inside it give back.
fn read(body: &mut Graph, names: &HashMap<String, String>) {
    body.nodes.iter_mut().for_each(|node| rename(node, names));
}

fn rename(node: &mut Node, names: &HashMap<String, String>) {
    let new = |name: &mut String| {
        if let Some(new) = names.get(name) {
            name.clone_from(new);
        }
    };
    node.inputs.iter_mut().for_each(new);
    for body in node.bodies_mut() {
        body.outputs.iter_mut().for_each(|output| new(&mut output.name));
        read(body, names);
    }
}

#[cfg(test)]
mod tests {
    use crate::{
        onnx::{AttributeValue as A, ElementType, Limits, Model, Tensor, check, normalize},
        testing::{Build, noise, run},
    };

    /// `v <- tanh(v w)`, so many times, with `w` carried along; what the loop makes of `w` is read behind it, or leaves the model.
    fn carrying(through_identity: bool, leaves: bool) -> Model {
        let mut inner = Build::inside(17, 1);
        inner.typed_input("turn", ElementType::Int64, &[]);
        inner.typed_input("on", ElementType::Bool, &[]);
        inner.input("v", &[4, 8]);
        inner.input("carried", &[8, 8]);
        let product = inner.node("MatMul", &["v", "carried"]);
        let next = inner.node("Tanh", &[&product]);
        let on = inner.node("Identity", &["on"]);
        let kept = if through_identity {
            inner.node("Identity", &["carried"])
        } else {
            "carried".to_owned()
        };
        let body = inner.body(&[&on, &next, &kept]);
        let mut b = Build::opset(17);
        let x = b.input("x", &[4, 8]);
        let turns = b.typed_input("turns", ElementType::Int64, &[]);
        b.named("w", &[8, 8]);
        let node = crate::onnx::Node::new("Loop", &[&turns, "", &x, "w"], &["last", "after"]);
        b.push(node.with("body", A::Graph(Box::new(body))));
        let y = b.node("MatMul", &["last", "after"]);
        if leaves {
            b.finish(&[&y, "after"])
        } else {
            b.finish(&[&y])
        }
    }

    #[test]
    fn what_a_loop_carries_unchanged_is_read_from_outside() {
        for (through_identity, leaves) in [(false, false), (true, false), (false, true), (true, true)] {
            let before = carrying(through_identity, leaves);
            let mut after = before.clone();
            assert_eq!(normalize(&mut after).unwrap().no_longer_carried, 1);
            check(&after, &Limits::default()).unwrap();
            let looped = after.graph.nodes.iter().find(|node| node.is("Loop")).unwrap();
            assert_eq!(looped.inputs.len(), 3, "{looped:?}");
            assert_eq!(looped.outputs, ["last"]);
            for turns in [0, 1, 3] {
                let inputs = [
                    Tensor::floats("x", &[4, 8], &noise(1, 32)).unwrap(),
                    Tensor::int64s("turns", &[], &[turns]).unwrap(),
                ];
                assert_eq!(run(&after, &inputs), run(&before, &inputs));
            }
        }
    }

    #[test]
    fn what_changes_stays() {
        // The first two change places; the third is kept as it was, and collected turn by turn, too.
        let mut inner = Build::inside(17, 1);
        for name in ["first", "second", "third", "each"] {
            inner.input(name, &[2]);
        }
        let sum = inner.node("Add", &["each", "third"]);
        let kept = inner.node("Identity", &["third"]);
        let body = inner.body(&["second", "first", &kept, "third", &sum]);
        let mut b = Build::opset(17);
        let x = b.input("x", &[3, 2]);
        let start: Vec<String> = (0..3).map(|_| b.weights(&[2])).collect();
        let outputs = ["a", "b", "c", "d", "e"];
        let node = crate::onnx::Node::new("Scan", &[&start[0], &start[1], &start[2], &x], &outputs);
        let node = node.with("num_scan_inputs", A::Int(1));
        b.push(node.with("body", A::Graph(Box::new(body))));
        let mut model = b.finish(&outputs);
        assert_eq!(normalize(&mut model).unwrap().no_longer_carried, 0);
        assert_eq!(model.graph.nodes[0].inputs.len(), 4);
    }
}
