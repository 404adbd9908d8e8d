//! `floodgate load`: calls at a rate, and the answers checked against the limits.

use std::ffi::OsString;
use std::io::{self, Write as _};
use std::path::PathBuf;
use std::time::Duration;

use clap::{Arg, ArgAction, ArgMatches, Command, value_parser};

use super::rules::Certificates;
use super::{CliError, Ended, Purpose, load, print, rules, value};
use crate::admission::Policy;
use crate::load::mix::{Mix, MixError, SHIPPED};
use crate::load::pace::Pace;
use crate::load::{LoadError, Options, Progress, run as put_load};
use crate::serve::Files;
use crate::text::printable;

/// The most calls each second that can be asked for.
const MAX_RATE: u32 = 1_000_000;

/// Why `load` cannot begin.
#[derive(Debug, thiserror::Error)]
pub enum ArgumentError {
    /// A value that is none.
    #[error("--{flag} {text}: {what}")]
    Value {
        /// The flag.
        flag: &'static str,
        /// As written.
        text: String,
        /// What to write.
        what: String,
    },
    /// The mix cannot be read.
    #[error("--mix {path}: cannot read it: {source}; leave it out for the one that is built in")]
    Unreadable {
        /// The file.
        path: String,
        /// Why.
        source: io::Error,
    },
    /// The mix has a mistake.
    #[error("{path}: {source}")]
    Mix {
        /// The file.
        path: String,
        /// Which.
        source: MixError,
    },
    /// A report cannot be written.
    #[error("cannot write {path}: {source}")]
    Write {
        /// The file.
        path: String,
        /// Why.
        source: io::Error,
    },
    /// The load itself.
    #[error(transparent)]
    Load(#[from] LoadError),
}

/// The command's own arguments.
pub(super) fn command() -> Command {
    let arg = |name: &'static str, value: &'static str, help: &'static str| {
        Arg::new(name).long(name).value_name(value).help(help)
    };
    Command::new("load")
        .about("Put load on a gateway, and check its answers against the limits")
        .long_about(
            "Send calls at a rate, whether or not the answers keep up (an open loop), and say what \
             was admitted and denied by which limit, with latencies from when each call was due. \
             The limits are those of --routes, --edition and --apps, which must be the gateway's \
             own.\n\n\
             Exit code: 0 no limit was exceeded, 1 one was, or nothing was answered. A limit is \
             called exceeded only beyond doubt: by calls that were sent and answered within one \
             window. Ctrl-C ends it early, with its report.",
        )
        .arg(
            arg(
                "target",
                "URL",
                "Where the load goes, e.g. http://127.0.0.1:8080",
            )
            .required_unless_present("print-mix"),
        )
        .arg(
            arg(
                "allow-target",
                "HOST",
                "A host that is not this machine and may be loaded",
            )
            .action(ArgAction::Append),
        )
        .arg(arg(
            "mix",
            "FILE",
            "What is sent (TOML); --print-mix shows the one that is built in",
        ))
        .arg(
            Arg::new("print-mix")
                .long("print-mix")
                .action(ArgAction::SetTrue)
                .help("Print the mix that is built in, and end"),
        )
        .arg(arg(
            "rate",
            "N",
            "Calls each second, in all [default: 1000]",
        ))
        .arg(
            arg(
                "ramp",
                "FROM..TO",
                "Calls each second at the start and at the end",
            )
            .conflicts_with("rate"),
        )
        .arg(arg("duration", "TIME", "How long calls are sent").default_value("30s"))
        .arg(
            arg("connections", "N", "Connections")
                .value_parser(value_parser!(u32).range(1..=20_000))
                .default_value("64"),
        )
        .arg(
            Arg::new("http2")
                .long("http2")
                .action(ArgAction::SetTrue)
                .help("Speak HTTP/2, with up to 32 calls at once on each connection"),
        )
        .arg(arg(
            "ca",
            "FILE",
            "Certificates (PEM) that an https target is trusted by",
        ))
        .arg(arg("timeout", "TIME", "How long a call may take").default_value("10s"))
        .arg(
            arg("load-threads", "N", "Threads that send")
                .value_parser(value_parser!(u32).range(1..=256))
                .default_value("1"),
        )
        .arg(
            arg("seed", "N", "The same seed makes the same calls")
                .value_parser(value_parser!(u64))
                .default_value("1"),
        )
        .arg(arg("json", "FILE", "Write the report as JSON"))
        .arg(arg(
            "html",
            "FILE",
            "Write the report as a page with charts",
        ))
}

