//! What is sent: a file of calls with their weights, and what stands in for users and groups.

use std::fmt::Write as _;
use std::net::{IpAddr, Ipv4Addr};

use bytes::Bytes;
use http::Method;
use serde::Deserialize;

use crate::identity;
use crate::route::Form;

/// The mix that is built in.
pub const SHIPPED: &str = include_str!("mix.toml");

/// The most of anything that a mix may ask for.
const MOST: u32 = 1_000_000;
/// The largest body a mix may make, bytes.
const MOST_BYTES: u32 = 16 * 1024 * 1024;
/// Groups of each app.
const GROUPS: u64 = 200;

/// Why a mix cannot be used.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub enum MixError {
    /// It is no mix.
    #[error("{0}")]
    Form(String),
    /// A value of a call cannot be used.
    #[error("call `{call}`: {what}")]
    Call {
        /// Its name.
        call: String,
        /// Why, and what to write.
        what: String,
    },
    /// An app's name is none.
    #[error("apps: {0:?} is no app; write org#app or an App ID")]
    App(String),
    /// A number is too large, or nothing.
    #[error("{key}: write a number from {least} to {MOST}")]
    Number {
        /// Which.
        key: &'static str,
        /// The smallest.
        least: u32,
    },
    /// Nothing would be sent.
    #[error("no call; write a [[call]] with name, method and path")]
    Empty,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Written {
    #[serde(default = "one_app")]
    apps: Apps,
    #[serde(default = "some_users")]
    users: u32,
    #[serde(default)]
    ips: u32,
    #[serde(default = "some_token")]
    token: String,
    #[serde(default)]
    call: Vec<WrittenCall>,
}

#[derive(Deserialize)]
#[serde(untagged)]
enum Apps {
    Number(u32),
    Names(Vec<String>),
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct WrittenCall {
    name: String,
    #[serde(default = "one")]
    weight: u32,
    method: String,
    path: String,
    #[serde(default)]
    body: Option<String>,
    #[serde(default)]
    content_type: Option<String>,
}

fn one_app() -> Apps {
    Apps::Number(1)
}

fn some_users() -> u32 {
    1000
}

fn some_token() -> String {
    "YWMtload".to_owned()
}

fn one() -> u32 {
    1
}

/// A kind of call.
#[derive(Debug)]
pub struct Kind {
    /// Its name in reports.
    pub name: String,
    /// Its method.
    pub method: Method,
    /// Its `Content-Type`, if it has a body.
    pub content_type: Option<String>,
    path: Vec<Part>,
    body: Option<Vec<Part>>,
    /// The weights of all kinds up to this one.
    upto: u64,
}

/// A piece of a path or body.
#[derive(Debug)]
enum Part {
    Text(String),
    /// `{user}`
    User,
    /// `{users:N}`: so many, quoted, with commas between them, no two alike.
    Users(u32),
    /// `{group}`
    Group,
    /// `{n}`: the number of the call.
    Number,
    /// `{bytes:N}`: so many.
    Bytes(u32),
}

/// A compiled mix.
#[derive(Debug)]
pub struct Mix {
    /// Its kinds of calls.
    pub kinds: Vec<Kind>,
    /// The bearer token of every call; empty: none is sent.
    pub token: String,
    /// How the paths of each app begin.
    apps: Vec<String>,
    users: u64,
    ips: u32,
}

/// One call.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Asked {
    /// Which kind, by its place in [`Mix::kinds`].
    pub kind: usize,
    /// The target.
    pub path: String,
    /// The body.
    pub body: Bytes,
    /// The address that it is sent for, if one is told.
    pub ip: Option<IpAddr>,
}

impl Mix {
    /// Reads a mix.
    ///
    /// # Errors
    /// What is wrong with it, and what to write.
    pub fn read(text: &str) -> Result<Self, MixError> {
        let written: Written = toml::from_str(text)
            .map_err(|error| MixError::Form(error.to_string().trim_end().to_owned()))?;
        let number = |key, least, value| match value {
            n if (least..=MOST).contains(&n) => Ok(n),
            _ => Err(MixError::Number { key, least }),
        };
        let apps = match written.apps {
            Apps::Number(n) => (0..number("apps", 1, n)?)
                .map(|n| format!("/load/app{n}"))
                .collect(),
            Apps::Names(names) if names.is_empty() => {
                return Err(MixError::Number {
                    key: "apps",
                    least: 1,
                });
            }
            Apps::Names(names) => names
                .iter()
                .map(|name| prefix(name))
                .collect::<Result<_, _>>()?,
        };
        let mut kinds = Vec::new();
        let mut upto = 0;
        for call in written.call {
            upto += u64::from(call.weight);
            kinds.push(kind(call, upto)?);
        }
        if upto == 0 {
            return Err(MixError::Empty);
        }
        if !written.token.bytes().all(|b| b.is_ascii_graphic()) {
            return Err(MixError::Form(
                "token: write visible ASCII characters, or \"\" to send none".to_owned(),
            ));
        }
        Ok(Self {
            kinds,
            token: written.token,
            apps,
            users: u64::from(number("users", 1, written.users)?),
            ips: number("ips", 0, written.ips)?,
        })
    }

