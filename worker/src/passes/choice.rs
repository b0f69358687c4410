//! Which nodes a stage may change, where the user says so by name or operator type. What is not chosen is pinned; passes leave that.
//!
//! Decides nothing by itself: without patterns every node is free. Knows the words that choose a node again, too, for recipes.

use super::{Error, Report};
use crate::onnx::{Graph, Model, Node, shown};
use assayer_crds::stages::MAX_PATTERN;
use std::collections::{BTreeSet, HashMap};

const NAME: &str = "choose-nodes";
/// Why a node is pinned.
const PINNED: &str = "quantize.only or quantize.except leaves it out";
/// Operator types that an error lists.
const MOST_TYPES: usize = 32;

/// Patterns for nodes: a name, the name of a first output, or an operator type; `*` stands for any characters.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Choice {
    /// Nodes that may change; all where there is none.
    pub only: Vec<String>,
    /// Nodes that may not, of those.
    pub except: Vec<String>,
}

impl Choice {
    /// Whether every node is free.
    pub fn is_empty(&self) -> bool {
        self.only.is_empty() && self.except.is_empty()
    }

    /// Pins every node that is not chosen, those of bodies included, and counts them. A pattern that matches no node is an error.
    pub fn pin(&self, model: &mut Model) -> Result<Report, Error> {
        for (field, patterns) in [("quantize.only", &self.only), ("quantize.except", &self.except)] {
            for pattern in patterns {
                let mut found = false;
                each_node(&mut model.graph, &mut |node| found |= matches(pattern, node));
                if !found {
                    return Err(unmatched(field, pattern, model));
                }
            }
        }
        let mut report = Report::new(NAME);
        each_node(&mut model.graph, &mut |node| {
            let named = |patterns: &[String]| patterns.iter().any(|pattern| matches(pattern, node));
            let free = (self.only.is_empty() || named(&self.only)) && !named(&self.except);
            node.pinned = (!free).then_some(PINNED);
            report.changed += usize::from(!free);
        });
        Ok(report)
    }
}

/// Frees all nodes, once the stage that the choice was for is done.
pub fn unpin(model: &mut Model) {
    each_node(&mut model.graph, &mut |node| {
        node.pinned = None;
        node.eight_bits = false;
    });
}

/// Pins the nodes of the main graph with these names, as `except` would with the patterns that are given back. A node that no pattern tells
/// apart stays free, and so do those behind the first `most`.
pub fn leave(model: &mut Model, names: &BTreeSet<String>, why: &'static str, most: usize) -> Vec<String> {
    let mut patterns = Vec::new();
    let words = Words::new(&model.graph);
    let nodes = model.graph.nodes.iter().enumerate();
    let chosen = nodes.filter(|(_, node)| names.contains(&node.name));
    let found: Vec<(usize, String)> = chosen
        .filter_map(|(position, node)| Some((position, words.of(node)?)))
        .take(most)
        .collect();
    for (position, pattern) in found {
        model.graph.nodes[position].pinned = Some(why);
        patterns.push(pattern);
    }
    patterns
}

/// Nodes of the main graph that one of `patterns` matches.
pub fn matched<'m>(model: &'m Model, patterns: &'m [String]) -> impl Iterator<Item = &'m Node> {
    let nodes = model.graph.nodes.iter();
    nodes.filter(|node| patterns.iter().any(|pattern| matches(pattern, node)))
}

fn each_node(graph: &mut Graph, visit: &mut dyn FnMut(&mut Node)) {
    for node in &mut graph.nodes {
        visit(node);
        node.bodies_mut().for_each(|body| each_node(body, visit));
    }
}

fn unmatched(field: &'static str, pattern: &str, model: &mut Model) -> Error {
    let mut types = BTreeSet::new();
    each_node(&mut model.graph, &mut |node| {
        types.insert(node.op_type.clone());
    });
    let types: Vec<String> = types.into_iter().take(MOST_TYPES).collect();
    Error::Pattern {
        field,
        what: "node",
        pattern: shown(pattern),
        known: shown(&types.join(", ")),
    }
}

/// Whether `pattern` is, or describes, the name of `node`, of its first output or its operator type.
pub(super) fn matches(pattern: &str, node: &Node) -> bool {
    [node.name.as_str(), node.output(), &node.op_type]
        .iter()
        .any(|text| !text.is_empty() && glob(pattern, text))
}

/// The names by which single nodes of a model, those of bodies included, can be chosen.
pub(super) struct Words<'g>(HashMap<&'g str, usize>);

impl<'g> Words<'g> {
    /// Of all nodes.
    pub(super) fn new(graph: &'g Graph) -> Self {
        let mut words = Self(HashMap::new());
        words.add(graph);
        words
    }

    fn add(&mut self, graph: &'g Graph) {
        for node in &graph.nodes {
            let texts = BTreeSet::from([node.name.as_str(), node.output(), &node.op_type]);
            for text in texts {
                *self.0.entry(text).or_default() += 1;
            }
            node.bodies().for_each(|body| self.add(body));
        }
    }

