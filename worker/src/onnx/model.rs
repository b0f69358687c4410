//! The decoded model: what Assayer understands of an ONNX file, and the rest of it byte for byte.
//!
//! Every message keeps the fields that are not interpreted here in `rest`, so that a round trip loses nothing.
//! Tensor payloads are shared slices of the file (or of its mapped external data): cloning a model copies no weights.

use super::{beside::Beside, element::ElementType, error::Error};
use crate::mapped;
use bytes::Bytes;

/// A whole model (`ModelProto`).
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Model {
    /// Version of the file format.
    pub ir_version: i64,
    /// Imported operator sets, one a domain.
    pub opsets: Vec<Opset>,
    /// The main graph.
    pub graph: Graph,
    /// Local functions.
    pub functions: Vec<Function>,
    /// Fields not interpreted (producer, documentation, metadata), as encoded.
    pub rest: Vec<u8>,
    /// The files beside it that its weights were mapped from.
    pub beside: Beside,
}

/// An imported operator set. The domain of ONNX itself is the empty string.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Opset {
    /// Domain.
    pub domain: String,
    /// Version.
    pub version: i64,
    /// Fields not interpreted.
    pub rest: Vec<u8>,
}

/// A graph (`GraphProto`): the main one, or the body of a control-flow node.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Graph {
    /// Name.
    pub name: String,
    /// Nodes in execution order.
    pub nodes: Vec<Node>,
    /// Constant tensors.
    pub initializers: Vec<Tensor>,
    /// Inputs.
    pub inputs: Vec<ValueInfo>,
    /// Outputs.
    pub outputs: Vec<ValueInfo>,
    /// Types of intermediate values, where the exporter left them.
    pub value_info: Vec<ValueInfo>,
    /// Fields not interpreted.
    pub rest: Vec<u8>,
}

/// One operator call (`NodeProto`).
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Node {
    /// Name; may be empty in files, unique after normalization.
    pub name: String,
    /// Operator.
    pub op_type: String,
    /// Domain; empty for ONNX itself.
    pub domain: String,
    /// Input values by position; an empty name is an omitted optional input.
    pub inputs: Vec<String>,
    /// Output values by position; an empty name is an omitted optional output.
    pub outputs: Vec<String>,
    /// Attributes.
    pub attributes: Vec<Attribute>,
    /// Why passes leave it as it is, if they do. Lives in memory only: no file says so.
    pub pinned: Option<&'static str>,
    /// Whether its weights keep 8 bits where others get 4. Lives in memory only.
    pub eight_bits: bool,
    /// Fields not interpreted.
    pub rest: Vec<u8>,
}

/// A named attribute.
#[derive(Debug, Clone, PartialEq)]
pub struct Attribute {
    /// Name.
    pub name: String,
    /// Value.
    pub value: AttributeValue,
    /// Fields not interpreted.
    pub rest: Vec<u8>,
}

/// The value of an attribute.
#[derive(Debug, Clone, PartialEq)]
#[allow(missing_docs, reason = "the names are ONNX's own")]
pub enum AttributeValue {
    Float(f32),
    Int(i64),
    String(Bytes),
    Tensor(Tensor),
    Graph(Box<Graph>),
    Floats(Vec<f32>),
    Ints(Vec<i64>),
    Strings(Vec<Bytes>),
    Tensors(Vec<Tensor>),
    Graphs(Vec<Graph>),
    /// An encoded `TypeProto`.
    Type(Bytes),
    /// Encoded `TypeProto`s.
    Types(Vec<Bytes>),
    /// In functions: the value is that of the function's attribute of this name; ONNX's number of the type.
    Reference {
        name: String,
        kind: i64,
    },
}

/// A constant tensor with its data.
#[derive(Debug, Clone, PartialEq)]
pub struct Tensor {
    /// Name; empty for tensors in attributes.
    pub name: String,
    /// Type of the elements.
    pub element: ElementType,
    /// Dimensions, outermost first; none for a scalar.
    pub dims: Vec<usize>,
    /// The elements.
    pub data: Data,
    /// Fields not interpreted.
    pub rest: Vec<u8>,
}

/// Elements of a tensor.
#[derive(Debug, Clone, PartialEq)]
pub enum Data {
    /// Little-endian, row-major, exactly as many bytes as type and dimensions ask for.
    Raw(Bytes),
    /// Strings, exactly as many as the dimensions ask for.
    Strings(Vec<Bytes>),
}

/// Name and type of a value (`ValueInfoProto`).
#[derive(Debug, Clone, Default, PartialEq)]
pub struct ValueInfo {
    /// Name of the value.
    pub name: String,
    /// Encoded `TypeProto`, checked to be well-formed; none where the type is left to inference.
    pub type_proto: Option<Bytes>,
    /// Fields not interpreted.
    pub rest: Vec<u8>,
}

