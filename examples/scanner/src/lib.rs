//! A small model server: it says what kind of file it was sent.
//!
//! An example of a workload that Assayer governs, not a part of Assayer: it takes the model from a folder (an image volume),
//! becomes ready only when the model keeps the server's contract, and says in every answer which model spoke.

pub mod features;
pub mod model;
pub mod server;
