//! Bytes to [`Model`]: every length checked before it is believed, every allocation charged to the budget.
//!
//! Decides whether bytes are a well-formed ONNX file within the limits. Whether the graph makes sense is `check`'s.

use super::{
    decode_tensor::tensor,
    error::{Error, shown},
    external::Folder,
    limits::Budget,
    model::{Attribute, AttributeValue, Function, Graph, Model, Node, Opset, Tensor, ValueInfo},
    value_type,
    wire::{Field, Fields},
};
use bytes::Bytes;

/// What decoding needs besides the bytes in hand.
pub(super) struct Context<'a> {
    /// The whole file: payloads are slices of it.
    pub(super) source: &'a Bytes,
    /// Where external data may be; none for a model that is only bytes.
    pub(super) folder: Option<&'a mut Folder>,
    pub(super) budget: Budget,
}

impl Context<'_> {
    pub(super) fn string(&mut self, field: &Field<'_>) -> Result<String, Error> {
        let text = field.text()?;
        self.budget.string(text.len())?;
        Ok(text.to_owned())
    }

    fn name(&mut self, field: &Field<'_>) -> Result<String, Error> {
        self.budget.name()?;
        self.string(field)
    }

    pub(super) fn shared(&self, bytes: &[u8]) -> Bytes {
        self.source.slice_ref(bytes)
    }

    pub(super) fn rest(&mut self, rest: &mut Vec<u8>, field: &Field<'_>) -> Result<(), Error> {
        self.budget.bytes(field.raw.len())?;
        rest.extend_from_slice(field.raw);
        Ok(())
    }
}

pub(super) fn model(ctx: &mut Context<'_>, bytes: &[u8]) -> Result<Model, Error> {
    let (mut model, mut seen, mut graph_bytes) = (Model::default(), 0, None);
    for field in Fields::new(bytes, "model") {
        let field = field?;
        match field.number {
            1 => {
                field.once(&mut seen)?;
                model.ir_version = field.int64()?;
            }
            7 => {
                field.once(&mut seen)?;
                graph_bytes = Some(field.bytes()?);
            }
            8 => model.opsets.push(opset(ctx, field.bytes()?)?),
            20 => {
                return Err(Error::unsupported(
                    "training information",
                    "export the model for inference",
                ));
            }
            25 => {
                ctx.budget.function()?;
                model.functions.push(function(ctx, field.bytes()?)?);
            }
            _ => ctx.rest(&mut model.rest, &field)?,
        }
    }
    let graph_bytes = graph_bytes.ok_or_else(|| Error::malformed("model", "no graph"))?;
    model.graph = graph(ctx, graph_bytes, 1)?;
    Ok(model)
}

fn opset(ctx: &mut Context<'_>, bytes: &[u8]) -> Result<Opset, Error> {
    let (mut opset, mut seen) = (Opset::default(), 0);
    ctx.budget.name()?;
    for field in Fields::new(bytes, "opset import") {
        let field = field?;
        match field.number {
            1 => {
                field.once(&mut seen)?;
                opset.domain = domain(ctx, &field)?;
            }
            2 => {
                field.once(&mut seen)?;
                opset.version = field.int64()?;
            }
            _ => ctx.rest(&mut opset.rest, &field)?,
        }
    }
    Ok(opset)
}

/// ONNX's own domain has two spellings; inside there is only the empty one.
fn domain(ctx: &mut Context<'_>, field: &Field<'_>) -> Result<String, Error> {
    let domain = ctx.string(field)?;
    Ok(if domain == "ai.onnx" { String::new() } else { domain })
}

fn function(ctx: &mut Context<'_>, bytes: &[u8]) -> Result<Function, Error> {
    let (mut function, mut seen) = (Function::default(), 0);
    for field in Fields::new(bytes, "function") {
        let field = field?;
        match field.number {
            1 => {
                field.once(&mut seen)?;
                function.name = ctx.name(&field)?;
            }
            4 => function.inputs.push(ctx.name(&field)?),
            5 => function.outputs.push(ctx.name(&field)?),
            7 => function.nodes.push(node(ctx, field.bytes()?, 1)?),
            9 => function.opsets.push(opset(ctx, field.bytes()?)?),
            10 => {
                field.once(&mut seen)?;
                function.domain = domain(ctx, &field)?;
            }
            13 => {
                return Err(Error::unsupported(
                    "an overloaded function",
                    "inline the model's functions",
                ));
            }
            _ => ctx.rest(&mut function.rest, &field)?,
        }
    }
    Ok(function)
}

