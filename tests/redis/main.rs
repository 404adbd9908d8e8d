//! The shared store against real servers, which the tests start themselves.
#![allow(
    missing_docs,
    clippy::unwrap_used,
    clippy::expect_used,
    reason = "tests"
)]

mod admin;
mod apps;
#[path = "../gateway/plans/backend.rs"]
#[expect(dead_code, reason = "written for the tests of one gateway")]
mod backend;
mod calls;
mod checking;
mod clocks;
mod cluster;
mod connecting;
mod contract;
mod gateways;
#[path = "../gateway/harness.rs"]
#[expect(dead_code, reason = "written for the tests of one gateway")]
mod harness;
mod leases;
mod load;
mod mistakes;
mod outage;
mod processes;
mod proxy;
mod reload;
mod server;
mod shares;
mod slots;
mod stores;
mod totals;
mod totals_older;
mod totals_outage;
mod totals_owners;
mod totals_under_way;
mod totals_words;
