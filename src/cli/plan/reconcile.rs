//! `floodgate plan reconcile`: pages through the backend's own listings, and corrects the totals.

use std::collections::HashSet;
use std::ffi::OsString;
use std::path::PathBuf;
use std::time::Duration;

use clap::{Arg, ArgAction, ArgMatches, Command};
use serde_json::{Map, Value, json};
use tokio::time::{Instant, sleep, sleep_until};

use super::http::{Client, Target, escaped};
use super::{Admin, PlanError, is_by_user, listed_kinds, reachable, text};
use crate::limit::total::Kind;
use crate::settings::Settings;

/// Entries of a page.
const PAGE: usize = 100;
/// Imports that go to the admin listener at once.
const AT_ONCE: usize = 500;
/// How often a call is asked again that was over a limit, or failed.
const TRIES: u32 = 20;
const TOKEN_ENV: &str = "FLOODGATE_APP_TOKEN";

pub(super) fn command(app: Arg) -> Command {
    let totals = listed_kinds().map(Kind::as_str).collect::<Vec<_>>();
    Command::new("reconcile")
        .about("Page through the backend's own listings, and correct the totals by them")
        .long_about(
            "Page through the backend's own listings of an app, GET users, chatgroups and chatrooms, \
             and correct its totals by them.\n\nThe pages are asked for through the gateway, with the \
             app's token: they are charged like any other call, never go over a limit, and leave room \
             for the app's own calls (--rate). What calls make and delete meanwhile is counted; a total \
             to which that happened is marked approximate.\n\nfriends, joined_groups and \
             joined_chatrooms cost a call for each user, and are done only where --total names them.",
        )
        .arg(app)
        .arg(
            Arg::new("total")
                .long("total")
                .value_name("TOTAL")
                .action(ArgAction::Append)
                .value_parser(totals)
                .help("What to reconcile; may be repeated [default: users, groups, group_members, chatrooms, user_attributes]"),
        )
        .arg(
            Arg::new("gateway")
                .long("gateway")
                .value_name("URL")
                .help("The gateway's listener, http://host:port or https://host:port [default: the first of `listen`]"),
        )
        .arg(
            Arg::new("gateway-ca")
                .long("gateway-ca")
                .value_name("FILE")
                .help("Certificates (PEM) that vouch for it, over https"),
        )
        .arg(
            Arg::new("token-file")
                .long("token-file")
                .value_name("FILE")
                .help(format!("A file with an app token of the backend's [env: {TOKEN_ENV}: the token itself]")),
        )
        .arg(
            Arg::new("rate")
                .long("rate")
                .value_name("N")
                .default_value("10")
                .value_parser(clap::value_parser!(u32).range(1..=1000))
                .help("Calls a second, at most"),
        )
}

/// Asks the backend, through the gateway, in its time.
struct Lister {
    client: Client,
    token: String,
    /// The app's part of paths.
    base: String,
    pause: Duration,
    next: Instant,
}

