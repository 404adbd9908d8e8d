//! The command line, made from the table of settings.

use std::ffi::OsString;

use clap::error::{ContextKind, ContextValue, ErrorKind};
use clap::{Arg, ArgAction, Command};

use super::plan;
use super::table::{SETTINGS, Setting, env_name};

/// Settings that matter to the commands that only look at routes.
const FOR_LOOKING: &[&str] = &["routes", "edition", "apps"];

/// Settings that matter to `explain`.
const FOR_EXPLAINING: &[&str] = &["routes", "edition", "apps", "unknown_apps"];

/// The setting that matters to `health`.
const FOR_HEALTH: &[&str] = &["admin"];

/// Settings that matter to the demo.
const FOR_DEMO: &[&str] = &["listen", "admin", "routes", "edition"];

/// The program's command line.
#[must_use]
pub fn command() -> Command {
    let json = Arg::new("json")
        .long("json")
        .action(ArgAction::SetTrue)
        .help("Print JSON");
    let run = with_settings(
        Command::new("run").about("Run the gateway").long_about(
            "Run the gateway until SIGTERM or Ctrl-C.\n\nEvery setting is a flag, an \
                 environment variable, or a key in the file that --config names; a flag goes over \
                 the environment, and that over the file. A list replaces the list below it; in \
                 the environment its entries are separated by commas.\n\nThe files are read again when \
                 they change (--watch), at SIGHUP, and at POST /reload of the admin listener: all \
                 or nothing. A change of a setting that is marked [restart] waits for a restart.",
        ),
        None,
    )
    .arg(
        Arg::new("upgrade")
            .long("upgrade")
            .action(ArgAction::SetTrue)
            .help("Take over from the process that runs at upgrade_socket, without a gap")
            .long_help(
                "Take the listening sockets, and the embedded counters, over from the process that \
                 runs with the same `upgrade_socket`. That one then serves what it has, for `grace` \
                 at most, and ends. When this one cannot start, the other goes on as it was.",
            ),
    );
    let demo = with_settings(
        Command::new("demo")
            .about("Run the gateway before a stand-in backend, with a little real traffic")
            .long_about(
                "Run the gateway before a stand-in IM backend, with a little real traffic and a \
                 live view of who is admitted and who is denied by which limit. Ctrl-C ends it. \
                 Ports 8080 and 9090 are used if they are free.",
            )
            .arg(
                Arg::new("seconds")
                    .long("seconds")
                    .value_name("N")
                    .value_parser(clap::value_parser!(u64).range(1..))
                    .help("End after this many seconds"),
            ),
        Some(FOR_DEMO),
    );
    let check = with_settings(
        Command::new("check")
            .about("Check settings and route files, and report all mistakes")
            .long_about(
                "Check settings and route files as `run` would read them, and report all mistakes \
                 at once.\n\nExit code: 0 good, 1 mistakes, 2 a file could not be read. Upstreams \
                 are not looked up, and a store in Redis is asked with --connect alone.",
            )
            .arg(
                Arg::new("connect")
                    .long("connect")
                    .action(ArgAction::SetTrue)
                    .help("Ask the store whether it would do")
                    .long_help(
                        "Connect to the store in Redis, and check its version, our rights, its \
                         maxmemory-policy and its clock. Writes two keys below the prefix, which \
                         are gone after a second.",
                    ),
            ),
        None,
    );
    let routes = with_settings(
        Command::new("routes")
            .about("List the routes and the limits that hold for them")
            .long_about(
                "List the routes and the limits that hold for them: for an app like any other, or \
                 for the known app (--apps) that --app names, with its own edition and limits.",
            )
            .arg(
                Arg::new("app")
                    .long("app")
                    .value_name("NAME")
                    .help("What holds for this app, by its org#app or App ID"),
            )
            .arg(json.clone()),
        Some(FOR_LOOKING),
    );
    let explain = with_settings(
        Command::new("explain")
            .about("Say which limits a call would be charged; nothing is charged")
            .long_about(
                "Say which route a call matches, who its caller is, and every limit that it would \
                 be charged, with counter and cost. Nothing is charged, and nothing is sent.\n\n\
                 Exit code: 0 the call would be decided by its limits, 1 it would be refused \
                 before them.",
            )
            .arg(
                Arg::new("ip")
                    .long("ip")
                    .value_name("IP")
                    .default_value("127.0.0.1")
                    .help("The caller's address"),
            )
            .arg(
                Arg::new("body")
                    .long("body")
                    .value_name("FILE")
                    .help("The call's body, sent as the documents say (JSON, a form or a file); - is standard input"),
            )
            .arg(json)
            .arg(
                Arg::new("method")
                    .value_name("METHOD")
                    .required(true)
                    .help("GET, POST, …"),
            )
            .arg(
                Arg::new("url")
                    .value_name("URL")
                    .required(true)
                    .help("The URL, or its path alone"),
            ),
        Some(FOR_EXPLAINING),
    );
    let health = with_settings(super::health::command(), Some(FOR_HEALTH));
    let load = with_settings(super::load::command(), Some(FOR_EXPLAINING));
    Command::new("floodgate")
        .version(env!("CARGO_PKG_VERSION"))
        .about("A rate-limiting reverse proxy for instant-messaging REST backends")
        .subcommand_required(true)
        .arg_required_else_help(true)
        .subcommand(run)
        .subcommand(demo)
        .subcommand(check)
        .subcommand(routes)
        .subcommand(explain)
        .subcommand(health)
        .subcommand(load)
        .subcommand(plan::command(|command| {
            with_settings(command, Some(plan::SHOWN))
        }))
}