/// A function local to the model (`FunctionProto`).
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Function {
    /// Name, used as operator.
    pub name: String,
    /// Domain.
    pub domain: String,
    /// Formal inputs.
    pub inputs: Vec<String>,
    /// Formal outputs.
    pub outputs: Vec<String>,
    /// Body in execution order.
    pub nodes: Vec<Node>,
    /// Operator sets of the body.
    pub opsets: Vec<Opset>,
    /// Fields not interpreted.
    pub rest: Vec<u8>,
}

/// One dimension of a declared type.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Dim {
    /// A fixed size.
    Fixed(i64),
    /// A size known by name only.
    Named(String),
    /// Nothing is said.
    Unknown,
}

/// A declared tensor type.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TensorType {
    /// Type of the elements.
    pub element: ElementType,
    /// Dimensions, where declared.
    pub shape: Option<Vec<Dim>>,
}

impl Model {
    /// Version of an imported operator set; `""` is ONNX itself.
    pub fn opset(&self, domain: &str) -> Option<i64> {
        self.opsets
            .iter()
            .find(|opset| opset.domain == domain)
            .map(|opset| opset.version)
    }

    /// Imports `domain` at `version`, or raises what is imported.
    pub fn import(&mut self, domain: &str, version: i64) {
        match self.opsets.iter_mut().find(|opset| opset.domain == domain) {
            Some(opset) => opset.version = opset.version.max(version),
            None => self.opsets.push(Opset {
                domain: domain.to_owned(),
                version,
                rest: Vec::new(),
            }),
        }
    }
}

impl Node {
    /// A node of ONNX's own domain, unnamed until normalization.
    pub fn new(op_type: &str, inputs: &[&str], outputs: &[&str]) -> Self {
        Self {
            op_type: op_type.to_owned(),
            inputs: inputs.iter().map(|&name| name.to_owned()).collect(),
            outputs: outputs.iter().map(|&name| name.to_owned()).collect(),
            ..Self::default()
        }
    }

    /// The same node in another domain.
    #[must_use]
    pub fn in_domain(mut self, domain: &str) -> Self {
        domain.clone_into(&mut self.domain);
        self
    }

    /// The same node with one more attribute.
    #[must_use]
    pub fn with(mut self, name: &str, value: AttributeValue) -> Self {
        self.attributes.push(Attribute {
            name: name.to_owned(),
            value,
            rest: Vec::new(),
        });
        self
    }

    /// Whether this is `op_type` of ONNX's own domain.
    pub fn is(&self, op_type: &str) -> bool {
        self.domain.is_empty() && self.op_type == op_type
    }

    /// The attribute's value.
    pub fn attribute(&self, name: &str) -> Option<&AttributeValue> {
        self.attributes
            .iter()
            .find(|attribute| attribute.name == name)
            .map(|attribute| &attribute.value)
    }

    /// An integer attribute, or `default` where it is absent; `None` where it is of another type.
    pub fn int(&self, name: &str, default: i64) -> Option<i64> {
        match self.attribute(name) {
            None => Some(default),
            Some(AttributeValue::Int(value)) => Some(*value),
            Some(_) => None,
        }
    }

    /// A float attribute, or `default` where it is absent; `None` where it is of another type.
    pub fn float(&self, name: &str, default: f32) -> Option<f32> {
        match self.attribute(name) {
            None => Some(default),
            Some(AttributeValue::Float(value)) => Some(*value),
            Some(_) => None,
        }
    }

    /// A list of integers.
    pub fn ints(&self, name: &str) -> Option<&[i64]> {
        match self.attribute(name) {
            Some(AttributeValue::Ints(values)) => Some(values),
            _ => None,
        }
    }

    /// Removes an attribute and returns its value.
    pub fn take_attribute(&mut self, name: &str) -> Option<AttributeValue> {
        let index = self.attributes.iter().position(|attribute| attribute.name == name)?;
        Some(self.attributes.remove(index).value)
    }

    /// Input at `index`, unless it is omitted.
    pub fn input(&self, index: usize) -> Option<&str> {
        self.inputs
            .get(index)
            .map(String::as_str)
            .filter(|name| !name.is_empty())
    }

    /// First output; the empty string if there is none.
    pub fn output(&self) -> &str {
        self.outputs.first().map_or("", String::as_str)
    }

    /// Bodies of control flow, in order.
    pub fn bodies(&self) -> impl Iterator<Item = &Graph> {
        self.attributes.iter().flat_map(|attribute| match &attribute.value {
            AttributeValue::Graph(graph) => std::slice::from_ref(&**graph),
            AttributeValue::Graphs(graphs) => graphs.as_slice(),
            _ => &[],
        })
    }