pub(super) async fn run(
    matches: &ArgMatches,
    env: &[(OsString, OsString)],
    settings: &Settings,
) -> Result<String, PlanError> {
    let app = text(matches, "app").unwrap_or_default();
    let named: HashSet<Kind> = matches
        .get_many::<String>("total")
        .into_iter()
        .flatten()
        .filter_map(|name| Kind::named(name))
        .collect();
    let is_wanted = |kind: Kind| match named.is_empty() {
        true => !is_by_user(kind),
        false => named.contains(&kind),
    };
    let mut lister = lister(matches, env, settings, app)?;
    let admin = Admin::of(settings);
    let mut report = String::new();
    let by_user: Vec<Kind> = listed_kinds()
        .filter(|kind| is_by_user(*kind) && is_wanted(*kind))
        .collect();
    let mut names = Vec::new();
    if is_wanted(Kind::Users) || !by_user.is_empty() {
        let note = |entry: &Value| {
            let name = entry["username"].as_str();
            names.extend(name.filter(|_| !by_user.is_empty()).map(str::to_owned));
        };
        let is_counted = is_wanted(Kind::Users);
        let count = app_total(&mut lister, &admin, app, Kind::Users, is_counted, note).await?;
        report.push_str(&count);
    }
    if is_wanted(Kind::Groups) || is_wanted(Kind::GroupMembers) {
        let mut groups = Map::new();
        let note = |entry: &Value| {
            let id = ["groupid", "id"]
                .into_iter()
                .find_map(|key| word(&entry[key]));
            let members = ["affiliations", "affiliations_count"]
                .into_iter()
                .find_map(|key| entry[key].as_u64());
            if let (Some(id), Some(members)) = (id, members) {
                groups.insert(id, json!({ "group_members": members }));
            }
        };
        let is_counted = is_wanted(Kind::Groups);
        let count = app_total(&mut lister, &admin, app, Kind::Groups, is_counted, note).await?;
        report.push_str(&count);
        if is_wanted(Kind::GroupMembers) {
            report.push_str(&format!("group_members: of {} groups\n", groups.len()));
            import(&admin, app, "groups", groups).await?;
        }
    }
    if is_wanted(Kind::Chatrooms) {
        let count = app_total(&mut lister, &admin, app, Kind::Chatrooms, true, |_| ()).await?;
        report.push_str(&count);
    }
    if is_wanted(Kind::UserAttributes) {
        // The gateway reads the answer itself as it goes by.
        let answer = lister.get("/metadata/user/capacity").await?;
        let bytes = answer["data"].as_u64();
        let bytes = bytes.map_or("not told".to_owned(), |bytes| format!("{bytes} bytes"));
        report.push_str(&format!("user_attributes: {bytes}\n"));
    }
    if !by_user.is_empty() {
        let mut users = Map::new();
        for name in &names {
            let mut totals = Map::new();
            for kind in &by_user {
                let count = lister.count_of(name, *kind).await?;
                totals.insert(kind.as_str().to_owned(), json!(count));
            }
            users.insert(name.clone(), Value::Object(totals));
        }
        for kind in &by_user {
            report.push_str(&format!("{}: of {} users\n", kind.as_str(), users.len()));
        }
        import(&admin, app, "users", users).await?;
    }
    Ok(report)
}

fn lister(
    matches: &ArgMatches,
    env: &[(OsString, OsString)],
    settings: &Settings,
    app: &str,
) -> Result<Lister, PlanError> {
    let target = match (text(matches, "gateway"), settings.listen.first()) {
        (Some(url), _) => {
            let ca = text(matches, "gateway-ca").map(PathBuf::from);
            Target::parse(url, ca.as_deref())?
        }
        (None, Some(listen)) if !listen.tls && !listen.proxy_protocol => {
            Target::plain(reachable(listen.addr))
        }
        (None, _) => {
            return Err(PlanError::argument(
                "which listener? write --gateway https://name:port, the name as its certificate has it",
            ));
        }
    };
    let from_env = env
        .iter()
        .find(|(name, _)| name.to_str() == Some(TOKEN_ENV))
        .and_then(|(_, value)| value.to_str());
    let token = match (text(matches, "token-file"), from_env) {
        (Some(file), _) => std::fs::read_to_string(file)
            .map_err(|why| PlanError::argument(format!("cannot read {file}: {why}")))?,
        (None, Some(token)) => token.to_owned(),
        (None, None) => {
            return Err(PlanError::argument(format!(
                "no token: the backend lists an app's users for its own token alone; write --token-file FILE, or set {TOKEN_ENV}"
            )));
        }
    };
    let base = match app.split_once('#') {
        Some((org, name)) => format!("/{}/{}", escaped(org), escaped(name)),
        None => format!("/app-id/{}", escaped(app)),
    };
    let rate = matches.get_one::<u32>("rate").copied().unwrap_or(10);
    Ok(Lister {
        client: Client::new(target, "the gateway"),
        token: token.trim().to_owned(),
        base,
        pause: Duration::from_secs(1) / rate.max(1),
        next: Instant::now(),
    })
}

/// A word or a number, as a word.
fn word(value: &Value) -> Option<String> {
    match value {
        Value::String(word) if !word.is_empty() => Some(word.clone()),
        Value::Number(number) => Some(number.to_string()),
        _ => None,
    }
}

/// The entries of a page, where the service has them.
fn entries(page: &Value) -> Option<&Vec<Value>> {
    ["entities", "data"]
        .into_iter()
        .find_map(|key| page[key].as_array())
}

