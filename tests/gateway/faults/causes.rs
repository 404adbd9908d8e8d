//! Every other cause.
