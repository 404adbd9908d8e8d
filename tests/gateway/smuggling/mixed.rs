//! Many requests on one connection, of every kind, in pieces that end anywhere: whoever reads the
//! next one, pingora or what answers refused callers without it, each is answered in its turn, and
//! behind the gateway is seen what was admitted, and nothing else.

use std::time::Duration;

use super::backend::Backend;
use super::{BODY, gateway, statuses};
use crate::harness::Gateway;

/// Numbers that look random, the same each time (SplitMix64).
struct Numbers(u64);

impl Numbers {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let z = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        let z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        z ^ (z >> 31)
    }

    fn below(&mut self, most: usize) -> usize {
        usize::try_from(self.next() % most as u64).expect("a number")
    }
}

/// What a request comes to.
struct Asked {
    raw: String,
    status: u16,
    /// Method and body, where it is to be seen behind.
    seen: Option<(&'static str, &'static str)>,
    is_last: bool,
    /// Its target has a blank, which pingora reads if it is there as a whole.
    may_be_400: bool,
}

const TOKEN: &str = "Authorization: Bearer t\r\n";

/// A request of some kind; `n` is in its target.
fn request(kind: usize, n: usize) -> Asked {
    let plain = |method: &str, path: &str, lines: &str, body: &str| {
        format!("{method} {path}?n={n} HTTP/1.1\r\nHost: gateway\r\n{lines}\r\n{body}")
    };
    let length = format!("Content-Length: {}\r\n", BODY.len());
    let with_body = format!("{TOKEN}{length}");
    let plain_path = "/o/a/s/plain";
    let mut asked = Asked {
        raw: String::new(),
        status: 200,
        seen: None,
        is_last: false,
        may_be_400: false,
    };
    match kind {
        0 | 1 => {
            asked.raw = plain("GET", plain_path, TOKEN, "");
            asked.seen = Some(("GET", ""));
        }
        2 => {
            asked.raw = plain("POST", "/o/a/s/counted", &with_body, BODY);
            asked.seen = Some(("POST", BODY));
        }
        3 => {
            asked.raw = plain("POST", plain_path, &with_body, BODY);
            asked.seen = Some(("POST", BODY));
        }
        4 | 5 => (asked.raw, asked.status) = (plain("GET", plain_path, "", ""), 401),
        6 => (asked.raw, asked.status) = (plain("GET", "/nowhere", TOKEN, ""), 404),
        7 => (asked.raw, asked.status) = (plain("POST", plain_path, &length, BODY), 401),
        8 => (asked.raw, asked.status) = (plain("GET", "/o/a/s/once", TOKEN, ""), 429),
        9 => (asked.raw, asked.status) = (plain("HEAD", "/nowhere", "", ""), 404),
        10 => {
            // A counted body that is refused for what it says.
            let lines = format!("{TOKEN}Content-Length: 2\r\n");
            (asked.raw, asked.status) = (plain("POST", "/o/a/s/counted", &lines, "{]"), 400);
        }
        11 => {
            let raw = plain(
                "GET",
                plain_path,
                &format!("{TOKEN}Connection: keep-alive\r\n"),
                "",
            );
            asked.raw = raw.replace("HTTP/1.1", "HTTP/1.0");
            asked.seen = Some(("GET", ""));
        }
        12 => {
            asked.raw = format!("\r\n{}", plain("GET", plain_path, "", ""));
            asked.status = 401;
        }
        13 => {
            let blanks = " x".repeat(n % 40);
            asked.raw = plain("GET", &format!("/o/a/users/y {blanks}"), "", "");
            (asked.status, asked.may_be_400) = (401, true);
        }
        14 => {
            let lines = format!("{with_body}Expect: 100-continue\r\n");
            asked.raw = plain("POST", "/o/a/s/counted", &lines, BODY);
            asked.seen = Some(("POST", BODY));
        }
        15 => {
            let lines = format!("{TOKEN}X-Pad: {}\r\n", "p".repeat(n * 97 % 3000));
            asked.raw = plain("GET", plain_path, &lines, "");
            asked.seen = Some(("GET", ""));
        }
        16 => {
            let lines = format!("X-Pad: {}\r\n", "p".repeat(n * 89 % 5000));
            (asked.raw, asked.status) = (plain("GET", plain_path, &lines, ""), 401);
        }
        17 => {
            asked.raw = plain(
                "GET",
                plain_path,
                "Upgrade: websocket\r\nConnection: upgrade\r\n",
                "",
            );
            asked.status = 401;
        }
        18 => {
            // A body that is one of the requests above.
            let inner =
                "GET /o/a/s/plain?n=0 HTTP/1.1\r\nHost: gateway\r\nAuthorization: Bearer t\r\n\r\n";
            let lines = format!("Content-Length: {}\r\n", inner.len());
            (asked.raw, asked.status) = (plain("POST", plain_path, &lines, inner), 401);
        }
        // Those after which nothing is read.
        19 => {
            asked.raw = plain(
                "GET",
                plain_path,
                &format!("{TOKEN}Connection: close\r\n"),
                "",
            );
            (asked.seen, asked.is_last) = (Some(("GET", "")), true);
        }
        20 => {
            let lines = format!("{TOKEN}Transfer-Encoding: chunked\r\n");
            let body = format!("c\r\n{BODY}\r\n0\r\nX: y\r\n\r\n");
            asked.raw = plain("POST", plain_path, &lines, &body);
            (asked.seen, asked.is_last) = (Some(("POST", BODY)), true);
        }
        21 => {
            asked.raw = plain("GET", plain_path, "Connection: close\r\n", "");
            (asked.status, asked.is_last) = (401, true);
        }
        22 => {
            let lines = format!("{length}Expect: 100-continue\r\n");
            asked.raw = plain("POST", plain_path, &lines, BODY);
            (asked.status, asked.is_last) = (401, true);
        }
        23 => {
            asked.raw = plain("GET", plain_path, "X : y\r\n", "");
            (asked.status, asked.is_last) = (400, true);
        }
        24 => {
            let raw = plain("GET", plain_path, "", "");
            asked.raw = raw.replace("HTTP/1.1", "HTTP/1.0");
            (asked.status, asked.is_last) = (401, true);
        }
        _ => {
            let lines = "Transfer-Encoding: chunked\r\n";
            let body = format!("c\r\n{BODY}\r\n0\r\n\r\n");
            asked.raw = plain("POST", plain_path, lines, &body);
            (asked.status, asked.is_last) = (401, true);
        }
    }
    asked
}

