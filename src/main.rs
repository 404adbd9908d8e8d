//! The `floodgate` program.
fn main() {}
