//! Our images, built without a container engine, and pushed by digest. Decides what is in them; the registry is given.

mod base;
mod build;
mod image;
mod layer;
mod push;

pub use base::USER;
pub use build::{Built, Ours, Programs, build, compile, strip};
pub use image::{Image, Start};
pub use layer::{Contents, Layer, digest_of};
pub use push::{Registry, push, push_pause};
