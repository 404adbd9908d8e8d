//! `floodgate plan`: what totals an app has, what they are said to be, and what the backend lists.
//!
//! All of it goes through a running gateway: its admin listener knows the totals, whatever store
//! keeps them, and its listener is asked for the backend's own listings, so that these are charged
//! like any other call and never go over a limit.

mod http;
mod lister;
mod reconcile;
mod tally;

use std::ffi::OsString;
use std::io;
use std::net::SocketAddr;
use std::time::Duration;

use clap::{Arg, ArgMatches, Command};
use serde_json::{Map, Value, json};

use self::http::{Client, Target};
use super::{CliError, Ended, Purpose, load, print, show};
use crate::limit::total::{Holder, Kind};
use crate::settings::Settings;

/// Why a command of `plan` ended early.
#[derive(Debug, thiserror::Error)]
pub enum PlanError {
    /// An argument.
    #[error("{0}")]
    Argument(String),
    /// Somebody does not answer.
    #[error("cannot ask {whom}: {why}")]
    Unreachable {
        /// Whom.
        whom: String,
        /// Why.
        why: String,
    },
    /// Somebody answers something else.
    #[error("{whom} answered {status} to {asked}: {why}")]
    Refused {
        /// Who.
        whom: String,
        /// What was asked for.
        asked: String,
        /// HTTP status.
        status: u16,
        /// What it says.
        why: String,
    },
    /// A listing that is none.
    #[error("{path}: {why}")]
    Listing {
        /// What was asked for.
        path: String,
        /// What is wrong.
        why: String,
    },
    /// No runtime.
    #[error("cannot start: {0}")]
    Start(#[source] io::Error),
}

impl PlanError {
    fn argument(text: impl Into<String>) -> Self {
        Self::Argument(text.into())
    }

    fn not_kept(kind: Kind, app: &str) -> Self {
        Self::Argument(format!(
            "{} is not kept for app {app}: its plan has no figure for it, or [totals] has it off",
            kind.as_str()
        ))
    }
}

/// Settings that matter here.
pub(super) const SHOWN: &[&str] = &["admin", "admin_token", "admin_token_file"];

/// The command, but for the settings of each of its parts.
pub(super) fn command(with_settings: impl Fn(Command) -> Command) -> Command {
    let app = Arg::new("app")
        .long("app")
        .value_name("APP")
        .required(true)
        .help("The app, org#app or App ID; it has a plan in a file of apps");
    let user = Arg::new("user")
        .long("user")
        .value_name("NAME")
        .conflicts_with("group")
        .value_parser(clap::builder::NonEmptyStringValueParser::new())
        .help("Totals of this user of it");
    let group = Arg::new("group")
        .long("group")
        .value_name("ID")
        .value_parser(clap::builder::NonEmptyStringValueParser::new())
        .help("Totals of this group of it");
    let import = Command::new("import")
        .about("Say how many there are")
        .long_about(
            "Say how many there are, as the backend's console or a support engineer has told: \
             users=42 groups=7. From then on the total refuses what goes over its figure, for \
             plan_max_age.",
        )
        .args([app.clone(), user.clone(), group.clone()])
        .arg(
            Arg::new("totals")
                .value_name("TOTAL=N")
                .required(true)
                .num_args(1..)
                .help("users, groups, chatrooms, user_attributes (bytes); of a user friends, joined_groups, joined_chatrooms; of a group group_members"),
        );
    let show = Command::new("show")
        .about("Show totals, their figures, and how far they are to be believed")
        .args([app.clone(), user, group])
        .arg(
            Arg::new("json")
                .long("json")
                .action(clap::ArgAction::SetTrue)
                .help("Print JSON"),
        );
    Command::new("plan")
        .about("Totals of an app's plan: show, import, reconcile with the backend")
        .long_about(
            "How many users, groups, chatrooms … an app has, of which its plan (`plan` in a file of \
             apps) allows a number. A running gateway counts them from the calls that it forwards; \
             these commands ask its admin listener.",
        )
        .subcommand_required(true)
        .arg_required_else_help(true)
        .subcommand(with_settings(import))
        .subcommand(with_settings(show))
        .subcommand(with_settings(reconcile::command(app)))
}

pub(super) fn run(matches: &ArgMatches, env: &[(OsString, OsString)]) -> Result<Ended, CliError> {
    let Some((name, matches)) = matches.subcommand() else {
        return Ok(Ended::Bad);
    };
    let settings = load(matches, env, Purpose::Look)?;
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(PlanError::Start)?;
    let mut text = String::new();
    let done = runtime.block_on(async {
        match name {
            "import" => text = import(matches, &settings).await?,
            "reconcile" => return reconcile::run(matches, env, &settings, &mut text).await,
            _ => text = shown(matches, &settings).await?,
        }
        Ok(true)
    });
    // What has been done is told, whatever came after it.
    print(&text)?;
    Ok(if done? { Ended::Good } else { Ended::Bad })
}

/// How often the admin listener is asked again that has no store for a while.
const TRIES: u32 = 5;

/// The admin listener of the gateway that the settings name.
struct Admin {
    client: Client,
    token: Option<String>,
}

impl Admin {
    fn of(settings: &Settings) -> Self {
        Self {
            client: Client::new(
                Target::plain(reachable(settings.admin)),
                "the admin listener",
            ),
            token: settings
                .admin_token
                .as_ref()
                .map(|token| token.expose().to_owned()),
        }
    }

