//! ONNX files: read within limits, checked, rewritten by patches, written canonically.
//!
//! Hostile input ends here: what leaves [`read`] and [`check`] is well-formed, bounded, and names only known operators.
//! This module knows no optimization technique; those are in [`crate::passes`] and change a graph only through
//! [`Patch`].

mod beside;
mod carried;
mod check;
mod decode;
mod decode_tensor;
mod element;
mod encode;
mod ends;
mod error;
mod external;
mod file;
mod free;
mod index;
mod limits;
mod model;
mod normalize;
mod ops;
mod opset;
mod patch;
mod shapes;
mod value_type;
mod wire;

#[cfg(test)]
mod tests;

pub use self::{
    beside::Beside,
    check::check,
    element::ElementType,
    ends::{Ends, Scale, ends, floats_around, set_ends},
    error::{Error, shown},
    file::{Written, from_bytes, read, read_beside, sha256, to_bytes, to_bytes_beside, write},
    free::{Mismatch, RowShapes, free_dimensions},
    index::{Index, Use, captured},
    limits::Limits,
    model::{
        Attribute, AttributeValue, Data, Dim, Function, Graph, Model, Node, Opset, Tensor, TensorType, ValueInfo,
        visit_graphs,
    },
    normalize::{Normalized, normalize, prune, rename, settle},
    opset::{TARGET_OPSET, Upgraded, upgrade},
    patch::{Names, Patch, apply, rewrite, rewrite_main},
    shapes::{Shapes, Size, from_front, permutation, within},
};
