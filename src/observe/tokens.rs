//! What came of callers' tokens. Never which token, and never whose.

use prometheus::{IntCounter, IntCounterVec, Opts, Registry};

use crate::identity::token::TokenError;

/// What came of one token.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TokenResult {
    /// Checked here, and good.
    Verified,
    /// Remembered as good.
    Known,
    /// The backend alone can tell.
    Opaque,
    /// There was none.
    Missing,
    /// What stands in its place is none.
    Malformed,
    /// Remembered as one that the backend has refused.
    Remembered,
    /// Not known to be good, and its address held its share already.
    Unproven,
    /// The backend has answered a call with it by a 401.
    RefusedUpstream,
    /// Checked here, and bad.
    Bad(TokenError),
}

/// All of them, by their label.
const LABELS: [(TokenResult, &str); 15] = [
    (TokenResult::Verified, "verified"),
    (TokenResult::Known, "known"),
    (TokenResult::Opaque, "opaque"),
    (TokenResult::Missing, "missing"),
    (TokenResult::Malformed, "malformed"),
    (TokenResult::Remembered, "remembered-bad"),
    (TokenResult::Unproven, "unproven"),
    (TokenResult::RefusedUpstream, "refused-upstream"),
    (TokenResult::Bad(TokenError::Corrupt), "corrupt"),
    (TokenResult::Bad(TokenError::Signature), "wrong-signature"),
    (TokenResult::Bad(TokenError::OtherApp), "other-app"),
    (TokenResult::Bad(TokenError::Expired), "expired"),
    (TokenResult::Bad(TokenError::NotYetValid), "not-yet-valid"),
    (TokenResult::Bad(TokenError::NoChat), "no-chat"),
    (
        TokenResult::Bad(TokenError::NoAppPrivilege),
        "no-app-privilege",
    ),
];

/// Counts them.
#[derive(Debug)]
pub struct TokenMetrics {
    counters: [IntCounter; LABELS.len()],
}

impl TokenMetrics {
    /// Counters in this registry, all at zero.
    ///
    /// # Errors
    /// When they are there already.
    pub fn new(registry: &Registry) -> prometheus::Result<Self> {
        let results = IntCounterVec::new(
            Opts::new(
                "floodgate_tokens_total",
                "Bearer tokens of calls that need one, by what came of them.",
            ),
            &["result"],
        )?;
        registry.register(Box::new(results.clone()))?;
        let counters = LABELS.map(|(_, label)| results.with_label_values(&[label]));
        Ok(Self { counters })
    }

    /// Counts one.
    pub fn count(&self, result: TokenResult) {
        // What cannot be said of a token that was looked at is none of ours.
        let at = LABELS.iter().position(|(known, _)| *known == result);
        if let Some(counter) = at.and_then(|at| self.counters.get(at)) {
            counter.inc();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_fault_of_a_token_that_can_be_checked_has_a_label() {
        let metrics = TokenMetrics::new(&Registry::new()).unwrap();
        let faults = [
            TokenError::Corrupt,
            TokenError::Signature,
            TokenError::OtherApp,
            TokenError::Expired,
            TokenError::NotYetValid,
            TokenError::NoChat,
            TokenError::NoAppPrivilege,
        ];
        for fault in faults {
            metrics.count(TokenResult::Bad(fault));
        }
        let counted: u64 = metrics.counters.iter().map(IntCounter::get).sum();
        assert_eq!(counted, 7);
        let mut labels = LABELS.map(|(_, label)| label).to_vec();
        labels.dedup();
        assert_eq!(labels.len(), LABELS.len());
    }
}
