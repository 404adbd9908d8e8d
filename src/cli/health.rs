//! `floodgate health`: asks the gateway that runs beside it, where there is no other program that
//! could, as in an image of its own.

use std::ffi::OsString;
use std::io::{self, Read as _, Write as _};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpStream};
use std::time::Duration;

use clap::{Arg, ArgAction, ArgMatches, Command};

use super::{CliError, Ended, print, resolve};

/// For connecting, and for each read of the answer.
const PATIENCE: Duration = Duration::from_secs(2);
/// An answer is a line or two.
const LONGEST: u64 = 4096;

/// Why the gateway's health is not known.
#[derive(Debug, thiserror::Error)]
pub enum HealthError {
    /// There is no answer.
    #[error("no gateway answers at {admin}: {source}; is its admin listener elsewhere (--admin)?")]
    Silent {
        /// Who was asked.
        admin: SocketAddr,
        /// Why.
        source: io::Error,
    },
}

pub(super) fn command() -> Command {
    Command::new("health")
        .about("Ask a running gateway whether it is well")
        .long_about(
            "Ask the admin listener of the gateway that runs with these settings whether it is well, \
             as an image's own health check.\n\nExit code: 0 well, 1 not, or nobody answers.",
        )
        .arg(
            Arg::new("ready")
                .long("ready")
                .action(ArgAction::SetTrue)
                .help("Ask whether it wants calls, /ready, and not only whether it lives"),
        )
}

pub(super) fn run(matches: &ArgMatches, env: &[(OsString, OsString)]) -> Result<Ended, CliError> {
    let admin = reached(resolve::admin(matches, env)?);
    let path = match matches.get_flag("ready") {
        true => "/ready",
        false => "/live",
    };
    let (is_good, said) =
        ask(admin, path).map_err(|source| HealthError::Silent { admin, source })?;
    print(&said)?;
    Ok(match is_good {
        true => Ended::Good,
        false => Ended::Bad,
    })
}

/// The address to ask: of a listener on all addresses, this host's own.
fn reached(listens: SocketAddr) -> SocketAddr {
    let ip = match listens.ip() {
        IpAddr::V4(ip) if ip.is_unspecified() => Ipv4Addr::LOCALHOST.into(),
        IpAddr::V6(ip) if ip.is_unspecified() => Ipv6Addr::LOCALHOST.into(),
        ip => ip,
    };
    SocketAddr::new(ip, listens.port())
}

/// Whether the answer is a 200, and its text.
fn ask(admin: SocketAddr, path: &str) -> io::Result<(bool, String)> {
    let mut stream = TcpStream::connect_timeout(&admin, PATIENCE)?;
    stream.set_read_timeout(Some(PATIENCE))?;
    stream.set_write_timeout(Some(PATIENCE))?;
    let request = format!("GET {path} HTTP/1.1\r\nHost: {admin}\r\nConnection: close\r\n\r\n");
    stream.write_all(request.as_bytes())?;
    let mut answer = Vec::new();
    stream.take(LONGEST).read_to_end(&mut answer)?;
    let answer = String::from_utf8_lossy(&answer);
    let (head, body) = answer.split_once("\r\n\r\n").unwrap_or((&answer, ""));
    if !head.starts_with("HTTP/1.1 ") {
        return Err(io::Error::new(
            io::ErrorKind::InvalidData,
            "what it says is no HTTP",
        ));
    }
    Ok((head.starts_with("HTTP/1.1 200 "), body.to_owned()))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn asked(flags: &[&str], vars: &[(&str, &str)]) -> Result<String, String> {
        let line = ["floodgate", "health"].iter().chain(flags);
        let matches = crate::cli::command().try_get_matches_from(line).unwrap();
        let (_, matches) = matches.subcommand().unwrap();
        let env: Vec<(OsString, OsString)> = vars
            .iter()
            .map(|(name, value)| (name.into(), value.into()))
            .collect();
        resolve::admin(matches, &env)
            .map(|admin| reached(admin).to_string())
            .map_err(|error| error.to_string())
    }

    #[test]
    fn the_gateway_is_asked_where_its_settings_say() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("floodgate.toml");
        std::fs::write(&file, "admin = \"127.0.0.1:9191\"\nno_such_setting = 1\n").unwrap();
        let file = file.display().to_string();
        for (flags, vars, admin) in [
            (&[][..], &[][..], "127.0.0.1:9090"),
            (&[], &[("FLOODGATE_CONFIG", &*file)], "127.0.0.1:9191"),
            (&[], &[("FLOODGATE_ADMIN", ":9292")], "127.0.0.1:9292"),
            (&[], &[("FLOODGATE_ADMIN", "[::]:9292")], "[::1]:9292"),
            (
                &["--admin", "10.0.0.7:1"],
                &[("FLOODGATE_ADMIN", ":2")],
                "10.0.0.7:1",
            ),
        ] {
            assert_eq!(asked(flags, vars).as_deref(), Ok(admin));
        }
        let refused = asked(&["--admin", "nowhere"], &[]).unwrap_err();
        assert!(refused.contains("--admin"), "{refused}");
    }

    #[test]
    fn only_a_200_is_good_and_what_is_said_is_told() {
        for (answer, expected) in [
            ("HTTP/1.1 200 OK\r\n\r\nlive\n", Some((true, "live\n"))),
            (
                "HTTP/1.1 503 Service Unavailable\r\n\r\ndraining\n",
                Some((false, "draining\n")),
            ),
            ("HTTP/1.1 2000 OK\r\n\r\n", Some((false, ""))),
            ("SSH-2.0-server\r\n", None),
        ] {
            let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
            let admin = listener.local_addr().unwrap();
            let asker = std::thread::spawn(move || ask(admin, "/ready").ok());
            let (mut stream, _) = listener.accept().unwrap();
            let mut head = [0; 1024];
            let read = stream.read(&mut head).unwrap();
            assert!(head[..read].starts_with(b"GET /ready HTTP/1.1\r\n"));
            stream.write_all(answer.as_bytes()).unwrap();
            drop(stream);
            let expected = expected.map(|(good, said)| (good, said.to_owned()));
            assert_eq!(asker.join().unwrap(), expected);
        }
    }
}
