//! Scale and zero point of integer inputs and outputs, in a model's metadata, and such a model with floats around it.
//!
//! Decides what metadata can say, and refuses what no quantizer has written. Never touches what lies between the ends.

use super::{
    element::ElementType,
    error::{Error, shown},
    index::Index,
    model::{Graph, Model, Node, Tensor, TensorType, ValueInfo},
    patch::Names,
    wire::{Fields, Rope},
};
use std::{collections::BTreeMap, fmt};

/// Number of `ModelProto.metadata_props`.
const METADATA: u32 = 14;
/// What keys begin with; the name of the input or output follows, and the value is `<scale> <zero point> <type>`.
const PREFIX: &str = "assayer.dev/quantized/";
/// What values end with.
const TYPE: &str = " uint8";

/// How a byte stands for a real number: `real = scale * (byte - zero_point)`.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Scale {
    /// Above 0.
    pub scale: f32,
    /// The byte of zero.
    pub zero_point: u8,
}

/// The scales of a model's inputs and outputs that stand for floats, by name.
pub type Ends = BTreeMap<String, Scale>;

impl Scale {
    fn parse(text: &str) -> Option<Self> {
        let mut words = text.strip_suffix(TYPE)?.split(' ');
        let scale: f32 = words.next()?.parse().ok()?;
        let zero_point = words.next()?.parse().ok()?;
        let sound = scale > 0.0 && scale.is_finite() && words.next().is_none();
        sound.then_some(Self { scale, zero_point })
    }
}

impl fmt::Display for Scale {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {}{TYPE}", self.scale, self.zero_point)
    }
}

/// Writes scales into the metadata, in the place of those that were there.
pub fn set_ends(model: &mut Model, ends: &Ends) -> Result<(), Error> {
    let mut rest = Vec::new();
    for field in Fields::new(&model.rest, "model") {
        let field = field?;
        if field.number != METADATA || field.bytes().ok().and_then(entry).is_none() {
            rest.extend_from_slice(field.raw);
        }
    }
    let mut added = Rope::default();
    for (name, scale) in ends {
        let mut entry = Rope::default();
        entry.text(1, &format!("{PREFIX}{name}"));
        entry.text(2, &scale.to_string());
        added.message(METADATA, entry);
    }
    rest.extend(added.to_vec());
    model.rest = rest;
    Ok(())
}

/// The scales that the metadata names.
///
/// # Errors
/// A scale that is not a positive number, a zero point that no byte has, a name twice.
pub fn ends(model: &Model) -> Result<Ends, Error> {
    let mut ends = Ends::new();
    for field in Fields::new(&model.rest, "model") {
        let field = field?;
        if field.number != METADATA {
            continue;
        }
        let Some((name, value)) = entry(field.bytes()?) else {
            continue;
        };
        let bad = || Error::malformed("metadata", format!("{PREFIX}{}: {}", shown(&name), shown(&value)));
        let scale = Scale::parse(&value).ok_or_else(bad)?;
        if ends.insert(name.clone(), scale).is_some() {
            return Err(bad());
        }
    }
    Ok(ends)
}

/// Name and value of an entry that is about a scale; others may be anything.
fn entry(bytes: &[u8]) -> Option<(String, String)> {
    let (mut key, mut value) = ("", "");
    for field in Fields::new(bytes, "metadata") {
        let field = field.ok()?;
        match field.number {
            1 => key = field.text().ok()?,
            2 => value = field.text().ok()?,
            _ => {}
        }
    }
    let name = key.strip_prefix(PREFIX)?;
    Some((name.to_owned(), value.to_owned()))
}

/// Lets a model take and give floats where its metadata has scales: a Quantize node behind each such input, a Dequantize node in front
/// of each such output, as its callers do. The number of them.
///
/// # Errors
/// Metadata that speaks of other inputs and outputs, or of ones that are no bytes.
pub fn floats_around(model: &mut Model) -> Result<usize, Error> {
    let ends = ends(model)?;
    if ends.is_empty() {
        return Ok(0);
    }
    let mut names = Names::new(&model.graph);
    for (name, scale) in &ends {
        wrap(&mut model.graph, (name, *scale), &mut names)?;
    }
    let graph = &mut model.graph;
    for info in graph.inputs.iter_mut().chain(&mut graph.outputs) {
        if ends.contains_key(&info.name) {
            let shape = info.tensor_type().and_then(|declared| declared.shape);
            info.type_proto =
                shape.and_then(|dims| ValueInfo::tensor(&info.name, ElementType::Float, &dims).type_proto);
        }
    }
    Ok(ends.len())
}

