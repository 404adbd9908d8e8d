use std::num::NonZeroU32;
use std::time::Duration;

use prometheus::Registry;

use super::*;

const SECOND: u64 = 1_000_000;

fn settings(addrs: &[SocketAddr]) -> PoolSettings {
    let time = Duration::from_secs(1);
    PoolSettings {
        name: "default".to_owned(),
        upstreams: vec![Upstream {
            tls: false,
            host: "backend".to_owned(),
            port: 80,
            addrs: addrs.to_vec(),
            weight: 1,
            http2: false,
            sni: None,
        }],
        balance: Balance::RoundRobin,
        ca: None,
        check: Check::Off,
        times: Times {
            connect: time,
            first_byte: None,
            read: time,
            write: time,
            request: None,
        },
        concurrency: None,
        retry_on: RetryOn::default(),
        routes: Vec::new(),
        apps: Vec::new(),
        editions: Vec::new(),
    }
}

fn addr(n: u8) -> SocketAddr {
    SocketAddr::from(([10, 0, 0, n], 80))
}

fn metrics() -> UpstreamMetrics {
    UpstreamMetrics::new(&Registry::new()).unwrap()
}

fn pool(addrs: &[SocketAddr], budget: u32, previous: Option<&Pool>) -> Pool {
    let ejecting = Ejecting {
        after: NonZeroU32::new(2),
        time: Duration::from_secs(10),
    };
    let settings = settings(addrs);
    Pool::new(&settings, None, ejecting, budget, &metrics(), previous)
}

fn fail(pool: &Pool, index: usize, times: usize, now_us: u64) {
    let endpoint = pool.endpoints()[index].clone();
    for _ in 0..times {
        pool.failed(&endpoint, Failure::Broken, now_us);
    }
}

#[test]
fn only_failures_in_a_row_eject() {
    let pool = pool(&[addr(1), addr(2)], 20, None);
    let first = pool.endpoints()[0].clone();
    for _ in 0..5 {
        fail(&pool, 0, 1, SECOND);
        first.answered();
    }
    assert!(first.is_available());
    fail(&pool, 0, 2, SECOND);
    assert!(!first.is_available());
}

#[test]
fn an_ejection_lasts_twice_as_long_when_it_is_soon_repeated() {
    let pool = pool(&[addr(1), addr(2)], 20, None);
    let first = pool.endpoints()[0].clone();
    let mut now = SECOND;
    for lasts in [10, 20, 40, 80, 160, 300, 300] {
        fail(&pool, 0, 2, now);
        first.tick(now + lasts * SECOND - 1);
        assert!(!first.is_available(), "{lasts}");
        now += lasts * SECOND;
        first.tick(now);
        assert!(first.is_available(), "{lasts}");
    }
    // After as long without one, it is the first again.
    now += 300 * SECOND;
    fail(&pool, 0, 2, now);
    first.tick(now + 10 * SECOND);
    assert!(first.is_available());
}

#[test]
fn the_last_address_is_not_ejected_but_is_not_well() {
    let pool = pool(&[addr(1), addr(2)], 20, None);
    fail(&pool, 0, 2, SECOND);
    fail(&pool, 1, 9, SECOND);
    let [first, last] = &pool.endpoints()[..] else {
        panic!("two")
    };
    assert!(!first.is_available() && last.is_available());
    assert!(!pool.is_well());
    last.answered();
    assert!(pool.is_well());
}

#[test]
fn checks_change_the_mind_only_in_a_row() {
    let pool = pool(&[addr(1)], 20, None);
    let endpoint = pool.endpoints()[0].clone();
    let check = |found: &str| {
        for found in found.chars() {
            let found = (found == '+').then_some(()).ok_or(String::new());
            endpoint.checked(found, 2, 3);
        }
        endpoint.is_available()
    };
    assert!(check("--+--"));
    assert!(!check("-"));
    assert!(!check("+-+"));
    assert!(check("+"));
}

#[test]
fn repeated_calls_have_a_budget_of_their_own_in_each_span() {
    let pool = pool(&[addr(1)], 20, None);
    let spend = |now_us: u64| (0..1000).filter(|_| pool.may_repeat(now_us)).count();
    assert_eq!(spend(20 * SECOND), FREE);
    for _ in 0..500 {
        pool.next();
    }
    assert_eq!(spend(21 * SECOND), 100);
    // The last span's calls count for this one.
    assert_eq!(spend(31 * SECOND), FREE + 100);
    assert_eq!(spend(60 * SECOND), FREE);
}

#[test]
fn a_budget_of_nothing_is_nothing() {
    let pool = pool(&[addr(1)], 0, None);
    (0..500).for_each(|_| {
        pool.next();
    });
    assert!(!pool.may_repeat(SECOND));
}

#[test]
fn addresses_that_stay_keep_their_state_through_lookups_and_changed_settings() {
    let before = pool(&[addr(1), addr(2)], 20, None);
    fail(&before, 0, 2, SECOND);
    before.found("backend", 80, &[addr(1), addr(3)], &metrics());
    let kept: Vec<_> = before.endpoints();
    assert_eq!(
        kept.iter().map(|e| e.addr).collect::<Vec<_>>(),
        [addr(1), addr(3)]
    );
    assert!(!kept[0].is_available() && kept[1].is_available());
    let after = pool(&[addr(1), addr(4)], 20, Some(&before));
    let all = after.endpoints();
    assert!(Arc::ptr_eq(&all[0], &kept[0]));
    assert!(!all[0].is_available() && all[1].is_available());
}
