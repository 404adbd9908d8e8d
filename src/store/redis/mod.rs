//! Counters shared through Redis.

pub mod connect;
