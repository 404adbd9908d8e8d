//! Layers: precedence, and mistakes.

use std::ffi::OsString;
use std::fs;
use std::time::Duration;

use super::table::{SETTINGS, Setting};
use super::{Purpose, SettingsError, command, load};
use crate::settings::{AnswerForm, Settings, StoreSettings};
use crate::store::redis::connect::Secret;

fn env(pairs: &[(&str, &str)]) -> Vec<(OsString, OsString)> {
    pairs
        .iter()
        .map(|(name, value)| (name.into(), value.into()))
        .collect()
}

fn settings_for(
    purpose: Purpose,
    flags: &[&str],
    vars: &[(&str, &str)],
    file: Option<&str>,
) -> Result<Settings, SettingsError> {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("floodgate.toml");
    let mut line = vec![OsString::from("floodgate"), "run".into()];
    if let Some(text) = file {
        fs::write(&path, text).unwrap();
        line.extend(["--config".into(), path.clone().into()]);
    }
    line.extend(flags.iter().map(OsString::from));
    let matches = command()
        .try_get_matches_from(crate::cli::args::joined(line))
        .unwrap();
    let (_, matches) = matches.subcommand().unwrap();
    load(matches, &env(vars), purpose)
}

fn settings(flags: &[&str], vars: &[(&str, &str)], file: Option<&str>) -> Settings {
    settings_for(Purpose::Look, flags, vars, file).unwrap()
}

/// The mistakes, without the directory of the file.
fn mistakes(flags: &[&str], vars: &[(&str, &str)], file: Option<&str>) -> Vec<String> {
    settings_for(Purpose::Look, flags, vars, file)
        .unwrap_err()
        .to_string()
        .lines()
        .map(|line| match line.find("floodgate.toml:") {
            Some(at) => line[at..].to_owned(),
            None => line.to_owned(),
        })
        .collect()
}

fn addrs(settings: &Settings) -> Vec<String> {
    let listen = settings.listen.iter();
    listen.map(|listen| listen.addr.to_string()).collect()
}

#[test]
fn the_command_line_is_consistent() {
    command().debug_assert();
}

#[test]
fn defaults_hold_where_nothing_is_given() {
    let s = settings(&[], &[], None);
    assert_eq!(addrs(&s), ["127.0.0.1:8080"]);
    assert_eq!(s.admin, "127.0.0.1:9090".parse().unwrap());
    assert_eq!(s.edition, "current");
    assert_eq!(s.max_counters, 1_000_000);
    assert_eq!(s.max_in_flight, 10_000);
    assert_eq!(s.max_upstream_waiting, 5000);
    assert_eq!(s.max_body, 2 << 20);
    assert_eq!(s.ipv6_prefix, 64);
    assert_eq!(s.grace, Duration::from_secs(30));
    assert!(s.access_log && !s.h2c);
    assert_eq!(s.shield, crate::settings::Shield::default());
    assert_eq!(s.auth, crate::identity::Auth::RequireBearer);
    assert_eq!(s.bad_token_memory, Some(Duration::from_secs(5)));
    assert_eq!(s.unproven_share, 25);
    assert!(s.threads >= 1);
}

#[test]
fn a_flag_goes_over_the_environment_and_that_over_the_file() {
    let file = Some("edition = \"v1\"\n");
    let var = [("FLOODGATE_EDITION", "v2")];
    assert_eq!(settings(&[], &[], file).edition, "v1");
    assert_eq!(settings(&[], &var, file).edition, "v2");
    assert_eq!(settings(&["--edition", "v3"], &var, file).edition, "v3");
    assert_eq!(settings(&["--edition", "v3"], &[], file).edition, "v3");
}

