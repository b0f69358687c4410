//! `TensorProto` to [`Tensor`]: whatever field the exporter used, the elements come out little-endian and complete.
//!
//! The product of the dimensions is computed with checked arithmetic and compared with the bytes present; nothing is
//! allocated from a dimension alone.

use super::{
    decode::Context,
    element::ElementType,
    error::Error,
    external::Location,
    model::{Data, Tensor, count},
    wire::{Field, Fields, low_i32},
};
use bytes::Bytes;

/// What a `TensorProto` holds, before its parts are brought together.
#[derive(Default)]
struct Parts {
    name: String,
    element: i64,
    dims: Vec<usize>,
    raw: Option<Bytes>,
    /// Elements of a typed field, little-endian at the width of that field: (field number, bytes).
    typed: Option<(u32, Vec<u8>)>,
    strings: Vec<Bytes>,
    external: Vec<(String, String)>,
    location: i64,
    rest: Vec<u8>,
}

pub(super) fn tensor(ctx: &mut Context<'_>, bytes: &[u8]) -> Result<Tensor, Error> {
    ctx.budget.tensor()?;
    let (mut parts, mut seen) = (Parts::default(), 0);
    for field in Fields::new(bytes, "tensor") {
        let field = field?;
        if matches!(field.number, 2 | 3 | 8 | 9 | 14) {
            field.once(&mut seen)?;
        }
        tensor_field(ctx, &mut parts, &field)?;
    }
    finish(ctx, parts)
}

fn tensor_field(ctx: &mut Context<'_>, parts: &mut Parts, field: &Field<'_>) -> Result<(), Error> {
    match field.number {
        1 => field.varints(|dim| {
            let (value, limit) = (parts.dims.len() as u64 + 1, ctx.budget.limits.rank as u64);
            if value > limit {
                return Err(Error::Limit {
                    what: "rank of a tensor",
                    value,
                    limit,
                });
            }
            let dim = usize::try_from(dim.cast_signed())
                .map_err(|_| Error::malformed("tensor", format!("dimension {}", dim.cast_signed())))?;
            parts.dims.push(dim);
            Ok(())
        }),
        2 => {
            let _: () = parts.element = i64::from(field.int32()?);
            Ok(())
        }
        3 => Err(Error::unsupported(
            "a segmented tensor",
            "write each tensor in one piece",
        )),
        4 => append(ctx, parts, 4, &field.fixed32s()?),
        10 => append(ctx, parts, 10, &field.fixed64s()?),
        5 => field.varints(|value| append(ctx, parts, 5, &low_i32(value.cast_signed()).to_le_bytes())),
        7 => field.varints(|value| append(ctx, parts, 7, &value.to_le_bytes())),
        11 => field.varints(|value| append(ctx, parts, 11, &value.to_le_bytes())),
        6 => {
            ctx.budget.string(field.bytes()?.len() + size_of::<Bytes>())?;
            parts.strings.push(ctx.shared(field.bytes()?));
            Ok(())
        }
        8 => {
            let _: () = parts.name = ctx.string(field)?;
            Ok(())
        }
        9 => {
            let _: () = parts.raw = Some(ctx.shared(field.bytes()?));
            Ok(())
        }
        13 => {
            let entry = entry(ctx, field.bytes()?)?;
            parts.external.push(entry);
            Ok(())
        }
        14 => {
            let _: () = parts.location = field.int64()?;
            Ok(())
        }
        _ => ctx.rest(&mut parts.rest, field),
    }
}

fn append(ctx: &mut Context<'_>, parts: &mut Parts, number: u32, bytes: &[u8]) -> Result<(), Error> {
    ctx.budget.bytes(bytes.len())?;
    let (present, data) = parts.typed.get_or_insert_with(|| (number, Vec::new()));
    if *present != number {
        return Err(Error::malformed("tensor", "elements in two typed fields"));
    }
    data.extend_from_slice(bytes);
    Ok(())
}

