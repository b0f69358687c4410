//! Declared types (`TypeProto`): checked when read, looked into on demand, kept as encoded.

use super::{
    element::ElementType,
    error::Error,
    limits::Budget,
    model::{Dim, TensorType, ValueInfo},
    wire::{Fields, Rope, Value},
};

/// Refuses a type that is malformed, nested too deeply, or of a kind that ONNX Runtime's CPU kernels do not take.
pub(super) fn check(budget: &Budget, bytes: &[u8], depth: u32) -> Result<(), Error> {
    budget.depth(depth)?;
    let mut kinds = 0;
    for field in Fields::new(bytes, "type") {
        let field = field?;
        match field.number {
            1 => {
                kinds += 1;
                if let Some(rank) = tensor_type(field.bytes()?)?
                    .and_then(|tensor| tensor.shape)
                    .map(|dims| dims.len())
                    && rank > budget.limits.rank
                {
                    return Err(Error::Limit {
                        what: "rank of a declared type",
                        value: rank as u64,
                        limit: budget.limits.rank as u64,
                    });
                }
            }
            4 | 5 | 9 => {
                kinds += 1;
                let inner_number = if field.number == 5 { 2 } else { 1 };
                for inner in Fields::new(field.bytes()?, "type") {
                    let inner = inner?;
                    if inner.number == inner_number {
                        check(budget, inner.bytes()?, depth + 1)?;
                    }
                }
            }
            7 | 8 => return Err(Error::unsupported("a sparse or opaque type", "use dense tensors")),
            _ => {}
        }
    }
    if kinds > 1 {
        return Err(Error::malformed("type", "more than one kind"));
    }
    Ok(())
}

/// A `TypeProto.Tensor`; none where it names no element type.
fn tensor_type(bytes: &[u8]) -> Result<Option<TensorType>, Error> {
    let (mut element, mut shape, mut seen) = (0, None, 0);
    for field in Fields::new(bytes, "tensor type") {
        let field = field?;
        match field.number {
            1 => {
                field.once(&mut seen)?;
                element = field.int64()?;
            }
            2 => {
                field.once(&mut seen)?;
                shape = Some(dims(field.bytes()?)?);
            }
            _ => {}
        }
    }
    if element == 0 {
        return Ok(None);
    }
    let element = ElementType::from_number(element)
        .ok_or_else(|| Error::malformed("tensor type", format!("element type {element}")))?;
    Ok(Some(TensorType { element, shape }))
}

fn dims(bytes: &[u8]) -> Result<Vec<Dim>, Error> {
    const MOST: usize = 1024;
    let mut dims = Vec::new();
    for field in Fields::new(bytes, "shape") {
        let field = field?;
        if field.number != 1 {
            continue;
        }
        if dims.len() == MOST {
            return Err(Error::Limit {
                what: "rank of a declared type",
                value: MOST as u64 + 1,
                limit: MOST as u64,
            });
        }
        let mut dim = Dim::Unknown;
        for part in Fields::new(field.bytes()?, "dimension") {
            let part = part?;
            match (part.number, part.value) {
                (1, Value::Varint(_)) => dim = Dim::Fixed(part.int64()?),
                (2, Value::Bytes(_)) => dim = Dim::Named(part.text()?.to_owned()),
                (1 | 2, _) => return Err(Error::malformed("dimension", "wrong wire type")),
                _ => {}
            }
        }
        if let Dim::Fixed(size) = dim
            && size < 0
        {
            dim = Dim::Unknown;
        }
        dims.push(dim);
    }
    Ok(dims)
}

impl ValueInfo {
    /// A value without a declared type.
    pub fn untyped(name: &str) -> Self {
        Self {
            name: name.to_owned(),
            ..Self::default()
        }
    }

    /// A tensor value.
    pub fn tensor(name: &str, element: ElementType, shape: &[Dim]) -> Self {
        let mut shape_rope = Rope::default();
        for dim in shape {
            let mut inner = Rope::default();
            match dim {
                Dim::Fixed(size) => inner.int(1, *size),
                Dim::Named(name) => inner.text(2, name),
                Dim::Unknown => {}
            }
            shape_rope.message(1, inner);
        }
        let mut tensor = Rope::default();
        tensor.int(1, element.number());
        tensor.message(2, shape_rope);
        let mut type_proto = Rope::default();
        type_proto.message(1, tensor);
        Self {
            name: name.to_owned(),
            type_proto: Some(type_proto.to_vec().into()),
            rest: Vec::new(),
        }
    }

    /// The declared tensor type; none where nothing is declared or it is no tensor.
    pub fn tensor_type(&self) -> Option<TensorType> {
        Fields::new(self.type_proto.as_deref()?, "type")
            .filter_map(Result::ok)
            .find(|field| field.number == 1)
            .and_then(|field| tensor_type(field.bytes().ok()?).ok().flatten())
    }
}
