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

fn tending(budget: u32) -> Tending {
    Tending {
        dns_interval: None,
        dns_servers: Vec::new(),
        check_interval: Duration::from_secs(5),
        check_timeout: Duration::from_secs(2),
        rise: 2,
        fall: 3,
        eject_after: NonZeroU32::new(2),
        eject_time: Duration::from_secs(10),
        retry_budget: budget,
    }
}

fn pool(addrs: &[SocketAddr], budget: u32, previous: Option<&Pool>) -> Pool {
    by(&settings(addrs), &tending(budget), previous)
}

fn by(settings: &PoolSettings, tending: &Tending, previous: Option<&Pool>) -> Pool {
    Pool::new(settings, None, tending, &metrics(), previous)
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
        first.standing.answered();
    }
    assert!(first.standing.is_available());
    fail(&pool, 0, 2, SECOND);
    assert!(!first.standing.is_available());
}

#[test]
fn an_ejection_lasts_twice_as_long_when_it_is_soon_repeated() {
    let pool = pool(&[addr(1), addr(2)], 20, None);
    let first = pool.endpoints()[0].clone();
    let mut now = SECOND;
    for lasts in [10, 20, 40, 80, 160, 300, 300] {
        fail(&pool, 0, 2, now);
        first.standing.tick(now + lasts * SECOND - 1);
        assert!(!first.standing.is_available(), "{lasts}");
        now += lasts * SECOND;
        first.standing.tick(now);
        assert!(first.standing.is_available(), "{lasts}");
    }
    // After as long without one, it is the first again.
    now += 300 * SECOND;
    fail(&pool, 0, 2, now);
    first.standing.tick(now + 10 * SECOND);
    assert!(first.standing.is_available());
}

#[test]
fn the_last_address_is_not_ejected_but_is_not_well() {
    let pool = pool(&[addr(1), addr(2)], 20, None);
    fail(&pool, 0, 2, SECOND);
    fail(&pool, 1, 9, SECOND);
    let [first, last] = &pool.endpoints()[..] else {
        panic!("two")
    };
    assert!(!first.standing.is_available() && last.standing.is_available());
    assert!(!pool.is_well());
    last.standing.answered();
    assert!(pool.is_well());
}

fn checked(check: Check) -> PoolSettings {
    PoolSettings {
        check,
        ..settings(&[addr(1)])
    }
}

/// Good checks and bad ones, and whether the address is available then.
fn check(pool: &Pool, found: &str) -> bool {
    let endpoint = pool.endpoints()[0].clone();
    for found in found.chars() {
        let found = (found == '+').then_some(()).ok_or(String::new());
        endpoint.standing.checked(found, pool.checking);
    }
    endpoint.standing.is_available()
}

#[test]
fn checks_change_the_mind_only_in_a_row() {
    let pool = by(&checked(Check::Tcp), &tending(20), None);
    assert!(check(&pool, "--+--"));
    assert!(!check(&pool, "-"));
    assert!(!check(&pool, "+-+"));
    assert!(check(&pool, "+"));
}

#[test]
fn a_verdict_ends_with_the_checks_that_it_is_of() {
    let one = checked(Check::Http("/a".to_owned()));
    let same = tending(20);
    let harder = Tending {
        fall: 4,
        ..tending(20)
    };
    for (settings, tending, is_kept) in [
        (one.clone(), &same, true),
        (checked(Check::Off), &same, false),
        (checked(Check::Tcp), &same, false),
        (checked(Check::Http("/b".to_owned())), &same, false),
        (one.clone(), &harder, false),
    ] {
        let before = by(&one, &same, None);
        assert!(!check(&before, "---"));
        let after = by(&settings, tending, Some(&before));
        let endpoint = after.endpoints()[0].clone();
        assert_eq!(
            endpoint.standing.is_available(),
            !is_kept,
            "{:?}",
            settings.check
        );
        assert_eq!(after.is_well(), !is_kept);
        // Checks that had begun before the change are of no account.
        if !is_kept {
            assert!(check(&before, "---"), "{:?}", settings.check);
        }
    }
}

#[test]
fn an_ejection_goes_on_though_a_verdict_ends() {
    let one = PoolSettings {
        check: Check::Tcp,
        ..settings(&[addr(1), addr(2)])
    };
    let before = by(&one, &tending(20), None);
    assert!(!check(&before, "---"));
    fail(&before, 0, 2, SECOND);
    let after = pool(&[addr(1), addr(2)], 20, Some(&before));
    let first = after.endpoints()[0].clone();
    assert!(!first.standing.is_available());
    first.standing.tick(60 * SECOND);
    assert!(first.standing.is_available());
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
    assert!(!kept[0].standing.is_available() && kept[1].standing.is_available());
    let after = pool(&[addr(1), addr(4)], 20, Some(&before));
    let all = after.endpoints();
    assert!(Arc::ptr_eq(&all[0], &kept[0]));
    assert!(!all[0].standing.is_available() && all[1].standing.is_available());
}

#[test]
fn what_is_known_of_an_address_holds_on_while_it_is_the_same() {
    let upstream = |change: fn(&mut Upstream)| {
        let mut settings = settings(&[addr(1), addr(2)]);
        change(&mut settings.upstreams[0]);
        settings
    };
    let plain = upstream(|_| ());
    let tls = upstream(|u| u.tls = true);
    for (before, after, is_kept) in [
        (&plain, upstream(|u| u.weight = 3), true),
        (&plain, upstream(|u| u.host = "other".to_owned()), true),
        (&plain, upstream(|u| u.http2 = true), false),
        (&plain, tls.clone(), false),
        (&tls, upstream(|u| (u.tls, u.weight) = (true, 3)), true),
        (
            &tls,
            upstream(|u| (u.tls, u.host) = (true, "other".to_owned())),
            false,
        ),
        (
            &tls,
            upstream(|u| (u.tls, u.sni) = (true, Some("other".to_owned()))),
            false,
        ),
        (
            &tls,
            upstream(|u| (u.tls, u.sni) = (true, Some("backend".to_owned()))),
            true,
        ),
    ] {
        let first = by(before, &tending(20), None);
        fail(&first, 0, 2, SECOND);
        first.endpoints()[0].standing.enter();
        let next = by(&after, &tending(20), Some(&first));
        let endpoint = next.endpoints()[0].clone();
        assert_eq!(endpoint.standing.is_available(), !is_kept, "{after:?}");
        assert_eq!(
            endpoint.standing.in_flight(),
            u64::from(is_kept),
            "{after:?}"
        );
        assert_eq!(endpoint.weight, after.upstreams[0].weight);
        assert_eq!(
            endpoint.authority,
            format!("{}:80", after.upstreams[0].host)
        );
    }
}

#[test]
fn an_address_that_moves_to_another_name_keeps_what_is_known_of_it() {
    let mut settings = settings(&[addr(1), addr(2)]);
    let other = Upstream {
        host: "other".to_owned(),
        addrs: vec![addr(3)],
        ..settings.upstreams[0].clone()
    };
    settings.upstreams.push(other);
    let pool = by(&settings, &tending(20), None);
    fail(&pool, 0, 2, SECOND);
    pool.found("other", 80, &[addr(1)], &metrics());
    pool.found("backend", 80, &[addr(2)], &metrics());
    let moved = pool.endpoints()[1].clone();
    assert_eq!(moved.addr, addr(1));
    assert!(!moved.standing.is_available());
}
