//! Bytes that callers have sent, and that nothing prints: there are tokens in them.

use std::fmt;
use std::ops::{Deref, DerefMut};

use bytes::Bytes;

/// What a caller has sent.
#[derive(Clone, Default)]
pub(super) struct Unseen(pub(super) Bytes);

impl fmt::Debug for Unseen {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} bytes", self.0.len())
    }
}

impl Deref for Unseen {
    type Target = Bytes;

    fn deref(&self) -> &Bytes {
        &self.0
    }
}

impl DerefMut for Unseen {
    fn deref_mut(&mut self) -> &mut Bytes {
        &mut self.0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_caller_has_sent_is_not_printed() {
        let sent = Unseen(Bytes::from_static(b"Authorization: Bearer secret"));
        assert_eq!(
            format!("{sent:?} {:?}", Some(&sent)),
            "28 bytes Some(28 bytes)"
        );
    }
}