/// A value that is not the default.
fn other(setting: &Setting) -> String {
    let value = setting.value;
    match (setting.key, setting.default) {
        ("threads", _) => "1024".to_owned(),
        ("listen", _) => "127.0.0.1:1 tls".to_owned(),
        ("max_headers", _) => "200".to_owned(),
        ("concurrency_min", _) => "7".to_owned(),
        ("first_byte_timeout", _) => "2min".to_owned(),
        ("https_redirect", _) => "443".to_owned(),
        ("hsts", _) => "1h".to_owned(),
        ("admin_token", _) => "sixteen-of-these".to_owned(),
        ("admin", _) => "127.0.0.1:2".to_owned(),
        ("upstream", _) => "http://127.0.0.1:3".to_owned(),
        ("trusted_proxies", _) => "10.0.0.0/8".to_owned(),
        ("dns_servers", _) => "10.0.0.53".to_owned(),
        ("health_check", _) => "/health".to_owned(),
        ("retry_on", _) => "503".to_owned(),
        ("ready_requires", _) => "upstream".to_owned(),
        ("request_timeout", _) => "3s".to_owned(),
        ("routes", _) => "x.toml".to_owned(),
        ("store", _) => "rediss-sentinel://u:p@a,b:1/m/2".to_owned(),
        _ if value == "FILE" => "/x.pem".to_owned(),
        ("edition", _) => "v2".to_owned(),
        (_, Some("true")) => "false".to_owned(),
        (_, Some("false")) => "true".to_owned(),
        _ if value == "TIME" => "3s".to_owned(),
        _ if value.starts_with('N') => "2000".to_owned(),
        _ if value == "SIZE" => "64KiB".to_owned(),
        _ if value == "BITS" => "48".to_owned(),
        _ if value == "PERCENT" => "50".to_owned(),
        _ => value.rsplit('|').next().unwrap().to_owned(),
    }
}

#[test]
fn every_setting_can_be_given_in_every_layer() {
    let mut flags = Vec::new();
    let mut vars = Vec::new();
    let mut file = String::new();
    for s in SETTINGS {
        let value = other(s);
        flags.push(format!("--{}={value}", s.flag));
        vars.push((s.env(), value.clone()));
        file.push_str(&match s.many {
            true => format!("{} = [{value:?}]\n", s.key),
            false => format!("{} = {value:?}\n", s.key),
        });
    }
    let flags: Vec<_> = flags.iter().map(String::as_str).collect();
    let vars: Vec<_> = vars.iter().map(|(n, v)| (&**n, &**v)).collect();
    let mut by_file = settings(&[], &[], Some(&file));
    // In a file, a path is relative to the file.
    assert!(by_file.routes[0].is_absolute());
    by_file.routes = vec!["x.toml".into()];
    let expected = format!("{by_file:?}");
    assert_eq!(format!("{:?}", settings(&flags, &[], None)), expected);
    assert_eq!(format!("{:?}", settings(&[], &vars, None)), expected);
    assert_ne!(format!("{:?}", settings(&[], &[], None)), expected);
}

/// All of them, secrets too.
fn shown(settings: &Settings) -> String {
    let expose = |secret: &Option<Secret>| secret.as_ref().map(|secret| secret.expose().to_owned());
    let store = match &settings.store {
        StoreSettings::Memory => [None, None],
        StoreSettings::Redis(store) => [&store.password, &store.sentinel_password].map(expose),
    };
    format!("{settings:?} {:?} {store:?}", expose(&settings.admin_token))
}

