//! The shared store against real servers, which the tests start themselves.
#![allow(
    missing_docs,
    clippy::unwrap_used,
    clippy::expect_used,
    reason = "tests"
)]

mod calls;
mod checking;
mod cluster;
mod connecting;
mod contract;
mod leases;
mod server;
mod sharing;