    /// A pattern that matches `node` and no other: its name, else its first output's; none where neither will do.
    pub(super) fn of(&self, node: &Node) -> Option<String> {
        let single = |text: &&str| {
            let length = text.chars().count();
            (1..=MAX_PATTERN).contains(&length) && !text.contains('*') && self.0.get(text) == Some(&1)
        };
        let mut names = [node.name.as_str(), node.output()].into_iter();
        names.find(single).map(str::to_owned)
    }
}

/// Whether `pattern` describes all of `text`: its parts between `*` follow each other, the first at the start and the last at the end.
fn glob(pattern: &str, text: &str) -> bool {
    let Some((first, rest)) = pattern.split_once('*') else {
        return pattern == text;
    };
    let Some(mut text) = text.strip_prefix(first) else {
        return false;
    };
    let (middle, last) = rest.rsplit_once('*').unwrap_or(("", rest));
    for part in middle.split('*') {
        match text.find(part) {
            Some(at) => text = &text[at + part.len()..],
            None => return false,
        }
    }
    text.ends_with(last)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::Build;

    #[test]
    fn stars_stand_for_any_characters() {
        for (pattern, text, expected) in [
            ("Conv", "Conv", true),
            ("Conv", "ConvTranspose", false),
            ("Conv*", "ConvTranspose", true),
            ("*", "anything", true),
            ("/layer.*/conv*/Conv", "/layer.3/conv1/Conv", true),
            ("/layer.*/conv*/Conv", "/layer.3/conv1/Relu", false),
            ("a*a", "a", false),
            ("*ab*ab", "abab", true),
            ("*ab*ab", "ab", false),
            ("a**b", "ab", true),
        ] {
            assert_eq!(glob(pattern, text), expected, "{pattern} {text}");
        }
    }

    fn model() -> Model {
        let mut b = Build::opset(17);
        let x = b.input("x", &[2, 2]);
        let relu = b.node("Relu", &[&x]);
        let tanh = b.node("Tanh", &[&relu]);
        b.finish(&[&tanh])
    }

    fn pinned(only: &[&str], except: &[&str]) -> Result<Vec<bool>, String> {
        let texts = |patterns: &[&str]| patterns.iter().map(|text| (*text).to_owned()).collect();
        let choice = Choice {
            only: texts(only),
            except: texts(except),
        };
        let mut model = model();
        choice.pin(&mut model).map_err(|error| error.to_string())?;
        let pinned = model.graph.nodes.iter().map(|node| node.pinned.is_some()).collect();
        unpin(&mut model);
        assert!(model.graph.nodes.iter().all(|node| node.pinned.is_none()));
        Ok(pinned)
    }

    #[test]
    fn what_is_not_chosen_is_pinned() {
        assert_eq!(pinned(&[], &[]).unwrap(), [false, false]);
        assert_eq!(pinned(&["Relu"], &[]).unwrap(), [false, true]);
        assert_eq!(pinned(&[], &["tanh*"]).unwrap(), [false, true]);
        assert_eq!(pinned(&["*"], &["Relu"]).unwrap(), [true, false]);
    }

    #[test]
    fn a_word_chooses_its_node_and_no_other() {
        let mut model = model();
        model.graph.nodes[0].name = "Tanh".to_owned();
        model.graph.nodes[1].name = "last".to_owned();
        let words = |model: &Model| {
            let words = Words::new(&model.graph);
            let words: Vec<Option<String>> = model.graph.nodes.iter().map(|node| words.of(node)).collect();
            words
        };
        let output = model.graph.nodes[0].output().to_owned();
        assert_eq!(words(&model), [Some(output.clone()), Some("last".to_owned())]);
        for word in words(&model).iter().flatten() {
            let chosen = model.graph.nodes.iter().filter(|node| matches(word, node));
            assert_eq!(chosen.count(), 1, "{word}");
        }
        model.graph.nodes[0].name = "*".to_owned();
        model.graph.nodes[1].name = "n".repeat(MAX_PATTERN + 1);
        model.graph.nodes[1].outputs[0].clone_from(&output);
        assert_eq!(words(&model), [None, None], "neither is single, short and plain");
    }

    #[test]
    fn what_is_left_by_name_is_what_its_patterns_match() {
        let mut model = model();
        model.graph.nodes[0].name = "Tanh".to_owned();
        model.graph.nodes[1].name = "*".to_owned();
        let all = ["Tanh", "*"].map(str::to_owned).into();
        let first = leave(&mut model.clone(), &all, "why", 1);
        let patterns = leave(&mut model, &all, "why", 9);
        assert_eq!(first, patterns[..1]);
        assert!(model.graph.nodes.iter().all(|node| node.pinned == Some("why")));
        assert_eq!(matched(&model, &patterns).count(), 2);
        unpin(&mut model);
        Choice {
            only: Vec::new(),
            except: patterns,
        }
        .pin(&mut model)
        .unwrap();
        assert!(model.graph.nodes.iter().all(|node| node.pinned == Some(PINNED)));
    }

    #[test]
    fn a_pattern_that_matches_nothing_is_named() {
        for (only, except, field) in [
            (&["Gemm"][..], &[][..], "quantize.only"),
            (&[], &["Gemm"], "quantize.except"),
        ] {
            let text = pinned(only, except).unwrap_err();
            assert!(
                text.contains(field) && text.contains("Gemm") && text.contains("Relu, Tanh"),
                "{text}"
            );
        }
    }
}