const KINDS: usize = 26;
const FIRST_LAST: usize = 19;

/// Sends it in pieces of any length, now and then after a pause: all that comes back.
fn send(gateway: &Gateway, bytes: &[u8], numbers: &mut Numbers) -> Vec<u8> {
    use std::io::{Read as _, Write as _};
    let mut stream = std::net::TcpStream::connect(gateway.addr).expect("a connection");
    stream.set_nodelay(true).expect("a socket option");
    let timeout = Some(Duration::from_secs(60));
    stream.set_read_timeout(timeout).expect("a timeout");
    let mut writer = stream.try_clone().expect("a second handle");
    let mut answers = Vec::new();
    std::thread::scope(|scope| {
        scope.spawn(move || {
            let mut rest = bytes;
            while !rest.is_empty() {
                let most = [1, 20, 300, 5000][numbers.below(4)];
                let (piece, after) = rest.split_at((numbers.below(most) + 1).min(rest.len()));
                rest = after;
                if writer.write_all(piece).is_err() {
                    return;
                }
                if numbers.below(6) == 0 {
                    std::thread::sleep(Duration::from_millis(numbers.next() % 4));
                }
            }
        });
        let mut chunk = [0; 4096];
        while let Ok(read @ 1..) = stream.read(&mut chunk) {
            answers.extend_from_slice(&chunk[..read]);
        }
    });
    answers
}

/// One connection, and what comes of it.
fn check(nth: u64, gateway: &Gateway, backend: &Backend) -> Result<(), String> {
    let mut numbers = Numbers(nth);
    let mut all: Vec<Asked> = Vec::new();
    for n in 1..=8 + numbers.below(12) {
        all.push(request(numbers.below(FIRST_LAST), n));
    }
    let last = FIRST_LAST + numbers.below(KINDS - FIRST_LAST);
    all.push(request(last, all.len() + 1));
    // And nothing of this.
    let behind =
        "GET /o/a/s/plain?n=99 HTTP/1.1\r\nHost: gateway\r\nAuthorization: Bearer t\r\n\r\n";
    let bytes = all
        .iter()
        .map(|a| &*a.raw)
        .chain([behind])
        .collect::<String>();
    let answers = send(gateway, bytes.as_bytes(), &mut numbers);
    let got = statuses(&answers);
    let ends = all
        .iter()
        .zip(&got)
        .position(|(a, status)| a.is_last || a.may_be_400 && *status == 400);
    let end = ends.map_or(all.len(), |at| at + 1);
    let fits = got.len() == end
        && all
            .iter()
            .zip(&got)
            .all(|(a, status)| *status == a.status || a.may_be_400 && *status == 400);
    let seen = backend.take();
    let seen: Vec<_> = seen
        .iter()
        .map(|r| {
            (
                &*r.method,
                &*r.target,
                String::from_utf8_lossy(&r.body).into_owned(),
            )
        })
        .collect();
    let expected: Vec<_> = all[..end.min(all.len())]
        .iter()
        .filter_map(|a| a.seen.map(|seen| (a, seen)))
        .map(|(a, (method, body))| {
            let target = a.raw.trim_start().split(' ').nth(1).unwrap_or_default();
            (method, target, body.to_owned())
        })
        .collect();
    match fits && seen == expected {
        true => Ok(()),
        false => Err(format!(
            "{nth}: answered {got:?}, wanted {:?}; saw {seen:?}, wanted {expected:?}\n{bytes:?}",
            all.iter().map(|a| a.status).collect::<Vec<_>>()
        )),
    }
}

#[test]
fn requests_of_every_kind_on_one_connection_are_read_one_after_the_other() {
    let wrong: Vec<String> = std::thread::scope(|scope| {
        let workers: Vec<_> = (0..4_u64)
            .map(|worker| {
                scope.spawn(move || {
                    // What is seen behind is one connection's at a time.
                    let backend = Backend::start();
                    let gateway = gateway(&backend, &["--bad-token-memory", "off"]);
                    assert_eq!(gateway.call("GET", "/o/a/s/once", "").status, 200);
                    backend.take();
                    let wrong = (0..120)
                        .filter_map(|nth| check(worker << 32 | nth, &gateway, &backend).err())
                        .collect::<Vec<_>>();
                    assert_eq!(backend.faults(), Vec::<String>::new());
                    wrong
                })
            })
            .collect();
        let done = workers
            .into_iter()
            .map(|worker| worker.join().expect("it ends"));
        done.flatten().collect()
    });
    assert!(
        wrong.is_empty(),
        "{} of 480\n{}",
        wrong.len(),
        wrong[..wrong.len().min(3)].join("\n")
    );
}