/// Lists what an app has of a kind, each entry to `note`, and corrects its total, if it counts.
async fn app_total(
    lister: &mut Lister,
    admin: &Admin,
    app: &str,
    kind: Kind,
    is_counted: bool,
    mut note: impl FnMut(&Value),
) -> Result<String, PlanError> {
    let path = match kind {
        Kind::Users => "/users",
        Kind::Groups => "/chatgroups",
        _ => "/chatrooms",
    };
    let total = kind.as_str();
    let mut round = Value::Null;
    if is_counted {
        let begin = json!({ "app": app, "total": total });
        round = admin.ask("POST", "/plan/listing", Some(&begin)).await?;
    }
    let listed = lister.pages(path, &mut note).await?;
    if !is_counted {
        return Ok(String::new());
    }
    let end = json!({ "app": app, "total": total, "round": round["round"], "listed": listed });
    let end = admin.ask("POST", "/plan/listing/end", Some(&end)).await?;
    let (before, after) = (&round["before"]["count"], &end["after"]["count"]);
    let doubt = match end["after"]["approximate"] == true {
        true => "; calls came between: approximate, reconcile again when it is quiet",
        false => "",
    };
    Ok(format!(
        "{total}: {listed} listed, was {before}, is {after}{doubt}\n"
    ))
}

async fn import(
    admin: &Admin,
    app: &str,
    holders: &str,
    all: Map<String, Value>,
) -> Result<(), PlanError> {
    let mut all = all.into_iter().peekable();
    while all.peek().is_some() {
        let some: Map<String, Value> = all.by_ref().take(AT_ONCE).collect();
        let body = json!({ "app": app, holders: some });
        admin.ask("POST", "/plan/import", Some(&body)).await?;
    }
    Ok(())
}

impl Lister {
    /// Every page of a listing; how many entries there were.
    async fn pages(&mut self, path: &str, note: &mut impl FnMut(&Value)) -> Result<u64, PlanError> {
        let mut listed = 0_u64;
        let mut cursors = HashSet::new();
        let mut target = format!("{path}?limit={PAGE}");
        loop {
            let page = self.get(&target).await?;
            let wrong = |why: &str| PlanError::Listing {
                path: target.clone(),
                why: why.to_owned(),
            };
            let entries =
                entries(&page).ok_or_else(|| wrong("no list of `entities` or `data` in it"))?;
            listed += entries.len() as u64;
            entries.iter().for_each(&mut *note);
            let Some(cursor) = word(&page["cursor"]).filter(|_| !entries.is_empty()) else {
                return Ok(listed);
            };
            if !cursors.insert(cursor.clone()) {
                return Err(wrong(
                    "its cursor has come before: the listing goes round in circles",
                ));
            }
            target = format!("{path}?limit={PAGE}&cursor={}", escaped(&cursor));
        }
    }

    /// How many a user has.
    async fn count_of(&mut self, user: &str, kind: Kind) -> Result<u64, PlanError> {
        let user = escaped(user);
        let path = match kind {
            Kind::Friends => format!("/users/{user}/contacts/users"),
            Kind::JoinedGroups => format!("/users/{user}/joined_chatgroups"),
            _ => format!("/users/{user}/joined_chatrooms"),
        };
        let answer = self.get(&path).await?;
        let count = answer["total"].as_u64();
        let count = count.or_else(|| entries(&answer).map(|all| all.len() as u64));
        count.ok_or(PlanError::Listing {
            path,
            why: "no list of `data` in it".to_owned(),
        })
    }

    /// One call, when it is its turn; again where it is over a limit, or has failed.
    async fn get(&mut self, path: &str) -> Result<Value, PlanError> {
        let path = format!("{}{path}", self.base);
        let mut failures = 0;
        loop {
            sleep_until(self.next).await;
            self.next = Instant::now() + self.pause;
            let token = Some(self.token.as_str());
            let answer = self.client.send("GET", &path, token, String::new()).await?;
            failures += 1;
            match answer.status {
                200 => return answer.json(&path),
                429 | 500..=599 if failures < TRIES => {
                    let wait = answer.retry_after.unwrap_or(1).clamp(1, 60);
                    sleep(Duration::from_secs(wait)).await;
                }
                _ => return Err(self.client.refused(&answer)),
            }
        }
    }
}