/// Puts the node for one end into `graph`.
fn wrap(graph: &mut Graph, (name, scale): (&str, Scale), names: &mut Names) -> Result<(), Error> {
    let wrong = |problem: &str| Error::malformed("metadata", format!("{PREFIX}{}: {problem}", shown(name)));
    let index = Index::new(graph);
    if index.uses(name).iter().any(|usage| usage.slot.is_none()) {
        return Err(wrong("a body of control flow reads it"));
    }
    let input = graph.inputs.iter().find(|input| input.name == name);
    let bytes = |declared: TensorType| declared.element == ElementType::Uint8 && declared.shape.is_some();
    match input {
        Some(input) if !input.tensor_type().is_some_and(bytes) => return Err(wrong("the input is of another type")),
        None if !index.is_output(name) || index.producer(name).is_none() => {
            return Err(wrong("the model has no such input or output"));
        }
        _ => {}
    }
    let inward = input.is_some();
    let [bytes, step, zero] = ["/bytes", "/scale", "/zero_point"].map(|suffix| names.fresh(name, suffix));
    let values = graph
        .nodes
        .iter_mut()
        .flat_map(|node| node.inputs.iter_mut().chain(&mut node.outputs));
    values
        .filter(|value| *value == name)
        .for_each(|value| value.clone_from(&bytes));
    if inward {
        graph
            .nodes
            .insert(0, Node::new("QuantizeLinear", &[name, &step, &zero], &[&bytes]));
    } else {
        graph
            .nodes
            .push(Node::new("DequantizeLinear", &[&bytes, &step, &zero], &[name]));
    }
    graph.initializers.push(Tensor::floats(&step, &[], &[scale.scale])?);
    graph
        .initializers
        .push(Tensor::new(&zero, ElementType::Uint8, &[], vec![scale.zero_point])?);
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::{self, Build};

    fn scale(scale: f32, zero_point: u8) -> Scale {
        Scale { scale, zero_point }
    }

    /// Bytes in and out, which stand for twice as much there, and for one step of the input more.
    fn integers() -> Model {
        let mut b = Build::opset(17);
        let x = b.typed_input("x", ElementType::Uint8, &[-1, 3]);
        let y = b.node("Identity", &[&x]);
        let mut model = b.finish(&[&y]);
        let ends = Ends::from([("x".to_owned(), scale(0.5, 2)), (y, scale(1.0, 1))]);
        set_ends(&mut model, &ends).unwrap();
        model
    }

    #[test]
    fn scales_survive_files_and_replace_older_ones() {
        let mut model = integers();
        let before = ends(&model).unwrap();
        assert_eq!(before["x"].to_string(), "0.5 2 uint8");
        let read = crate::onnx::from_bytes(&crate::onnx::to_bytes(&model).into(), &crate::onnx::Limits::default());
        assert_eq!(ends(&read.unwrap()).unwrap(), before);
        let other = Ends::from([("z".to_owned(), scale(f32::MIN_POSITIVE, 255))]);
        set_ends(&mut model, &other).unwrap();
        assert_eq!(ends(&model).unwrap(), other);
        set_ends(&mut model, &Ends::new()).unwrap();
        assert!(model.rest.is_empty());
        // What others wrote stays, even where it is no text.
        let foreign = [
            &[0x72, 0x06, 0x0a, 0x01, 0xff, 0x12, 0x01, b'v'][..],
            &[0x72, 0x02, 0x0a, 0x00],
        ]
        .concat();
        model.rest.clone_from(&foreign);
        set_ends(&mut model, &before).unwrap();
        assert_eq!(ends(&model).unwrap(), before);
        set_ends(&mut model, &Ends::new()).unwrap();
        assert_eq!(model.rest, foreign);
    }

    #[test]
    fn scales_that_none_has_are_refused() {
        for text in [
            "",
            "1 2",
            " uint8",
            "1 uint8",
            "0 0 uint8",
            "-1 0 uint8",
            "NaN 0 uint8",
            "inf 0 uint8",
            "1 256 uint8",
            "1 -1 uint8",
            "1 0 int8",
            "1 0 0 uint8",
        ] {
            assert_eq!(Scale::parse(text), None, "{text}");
        }
    }

    #[test]
    fn floats_go_in_and_come_out() {
        let mut model = integers();
        assert_eq!(floats_around(&mut model).unwrap(), 2);
        let inputs = [Tensor::floats("x", &[1, 3], &[0.0, 1.5, -1.0]).unwrap()];
        let outputs = testing::run(&model, &inputs);
        assert_eq!(outputs[0].to_floats().unwrap().as_ref(), [1.0, 4.0, -1.0]);
        assert_eq!(floats_around(&mut Model::default()).unwrap(), 0);
    }

    #[test]
    fn metadata_of_another_model_is_refused() {
        let mut b = Build::opset(17);
        let x = b.input("x", &[-1, 3]);
        let y = b.node("Relu", &[&x]);
        let model = b.finish(&[&y]);
        for name in ["x", "nowhere"] {
            let mut model = model.clone();
            let ends = Ends::from([(name.to_owned(), scale(1.0, 0))]);
            set_ends(&mut model, &ends).unwrap();
            assert!(floats_around(&mut model).is_err(), "{name}");
        }
    }
}
