//! A small IM backend that remembers its users, groups and chatrooms, and lists them in pages.
//!
//! A call can say what becomes of it: `x-do: lose` (done, and never answered), `x-do: fail` (not
//! done, 500), `x-do: slow` (answered half a second later), `x-do: wait` (done, and answered when
//! [`State::may_answer`] says so). Users whose name begins with `bad` cannot be registered.

use std::collections::BTreeSet;
use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::sync::{Arc, Mutex};

use serde_json::{Value, json};

/// What there is.
#[derive(Debug, Default)]
pub(crate) struct State {
    pub(crate) users: BTreeSet<String>,
    pub(crate) groups: BTreeSet<String>,
    pub(crate) rooms: BTreeSet<String>,
    /// Requests, method and target.
    pub(crate) asked: Vec<String>,
    /// Users that its own plan allows.
    pub(crate) most_users: Option<usize>,
    /// Bytes of all attributes.
    pub(crate) capacity: u64,
    /// Friends of every user; none: two.
    pub(crate) friends: BTreeSet<String>,
    /// Groups that every user is in.
    pub(crate) joined: usize,
    /// Users that were deleted since they were listed.
    pub(crate) gone: BTreeSet<String>,
    /// Users whose own listings fail.
    pub(crate) broken: BTreeSet<String>,
    /// Whether the first page of users has a cursor alone.
    pub(crate) hollow: bool,
    /// Whether the list of groups does not tell how many members they have.
    pub(crate) hides_members: bool,
    /// Members of every group by its details, if they tell it.
    pub(crate) members: Option<u64>,
    /// Whether those who wait are answered.
    pub(crate) may_answer: bool,
    next: u64,
}

#[derive(Clone)]
pub(crate) struct Backend {
    pub(crate) addr: SocketAddr,
    pub(crate) state: Arc<Mutex<State>>,
}

impl Backend {
    pub(crate) fn start() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let backend = Self {
            addr: listener.local_addr().unwrap(),
            state: Arc::default(),
        };
        let served = backend.clone();
        std::thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                let backend = served.clone();
                std::thread::spawn(move || backend.serve(stream));
            }
        });
        backend
    }

    pub(crate) fn with<T>(&self, work: impl FnOnce(&mut State) -> T) -> T {
        work(&mut self.state.lock().unwrap())
    }

    /// How often it was asked for something that begins so.
    pub(crate) fn asked(&self, what: &str) -> usize {
        self.with(|state| state.asked.iter().filter(|a| a.starts_with(what)).count())
    }

    fn serve(&self, stream: TcpStream) -> Option<()> {
        let mut reader = BufReader::new(stream.try_clone().ok()?);
        let mut stream = stream;
        loop {
            let mut line = String::new();
            reader.read_line(&mut line).ok().filter(|n| *n > 0)?;
            let mut words = line.split(' ');
            let (method, target) = (words.next()?.to_owned(), words.next()?.to_owned());
            let (mut length, mut wish) = (0, String::new());
            loop {
                let mut field = String::new();
                reader.read_line(&mut field).ok()?;
                let Some((name, value)) = field.trim_end().split_once(':') else {
                    break;
                };
                match &*name.to_ascii_lowercase() {
                    "content-length" => length = value.trim().parse().ok()?,
                    "x-do" => wish = value.trim().to_owned(),
                    "transfer-encoding" => panic!("gateways of these tests send lengths"),
                    _ => (),
                }
            }
            let mut body = vec![0; length];
            reader.read_exact(&mut body).ok()?;
            let body: Value = serde_json::from_slice(&body).unwrap_or_default();
            let (status, answer) = match &*wish {
                "fail" => (500, json!({ "error": "internal" })),
                _ => self.with(|state| state.answer(&method, &target, &body)),
            };
            if wish == "slow" {
                std::thread::sleep(std::time::Duration::from_millis(500));
            }
            while wish == "wait" && !self.with(|state| state.may_answer) {
                std::thread::sleep(std::time::Duration::from_millis(10));
            }
            if wish == "lose" {
                return None;
            }
            let answer = answer.to_string();
            let head = format!(
                "HTTP/1.1 {status} X\r\nContent-Type: application/json\r\nContent-Length: {}\r\n\r\n",
                answer.len()
            );
            stream.write_all(head.as_bytes()).ok()?;
            stream.write_all(answer.as_bytes()).ok()?;
        }
    }
}

fn refused(error: &str, text: &str) -> Value {
    json!({ "error": error, "exception": "X", "error_description": text })
}

