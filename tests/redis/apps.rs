//! Known apps at gateways that share a store.

use floodgate::store::Store as _;
use floodgate::store::redis::TimeSource;

use crate::calls::{Ask, START_US, is_admitted, moment, plan, runtime, store_with};
use crate::gateways::{acquainted, exhaust, with_routes};
use crate::harness::Gateway;
use crate::server::Server;

const ROUTES: &str = r#"
[[route]]
name = "t-long"
calls = ["GET /t/long"]
v3 = { limits = ["10/3600s"] }
"#;

const APPS: &str = "[[app]]\nnames = [\"o#a\", \"id\"]\nlimits.t-long = \"25/3600s\"\n";

#[test]
fn two_gateways_agree_on_an_apps_own_figure_and_on_its_names() {
    let server = Server::start();
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("apps.toml");
    std::fs::write(&path, APPS).unwrap();
    for leases in ["false", "true"] {
        let prefix = format!("leases-{leases}");
        let args = [
            "--apps",
            path.to_str().unwrap(),
            "--store-leases",
            leases,
            "--store-prefix",
            &prefix,
        ];
        let pair: [Gateway; 2] = [(); 2].map(|()| with_routes(ROUTES, &server.url(), &args));
        let pair = [&pair[0], &pair[1]];
        acquainted(&pair);
        let by_key = crate::gateways::calls(pair[0], "/o/a/t/long", 12).admitted;
        assert_eq!(by_key, 12);
        assert_eq!(exhaust(&pair, "/app-id/id/t/long", by_key, 25), 25);
        assert_eq!(exhaust(&pair, "/app-id/other/t/long", 0, 10), 10);
    }
}

#[test]
fn units_leased_for_a_larger_figure_are_not_given_to_a_call_with_a_smaller_one() {
    let server = Server::start();
    let store = store_with(&server.url(), "p", "g", TimeSource::Caller, true);
    runtime().block_on(async {
        let mut now_us = START_US;
        let ask = |quota| Ask {
            counter: 0,
            quota,
            cost: 1,
            report: false,
        };
        let (mut all, mut late) = (0_u32, 0_u32);
        // One counter, as that of an address is, in turn for an app with the raised figure and for
        // one without: the latter gets in only while there were less than its figure.
        for turn in 0..900_u32 {
            now_us += 100;
            let is_raised = turn % 3 > 0;
            let mut plan = plan(&[ask(if is_raised { 500 } else { 100 })], now_us);
            let decision = store.decide(&mut plan, moment(now_us)).await.unwrap();
            if is_admitted(&decision) {
                all += 1;
                late += u32::from(!is_raised && all > 100);
            }
        }
        assert_eq!(late, 0, "beyond its figure");
        assert_eq!(all, 500, "the raised figure is given in full");
    });
}