    async fn ask(
        &self,
        method: &str,
        path: &str,
        body: Option<&Value>,
    ) -> Result<Value, PlanError> {
        let body = body.map(Value::to_string).unwrap_or_default();
        let token = self.token.as_deref();
        // All that is asked here may be asked twice.
        let mut tries = 0;
        loop {
            tries += 1;
            let answer = self.client.send(method, path, token, body.clone()).await?;
            match answer.status {
                200 => return answer.json(path),
                503 if tries < TRIES => {
                    let wait = answer.retry_after.unwrap_or(1).min(10);
                    tokio::time::sleep(Duration::from_secs(wait)).await;
                }
                _ => return Err(self.client.refused(path, &answer)),
            }
        }
    }
}

/// An address that can be called, of one that is listened on.
fn reachable(addr: SocketAddr) -> SocketAddr {
    let ip = match addr.ip() {
        ip if !ip.is_unspecified() => ip,
        std::net::IpAddr::V4(_) => std::net::Ipv4Addr::LOCALHOST.into(),
        std::net::IpAddr::V6(_) => std::net::Ipv6Addr::LOCALHOST.into(),
    };
    SocketAddr::new(ip, addr.port())
}

fn text<'m>(matches: &'m ArgMatches, name: &str) -> Option<&'m str> {
    matches.get_one::<String>(name).map(String::as_str)
}

async fn import(matches: &ArgMatches, settings: &Settings) -> Result<String, PlanError> {
    let app = text(matches, "app").unwrap_or_default();
    let mut totals = Map::new();
    for given in matches.get_many::<String>("totals").into_iter().flatten() {
        let count = given.split_once('=').and_then(|(name, count)| {
            let count: u64 = count.replace('_', "").parse().ok()?;
            Some((name, count))
        });
        let Some((name, count)) = count else {
            let why = format!("{given:?} is no total; write e.g. users=42");
            return Err(PlanError::argument(why));
        };
        if totals.insert(name.to_owned(), json!(count)).is_some() {
            return Err(PlanError::argument(format!("{name} is there twice")));
        }
    }
    let mut body = Map::from_iter([("app".to_owned(), json!(app))]);
    let (key, value) = match (text(matches, "user"), text(matches, "group")) {
        (Some(user), _) => ("users", json!({ user: totals })),
        (None, Some(group)) => ("groups", json!({ group: totals })),
        (None, None) => ("totals", Value::Object(totals)),
    };
    body.insert(key.to_owned(), value);
    let admin = Admin::of(settings);
    admin
        .ask("POST", "/plan/import", Some(&Value::Object(body)))
        .await?;
    shown_by(&admin, matches, false).await
}

async fn shown(matches: &ArgMatches, settings: &Settings) -> Result<String, PlanError> {
    shown_by(&Admin::of(settings), matches, matches.get_flag("json")).await
}

async fn shown_by(admin: &Admin, matches: &ArgMatches, json: bool) -> Result<String, PlanError> {
    let mut path = format!(
        "/plan?app={}",
        http::escaped(text(matches, "app").unwrap_or_default())
    );
    for key in ["user", "group"] {
        if let Some(name) = text(matches, key) {
            path.push_str(&format!("&{key}={}", http::escaped(name)));
        }
    }
    let answer = admin.ask("GET", &path, None).await?;
    Ok(match json {
        true => show::json(&answer),
        false => in_words(&answer),
    })
}

