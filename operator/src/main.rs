//! Entry point of the operator: parses flags and wires parts. Decides nothing.
fn main() {}