    /// The call of this number. The same seed and number make the same call.
    #[must_use]
    pub fn call(&self, seed: u64, number: u64) -> Asked {
        let mut draw = Draw(mixed(seed) ^ number.wrapping_mul(0xD6E8_FEB8_6659_FD93));
        let all = self.kinds.last().map_or(1, |kind| kind.upto.max(1));
        let at = draw.below(all);
        let kind = self.kinds.iter().position(|kind| at < kind.upto);
        let kind = kind.unwrap_or_default();
        let app = usize::try_from(draw.below(self.apps.len() as u64)).unwrap_or_default();
        let ip = (self.ips > 0).then(|| {
            let nth = u32::try_from(draw.below(self.ips.into())).unwrap_or_default();
            // Of the networks for benchmarks (RFC 2544) and beyond.
            IpAddr::V4(Ipv4Addr::from(
                u32::from(Ipv4Addr::new(198, 18, 0, 1)) + nth,
            ))
        });
        let mut path = self.apps.get(app).cloned().unwrap_or_default();
        let chosen = self.kinds.get(kind);
        let mut body = String::new();
        if let Some(chosen) = chosen {
            self.fill(&mut path, &chosen.path, number, &mut draw);
            if let Some(parts) = &chosen.body {
                self.fill(&mut body, parts, number, &mut draw);
            }
        }
        Asked {
            kind,
            path,
            body: body.into(),
            ip,
        }
    }

    fn fill(&self, out: &mut String, parts: &[Part], number: u64, draw: &mut Draw) {
        for part in parts {
            // Writing to a string does not fail.
            let _ = match part {
                Part::Text(text) => {
                    out.push_str(text);
                    Ok(())
                }
                Part::User => write!(out, "user{}", draw.below(self.users)),
                Part::Users(n) => {
                    let first = draw.below(self.users);
                    (0..u64::from(*n)).try_for_each(|nth| {
                        let comma = if nth > 0 { "," } else { "" };
                        write!(
                            out,
                            "{comma}\"user{}\"",
                            (first + nth) % self.users.max(u64::from(*n))
                        )
                    })
                }
                Part::Group => write!(out, "{}", 100_000 + draw.below(GROUPS)),
                Part::Number => write!(out, "{number}"),
                Part::Bytes(n) => {
                    out.extend(std::iter::repeat_n(
                        'x',
                        usize::try_from(*n).unwrap_or_default(),
                    ));
                    Ok(())
                }
            };
        }
    }
}

/// How the paths of an app begin.
fn prefix(app: &str) -> Result<String, MixError> {
    let plain = |c: char| c.is_ascii_alphanumeric() || "#-_.".contains(c);
    let form = identity::form(app).filter(|_| app.chars().all(plain));
    match (form, app.split_once('#')) {
        (Some(Form::AppKey), Some((org, name))) => Ok(format!("/{org}/{name}")),
        (Some(Form::AppId), _) => Ok(format!("/app-id/{app}")),
        _ => Err(MixError::App(app.to_owned())),
    }
}

fn kind(call: WrittenCall, upto: u64) -> Result<Kind, MixError> {
    let wrong = |what: String| MixError::Call {
        call: call.name.clone(),
        what,
    };
    let method = Method::from_bytes(call.method.as_bytes())
        .ok()
        .filter(|method| method.as_str() == call.method.to_ascii_uppercase())
        .ok_or_else(|| {
            wrong(format!(
                "{:?} is no method; write GET, POST, …",
                call.method
            ))
        })?;
    if !call.path.starts_with('/') || call.path.contains(|c: char| !c.is_ascii_graphic()) {
        return Err(wrong(format!(
            "{:?} is no path below the app; write e.g. /users/{{user}}",
            call.path
        )));
    }
    let value = |text: &str| http::HeaderValue::from_str(text).is_ok();
    if !call.content_type.as_deref().is_none_or(value) {
        return Err(wrong(
            "content_type: write e.g. application/json".to_owned(),
        ));
    }
    let body = call.body.as_deref().map(parts).transpose();
    let content_type = match &call.body {
        Some(_) => call
            .content_type
            .clone()
            .or(Some("application/json".to_owned())),
        None => None,
    };
    Ok(Kind {
        method,
        content_type,
        path: parts(&call.path).map_err(wrong)?,
        body: body.map_err(wrong)?,
        upto,
        name: call.name,
    })
}

/// Braces that name nothing stay: JSON is full of them.
fn parts(text: &str) -> Result<Vec<Part>, String> {
    let mut parts = Vec::new();
    let mut plain = String::new();
    let mut rest = text;
    while let Some((before, after)) = rest.split_once('{') {
        plain.push_str(before);
        let inside = after.split_once('}');
        let part = inside.map(|(word, _)| part(word)).transpose()?.flatten();
        match (part, inside) {
            (Some(part), Some((_, behind))) => {
                parts.push(Part::Text(std::mem::take(&mut plain)));
                parts.push(part);
                rest = behind;
            }
            _ => {
                plain.push('{');
                rest = after;
            }
        }
    }
    plain.push_str(rest);
    parts.push(Part::Text(plain));
    Ok(parts)
}

