//! A caller that goes away before the backend has answered.
//!
//! Its call costs what the backend's status says, as if it had waited: otherwise a bad token and
//! an early close would use up another's units, or a good token and an early close none. pingora
//! gives a call up when its caller has gone, except while it fills a cache. So a call whose
//! request is with the backend as a whole has a cache, from which nothing is read and into which
//! nothing is written, until the head of the answer is there.

use std::sync::LazyLock;

use pingora::cache::{MemCache, NoCacheReason};
use pingora::proxy::Session;

/// Stays empty.
static NOTHING: LazyLock<MemCache> = LazyLock::new(MemCache::new);

/// From now on the answer is waited for, whether or not the caller is.
pub(super) fn wait_without_caller(session: &mut Session) {
    if !session.cache.enabled() {
        session.cache.enable(&*NOTHING, None, None, None, None);
    }
}

/// A caller that goes away ends the call again. Before pingora would ask or fill the cache.
pub(super) fn end_with_caller(session: &mut Session) {
    if session.cache.enabled() {
        session.cache.disable(NoCacheReason::Custom("not a cache"));
    }
}
