//! Drives a running gateway over sockets, before a real stand-in backend.
#![cfg(feature = "gateway")]
#![allow(
    missing_docs,
    clippy::unwrap_used,
    clippy::expect_used,
    reason = "tests"
)]

mod adaptive;
mod admin;
mod ahead;
mod answers;
mod apps;
mod blame;
mod bodies;
mod callers;
mod dodges;
mod door;
mod faults;
mod frames;
mod h2_abuse;
mod harness;
mod history;
mod life;
mod limits;
mod load;
mod overload;
mod passing;
mod patience;
mod payload;
mod plans;
mod pools;
mod proxying;
mod reload;
mod secrets;
mod settling;
mod sizes;
mod smuggling;
mod standing;
mod streams;
mod tls;
mod tokens;
mod upgrade;
mod upstreams;

/// Routes of our own over the shipped ones, with windows so long that no test waits for one.
pub(crate) const ROUTES: &str = r#"
[[group]]
name = "t-pair"
v3 = { limits = ["4/3600s"] }

[[route]]
name = "t-app"
calls = ["GET /t/app"]
v3 = { limits = ["3/3600s"] }

[[route]]
name = "t-user"
calls = ["GET /t/user/{username}"]
v3 = { limits = ["2/3600s per user", "100/s"] }

[[route]]
name = "t-day"
calls = ["POST /t/day"]
v3 = { limits = ["2/day"], ip_copy = false }

[[route]]
name = "t-first"
calls = ["GET /t/first"]
v3 = { group = "t-pair" }

[[route]]
name = "t-second"
calls = ["GET /t/second"]
v3 = { group = "t-pair" }

[[route]]
name = "t-messages"
calls = ["POST /t/messages"]
cost = "to"
max_recipients = 6
v3 = { limits = ["10 messages/3600s"] }

[[route]]
name = "t-report"
calls = ["GET /t/report"]
v3 = { limits = [{ rate = "1/3600s", mode = "report" }], ip_copy = false }

[[route]]
name = "t-slot"
calls = ["POST /t/slot"]
v3 = { limits = ["1 tasks"] }

[[route]]
name = "t-ip"
calls = ["GET /t/ip"]
v3 = { limits = ["3/3600s per ip"] }
"#;