pub(super) fn run(matches: &ArgMatches, env: &[(OsString, OsString)]) -> Result<Ended, CliError> {
    if matches.get_flag("print-mix") {
        print(SHIPPED)?;
        return Ok(Ended::Good);
    }
    let settings = load(matches, env, Purpose::Look)?;
    let mut rules = rules::load(&settings.routes)?;
    rules::validate(&mut rules, &settings);
    let editions = rules::selection(&rules, &settings.edition)?;
    let apps = Some((&mut rules, editions));
    let files = Files::default();
    rules::add_apps(apps, &settings.apps, Certificates::Leave, &files)?;
    let policy = Policy {
        editions,
        auth: settings.auth,
        ipv6_prefix: settings.ipv6_prefix,
        unknown_apps: settings.unknown_apps,
    };
    let text = |name| matches.get_one::<String>(name).map(String::as_str);
    let mix = mix(text("mix"))?;
    let options = options(matches)?;
    let files: Vec<(&str, PathBuf)> = ["json", "html"]
        .iter()
        .filter_map(|name| Some((*name, PathBuf::from(text(name)?))))
        .collect();
    // Better now than after an hour of load.
    for (_, path) in &files {
        write(path, "")?;
    }
    let mut stderr = io::stderr();
    let mut show = |progress: Progress| {
        // Where there is nowhere to show it, the load goes on.
        let _ = writeln!(
            stderr,
            "{:>5} s  {:>7} admitted  {:>7} denied  {:>6} failed  p50 {:>8.2} ms  p99 {:>8.2} ms",
            progress.second + 1,
            progress.admitted,
            progress.denied,
            progress.failed,
            Duration::from_micros(progress.p50_us).as_secs_f64() * 1e3,
            Duration::from_micros(progress.p99_us).as_secs_f64() * 1e3,
        );
    };
    let report =
        put_load(&options, mix, &rules, &policy, &mut show).map_err(ArgumentError::Load)?;
    for (name, path) in &files {
        let text = match *name {
            "json" => report.json(),
            _ => report.html(),
        };
        write(path, &text)?;
    }
    print(&report.in_words())?;
    Ok(match report.is_exceeded() || report.is_void() {
        true => Ended::Bad,
        false => Ended::Good,
    })
}

fn write(path: &std::path::Path, text: &str) -> Result<(), ArgumentError> {
    std::fs::write(path, text).map_err(|source| ArgumentError::Write {
        path: path.display().to_string(),
        source,
    })
}

fn mix(path: Option<&str>) -> Result<Mix, ArgumentError> {
    let text = match path {
        Some(path) => {
            std::fs::read_to_string(path).map_err(|source| ArgumentError::Unreadable {
                path: path.to_owned(),
                source,
            })?
        }
        None => SHIPPED.to_owned(),
    };
    Mix::read(&text).map_err(|source| ArgumentError::Mix {
        path: path.unwrap_or("mix.toml").to_owned(),
        source,
    })
}

fn options(matches: &ArgMatches) -> Result<Options, ArgumentError> {
    let text = |name| matches.get_one::<String>(name).map_or("", String::as_str);
    let wrong = |flag: &'static str, what: &str| ArgumentError::Value {
        flag,
        text: printable(text(flag)).into_owned(),
        what: what.to_owned(),
    };
    let rate = |text: &str, least: u32| {
        let number: Option<u32> = text.trim().parse().ok();
        number
            .filter(|n| (least..=MAX_RATE).contains(n))
            .map(f64::from)
    };
    let (from, to) = match (text("rate"), text("ramp")) {
        ("", "") => (1000.0, 1000.0),
        (text, "") => {
            let rate = rate(text, 1)
                .ok_or_else(|| wrong("rate", "write calls each second, from 1 to 1000000"))?;
            (rate, rate)
        }
        (_, ramp) => ramp
            .split_once("..")
            .and_then(|(from, to)| Some((rate(from, 0)?, rate(to, 0)?)))
            .filter(|(from, to)| from + to > 0.0)
            .ok_or_else(|| wrong("ramp", "write calls each second from..to, e.g. 100..2000"))?,
    };
    let time = |flag: &'static str| {
        value::time(text(flag), (Duration::from_millis(1), "1ms"))
            .map_err(|error| wrong(flag, &error.to_string()))
    };
    let number = |name| {
        matches
            .get_one::<u32>(name)
            .map_or(1, |n| usize::try_from(*n).unwrap_or(1))
    };
    Ok(Options {
        target: text("target").to_owned(),
        allowed: matches
            .get_many::<String>("allow-target")
            .map_or_else(Vec::new, |hosts| hosts.cloned().collect()),
        authority: matches.get_one::<String>("ca").cloned(),
        pace: Pace {
            from,
            to,
            lasts: time("duration")?,
        },
        connections: number("connections"),
        http2: matches.get_flag("http2"),
        threads: number("load-threads"),
        timeout: time("timeout")?,
        seed: matches.get_one::<u64>("seed").copied().unwrap_or(1),
    })
}