#[test]
fn a_reload_takes_what_it_can_and_names_what_waits_for_a_restart() {
    let dir = tempfile::tempdir().unwrap();
    let secret = dir.path().join("secret");
    fs::write(&secret, "sixteen-of-these-and-more").unwrap();
    let secret = secret.to_str().unwrap();
    let base = [
        "--listen=127.0.0.1:1 tls",
        "--tls-cert=/base.pem",
        "--tls-client-ca=/base.pem",
        "--store=redis://h",
        "--apps=/base.toml",
        "--admin-token=sixteen-of-others",
        "--concurrency=adaptive",
    ];
    let running = settings(&base, &[], None);
    for setting in SETTINGS {
        let key = setting.key;
        let value = match key {
            "listen" => "127.0.0.1:7 tls".to_owned(),
            "store" => "redis://other".to_owned(),
            "concurrency" => "off".to_owned(),
            _ if key.ends_with("_file") => secret.to_owned(),
            _ => other(setting),
        };
        let flag = format!("--{}={value}", setting.flag);
        // The token goes over its file.
        let same = |other: &&&str| key != "admin_token_file" || !other.starts_with("--admin-token");
        let is_list = |other: &&&str| !other.starts_with(&format!("--{}=", setting.flag));
        let flags = base.iter().filter(same).filter(is_list).copied();
        let flags: Vec<&str> = flags.chain([&*flag]).collect();
        let mut read = settings(&flags, &[], None);
        assert_ne!(shown(&read), shown(&running), "{key}");
        let waiting = read.keep_what_cannot_change(&running);
        let is_kept = shown(&read) == shown(&running);
        match key {
            "store_password_file" => assert_eq!(waiting, ["store_password"]),
            _ if setting.needs_restart() => assert_eq!(waiting, [key]),
            _ => assert!(waiting.is_empty(), "{key}: {waiting:?}"),
        }
        assert_eq!(is_kept, setting.needs_restart(), "{key}");
    }
    let known = |key: &&str| SETTINGS.iter().any(|setting| setting.key == *key);
    assert!(crate::settings::RESTART.iter().all(known));
}

#[test]
fn a_listener_that_stays_keeps_what_goes_with_it() {
    let proxied = [
        "--listen=127.0.0.1:1 tls",
        "--listen=127.0.0.1:2 proxy-protocol",
        "--tls-cert=/a.pem",
        "--trusted-proxy=10.0.0.1",
    ];
    let running = settings(&proxied, &[], None);
    let mut read = settings(&["--listen=127.0.0.1:1", "--max-url=300"], &[], None);
    assert!(!read.https.only);
    assert_eq!(read.keep_what_cannot_change(&running), ["listen"]);
    assert_eq!(read.max_url, 300);
    assert!(read.https.only && read.tls == running.tls);
    assert_eq!(read.trusted_proxies, running.trusted_proxies);
    // The other way round: nobody is sent to a listener that is not there.
    let plain = settings(&[], &[], None);
    let mut read = settings(&proxied, &[], None);
    assert_eq!(read.keep_what_cannot_change(&plain), ["listen"]);
    assert!(!read.https.only && read.tls.is_none());
}

#[test]
fn a_list_replaces_the_list_below_it() {
    let file = Some("listen = [\":1\", \":2\"]\n");
    assert_eq!(settings(&[], &[], file).listen.len(), 2);
    let vars = [("FLOODGATE_LISTEN", ":3, :4,:5")];
    assert_eq!(settings(&[], &vars, file).listen.len(), 3);
    let flags = ["--listen", ":6"];
    assert_eq!(addrs(&settings(&flags, &vars, file)), ["0.0.0.0:6"]);
}

#[test]
fn the_file_may_use_its_own_types() {
    let s = settings(
        &[],
        &[],
        Some(
            "h2c = true\nthreads = 3\nmax_in_flight = 1_000\nlisten = \":1\"\nshield_requests = 9\nanswers = \"problem\"\n",
        ),
    );
    assert!(s.h2c);
    assert_eq!((s.threads, s.max_in_flight), (3, 1000));
    assert_eq!(s.shield.requests_per_s.unwrap().get(), 9);
    assert_eq!(s.answers, AnswerForm::Problem);
}

#[test]
fn a_switch_needs_no_value() {
    assert!(settings(&["--h2c"], &[], None).h2c);
    assert!(settings(&["--h2c", "true"], &[], None).h2c);
    assert!(settings(&["--h2c", "--threads", "1"], &[], None).h2c);
    assert!(!settings(&["--h2c", "false"], &[("FLOODGATE_H2C", "true")], None).h2c);
    assert!(!settings(&["--h2c=false"], &[("FLOODGATE_H2C", "true")], None).h2c);
}

