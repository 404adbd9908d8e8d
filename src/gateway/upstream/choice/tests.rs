use std::collections::BTreeMap;
use std::time::Duration;

use prometheus::Registry;

use super::*;
use crate::gateway::upstream::endpoint::Kind;
use crate::gateway::upstream::standing::{Ejecting, Standing};
use crate::observe::upstreams::{Failure, UpstreamMetrics};
use crate::settings::Upstream;

/// Addresses 10.0.0.1, 10.0.0.2, … with these weights.
fn set(weights: &[u32]) -> Set {
    let metrics = UpstreamMetrics::new(&Registry::new()).unwrap();
    let endpoint = |(n, weight): (u8, &u32)| {
        let kind = Kind {
            upstream: Upstream {
                tls: false,
                host: "backend".to_owned(),
                port: 80,
                addrs: Vec::new(),
                weight: *weight,
                http2: false,
                sni: None,
            },
            ca: None,
            group: 0,
        };
        let addr = SocketAddr::from(([10, 0, 0, n], 80));
        let own = metrics.endpoint("default", &addr.to_string());
        let standing = Arc::new(Standing::new(addr, "default".into(), own));
        Arc::new(Endpoint::new(addr, &kind, standing))
    };
    Set::new((1..).zip(weights).map(endpoint).collect())
}

fn choosing(balance: Balance, nth: usize, app: &str) -> Choosing<'static> {
    Choosing {
        balance,
        nth,
        app: hash(app.as_bytes()),
        tried: &[],
        again: false,
    }
}

/// The last octet of the chosen address.
fn last(chosen: Option<&Arc<Endpoint>>) -> u8 {
    match chosen.unwrap().addr.ip() {
        std::net::IpAddr::V4(ip) => ip.octets()[3],
        std::net::IpAddr::V6(_) => 0,
    }
}

fn eject(endpoint: &Endpoint) {
    let ejecting = Ejecting {
        after: std::num::NonZeroU32::new(1),
        time: Duration::from_secs(10),
    };
    endpoint
        .standing
        .failed(Failure::Connect, 1, ejecting, || true);
}

#[test]
fn turns_follow_the_weights_and_are_mixed() {
    let set = set(&[4, 2, 2]);
    let turns: Vec<u8> = (0..8)
        .map(|nth| last(set.choose(choosing(Balance::RoundRobin, nth, ""))))
        .collect();
    assert_eq!(turns.iter().filter(|n| **n == 1).count(), 4);
    assert_eq!(turns.iter().filter(|n| **n == 2).count(), 2);
    assert!(
        turns.windows(3).all(|three| three != [1, 1, 1]),
        "{turns:?}"
    );
}

#[test]
fn the_fewest_calls_for_its_weight_win() {
    let set = set(&[1, 3]);
    let mut got = BTreeMap::new();
    for nth in 0..8 {
        let chosen = set.choose(choosing(Balance::LeastConnections, nth, ""));
        chosen.unwrap().standing.enter();
        *got.entry(last(chosen)).or_insert(0) += 1;
    }
    assert_eq!(got, BTreeMap::from([(1, 2), (2, 6)]));
}

#[test]
fn only_the_apps_of_an_address_that_goes_move() {
    let set = set(&[1, 1, 1, 1]);
    let home = |app: &str| last(set.choose(choosing(Balance::HashApp, 0, app)));
    let apps: Vec<String> = (0..1000).map(|n| format!("o#a{n}")).collect();
    let before: Vec<u8> = apps.iter().map(|app| home(app)).collect();
    for n in 1..=4 {
        let count = before.iter().filter(|home| **home == n).count();
        assert!((180..320).contains(&count), "{n}: {count}");
    }
    eject(&set.endpoints[2]);
    for (app, before) in apps.iter().zip(before) {
        let now = home(app);
        assert!(now == before || before == 3, "{app}: {before} to {now}");
        assert_ne!(now, 3);
    }
}

