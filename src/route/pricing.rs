//! Step 3, price: how many recipients a body addresses.

/// Where a body names its recipients.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CostSource {
    /// The top-level JSON field, an array: `to`, `users`, `target`, `targets`.
    pub field: Box<str>,
}

/// Why a body cannot be priced (400).
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum PriceError {
    /// Not one JSON object in UTF-8, or the counted field is no array of strings or integers,
    /// or it is there twice.
    #[error("the body is not valid JSON of the documented form")]
    Malformed,
    /// The counted field is missing or an empty array.
    #[error("the recipients are missing")]
    Empty,
}

/// The largest body that is read for pricing, in bytes.
pub const MAX_COUNTED_BODY: usize = 64 * 1024;

/// Counts the recipients of a whole body.
///
/// # Errors
/// See [`PriceError`].
pub fn recipients(source: &CostSource, body: &[u8]) -> Result<u32, PriceError> {
    let _ = (source, body);
    Err(PriceError::Malformed)
}