impl State {
    fn answer(&mut self, method: &str, target: &str, body: &Value) -> (u16, Value) {
        self.asked.push(format!("{method} {target}"));
        self.next += 1;
        let id = self.next.to_string();
        let (path, query) = target.split_once('?').unwrap_or((target, ""));
        let segments: Vec<&str> = path.split('/').skip(3).collect();
        match (method, &segments[..]) {
            ("POST", ["users"]) => self.register(body),
            ("DELETE", ["users"]) => {
                let gone: Vec<String> = self.users.iter().take(2).cloned().collect();
                gone.iter().for_each(|name| {
                    self.users.remove(name);
                });
                (200, entities(&gone))
            }
            ("DELETE", ["users", name]) => match self.users.remove(*name) {
                true => (200, entities(&[(*name).to_owned()])),
                false => (404, refused("service_resource_not_found", "no such user")),
            },
            ("POST", ["chatgroups"]) => {
                self.groups.insert(id.clone());
                (200, json!({ "data": { "groupid": id } }))
            }
            ("DELETE", ["chatgroups", group]) => {
                self.groups.remove(*group);
                (200, json!({ "data": { "success": true } }))
            }
            ("POST", ["chatgroups", _, "users"]) => {
                let added: Vec<&Value> =
                    body["usernames"].as_array().into_iter().flatten().collect();
                (200, json!({ "data": { "newmembers": added } }))
            }
            ("POST", ["chatrooms"]) => {
                self.rooms.insert(id.clone());
                (200, json!({ "data": { "id": id } }))
            }
            ("DELETE", ["chatrooms", room]) => {
                self.rooms.remove(*room);
                (200, json!({ "data": { "success": true } }))
            }
            ("GET", ["metadata", "user", "capacity"]) if self.broken.contains("capacity") => {
                (404, json!({ "error": "service_resource_not_found" }))
            }
            ("GET", ["metadata", "user", "capacity"]) => (200, json!({ "data": self.capacity })),
            ("GET", ["users"]) if self.hollow && !query.contains("cursor=") => {
                (200, json!({ "entities": [], "cursor": "." }))
            }
            ("GET", ["users"]) => page(
                &self.users,
                query,
                "entities",
                |name| json!({ "username": name }),
            ),
            ("GET", ["chatgroups"]) => {
                page(&self.groups, query, "data", |id| match self.hides_members {
                    true => json!({ "groupid": id }),
                    false => json!({ "groupid": id, "affiliations": 4 }),
                })
            }
            ("GET", ["chatgroups", id]) => {
                let mut details = json!({ "id": id, "name": "g" });
                if let Some(members) = self.members {
                    details["affiliations_count"] = json!(members);
                }
                (200, json!({ "data": [details] }))
            }
            ("GET", ["users", name, _, ..]) if self.gone.contains(*name) => {
                (404, refused("service_resource_not_found", "no such user"))
            }
            ("GET", ["users", name, _, ..]) if self.broken.contains(*name) => {
                (403, refused("forbidden_op", "not this one"))
            }
            ("GET", ["users", _, "contacts", "users"]) if !self.friends.is_empty() => {
                page(&self.friends, query, "data", |name| json!(name))
            }
            ("GET", ["users", _, "joined_chatgroups"]) => numbered(self.joined, query),
            ("GET", ["chatrooms"]) => page(&self.rooms, query, "data", |id| json!({ "id": id })),
            ("GET", ["users", _, "contacts", "users"]) => (200, json!({ "data": ["x", "y"] })),
            _ => (200, json!({ "data": { "result": true } })),
        }
    }

    fn register(&mut self, body: &Value) -> (u16, Value) {
        let asked: Vec<&Value> = match body {
            Value::Array(all) => all.iter().collect(),
            one => vec![one],
        };
        if self
            .most_users
            .is_some_and(|most| self.users.len() + asked.len() > most)
        {
            let text = "You have exceeded the limit of the free edition. Please upgrade to higher edition.";
            return (429, refused("resource_limited", text));
        }
        let names = asked.iter().filter_map(|user| user["username"].as_str());
        let (bad, good): (Vec<&str>, Vec<&str>) = names.partition(|name| name.starts_with("bad"));
        let made: Vec<String> = good.into_iter().map(str::to_owned).collect();
        self.users.extend(made.iter().cloned());
        let mut answer = entities(&made);
        answer["data"] = bad.iter().map(|name| json!({ "username": name })).collect();
        (200, answer)
    }
}

fn entities(names: &[String]) -> Value {
    let all: Vec<Value> = names
        .iter()
        .map(|name| json!({ "username": name }))
        .collect();
    json!({ "entities": all })
}

/// Pages with numbers, the first is 1.
fn numbered(all: usize, query: &str) -> (u16, Value) {
    let asked = |key: &str, otherwise: usize| {
        let value = query.split('&').find_map(|pair| pair.strip_prefix(key));
        value.map_or(otherwise, |value| value.parse().unwrap())
    };
    let (size, number) = (asked("pagesize=", 10), asked("pagenum=", 1));
    let some = (0..all).skip((number - 1) * size).take(size);
    let some: Vec<Value> = some.map(|n| json!({ "groupid": n.to_string() })).collect();
    (200, json!({ "data": some }))
}

/// Seven entries a page, whatever is asked for: a listing takes several.
fn page(
    all: &BTreeSet<String>,
    query: &str,
    key: &str,
    view: impl Fn(&String) -> Value,
) -> (u16, Value) {
    let after = query
        .split('&')
        .find_map(|pair| pair.strip_prefix("cursor="));
    let rest: Vec<&String> = all
        .iter()
        .filter(|name| after.is_none_or(|after| name.as_str() > after))
        .collect();
    let some: Vec<Value> = rest.iter().take(7).map(|name| view(name)).collect();
    let mut page = json!({ key: some });
    if rest.len() > 7 {
        page["cursor"] = json!(rest[6]);
    }
    (200, page)
}
