//! How large a model may be, and the budget that is charged before anything is allocated.
//!
//! A hostile file of a few megabytes must not cost more than a few hundred megabytes or a second of time.

use super::error::Error;

/// Bounds on one model. The defaults admit every model that fits one protobuf file and its external data.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Limits {
    /// Bytes of the protobuf file (protobuf itself ends at 2 GiB).
    pub file_bytes: u64,
    /// Bytes of one external data file.
    pub external_bytes: u64,
    /// External data files.
    pub external_files: u64,
    /// Nodes, in all graphs and functions together.
    pub nodes: u64,
    /// Tensors: initializers and tensor attributes.
    pub tensors: u64,
    /// Attributes of all nodes.
    pub attributes: u64,
    /// Names: inputs and outputs of nodes, graph inputs and outputs, value infos.
    pub names: u64,
    /// Bytes of one string.
    pub string_bytes: u64,
    /// Bytes that decoding may allocate beyond the file itself: strings, lists, repacked tensors. Twice the file's size
    /// where that is more (some exporters write every weight as a list of numbers).
    pub decoded_bytes: u64,
    /// Graphs inside attributes inside graphs, and types inside types.
    pub nesting: u32,
    /// Dimensions of one tensor.
    pub rank: usize,
    /// Local functions.
    pub functions: u64,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            file_bytes: (1 << 31) - 1,
            external_bytes: 64 << 30,
            external_files: 256,
            nodes: 200_000,
            tensors: 200_000,
            attributes: 1_000_000,
            names: 2_000_000,
            string_bytes: 64 << 10,
            decoded_bytes: 192 << 20,
            nesting: 32,
            rank: 16,
            functions: 1_000,
        }
    }
}

/// What is left of [`Limits`] while one model is decoded.
#[derive(Debug)]
pub(super) struct Budget {
    pub(super) limits: Limits,
    nodes: u64,
    tensors: u64,
    attributes: u64,
    names: u64,
    decoded: u64,
    functions: u64,
}

impl Budget {
    pub(super) fn new(limits: &Limits, file_bytes: usize) -> Self {
        let mut limits = limits.clone();
        limits.decoded_bytes = limits.decoded_bytes.max(2 * file_bytes as u64);
        Self {
            limits,
            nodes: 0,
            tensors: 0,
            attributes: 0,
            names: 0,
            decoded: 0,
            functions: 0,
        }
    }

    pub(super) fn node(&mut self) -> Result<(), Error> {
        charge(&mut self.nodes, 1, self.limits.nodes, "number of nodes")
    }

    pub(super) fn tensor(&mut self) -> Result<(), Error> {
        charge(&mut self.tensors, 1, self.limits.tensors, "number of tensors")
    }

    pub(super) fn attribute(&mut self) -> Result<(), Error> {
        charge(&mut self.attributes, 1, self.limits.attributes, "number of attributes")
    }

    pub(super) fn name(&mut self) -> Result<(), Error> {
        charge(&mut self.names, 1, self.limits.names, "number of names")
    }

    pub(super) fn function(&mut self) -> Result<(), Error> {
        charge(&mut self.functions, 1, self.limits.functions, "number of functions")
    }

    /// Charges bytes that are about to be allocated.
    pub(super) fn bytes(&mut self, bytes: usize) -> Result<(), Error> {
        charge(
            &mut self.decoded,
            bytes as u64,
            self.limits.decoded_bytes,
            "decoded size in bytes",
        )
    }

    pub(super) fn string(&mut self, bytes: usize) -> Result<(), Error> {
        let (value, limit) = (bytes as u64, self.limits.string_bytes);
        if value > limit {
            return Err(Error::Limit {
                what: "length of a string in bytes",
                value,
                limit,
            });
        }
        self.bytes(bytes)
    }

    pub(super) fn depth(&self, depth: u32) -> Result<(), Error> {
        let (value, limit) = (u64::from(depth), u64::from(self.limits.nesting));
        if value > limit {
            return Err(Error::Limit {
                what: "nesting depth",
                value,
                limit,
            });
        }
        Ok(())
    }
}

fn charge(used: &mut u64, amount: u64, limit: u64, what: &'static str) -> Result<(), Error> {
    let value = used.saturating_add(amount);
    if value > limit {
        return Err(Error::Limit { what, value, limit });
    }
    *used = value;
    Ok(())
}
