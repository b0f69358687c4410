//! Programs and packages that the commands need, from their ordinary registries: Debian's, Go's, Python's.
//! Decides what is missing and gets only that; never changes what is installed already.

pub mod debian;
pub mod go;
pub mod maven;
pub mod pypi;
