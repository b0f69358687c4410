//! [`Model`] to bytes: canonical order, weights shared, and nothing that depends on time, threads or hash order.

use super::{
    model::{Attribute, AttributeValue, Data, Function, Graph, Model, Node, Opset, Tensor, ValueInfo},
    wire::Rope,
};
use std::collections::BTreeMap;

/// Where the bytes of tensors go that do not stay in the protobuf: tensor name to (file, offset).
pub(super) type Placement = BTreeMap<String, (String, u64)>;

pub(super) fn model(model: &Model, placement: &Placement) -> Rope {
    let mut rope = Rope::default();
    rope.int(1, model.ir_version);
    rope.raw(&model.rest);
    rope.message(7, graph(&model.graph, placement));
    model.opsets.iter().for_each(|set| rope.message(8, opset(set)));
    model
        .functions
        .iter()
        .for_each(|local| rope.message(25, function(local)));
    rope
}

fn opset(set: &Opset) -> Rope {
    let mut rope = Rope::default();
    rope.slice(1, set.domain.as_bytes());
    rope.int(2, set.version);
    rope.raw(&set.rest);
    rope
}

fn function(function: &Function) -> Rope {
    let mut rope = Rope::default();
    rope.text(1, &function.name);
    function.inputs.iter().for_each(|name| rope.slice(4, name.as_bytes()));
    function.outputs.iter().for_each(|name| rope.slice(5, name.as_bytes()));
    function.nodes.iter().for_each(|body| rope.message(7, node(body)));
    function.opsets.iter().for_each(|set| rope.message(9, opset(set)));
    rope.text(10, &function.domain);
    rope.raw(&function.rest);
    rope
}

fn graph(graph: &Graph, placement: &Placement) -> Rope {
    let mut rope = Rope::default();
    graph.nodes.iter().for_each(|inner| rope.message(1, node(inner)));
    rope.text(2, &graph.name);
    graph
        .initializers
        .iter()
        .for_each(|inner| rope.message(5, tensor(inner, placement.get(&inner.name))));
    graph.inputs.iter().for_each(|info| rope.message(11, value_info(info)));
    graph.outputs.iter().for_each(|info| rope.message(12, value_info(info)));
    graph
        .value_info
        .iter()
        .for_each(|info| rope.message(13, value_info(info)));
    rope.raw(&graph.rest);
    rope
}

fn node(node: &Node) -> Rope {
    let mut rope = Rope::default();
    node.inputs.iter().for_each(|name| rope.slice(1, name.as_bytes()));
    node.outputs.iter().for_each(|name| rope.slice(2, name.as_bytes()));
    rope.text(3, &node.name);
    rope.text(4, &node.op_type);
    node.attributes
        .iter()
        .for_each(|inner| rope.message(5, attribute(inner)));
    rope.text(7, &node.domain);
    rope.raw(&node.rest);
    rope
}

fn value_info(info: &ValueInfo) -> Rope {
    let mut rope = Rope::default();
    rope.text(1, &info.name);
    if let Some(type_proto) = &info.type_proto {
        rope.payload(2, type_proto);
    }
    rope.raw(&info.rest);
    rope
}

fn attribute(attribute: &Attribute) -> Rope {
    let mut rope = Rope::default();
    rope.text(1, &attribute.name);
    let inner = Placement::new();
    let kind = match &attribute.value {
        AttributeValue::Float(value) => {
            rope.float(2, *value);
            1
        }
        AttributeValue::Int(value) => {
            rope.int(3, *value);
            2
        }
        AttributeValue::String(bytes) => {
            rope.payload(4, bytes);
            3
        }
        AttributeValue::Tensor(value) => {
            rope.message(5, tensor(value, None));
            4
        }
        AttributeValue::Graph(body) => {
            rope.message(6, graph(body, &inner));
            5
        }
        AttributeValue::Floats(values) => {
            for value in values {
                rope.float(7, *value);
            }
            6
        }
        AttributeValue::Ints(values) => {
            for value in values {
                rope.int(8, *value);
            }
            7
        }
        AttributeValue::Strings(values) => {
            for value in values {
                rope.payload(9, value);
            }
            8
        }
        AttributeValue::Tensors(values) => {
            for value in values {
                rope.message(10, tensor(value, None));
            }
            9
        }
        AttributeValue::Graphs(bodies) => {
            for body in bodies {
                rope.message(11, graph(body, &inner));
            }
            10
        }
        AttributeValue::Type(type_proto) => {
            rope.payload(14, type_proto);
            13
        }
        AttributeValue::Types(types) => {
            for type_proto in types {
                rope.payload(15, type_proto);
            }
            14
        }
        AttributeValue::Reference { name, kind } => {
            rope.text(21, name);
            *kind
        }
    };
    rope.int(20, kind);
    rope.raw(&attribute.rest);
    rope
}

fn tensor(tensor: &Tensor, place: Option<&(String, u64)>) -> Rope {
    let mut rope = Rope::default();
    rope.packed_ints(1, tensor.dims.iter().map(|&dim| i64::try_from(dim).unwrap_or(i64::MAX)));
    rope.int(2, tensor.element.number());
    rope.text(8, &tensor.name);
    match (&tensor.data, place) {
        (Data::Strings(values), _) => values.iter().for_each(|value| rope.payload(6, value)),
        (Data::Raw(bytes), None) => rope.payload(9, bytes),
        (Data::Raw(bytes), Some((file, offset))) => {
            let entries = [
                ("location", file.clone()),
                ("offset", offset.to_string()),
                ("length", bytes.len().to_string()),
            ];
            for (key, value) in entries {
                let mut entry = Rope::default();
                entry.text(1, key);
                entry.text(2, &value);
                rope.message(13, entry);
            }
            rope.int(14, 1);
        }
    }
    rope.raw(&tensor.rest);
    rope
}
