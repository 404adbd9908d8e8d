//! libz-ng-sys, over the zlib of libz-sys; `Cargo.toml` says why.

pub use libz_sys::*;
