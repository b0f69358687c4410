//! Data sets: Parquet in, staged rows out, tensors for models.
//!
//! Decides what data may feed a model. Inputs and labels part ways here and never meet again before the score.

mod column;
mod error;
mod feed;
mod number;
mod overlap;
mod parquet;
mod staged;

pub use self::column::Number;
pub use self::error::Error;
pub use self::feed::{Feed, Input, inputs_of};
pub use self::overlap::Fingerprints;
pub use self::parquet::{Split, fingerprints, padding_mask, row_shapes, split};
pub use self::staged::{Header, Staged, StagedInput, read_labels};

#[cfg(test)]
mod tests;
