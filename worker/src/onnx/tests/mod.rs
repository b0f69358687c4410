//! Tests of the whole module: what goes in comes out, and what is hostile stays out.

mod hostile;
mod opset;
mod opset_bodies;
mod round_trip;
