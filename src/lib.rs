//! Floodgate: a rate-limiting reverse proxy for instant-messaging REST backends.
//!
//! # The path of a request
//!
//! ```text
//! downstream ─► gateway ─► admission ────────────────────────────► gateway ─► upstream
//!               (pingora)  1 identify  2 match  3 price  4 decide   5 forward  6 settle
//!                          identity/   route/   route/   limit/ + store/
//! ```
//!
//! # Arrows
//!
//! `main → cli → serve → everything`; `gateway → admission → {apps, identity, route, limit, store}`;
//! `spec → {apps, identity, route, limit, payload}`; `route → {identity, limit, payload}`;
//! `store → limit`; `payload` knows none of the others.
//! `gateway → protect`, which knows nobody: how many calls an upstream may have at once, and whose.
//! The pure part (everything that is not behind the `gateway` feature) knows neither pingora
//! nor redis nor tokio, reads no clock and no environment: time is an argument.

pub mod admission;
pub mod apps;
pub mod head;
pub mod identity;
pub mod limit;
pub mod payload;
pub mod protect;
pub mod route;
pub mod spec;
pub mod store;

#[cfg(feature = "gateway")]
pub mod cli;
#[cfg(feature = "gateway")]
pub mod clock;
#[cfg(feature = "gateway")]
pub mod gateway;
#[cfg(feature = "gateway")]
pub mod handover;
#[cfg(feature = "gateway")]
pub mod load;
#[cfg(feature = "gateway")]
pub mod observe;
#[cfg(feature = "gateway")]
pub mod serve;
#[cfg(feature = "gateway")]
pub mod settings;
#[cfg(feature = "gateway")]
pub mod standin;
#[cfg(feature = "gateway")]
pub mod text;
