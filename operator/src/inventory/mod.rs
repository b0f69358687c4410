//! Which model is live where, since when, and who approved it: read from the cluster, never remembered.
//!
//! `facts` says what is kept of each object, `watch` keeps it current, `rows` decides what it means, `render` and `page` write it down.
//! Nothing here writes to the cluster, and no number outlives the object that it speaks of.

pub mod facts;
pub mod page;
pub mod render;
pub mod rows;
pub mod shape;
pub mod table;
pub mod watch;

#[cfg(test)]
mod fixtures;

pub use shape::Inventory;
pub use watch::Caches;