fn entry(ctx: &mut Context<'_>, bytes: &[u8]) -> Result<(String, String), Error> {
    let (mut key, mut value, mut seen) = (String::new(), String::new(), 0);
    for field in Fields::new(bytes, "external data entry") {
        let field = field?;
        match field.number {
            1 => {
                field.once(&mut seen)?;
                key = ctx.string(&field)?;
            }
            2 => {
                field.once(&mut seen)?;
                value = ctx.string(&field)?;
            }
            _ => {
                return Err(Error::malformed(
                    "external data entry",
                    format!("field {}", field.number),
                ));
            }
        }
    }
    Ok((key, value))
}

fn finish(ctx: &mut Context<'_>, parts: Parts) -> Result<Tensor, Error> {
    let element = ElementType::from_number(parts.element)
        .ok_or_else(|| Error::tensor(&parts.name, format!("element type {} is unknown", parts.element)))?;
    let elements = count(&parts.dims)
        .filter(|&count| usize::try_from(count.saturating_mul(16)).is_ok_and(|bytes| bytes < usize::MAX / 2))
        .ok_or_else(|| Error::tensor(&parts.name, format!("dimensions {:?} overflow", parts.dims)))?;
    let data = data(ctx, &parts, element, elements)?;
    Ok(Tensor {
        name: parts.name,
        element,
        dims: parts.dims,
        data,
        rest: parts.rest,
    })
}

fn data(ctx: &mut Context<'_>, parts: &Parts, element: ElementType, elements: u64) -> Result<Data, Error> {
    let external = match parts.location {
        0 if parts.external.is_empty() => false,
        1 => true,
        other => {
            return Err(Error::tensor(
                &parts.name,
                format!("data location {other} with external entries"),
            ));
        }
    };
    let sources = [
        external,
        parts.raw.is_some(),
        parts.typed.is_some(),
        !parts.strings.is_empty(),
    ];
    if sources.iter().filter(|&&present| present).count() > 1 {
        return Err(Error::tensor(&parts.name, "its data is given in more than one place"));
    }
    let Some(wanted) = element.bytes_for(elements) else {
        if external || parts.raw.is_some() || parts.typed.is_some() || parts.strings.len() as u64 != elements {
            let reason = format!("{} strings where dimensions ask for {elements}", parts.strings.len());
            return Err(Error::tensor(&parts.name, reason));
        }
        return Ok(Data::Strings(parts.strings.clone()));
    };
    let bytes = if external {
        let location = Location::parse(&parts.name, &parts.external)?;
        let folder = ctx.folder.as_deref_mut().ok_or_else(|| {
            Error::external(
                &parts.name,
                "this model came as bytes, without a folder; give it as a file",
            )
        })?;
        folder.read(&parts.name, &location, wanted)?
    } else if let Some(raw) = &parts.raw {
        raw.clone()
    } else if let Some((number, typed)) = &parts.typed {
        narrow(&parts.name, element, *number, typed)?.into()
    } else {
        Bytes::new()
    };
    if bytes.len() as u64 != wanted {
        let reason = format!(
            "{} bytes where {element:?} {:?} takes {wanted}",
            bytes.len(),
            parts.dims
        );
        return Err(Error::tensor(&parts.name, reason));
    }
    Ok(Data::Raw(bytes))
}

/// Brings elements of a typed field to the width of the tensor's own type.
fn narrow(name: &str, element: ElementType, number: u32, typed: &[u8]) -> Result<Vec<u8>, Error> {
    use ElementType as T;
    let fits = match number {
        4 => matches!(element, T::Float | T::Complex64),
        10 => matches!(element, T::Double | T::Complex128),
        7 => element == T::Int64,
        11 => matches!(element, T::Uint32 | T::Uint64),
        _ => element.bits().is_some_and(|bits| bits <= 16) || element == T::Int32,
    };
    if !fits {
        return Err(Error::tensor(name, format!("{element:?} elements in field {number}")));
    }
    let (field_width, width) = match (number, element.bits()) {
        (5, Some(bits)) => (4, if bits < 8 { 1 } else { bits / 8 }),
        (11, Some(bits)) => (8, bits / 8),
        _ => return Ok(typed.to_vec()),
    };
    let width = usize::try_from(width).unwrap_or(1);
    if width == field_width {
        return Ok(typed.to_vec());
    }
    Ok(typed
        .chunks_exact(field_width)
        .flat_map(|element| element[..width].iter().copied())
        .collect())
}