    /// Bodies of control flow, in order.
    pub fn bodies_mut(&mut self) -> impl Iterator<Item = &mut Graph> {
        self.attributes
            .iter_mut()
            .flat_map(|attribute| match &mut attribute.value {
                AttributeValue::Graph(graph) => std::slice::from_mut(&mut **graph),
                AttributeValue::Graphs(graphs) => graphs.as_mut_slice(),
                _ => &mut [],
            })
    }

    /// Name for reports: the node's own, else its first output.
    pub fn label(&self) -> &str {
        if self.name.is_empty() {
            self.output()
        } else {
            &self.name
        }
    }
}

impl Tensor {
    /// A tensor from little-endian bytes. Errors if their number does not fit type and dimensions.
    pub fn new(name: &str, element: ElementType, dims: &[usize], bytes: impl Into<Bytes>) -> Result<Self, Error> {
        let bytes = bytes.into();
        let wanted = count(dims).and_then(|count| element.bytes_for(count));
        if wanted != Some(bytes.len() as u64) {
            let reason = format!("{element:?} {dims:?} does not take {} bytes", bytes.len());
            return Err(Error::tensor(name, reason));
        }
        Ok(Self {
            name: name.to_owned(),
            element,
            dims: dims.to_vec(),
            data: Data::Raw(bytes),
            rest: Vec::new(),
        })
    }

    /// A tensor of 32-bit floats.
    pub fn floats(name: &str, dims: &[usize], values: &[f32]) -> Result<Self, Error> {
        let bytes: Vec<u8> = values.iter().flat_map(|value| value.to_le_bytes()).collect();
        Self::new(name, ElementType::Float, dims, bytes)
    }

    /// A tensor of 64-bit integers.
    pub fn int64s(name: &str, dims: &[usize], values: &[i64]) -> Result<Self, Error> {
        let bytes: Vec<u8> = values.iter().flat_map(|value| value.to_le_bytes()).collect();
        Self::new(name, ElementType::Int64, dims, bytes)
    }

    /// A tensor of 32-bit integers.
    pub fn int32s(name: &str, dims: &[usize], values: &[i32]) -> Result<Self, Error> {
        let bytes: Vec<u8> = values.iter().flat_map(|value| value.to_le_bytes()).collect();
        Self::new(name, ElementType::Int32, dims, bytes)
    }

    /// Number of elements (the constructor and the reader made sure that it does not overflow).
    pub fn len(&self) -> usize {
        self.dims.iter().product()
    }

    /// Whether there is no element.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// The bytes; empty for strings.
    pub fn bytes(&self) -> &[u8] {
        match &self.data {
            Data::Raw(bytes) => bytes,
            Data::Strings(_) => &[],
        }
    }

    /// Elements as 32-bit floats, if that is their type.
    pub fn to_floats(&self) -> Option<Vec<f32>> {
        let bytes = self.float_bytes()?;
        Some(bytes.iter().map(|bytes| f32::from_le_bytes(*bytes)).collect())
    }

    /// Elements as little-endian 32-bit floats where they lie, if that is their type.
    pub fn float_bytes(&self) -> Option<&[[u8; 4]]> {
        (self.element == ElementType::Float).then(|| self.bytes().as_chunks::<4>().0)
    }

    /// Lets the kernel take the memory of these bytes back: they are unlikely to be read again, and come from the file if they are.
    pub fn release(&self) {
        mapped::release(self.bytes());
    }

    /// Elements as 64-bit integers, if they are 32- or 64-bit integers.
    pub fn to_ints(&self) -> Option<Vec<i64>> {
        match self.element {
            ElementType::Int64 => Some(
                self.bytes()
                    .as_chunks::<8>()
                    .0
                    .iter()
                    .map(|bytes| i64::from_le_bytes(*bytes))
                    .collect(),
            ),
            ElementType::Int32 => Some(
                self.bytes()
                    .as_chunks::<4>()
                    .0
                    .iter()
                    .map(|bytes| i64::from(i32::from_le_bytes(*bytes)))
                    .collect(),
            ),
            _ => None,
        }
    }

    /// The single element as a float, if there is exactly one.
    pub fn to_scalar(&self) -> Option<f32> {
        if self.len() == 1 {
            self.to_floats()?.first().copied()
        } else {
            None
        }
    }
}

/// Product of dimensions; `None` on overflow.
pub(super) fn count(dims: &[usize]) -> Option<u64> {
    dims.iter()
        .try_fold(1_u64, |product, &dim| product.checked_mul(dim as u64))
}

/// Visits `graph` and every graph inside it, outermost first.
pub fn visit_graphs<'g>(graph: &'g Graph, visit: &mut impl FnMut(&'g Graph)) {
    visit(graph);
    for body in graph.nodes.iter().flat_map(Node::bodies) {
        visit_graphs(body, visit);
    }
}
