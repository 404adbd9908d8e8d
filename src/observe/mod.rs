//! Metrics, access log, admin listener. Nothing here feeds a decision.

pub mod admin;
pub mod failures;
pub mod log;
pub mod metrics;
pub mod reloads;
pub mod tokens;
pub mod top;
pub mod upstreams;