#[test]
fn the_environment_can_name_the_file() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("f.toml");
    fs::write(&path, "edition = \"v4\"").unwrap();
    let vars = [("FLOODGATE_CONFIG", path.to_str().unwrap())];
    assert_eq!(settings(&[], &vars, None).edition, "v4");
}

#[test]
fn a_variable_of_a_command_is_no_misspelt_setting() {
    let vars = [
        ("FLOODGATE_APP_TOKEN", "YWMtx"),
        ("FLOODGATE_EDITION", "v4"),
    ];
    assert_eq!(settings(&[], &vars, None).edition, "v4");
}

#[test]
fn an_empty_variable_is_not_set() {
    let s = settings(
        &[],
        &[("FLOODGATE_EDITION", ""), ("FLOODGATE_LISTEN", "")],
        None,
    );
    assert_eq!((s.edition.as_str(), s.listen.len()), ("current", 1));
}

#[test]
fn all_mistakes_are_reported_at_once_with_their_place() {
    let file = "lisen = \":1\"\n# x\nthreads = 0\ngrace = 30\nh2c = \"yes\"\nadmin = [1]\nlisten = [\n  \":1\",\n  \"x\",\n]\n";
    let got = mistakes(
        &["--ipv6-prefix", "129", "--trusted-proxy", "x"],
        &[
            ("FLOODGATE_KEEPALIVE", "2"),
            ("FLOODGATE_UPSTREAMS", "http://a"),
        ],
        Some(file),
    );
    let expected = [
        "FLOODGATE_UPSTREAMS is not a setting; did you mean FLOODGATE_UPSTREAM?",
        "floodgate.toml:1: unknown key \"lisen\"; did you mean listen?",
        "floodgate.toml:4: grace is a number; write grace = \"30s\"",
        "floodgate.toml:6: admin is a list; write admin = \"127.0.0.1:9090\"",
        "floodgate.toml:9: listen = \"x\": not a listening address; write 127.0.0.1:8080, [::1]:8080 or :8080",
        "--trusted-proxy x: not a network; write 10.0.0.0/8, 2001:db8::/32 or one address",
        "--ipv6-prefix 129: not a whole number from 1 to 128",
        "floodgate.toml:5: h2c = \"yes\": not one of true, false",
        "floodgate.toml:3: threads = 0: not a whole number from 1 to 1024",
        "FLOODGATE_KEEPALIVE=2: not a time; write it with its unit, e.g. 500ms, 2s, 5min",
    ];
    assert_eq!(got, expected);
}

#[test]
fn a_file_with_bad_syntax_names_the_line() {
    let got = mistakes(&[], &[], Some("edition = \"v1\"\nlisten = \n"));
    assert_eq!(got.len(), 1, "{got:?}");
    assert!(got[0].starts_with("floodgate.toml:2: "), "{got:?}");
}

#[test]
fn a_file_that_is_not_there_is_unreadable() {
    let error = settings_for(Purpose::Look, &["--config", "/nowhere.toml"], &[], None).unwrap_err();
    assert!(error.is_unreadable());
    assert!(error.to_string().starts_with("cannot read /nowhere.toml: "));
}

#[test]
fn an_address_is_listened_on_once() {
    let got = mistakes(&["--listen", ":1", "--listen", "1"], &[], None);
    assert_eq!(got, ["--listen 1: there twice"]);
    let got = mistakes(&["--listen", ":1", "--admin", "127.0.0.1:1"], &[], None);
    assert_eq!(
        got,
        ["--admin 127.0.0.1:1: the callers' address too; choose another port"]
    );
    let any = ["--listen", "127.0.0.1:0", "--admin", "127.0.0.1:0"];
    assert_eq!(settings(&any, &[], None).admin.port(), 0);
}

#[test]
fn a_list_that_must_have_an_entry_is_not_empty() {
    let got = mistakes(&[], &[], Some("trusted_proxies = []\nlisten = []\n"));
    let expected = "floodgate.toml:2: listen is an empty list; write listen = [\"127.0.0.1:8080\"]";
    assert_eq!(got, [expected]);
}