/// How many of so many calls each address gets, where those at these places are out.
fn shares(balance: Balance, weights: &[u32], out: &[usize], calls: usize) -> BTreeMap<u8, usize> {
    let set = set(weights);
    out.iter().for_each(|place| eject(&set.endpoints[*place]));
    let mut got = BTreeMap::new();
    for nth in 0..calls {
        let app = format!("o#a{nth}");
        *got.entry(last(set.choose(choosing(balance, nth, &app))))
            .or_insert(0) += 1;
    }
    got
}

#[test]
fn the_share_of_one_that_is_out_is_spread_over_all_others() {
    for balance in [Balance::RoundRobin, Balance::LeastConnections] {
        for out in 0..4 {
            let got = shares(balance, &[1; 4], &[out], 1200);
            let all: Vec<usize> = got.into_values().collect();
            assert_eq!(all, [400; 3], "{balance:?} without {out}");
        }
    }
    let hashed = shares(Balance::HashApp, &[1; 4], &[1], 1200);
    assert!(
        hashed.values().all(|got| (340..460).contains(got)),
        "{hashed:?}"
    );
}

#[test]
fn the_share_of_one_that_is_out_is_spread_by_weight() {
    let got = shares(Balance::RoundRobin, &[4, 2, 1, 3], &[0], 6000);
    assert_eq!(got, BTreeMap::from([(2, 2000), (3, 1000), (4, 3000)]));
    let got = shares(Balance::RoundRobin, &[4, 2, 1, 3], &[0, 3], 6000);
    assert_eq!(got, BTreeMap::from([(2, 4000), (3, 2000)]));
    let hashed = shares(Balance::HashApp, &[4, 2, 1, 3], &[0], 6000);
    for (n, due) in [(2, 2000), (3, 1000), (4, 3000)] {
        assert!(hashed[&n].abs_diff(due) < 200, "{hashed:?}");
    }
}

#[test]
fn apps_are_spread_by_weight() {
    let set = set(&[1, 3]);
    let home = |n: i32| last(set.choose(choosing(Balance::HashApp, 0, &format!("o#a{n}"))));
    let heavy = (0..1000).filter(|n| home(*n) == 2).count();
    assert!((680..820).contains(&heavy), "{heavy}");
}

#[test]
fn where_none_is_well_all_are_chosen_and_none_twice() {
    for balance in [
        Balance::RoundRobin,
        Balance::LeastConnections,
        Balance::HashApp,
    ] {
        let set = set(&[1, 1, 1]);
        set.endpoints.iter().for_each(|e| eject(e));
        let mut tried = Vec::new();
        for _ in 0..3 {
            let how = Choosing {
                tried: &tried,
                ..choosing(balance, 0, "a")
            };
            let chosen = set.choose(how).unwrap().addr;
            assert!(!tried.contains(&chosen));
            tried.push(chosen);
        }
        let how = Choosing {
            tried: &tried,
            ..choosing(balance, 0, "a")
        };
        assert!(set.choose(how).is_none());
        assert!(set.choose(Choosing { again: true, ..how }).is_some());
    }
}

#[test]
fn an_empty_set_has_no_choice() {
    for balance in [
        Balance::RoundRobin,
        Balance::LeastConnections,
        Balance::HashApp,
    ] {
        assert!(Set::default().choose(choosing(balance, 7, "a")).is_none());
    }
}

#[test]
fn a_repeated_call_goes_back_rather_than_to_one_that_is_not_well() {
    let set = set(&[1, 1]);
    eject(&set.endpoints[1]);
    let tried = [set.endpoints[0].addr];
    let how = Choosing {
        tried: &tried,
        again: true,
        ..choosing(Balance::RoundRobin, 0, "a")
    };
    assert_eq!(last(set.choose(how)), 1);
    let how = Choosing {
        again: false,
        ..how
    };
    assert_eq!(last(set.choose(how)), 2);
}