pub(super) fn graph(ctx: &mut Context<'_>, bytes: &[u8], depth: u32) -> Result<Graph, Error> {
    ctx.budget.depth(depth)?;
    let (mut graph, mut seen) = (Graph::default(), 0);
    for field in Fields::new(bytes, "graph") {
        let field = field?;
        match field.number {
            1 => graph.nodes.push(node(ctx, field.bytes()?, depth)?),
            2 => {
                field.once(&mut seen)?;
                graph.name = ctx.string(&field)?;
            }
            5 => graph.initializers.push(tensor(ctx, field.bytes()?)?),
            11 => graph.inputs.push(value_info(ctx, field.bytes()?)?),
            12 => graph.outputs.push(value_info(ctx, field.bytes()?)?),
            13 => graph.value_info.push(value_info(ctx, field.bytes()?)?),
            15 => return Err(Error::unsupported("a sparse initializer", "export dense weights")),
            _ => ctx.rest(&mut graph.rest, &field)?,
        }
    }
    Ok(graph)
}

fn value_info(ctx: &mut Context<'_>, bytes: &[u8]) -> Result<ValueInfo, Error> {
    let (mut info, mut seen) = (ValueInfo::default(), 0);
    for field in Fields::new(bytes, "value info") {
        let field = field?;
        match field.number {
            1 => {
                field.once(&mut seen)?;
                info.name = ctx.name(&field)?;
            }
            2 => {
                field.once(&mut seen)?;
                value_type::check(&ctx.budget, field.bytes()?, 1)?;
                info.type_proto = Some(ctx.shared(field.bytes()?));
            }
            _ => ctx.rest(&mut info.rest, &field)?,
        }
    }
    Ok(info)
}

fn node(ctx: &mut Context<'_>, bytes: &[u8], depth: u32) -> Result<Node, Error> {
    ctx.budget.node()?;
    let (mut node, mut seen) = (Node::default(), 0);
    for field in Fields::new(bytes, "node") {
        let field = field?;
        if matches!(field.number, 3 | 4 | 7 | 8) {
            field.once(&mut seen)?;
        }
        match field.number {
            1 => node.inputs.push(ctx.name(&field)?),
            2 => node.outputs.push(ctx.name(&field)?),
            3 => node.name = ctx.string(&field)?,
            4 => node.op_type = ctx.string(&field)?,
            5 => {
                let attribute = attribute(ctx, field.bytes()?, depth)?;
                if node.attribute(&attribute.name).is_some() {
                    let name = shown(&attribute.name);
                    return Err(Error::malformed("node", format!("attribute {name} appears twice")));
                }
                node.attributes.push(attribute);
            }
            7 => node.domain = domain(ctx, &field)?,
            8 if !field.bytes()?.is_empty() => {
                return Err(Error::unsupported(
                    "an overloaded function",
                    "inline the model's functions",
                ));
            }
            _ => ctx.rest(&mut node.rest, &field)?,
        }
    }
    Ok(node)
}

/// Everything an `AttributeProto` can hold, before its type says which part counts.
#[derive(Default)]
struct Parts {
    name: String,
    kind: i64,
    reference: String,
    float: Option<f32>,
    int: Option<i64>,
    string: Option<Bytes>,
    tensor: Option<Tensor>,
    graph: Option<Box<Graph>>,
    type_proto: Option<Bytes>,
    floats: Vec<f32>,
    ints: Vec<i64>,
    strings: Vec<Bytes>,
    tensors: Vec<Tensor>,
    graphs: Vec<Graph>,
    types: Vec<Bytes>,
    rest: Vec<u8>,
}

fn attribute(ctx: &mut Context<'_>, bytes: &[u8], depth: u32) -> Result<Attribute, Error> {
    ctx.budget.attribute()?;
    let (mut parts, mut seen) = (Parts::default(), 0);
    for field in Fields::new(bytes, "attribute") {
        let field = field?;
        if matches!(field.number, 1..=6 | 14 | 20 | 21) {
            field.once(&mut seen)?;
        }
        attribute_field(ctx, &mut parts, &field, depth)?;
    }
    parts.finish()
}