/// Totals in columns.
fn in_words(answer: &Value) -> String {
    let word = |value: &Value| value.as_str().unwrap_or_default().to_owned();
    let whose = ["user", "group"].into_iter().find_map(|key| {
        let name = answer[key].as_str()?;
        Some(format!(", {key} {name}"))
    });
    let plan = answer["plan"].as_str().unwrap_or("none of its own");
    let mut text = format!(
        "{}{}, plan {plan}\n",
        word(&answer["app"]),
        whose.unwrap_or_default()
    );
    let totals = answer["totals"].as_array().into_iter().flatten();
    let rows: Vec<[String; 4]> = totals.map(row).collect();
    text.push_str(&show::columns("  ", &rows));
    if answer["totals"]
        .as_array()
        .is_some_and(|all| all.iter().any(|total| total["approximate"] == true))
    {
        text.push_str("~ approximate: what SDKs and the backend itself change is not seen\n");
    }
    text
}

fn row(total: &Value) -> [String; 4] {
    let mark = if total["approximate"] == true {
        "~"
    } else {
        ""
    };
    let count = total["count"].as_u64().unwrap_or_default();
    let figure = match (total["figure"].as_u64(), total["mode"].as_str()) {
        (_, Some("off")) => "not kept".to_owned(),
        (Some(figure), _) => format!("of {figure}"),
        (None, _) => "unlimited".to_owned(),
    };
    let checked = match total["age_s"].as_u64() {
        None => "never checked".to_owned(),
        Some(age_s) => format!("checked {} ago", ago(age_s)),
    };
    let state = match (total["enforced"].as_bool(), total["figure"].as_u64()) {
        (Some(true), _) => "refuses",
        (_, None) => "",
        (_, Some(_)) if total["mode"] == "report" => "reports (mode)",
        (_, Some(_)) => "reports: not checked lately",
    };
    let state = match state {
        "" => checked,
        state => format!("{state}; {checked}"),
    };
    let name = total["total"].as_str().unwrap_or_default().to_owned();
    [name, format!("{mark}{count}"), figure, state]
}

fn ago(seconds: u64) -> String {
    match seconds {
        0..120 => format!("{seconds} s"),
        120..7200 => format!("{} min", seconds / 60),
        7200..172_800 => format!("{} h", seconds / 3600),
        _ => format!("{} days", seconds / 86_400),
    }
}

/// The kinds that a listing of the backend's can tell.
fn listed_kinds() -> impl Iterator<Item = Kind> {
    Kind::ALL.into_iter()
}

/// Whether a kind is told user by user.
fn is_by_user(kind: Kind) -> bool {
    kind.holder() == Holder::User
}

#[cfg(test)]
mod tests {
    use std::io::{BufRead as _, BufReader, Write as _};
    use std::net::TcpListener;
    use std::thread;

    use super::*;

    /// An admin listener that gives these answers, one after the other.
    pub(super) fn admin(answers: &[u16]) -> Admin {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let addr = listener.local_addr().unwrap();
        let answers = answers.to_vec();
        thread::spawn(move || {
            for (status, stream) in answers.into_iter().zip(listener.incoming()) {
                let mut stream = stream.unwrap();
                let mut lines = BufReader::new(&stream).lines().map_while(Result::ok);
                lines.find(String::is_empty);
                let head = "Retry-After: 0\r\nContent-Length: 2\r\nConnection: close";
                write!(stream, "HTTP/1.1 {status} X\r\n{head}\r\n\r\n{{}}").unwrap();
            }
        });
        Admin {
            client: Client::new(Target::plain(addr), "the admin listener"),
            token: None,
        }
    }

    #[tokio::test]
    async fn an_admin_listener_without_its_store_is_asked_again_but_not_for_ever() {
        let ask = async |answers: &[u16]| admin(answers).ask("GET", "/plan", None).await;
        assert!(ask(&[503, 503, 200]).await.is_ok());
        let refused = ask(&[503, 503, 503, 503, 503, 200]).await;
        assert!(
            matches!(refused, Err(PlanError::Refused { status: 503, .. })),
            "{refused:?}"
        );
        let refused = ask(&[400, 200]).await;
        assert!(matches!(
            refused,
            Err(PlanError::Refused { status: 400, .. })
        ));
    }
}