#[test]
fn running_needs_an_upstream_that_resolves() {
    let error = settings_for(Purpose::Run, &[], &[], None).unwrap_err();
    assert_eq!(
        error.to_string(),
        "no upstream is given; write --upstream http://host:port, \
         FLOODGATE_UPSTREAM=http://host:port or upstream = \"http://host:port\""
    );
    let s = settings_for(
        Purpose::Run,
        &["--upstream", "https://127.0.0.1"],
        &[],
        None,
    )
    .unwrap();
    assert!(s.pools[0].upstreams[0].tls);
    let addrs = &s.pools[0].upstreams[0].addrs;
    assert_eq!(*addrs, ["127.0.0.1:443".parse().unwrap()]);
    let error = settings_for(
        Purpose::Run,
        &["--upstream", "http://no.invalid"],
        &[],
        None,
    );
    let error = error.unwrap_err().to_string();
    assert!(error.contains("no.invalid cannot be resolved: "), "{error}");
}

#[test]
fn an_upstream_is_not_missed_in_what_could_not_be_read() {
    for (env, file) in [
        (&[][..], Some("upstrem = \"http://127.0.0.1\"\n")),
        (&[], Some("upstream = \n")),
        (&[("FLOODGATE_UPSTREM", "http://127.0.0.1")], None),
    ] {
        let error = settings_for(Purpose::Run, &[], env, file).unwrap_err();
        let error = error.to_string();
        assert!(!error.contains("no upstream is given"), "{error}");
    }
}

#[test]
fn variables_that_kubernetes_makes_are_not_ours() {
    for name in [
        "FLOODGATE_SERVICE_HOST",
        "FLOODGATE_PORT",
        "FLOODGATE_PORT_8080_TCP_ADDR",
    ] {
        settings(&[], &[(name, "x")], None);
    }
}

#[test]
fn the_store_is_memory_unless_a_redis_is_named() {
    use crate::settings::StoreSettings;
    assert_eq!(settings(&[], &[], None).store, StoreSettings::Memory);
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("password");
    fs::write(&path, "from a file\n").unwrap();
    let vars = [
        ("FLOODGATE_STORE", "redis://user:word@a/1"),
        ("FLOODGATE_STORE_PASSWORD_FILE", path.to_str().unwrap()),
    ];
    let flags = ["--store-timeout", "20ms", "--min-gateways", "3"];
    let StoreSettings::Redis(options) = settings(&flags, &vars, None).store else {
        panic!("not Redis");
    };
    assert_eq!(options.timeout, Duration::from_millis(20));
    assert_eq!((options.min_gateways, options.database), (3, 1));
    assert_eq!(options.username.as_deref(), Some("user"));
    assert_eq!(options.password.unwrap().expose(), "from a file");
    assert!(options.leases && !options.allow_eviction);
    let got = mistakes(
        &["--store", "redis://a"],
        &[("FLOODGATE_STORE_PASSWORD_FILE", "/nowhere")],
        None,
    );
    assert!(got[0].starts_with("cannot read /nowhere: "), "{got:?}");
}

#[test]
fn the_admin_token_comes_from_a_file_too_and_is_never_printed() {
    assert!(settings(&[], &[], None).admin_token.is_none());
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("token");
    let path = path.to_str().unwrap();
    std::fs::write(path, "a-token-in-a-file\r\n").unwrap();
    let token = |flags: &[&str]| {
        let token = settings(flags, &[], None).admin_token.unwrap();
        token.expose().to_owned()
    };
    assert_eq!(token(&["--admin-token-file", path]), "a-token-in-a-file");
    let both = [
        "--admin-token-file",
        path,
        "--admin-token",
        "one-in-the-flags",
    ];
    assert_eq!(token(&both), "one-in-the-flags");
    let got = mistakes(&[], &[("FLOODGATE_ADMIN_TOKEN", "secret")], None);
    assert_eq!(
        got,
        ["FLOODGATE_ADMIN_TOKEN=***: not a token; write 16 visible ASCII characters or more"]
    );
    std::fs::write(path, "secret").unwrap();
    let got = mistakes(&["--admin-token-file", path], &[], None);
    let start = format!("--admin-token-file {path}: not a token; ");
    assert!(
        got[0].starts_with(&start) && !got[0].contains("secret"),
        "{got:?}"
    );
    let got = mistakes(&["--admin-token-file", "/nowhere"], &[], None);
    assert!(got[0].starts_with("cannot read /nowhere: "), "{got:?}");
}

