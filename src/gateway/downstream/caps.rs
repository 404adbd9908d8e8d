//! How many connections there may be: in all, and of one address.

use std::collections::HashMap;
use std::net::IpAddr;
use std::num::NonZeroU32;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, AtomicUsize, Ordering};

use foldhash::fast::RandomState;
use parking_lot::Mutex;

/// Why a connection is refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Full {
    /// There are too many in all.
    All,
    /// There are too many of its address.
    Address,
}

/// The connections of all workers.
#[derive(Debug)]
pub(crate) struct Caps {
    most: AtomicUsize,
    /// 0: without a cap.
    most_per_address: AtomicU32,
    open: AtomicUsize,
    /// Only addresses with a connection are in it: bounded by `most`.
    by_address: Mutex<HashMap<IpAddr, u32, RandomState>>,
}

/// One connection's place. Free again when it is dropped.
#[derive(Debug)]
pub(super) struct Place {
    caps: Arc<Caps>,
    address: Option<IpAddr>,
}

impl Caps {
    pub(crate) fn new(most: usize, most_per_address: Option<NonZeroU32>) -> Self {
        let caps = Self {
            most: AtomicUsize::new(0),
            most_per_address: AtomicU32::new(0),
            open: AtomicUsize::new(0),
            by_address: Mutex::default(),
        };
        caps.set(most, most_per_address);
        caps
    }

    /// From now on so many. Connections that are open stay, and those of an address count where
    /// there was a cap for it when they came.
    pub(crate) fn set(&self, most: usize, most_per_address: Option<NonZeroU32>) {
        self.most.store(most, Ordering::Relaxed);
        let most = most_per_address.map_or(0, NonZeroU32::get);
        self.most_per_address.store(most, Ordering::Relaxed);
    }

    /// Connections that are open.
    pub(crate) fn open(&self) -> usize {
        self.open.load(Ordering::Relaxed)
    }

    /// A place among all connections.
    pub(super) fn take(self: &Arc<Self>) -> Result<Place, Full> {
        // Counted first: two workers at once never pass the cap.
        let before = self.open.fetch_add(1, Ordering::Relaxed);
        let place = Place {
            caps: self.clone(),
            address: None,
        };
        match before < self.most.load(Ordering::Relaxed) {
            true => Ok(place),
            false => Err(Full::All),
        }
    }
}

impl Place {
    /// A place among the connections of this address, too.
    pub(super) fn take_address(&mut self, address: IpAddr) -> Result<(), Full> {
        let most = self.caps.most_per_address.load(Ordering::Relaxed);
        if most == 0 {
            return Ok(());
        }
        let mut by_address = self.caps.by_address.lock();
        let open = by_address.entry(address).or_insert(0);
        if *open >= most {
            return Err(Full::Address);
        }
        *open += 1;
        self.address = Some(address);
        Ok(())
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        self.caps.open.fetch_sub(1, Ordering::Relaxed);
        let Some(address) = self.address else { return };
        let mut by_address = self.caps.by_address.lock();
        if let Some(open) = by_address.get_mut(&address) {
            *open -= 1;
            if *open == 0 {
                by_address.remove(&address);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const A: IpAddr = IpAddr::V4(std::net::Ipv4Addr::new(1, 1, 1, 1));
    const B: IpAddr = IpAddr::V4(std::net::Ipv4Addr::new(2, 2, 2, 2));

    #[test]
    fn a_place_is_free_again_when_its_connection_is_closed() {
        let caps = Arc::new(Caps::new(2, None));
        let first = caps.take().unwrap();
        let _second = caps.take().unwrap();
        assert_eq!(caps.take().unwrap_err(), Full::All);
        assert_eq!(caps.open(), 2);
        drop(first);
        assert!(caps.take().is_ok());
    }

    #[test]
    fn a_new_cap_holds_for_who_comes_next() {
        let caps = Arc::new(Caps::new(1, None));
        let first = caps.take().unwrap();
        assert_eq!(caps.take().unwrap_err(), Full::All);
        caps.set(2, NonZeroU32::new(1));
        let mut second = caps.take().unwrap();
        assert_eq!(second.take_address(A), Ok(()));
        caps.set(1, None);
        assert_eq!(caps.take().unwrap_err(), Full::All);
        drop((first, second));
        assert!(caps.take().is_ok());
        assert!(caps.by_address.lock().is_empty());
    }

    #[test]
    fn one_address_takes_no_more_than_its_share() {
        let caps = Arc::new(Caps::new(10, NonZeroU32::new(1)));
        let mut first = caps.take().unwrap();
        first.take_address(A).unwrap();
        assert_eq!(caps.take().unwrap().take_address(A), Err(Full::Address));
        let mut other = caps.take().unwrap();
        assert_eq!(other.take_address(B), Ok(()));
        drop(first);
        let mut again = caps.take().unwrap();
        assert_eq!(again.take_address(A), Ok(()));
        drop((again, other));
        assert!(caps.by_address.lock().is_empty());
        assert_eq!(caps.open(), 0);
    }
}
