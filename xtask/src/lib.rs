//! Developer commands as a library: programs and packages, the local Kubernetes, images. The tests and the demo use it;
//! it decides nothing about Assayer itself and depends on neither its operator nor its worker.

pub mod bench;
pub mod cache;
pub mod cluster;
pub mod commands;
pub mod demo;
pub mod example;
pub mod foreground;
pub mod images;
pub mod interrupt;
pub mod process;
pub mod progress;
pub mod test;
pub mod tools;
