//! Embedded counters.