/// Adds `--config` and every setting; those that are not in `shown` are left out of the help.
fn with_settings(command: Command, shown: Option<&[&str]>) -> Command {
    let config = Arg::new("config")
        .long("config")
        .value_name("FILE")
        .help(format!(
            "Read settings from this file [env: {}]",
            env_name("config")
        ))
        .long_help(format!(
            "Read settings from this file, e.g. floodgate.toml. No file is read unless it is \
             named.\n\n[env: {}]",
            env_name("config")
        ));
    command.arg(config).args(SETTINGS.iter().map(|setting| {
        let hidden = shown.is_some_and(|shown| !shown.contains(&setting.key));
        argument(setting).hide(hidden)
    }))
}

/// Says how a file is named, where one stands by itself.
pub(super) fn help_with_files(error: &mut clap::Error) {
    let by_itself = match error.get(ContextKind::InvalidArg) {
        Some(ContextValue::String(argument)) => !argument.starts_with('-'),
        _ => false,
    };
    if by_itself && error.kind() == ErrorKind::UnknownArgument {
        let tip = "a file is named by what it holds: --config for settings, --routes for routes, \
                   --apps for apps";
        let tips = ContextValue::StyledStrs(vec![tip.into()]);
        error.insert(ContextKind::Suggested, tips);
    }
}

/// Words that can only be a switch's value.
const SWITCHED: &[&str] = &["true", "false", "yes", "no", "on", "off", "1", "0"];

/// The arguments, with a switch and the value after it in one: the value may be left out, and so
/// the parser takes it with a `=` alone.
pub(super) fn joined(arguments: impl IntoIterator<Item = OsString>) -> Vec<OsString> {
    let mut joined: Vec<OsString> = Vec::new();
    for argument in arguments {
        let flag = joined
            .last()
            .and_then(|last| last.to_str()?.strip_prefix("--"));
        let is_switch = flag.is_some_and(|flag| {
            let mut switches = SETTINGS.iter().filter(|setting| setting.is_switch());
            switches.any(|setting| setting.flag == flag)
        });
        let is_value = SWITCHED
            .iter()
            .any(|word| argument.eq_ignore_ascii_case(word));
        match joined.last_mut().filter(|_| is_switch && is_value) {
            Some(last) => {
                last.push("=");
                last.push(&argument);
            }
            None => joined.push(argument),
        }
    }
    joined
}

fn argument(setting: &Setting) -> Arg {
    let mut notes = String::new();
    if let Some(default) = setting.default {
        notes = format!(" [default: {default}]");
    }
    let mut long = setting.help.to_owned();
    if !setting.more.is_empty() {
        long = format!("{long}.\n\n{}", setting.more);
    }
    let many = if setting.many { ", a list" } else { "" };
    let restart = match setting.needs_restart() {
        true => " [restart]",
        false => "",
    };
    let arg = Arg::new(setting.key)
        .long(setting.flag)
        .value_name(setting.value)
        .help_heading(setting.group)
        .help(format!("{}{notes}", setting.help))
        .long_help(format!(
            "{long}\n\n[env: {}] [key: {}{many}]{notes}{restart}",
            setting.env(),
            setting.key
        ));
    let arg = match setting.many {
        true => arg.action(ArgAction::Append),
        false => arg.action(ArgAction::Set),
    };
    if setting.is_switch() {
        return arg
            .num_args(0..=1)
            .require_equals(true)
            .default_missing_value("true");
    }
    arg
}