fn attribute_field(ctx: &mut Context<'_>, parts: &mut Parts, field: &Field<'_>, depth: u32) -> Result<(), Error> {
    match field.number {
        1 => parts.name = ctx.string(field)?,
        2 => parts.float = Some(field.float()?),
        3 => parts.int = Some(field.int64()?),
        4 => parts.string = Some(ctx.shared(field.bytes()?)),
        5 => parts.tensor = Some(tensor(ctx, field.bytes()?)?),
        6 => parts.graph = Some(Box::new(graph(ctx, field.bytes()?, depth + 1)?)),
        7 => {
            let bytes = field.fixed32s()?;
            ctx.budget.bytes(bytes.len())?;
            parts
                .floats
                .extend(bytes.as_chunks::<4>().0.iter().map(|bytes| f32::from_le_bytes(*bytes)));
        }
        8 => field.varints(|value| {
            ctx.budget.bytes(size_of::<i64>())?;
            parts.ints.push(value.cast_signed());
            Ok(())
        })?,
        9 => {
            ctx.budget.bytes(size_of::<Bytes>())?;
            parts.strings.push(ctx.shared(field.bytes()?));
        }
        10 => parts.tensors.push(tensor(ctx, field.bytes()?)?),
        11 => parts.graphs.push(graph(ctx, field.bytes()?, depth + 1)?),
        14 => {
            value_type::check(&ctx.budget, field.bytes()?, 1)?;
            parts.type_proto = Some(ctx.shared(field.bytes()?));
        }
        15 => {
            value_type::check(&ctx.budget, field.bytes()?, 1)?;
            ctx.budget.bytes(size_of::<Bytes>())?;
            parts.types.push(ctx.shared(field.bytes()?));
        }
        20 => parts.kind = field.int64()?,
        21 => parts.reference = ctx.string(field)?,
        22 | 23 => return Err(Error::unsupported("a sparse tensor attribute", "export dense tensors")),
        _ => ctx.rest(&mut parts.rest, field)?,
    }
    Ok(())
}

impl Parts {
    /// ONNX's numbers of the types that are present.
    fn present(&self) -> Vec<i64> {
        let flags = [
            (1, self.float.is_some()),
            (2, self.int.is_some()),
            (3, self.string.is_some()),
            (4, self.tensor.is_some()),
            (5, self.graph.is_some()),
            (6, !self.floats.is_empty()),
            (7, !self.ints.is_empty()),
            (8, !self.strings.is_empty()),
            (9, !self.tensors.is_empty()),
            (10, !self.graphs.is_empty()),
            (13, self.type_proto.is_some()),
            (14, !self.types.is_empty()),
        ];
        flags
            .into_iter()
            .filter_map(|(kind, present)| present.then_some(kind))
            .collect()
    }

    /// The value that the type names; an attribute that carries anything else besides it is ambiguous and refused.
    fn finish(self) -> Result<Attribute, Error> {
        let present = self.present();
        let kind = match (self.kind, present.as_slice()) {
            (0, [only]) => *only,
            (kind, _) => kind,
        };
        let ambiguous = if self.reference.is_empty() {
            present.iter().any(|&p| p != kind)
        } else {
            !present.is_empty()
        };
        if ambiguous {
            let name = shown(&self.name);
            let what = format!("{name} has type {kind} and holds values of types {present:?}");
            return Err(Error::malformed("attribute", what));
        }
        let missing = || {
            Error::malformed(
                "attribute",
                format!("{} of type {kind} has no value", shown(&self.name)),
            )
        };
        let value = match kind {
            kind if !self.reference.is_empty() => AttributeValue::Reference {
                name: self.reference,
                kind,
            },
            1 => AttributeValue::Float(self.float.unwrap_or_default()),
            2 => AttributeValue::Int(self.int.unwrap_or_default()),
            3 => AttributeValue::String(self.string.unwrap_or_default()),
            4 => AttributeValue::Tensor(self.tensor.ok_or_else(missing)?),
            5 => AttributeValue::Graph(self.graph.ok_or_else(missing)?),
            6 => AttributeValue::Floats(self.floats),
            7 => AttributeValue::Ints(self.ints),
            8 => AttributeValue::Strings(self.strings),
            9 => AttributeValue::Tensors(self.tensors),
            10 => AttributeValue::Graphs(self.graphs),
            13 => AttributeValue::Type(self.type_proto.ok_or_else(missing)?),
            14 => AttributeValue::Types(self.types),
            _ => return Err(missing()),
        };
        Ok(Attribute {
            name: self.name,
            value,
            rest: self.rest,
        })
    }
}
