//! Counter keys: 128-bit keyed hashes, so that a counter costs 16 bytes of key whatever its
//! caller is called, and nobody outside can choose names that collide.

use std::hash::Hasher;
use std::net::IpAddr;

use serde::{Deserialize, Serialize};
use sha2::{Digest as _, Sha256};
use siphasher::sip128::{Hasher128, SipHasher13};

/// Identifies one counter: the limit's name and the caller's attributes, hashed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub struct CounterKey(pub u128);

impl CounterKey {
    /// Combines a limit's salt with a caller's key.
    #[must_use]
    pub fn with(self, other: Self) -> Self {
        Self(self.0 ^ other.0)
    }
}

/// Makes keys.
#[derive(Clone, Copy, Debug)]
pub struct KeyHasher {
    /// `None`: without a secret.
    seed: Option<(u64, u64)>,
}

impl KeyHasher {
    /// A hasher with a secret, which is drawn when the process starts.
    #[must_use]
    pub const fn new(seed: (u64, u64)) -> Self {
        Self { seed: Some(seed) }
    }

    /// A hasher whose keys are the same in every process that shares the counters. Nobody can
    /// find names that collide in 128 bits of SHA-256, though there is no secret.
    #[must_use]
    pub const fn shared() -> Self {
        Self { seed: None }
    }

    /// The secret, for the process that goes on with the same counters.
    #[must_use]
    pub const fn seed(&self) -> Option<(u64, u64)> {
        self.seed
    }

    fn hash(&self, domain: u8, parts: &[&[u8]]) -> CounterKey {
        let Some(seed) = self.seed else {
            let mut hasher = Sha256::new_with_prefix([domain]);
            for part in parts {
                let length = u64::try_from(part.len()).unwrap_or(u64::MAX);
                hasher.update(length.to_le_bytes());
                hasher.update(part);
            }
            let mut key = [0; 16];
            let digest: [u8; 32] = hasher.finalize().into();
            key.copy_from_slice(&digest[..16]);
            return CounterKey(u128::from_le_bytes(key));
        };
        let mut hasher = SipHasher13::new_with_keys(seed.0, seed.1);
        hasher.write_u8(domain);
        for part in parts {
            // The length keeps ("ab", "c") and ("a", "bc") apart.
            hasher.write_usize(part.len());
            hasher.write(part);
        }
        CounterKey(hasher.finish128().as_u128())
    }

    /// The key of a limit's name.
    #[must_use]
    pub fn limit(&self, name: &str) -> CounterKey {
        self.hash(b'l', &[name.as_bytes()])
    }

    /// The key of a task, by its name.
    #[must_use]
    pub fn task(&self, name: &str) -> CounterKey {
        self.hash(b't', &[name.as_bytes()])
    }

    /// The key of an app, by its folded name.
    #[must_use]
    pub fn app(&self, app: &str) -> CounterKey {
        self.hash(b'a', &[app.as_bytes()])
    }

    /// The key of a user of an app, by folded names.
    #[must_use]
    pub fn user(&self, app: &str, user: &str) -> CounterKey {
        self.hash(b'u', &[app.as_bytes(), user.as_bytes()])
    }

    /// The key of a total of an app, or of a user or group of it, by folded names.
    #[must_use]
    pub fn total(&self, kind: &str, app: &str, whose: &str) -> CounterKey {
        self.hash(b'p', &[kind.as_bytes(), app.as_bytes(), whose.as_bytes()])
    }

    /// The key of an address that has already been cut to its prefix.
    #[must_use]
    pub fn ip(&self, ip: IpAddr) -> CounterKey {
        match ip {
            IpAddr::V4(v4) => self.hash(b'4', &[&v4.octets()]),
            IpAddr::V6(v6) => self.hash(b'6', &[&v6.octets()]),
        }
    }
}