#[test]
fn a_token_for_all_needs_one_and_a_host_is_a_name() {
    let got = mistakes(
        &["--admin-auth", "all", "--admin-host", "http://a:1"],
        &[],
        None,
    );
    assert_eq!(
        got,
        [
            "--admin-auth all: there is no token to ask for; give admin_token_file too, or write changes",
            "--admin-host http://a:1: not a host name; write one without a port, like metrics.example.com",
        ]
    );
    let token = [("FLOODGATE_ADMIN_TOKEN", "sixteen-of-these")];
    let given = settings(
        &["--admin-auth", "all", "--admin-host", "A.example"],
        &token,
        None,
    );
    assert!(given.admin_token_for_all);
    assert_eq!(given.admin_hosts, ["a.example"]);
    let got = mistakes(&["--client-ip-header", "forwarder"], &[], None);
    let expected = "--client-ip-header forwarder: not one of x-forwarded-for, forwarded; \
                    did you mean forwarded?";
    assert_eq!(got, [expected]);
}

#[test]
fn a_mistake_in_the_store_does_not_print_its_password() {
    let file = Some("store = \"redis://user:secret@a:x\"\nstore_password = \"\"\n");
    let got = mistakes(&["--store-prefix", "{a}"], &[], file);
    let expected = [
        "floodgate.toml:1: store = \"***\": a port is not a number from 1 to 65535; in a password, write / : @ as %2F %3A %40",
        "floodgate.toml:2: store_password = \"***\": empty",
        "--store-prefix {a}: not a prefix; write 1 to 32 letters, digits, '.', '_' or '-'",
    ];
    assert_eq!(got, expected);
    let got = mistakes(&[], &[("FLOODGATE_STORE", "redsi://:secret@a")], None);
    assert!(
        got[0].starts_with("FLOODGATE_STORE=***: not a store; "),
        "{got:?}"
    );
}

#[test]
fn a_tls_listener_and_its_certificates_belong_together() {
    let mistakes = |flags: &[&str]| mistakes(flags, &[], None).join("\n");
    let none = mistakes(&["--listen", ":1 tls"]);
    assert!(none.contains("a TLS listener needs certificates"), "{none}");
    let unused = mistakes(&["--tls-cert", "a.pem"]);
    assert!(unused.contains("no listener speaks TLS"), "{unused}");
    let odd = mistakes(&[
        "--listen",
        ":1 tls",
        "--tls-cert",
        "a",
        "--tls-cert",
        "b",
        "--tls-key",
        "c",
    ]);
    assert!(odd.contains("2 in tls_cert and 1 in tls_key"), "{odd}");
    let nobody = mistakes(&["--listen", ":1 proxy-protocol"]);
    assert!(nobody.contains("needs trusted_proxies"), "{nobody}");

    let both = [
        "--listen",
        ":1",
        "--listen",
        ":2 tls",
        "--tls-cert",
        "a.pem",
    ];
    let s = settings(&both, &[], None);
    assert!(s.https.only, "where a listener speaks TLS");
    let tls = s.tls.expect("certificates");
    assert_eq!(tls.pairs, [("a.pem".into(), "a.pem".into())]);
    assert!(!settings(&[], &[], None).https.only);
}

#[test]
fn settings_hold_secrets_and_never_show_them() {
    let vars = [
        ("FLOODGATE_STORE", "redis://user:open-sesame-1@127.0.0.1:1"),
        ("FLOODGATE_STORE_SENTINEL_PASSWORD", "open-sesame-2"),
        ("FLOODGATE_ADMIN_TOKEN", "open-sesame-number-3"),
    ];
    let settings = settings(&[], &vars, None);
    let shown = format!("{settings:?}{settings:#?}");
    assert!(!shown.contains("sesame"), "{shown}");
    assert_eq!(
        settings.admin_token.map(|token| token.expose().to_owned()),
        Some("open-sesame-number-3".to_owned())
    );
}