fn part(word: &str) -> Result<Option<Part>, String> {
    let (name, number) = match word.split_once(':') {
        Some((name, number)) => (name, Some(number)),
        None => (word, None),
    };
    let number = |most: u32| {
        let number = number.and_then(|text| text.parse().ok());
        number
            .filter(|n| (1..=most).contains(n))
            .ok_or_else(|| format!("{{{word}}}: write {{{name}:N}}, N from 1 to {most}"))
    };
    Ok(Some(match (name, word == name) {
        ("user", true) => Part::User,
        ("group", true) => Part::Group,
        ("n", true) => Part::Number,
        ("users", _) => Part::Users(number(MOST)?),
        ("bytes", _) => Part::Bytes(number(MOST_BYTES)?),
        _ => return Ok(None),
    }))
}

/// `SplitMix64`: small, fast, and the same everywhere.
#[derive(Debug)]
struct Draw(u64);

impl Draw {
    fn below(&mut self, most: u64) -> u64 {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        mixed(self.0) % most.max(1)
    }
}

fn mixed(mut z: u64) -> u64 {
    z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
    z ^ (z >> 31)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_shipped_mix_makes_calls_of_every_kind() {
        let mix = Mix::read(SHIPPED).unwrap();
        let mut seen = vec![0_u32; mix.kinds.len()];
        for n in 0..20_000 {
            let asked = mix.call(7, n);
            seen[asked.kind] += 1;
            assert!(asked.path.starts_with("/load/app"), "{}", asked.path);
            assert!(!asked.path.contains('{'), "{}", asked.path);
            if mix.kinds[asked.kind].name == "message" {
                let body: serde_json::Value = serde_json::from_slice(&asked.body).unwrap();
                assert_eq!(body["to"].as_array().unwrap().len(), 3);
                assert_eq!(body["ext"]["n"], n);
            }
        }
        // 40 of 100, give or take.
        assert!((7_500..8_500).contains(&seen[0]), "{seen:?}");
        assert!(seen.iter().all(|n| *n > 0), "{seen:?}");
    }

    #[test]
    fn a_seed_makes_the_same_calls_again() {
        let mix = Mix::read(SHIPPED).unwrap();
        let calls = |seed| (0..100).map(|n| mix.call(seed, n)).collect::<Vec<_>>();
        assert_eq!(calls(1), calls(1));
        assert_ne!(calls(1), calls(2));
    }

    #[test]
    fn recipients_are_no_two_alike() {
        let mix = Mix::read(
            "users = 5\n[[call]]\nname = \"m\"\nmethod = \"POST\"\npath = \"/m\"\nbody = '[{users:5}]'",
        )
        .unwrap();
        for n in 0..50 {
            let mut to: Vec<String> = serde_json::from_slice(&mix.call(1, n).body).unwrap();
            to.sort();
            to.dedup();
            assert_eq!(to.len(), 5);
        }
    }

    #[test]
    fn what_is_wrong_with_a_mix_is_said() {
        let call =
            |more: &str| format!("[[call]]\nname = \"c\"\nmethod = \"GET\"\npath = \"/u\"\n{more}");
        for (text, said) in [
            (String::new(), "no call"),
            (call("weight = 0"), "no call"),
            (call("wait = 1"), "unknown field `wait`"),
            (
                call("body = \"{users:x}\""),
                "{users:x}: write {users:N}, N from 1 to 1000000",
            ),
            (call("body = \"{bytes:99999999}\""), "N from 1 to 16777216"),
            (call("content_type = \"a\\u0000\""), "content_type"),
            (call("").replace("GET", "get"), "is no method"),
            (call("").replace("/u", "u"), "is no path below the app"),
            (
                format!("apps = 0\n{}", call("")),
                "apps: write a number from 1",
            ),
            (
                format!("apps = []\n{}", call("")),
                "apps: write a number from 1",
            ),
            (
                format!("apps = [\"a/b\"]\n{}", call("")),
                "\"a/b\" is no app",
            ),
            (format!("users = 0\n{}", call("")), "users: write a number"),
            (format!("token = \"a b\"\n{}", call("")), "token"),
        ] {
            let error = Mix::read(&text).unwrap_err().to_string();
            assert!(error.contains(said), "{text}\n{error}");
        }
    }

    #[test]
    fn apps_of_both_forms_have_their_paths() {
        let mix = Mix::read(
            "apps = [\"acme#chat\", \"a1b2\"]\n[[call]]\nname = \"u\"\nmethod = \"GET\"\npath = \"/users/{user}\"",
        )
        .unwrap();
        let paths: Vec<String> = (0..40).map(|n| mix.call(3, n).path).collect();
        assert!(
            paths
                .iter()
                .any(|path| path.starts_with("/acme/chat/users/user"))
        );
        assert!(
            paths
                .iter()
                .any(|path| path.starts_with("/app-id/a1b2/users/user"))
        );
    }
}
