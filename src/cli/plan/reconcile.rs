//! `floodgate plan reconcile`: pages through the backend's own listings, and corrects the totals.

use std::collections::HashSet;
use std::ffi::OsString;
use std::path::PathBuf;

use clap::{Arg, ArgAction, ArgMatches, Command};
use serde_json::{Map, Value, json};

use super::http::{Client, Target, escaped};
use super::lister::{Lister, members, word};
use super::tally::{self, Tally};
use super::{Admin, PlanError, is_by_user, listed_kinds, reachable, text};
use crate::cli::layers::APP_TOKEN_ENV;
use crate::limit::total::Kind;
use crate::settings::Settings;

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
             joined_chatrooms cost a call for each user and page, and are done only where --total names \
             them. Who is gone since the listing is skipped; what fails is named at the end, and the \
             command ends with status 1.",
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
                .help(format!("A file with an app token of the backend's [env: {APP_TOKEN_ENV}: the token itself]")),
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

/// What has been corrected is told in `report`, whatever comes after it. Whether all of it was.
pub(super) async fn run(
    matches: &ArgMatches,
    env: &[(OsString, OsString)],
    settings: &Settings,
    report: &mut String,
) -> Result<bool, PlanError> {
    let app = text(matches, "app").unwrap_or_default();
    let named: HashSet<Kind> = matches
        .get_many::<String>("total")
        .into_iter()
        .flatten()
        .filter_map(|name| Kind::named(name))
        .collect();
    let mut lister = lister(matches, env, settings, app)?;
    let admin = Admin::of(settings);
    let kept = kept(&admin, app).await?;
    if let Some(kind) = named.iter().find(|kind| !kept.contains(kind)) {
        return Err(PlanError::not_kept(*kind, app));
    }
    let is_wanted = |kind: Kind| match named.is_empty() {
        true => !is_by_user(kind) && kept.contains(&kind),
        false => named.contains(&kind),
    };
    let mut is_good = true;
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
        let mut groups = Vec::new();
        let note = |entry: &Value| {
            let id = ["groupid", "id"]
                .into_iter()
                .find_map(|key| word(&entry[key]));
            groups.push((id, members(entry)));
        };
        let is_counted = is_wanted(Kind::Groups);
        let count = app_total(&mut lister, &admin, app, Kind::Groups, is_counted, note).await?;
        report.push_str(&count);
        if is_wanted(Kind::GroupMembers) {
            let mut tally = Tally::new(&admin, app, "groups", tally::LISTED);
            for (id, told) in groups {
                let (id, told) = match (id, told) {
                    (Some(id), Some(members)) => (id, Ok(members)),
                    // The list does not say it: the group itself may.
                    (Some(id), None) => {
                        let told = lister.members_of(&id).await;
                        (id, told)
                    }
                    (None, _) => ("a group".to_owned(), Err(nameless())),
                };
                let total = Kind::GroupMembers.as_str().to_owned();
                let (totals, failure) = match told {
                    Ok(members) => (Map::from_iter([(total, json!(members))]), None),
                    Err(failure) => (Map::new(), Some(failure)),
                };
                tally.add(&id, totals, failure).await;
                if tally.is_over() {
                    break;
                }
            }
            let (text, all) = tally.end(&[Kind::GroupMembers.as_str()]).await;
            report.push_str(&text);
            is_good &= all;
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
        let mut tally = Tally::new(&admin, app, "users", tally::ASKED);
        for name in &names {
            let (mut totals, mut failure) = (Map::new(), None);
            for kind in &by_user {
                match lister.count_of(name, *kind).await {
                    Ok(count) => {
                        totals.insert(kind.as_str().to_owned(), json!(count));
                    }
                    Err(why) => {
                        failure = Some(why);
                        break;
                    }
                }
            }
            tally.add(name, totals, failure).await;
            if tally.is_over() {
                break;
            }
        }
        let totals: Vec<&str> = by_user.iter().map(|kind| kind.as_str()).collect();
        let (text, all) = tally.end(&totals).await;
        report.push_str(&text);
        is_good &= all;
    }
    Ok(is_good)
}

/// The kinds of which totals are kept for this app.
async fn kept(admin: &Admin, app: &str) -> Result<HashSet<Kind>, PlanError> {
    let mut kept = HashSet::new();
    // Whose it is does not matter.
    for whose in ["", "&user=x", "&group=x"] {
        let path = format!("/plan?app={}{whose}", escaped(app));
        let answer = admin.ask("GET", &path, None).await?;
        let totals = answer["totals"].as_array().into_iter().flatten();
        let totals = totals.filter(|total| total["mode"] != "off");
        kept.extend(totals.filter_map(|total| Kind::named(total["total"].as_str()?)));
    }
    Ok(kept)
}

fn nameless() -> PlanError {
    PlanError::Listing {
        path: "/chatgroups".to_owned(),
        why: "a group without `groupid` or `id` in it".to_owned(),
    }
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
        .find(|(name, _)| name.to_str() == Some(APP_TOKEN_ENV))
        .and_then(|(_, value)| value.to_str())
        .filter(|token| !token.trim().is_empty());
    let token = match (text(matches, "token-file"), from_env) {
        (Some(file), _) => std::fs::read_to_string(file)
            .map_err(|why| PlanError::argument(format!("cannot read {file}: {why}")))?,
        (None, Some(token)) => token.to_owned(),
        (None, None) => {
            return Err(PlanError::argument(format!(
                "no token: the backend lists an app's users for its own token alone; write --token-file FILE, or set {APP_TOKEN_ENV}"
            )));
        }
    };
    let token = token.trim();
    if token.is_empty() || !token.bytes().all(|byte| byte.is_ascii_graphic()) {
        let why = "the token file must hold one token and nothing else: it is empty, or has spaces or line breaks in it";
        return Err(PlanError::argument(why));
    }
    let rate = matches.get_one::<u32>("rate").copied().unwrap_or(10);
    let client = Client::new(target, "the gateway");
    Ok(Lister::new(client, token, app, rate))
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