#[test]
fn a_login_in_an_address_is_not_repeated() {
    for (flag, text, shown) in [
        (
            "--upstream",
            "http://u:sesame@a:1/",
            "--upstream http://***@a:1/",
        ),
        ("--upstream", "u:sesame@a:1", "--upstream ***@a:1"),
        (
            "--upstream",
            "http://u:ses@ame@a",
            "--upstream http://***@a",
        ),
        ("--listen", "u:sesame@:1", "--listen ***@:1"),
    ] {
        let got = mistakes(&[flag, text], &[], None).join("\n");
        assert!(got.contains(shown), "{got}");
        assert!(!got.contains("ses"), "{got}");
    }
}

#[test]
fn a_pool_is_as_the_default_one_but_for_what_it_says() {
    let file = "upstream = \"http://127.0.0.1:1\"\nread_timeout = \"7s\"\nretry_on = [503, \"reset\"]\n\
                [[pool]]\nname = \"files\"\nroutes = [\"chatfile-upload\"]\nread_timeout = \"5min\"\n\
                [[pool]]\nname = \"vip\"\napps = [\"o#a\"]\nbalance = \"hash-app\"\nretry_on = \"off\"\n\
                upstreams = [\"https://127.0.0.1:2 weight=2\", \"https://127.0.0.1:3\"]\nhttp2 = true\n";
    let s = settings_for(Purpose::Run, &[], &[], Some(file)).unwrap();
    let [default, files, vip] = &s.pools[..] else {
        panic!("{:?}", s.pools)
    };
    assert_eq!(default.times.read, Duration::from_secs(7));
    assert_eq!(files.upstreams, default.upstreams);
    assert_eq!(files.times.read, Duration::from_secs(300));
    assert_eq!(files.retry_on, default.retry_on);
    assert_eq!(
        (&default.retry_on.statuses[..], default.retry_on.reset),
        (&[503][..], true)
    );
    assert_eq!(vip.retry_on, crate::settings::RetryOn::default());
    assert_eq!(vip.balance, crate::settings::Balance::HashApp);
    assert!(vip.upstreams.iter().all(|u| u.http2 && u.tls));
    assert_eq!(vip.upstreams[0].weight, 2);
    assert_eq!(files.routes[0].name, "chatfile-upload");
}

#[test]
fn all_mistakes_in_pools_are_told_at_once_with_their_lines() {
    let file = "upstream = \"http://127.0.0.1:1\"\n\
                [[pool]]\nnaem = \"a\"\nroutes = [\"r\"]\n\
                [[pool]]\nname = \"default\"\nupstreams = [\"127.0.0.1\"]\n\
                [[pool]]\nname = \"b\"\nroutes = [\"r\"]\nretry_on = [404]\nhealth_check = \"health\"\n";
    let error = settings_for(Purpose::Look, &[], &[], Some(file)).unwrap_err();
    let text = error.to_string();
    for expected in [
        ":3: unknown key \"naem\"; did you mean name?",
        ":2: this [[pool]] has no name; write name = \"files\"",
        ":6: name = \"default\": the pool of `upstream`; choose another name",
        ":7: upstreams = \"127.0.0.1\": an upstream needs http:// or https://; write http://127.0.0.1",
        ":5: this [[pool]] serves nobody; write apps, routes or editions = [\"…\"]",
        ":10: routes = \"r\": at ",
        ":11: retry_on = 404: not a status from 500 to 599, reset, or off alone",
        ":12: health_check = \"health\": not off, tcp or a path; write a path from its slash, e.g. /health",
    ] {
        assert!(text.contains(expected), "{expected}\n{text}");
    }
    assert_eq!(error.count(), 8, "{text}");
}
