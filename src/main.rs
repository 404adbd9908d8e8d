//! The `floodgate` program: the only place that ends the process.

use std::process::ExitCode;

#[cfg(feature = "gateway")]
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

#[cfg(feature = "gateway")]
fn main() -> ExitCode {
    floodgate::cli::main(std::env::args_os())
}

#[cfg(not(feature = "gateway"))]
fn main() -> ExitCode {
    eprintln!("floodgate: this build has no gateway; build it with the default features");
    ExitCode::FAILURE
}
