//! A small ruleset for the tests of the commands.

use std::num::NonZeroU32;
use std::time::Duration;

use crate::limit::{
    Denial, Hold, KeyHasher, Limit, LimitId, Mode, OnStoreFailure, Scope, Unit, Window,
};
use crate::route::RouteTable;
use crate::route::pricing::{Cap, CostSource};
use crate::spec::{Edition, EditionId, IpLimits, Route, RouteId, RouteLimits, Ruleset, Unmatched};

fn limit(keys: &KeyHasher, name: &str, unit: Unit, quota: u32, window_s: u64) -> Limit {
    let scope = match name.rsplit(':').next() {
        Some("user") => Scope::User,
        Some("ip") => Scope::Ip,
        _ => Scope::App,
    };
    Limit {
        name: name.into(),
        unit,
        quota: NonZeroU32::new(quota).unwrap(),
        window: Window::Sliding(Duration::from_secs(window_s)),
        scope,
        group: name.starts_with("profile").then(|| "profile".into()),
        mode: Mode::Enforce,
        on_store_failure: OnStoreFailure::Local,
        refund_on: [].into(),
        hold: Hold::Response,
        max_hold: Duration::ZERO,
        denial: Denial::CallRate,
        sources: [].into(),
        salt: keys.limit(name),
    }
}

fn limits(ids: &[u32], from: Option<usize>, source: &str) -> RouteLimits {
    RouteLimits {
        limits: ids.iter().map(|id| LimitId(*id)).collect(),
        from: from.map(EditionId),
        sources: Some(source)
            .filter(|source| !source.is_empty())
            .map(Into::into)
            .into_iter()
            .collect(),
    }
}

fn route(name: &str, title: &str, call: (&str, &str), editions: [RouteLimits; 2]) -> Route {
    Route {
        name: name.into(),
        title: title.into(),
        calls: [(call.0.into(), call.1.into())].into(),
        auth: None,
        history: false,
        totals: Default::default(),
        cost: None,
        max_recipients: None,
        validate: None,
        max_body: None,
        editions: editions.into(),
        sources: ["004:1".into()].into(),
    }
}

/// Two editions, v3 and v4; `messages/users` is printed by v4 alone, `token` by neither.
pub(super) fn rules() -> Ruleset {
    let keys = KeyHasher::new((1, 2));
    let all = [
        limit(&keys, "user-get:calls/s:app", Unit::Calls, 100, 1),
        limit(&keys, "user-get:calls/s:ip", Unit::Calls, 100, 1),
        limit(&keys, "profile:calls/min:user", Unit::Calls, 5, 60),
        limit(&keys, "messages-users:calls/s:app", Unit::Calls, 100, 1),
        limit(
            &keys,
            "messages-users:messages/min:app",
            Unit::Messages,
            6000,
            60,
        ),
        limit(&keys, "unmatched:calls/s:app", Unit::Calls, 100, 1),
        limit(&keys, "rejected:calls/s:ip", Unit::Calls, 20, 1),
    ];
    let mut send = route(
        "messages-users",
        "发送单聊消息",
        ("POST", "/messages/users"),
        [
            limits(&[3, 4], Some(1), ""),
            limits(&[3, 4], Some(1), "001:16"),
        ],
    );
    send.cost = Some(CostSource {
        field: "to".into(),
        caps: [("to", 3), ("rooms", 1)]
            .map(|(field, max)| Cap {
                field: field.into(),
                max,
            })
            .into(),
    });
    send.max_recipients = Some(3);
    let routes = [
        route(
            "user-get",
            "获取用户",
            ("GET", "/users/{username}"),
            [
                limits(&[0, 1], Some(0), "002:10"),
                limits(&[0, 2], Some(1), "001:20"),
            ],
        ),
        send,
        route(
            "token",
            "",
            ("POST", "/token"),
            [limits(&[0], None, ""), limits(&[0], None, "")],
        ),
    ];
    let calls = routes.iter().enumerate().flat_map(|(id, route)| {
        route
            .calls
            .iter()
            .map(move |(method, path)| (RouteId(id), &**method, &**path))
    });
    let table = RouteTable::build(calls).unwrap();
    let edition = |name: &str| Edition {
        name: name.into(),
        ip_copy: name == "v3",
    };
    let (v3, v4) = (EditionId(0), EditionId(1));
    Ruleset {
        limits: all.into(),
        unmatched_route: route(
            "unmatched",
            "",
            ("*", "*"),
            [limits(&[5], None, ""), limits(&[5], None, "")],
        ),
        routes: routes.into(),
        editions: [edition("v3"), edition("v4")].into(),
        selections: [
            ("current".into(), v3, v4),
            ("v3".into(), v3, v3),
            ("v4".into(), v4, v4),
        ]
        .into(),
        unmatched: Unmatched::DefaultLimit,
        fold_app_names: true,
        ip_limits: IpLimits {
            rejected: [LimitId(6)].into(),
            ..IpLimits::default()
        },
        history: None,
        totals: Box::default(),
        payloads: Default::default(),
        table,
        keys,
        apps: crate::apps::Apps::default(),
    }
}
