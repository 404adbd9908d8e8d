//! `[[app]]`, of files that hold nothing else.

use std::net::IpAddr;

use ipnet::{IpNet, Ipv4Net};
use toml::de::DeTable;

use super::{At, Reader, Value};
use crate::apps::AppPlan;
use crate::limit::total::Kind;
use crate::spec::check::{Place, suggestion};
use crate::spec::figure::Figure;

const APP_KEYS: &[&str] = &[
    "names",
    "edition",
    "plan",
    "history_days",
    "totals",
    "limits",
    "certificate_file",
    "certificate_env",
    "allow",
    "suspended",
];
const NAMES: &str = "write names = [\"org#app\", \"App ID\"], or the one that it has";

/// One figure of an app.
#[derive(Clone, Debug)]
pub(in crate::spec) struct WrittenFigure {
    pub(in crate::spec) at: Place,
    pub(in crate::spec) text: String,
    pub(in crate::spec) figure: Figure,
}

/// One app.
#[derive(Clone, Debug)]
pub(in crate::spec) struct WrittenApp {
    pub(in crate::spec) at: Place,
    pub(in crate::spec) names: Vec<At<String>>,
    pub(in crate::spec) edition: Option<At<String>>,
    pub(in crate::spec) plan: Option<AppPlan>,
    pub(in crate::spec) history_days: Option<u32>,
    pub(in crate::spec) totals: Vec<(Kind, u64)>,
    /// By the route or group whose limit it is.
    pub(in crate::spec) limits: Vec<(At<String>, Vec<WrittenFigure>)>,
    pub(in crate::spec) certificate_file: Option<At<String>>,
    pub(in crate::spec) certificate_env: Option<At<String>>,
    pub(in crate::spec) allow: Vec<IpNet>,
    pub(in crate::spec) suspended: bool,
}

/// Whether this may be a certificate, written where its place belongs: it is not to be printed.
fn looks_secret(text: &str) -> bool {
    let digits = text.bytes().filter(u8::is_ascii_hexdigit).count();
    text.len() >= 16 && text.len() - digits <= 2
}

impl Reader<'_> {
    /// Reads a whole file of apps.
    pub(in crate::spec) fn read_apps(&mut self) {
        let readable = self.readable();
        let table = match DeTable::parse(&readable) {
            Ok(table) => table,
            Err(error) => {
                self.syntax(&error, 0);
                self.mistakes.lose_file();
                return;
            }
        };
        for (key, value) in table.get_ref() {
            match &**key.get_ref() {
                "app" => self.each_table(value, "app", Self::app),
                other => {
                    let at = self.place(key.span().start);
                    let message = format!(
                        "a file of apps holds [[app]] entries alone; {}",
                        suggestion(other, ["app"])
                    );
                    self.mistakes.add(at, other, message);
                }
            }
        }
    }

    fn app(&mut self, value: &Value<'_>) {
        let Some(table) = self.table(value, "an app") else {
            return;
        };
        let mut app = WrittenApp {
            at: self.at(value),
            names: Vec::new(),
            edition: None,
            plan: None,
            history_days: None,
            totals: Vec::new(),
            limits: Vec::new(),
            certificate_file: None,
            certificate_env: None,
            allow: Vec::new(),
            suspended: false,
        };
        match table.get("names") {
            Some(names) => {
                app.names = self.strings(names, "an app's name");
                if let Some(first) = app.names.first() {
                    self.mistakes.within(format!("app `{}`", first.value));
                } else if names.get_ref().as_array().is_some_and(|all| all.is_empty()) {
                    self.wrong(names, format!("an app has a name; {NAMES}"));
                }
            }
            None => self
                .mistakes
                .add(app.at, "[[app]]", format!("an app has names; {NAMES}")),
        }
        for (key, value) in table {
            match &**key.get_ref() {
                "names" => {}
                "edition" => app.edition = self.string(value, "edition"),
                "plan" => {
                    let plans = AppPlan::ALL.map(|plan| (plan.as_str(), plan));
                    app.plan = self.choice(value, "plan", &plans);
                }
                "history_days" => app.history_days = self.days(value),
                "totals" => app.totals = self.own_totals(value),
                "limits" => app.limits = self.own_limits(value),
                "certificate_file" => {
                    app.certificate_file = self.secret_place(value, "certificate_file")
                }
                "certificate_env" => {
                    app.certificate_env = self.secret_place(value, "certificate_env")
                }
                "allow" => app.allow = self.networks(value),
                "suspended" => app.suspended = self.bool(value, "suspended").unwrap_or_default(),
                _ => self.unknown_key(key, "an app", APP_KEYS),
            }
        }
        self.written.apps.push(app);
    }

    fn own_limits(&mut self, value: &Value<'_>) -> Vec<(At<String>, Vec<WrittenFigure>)> {
        let Some(table) = self.table(value, "limits, e.g. limits.messages-users = \"12000/min\",")
        else {
            return Vec::new();
        };
        let mut limits = Vec::new();
        for (key, value) in table {
            let owner = At {
                value: key.get_ref().to_string(),
                at: self.place(key.span().start),
            };
            let figures = match value.get_ref().as_array() {
                Some(items) => items
                    .iter()
                    .filter_map(|item| self.own_figure(item))
                    .collect(),
                None => self.own_figure(value).into_iter().collect(),
            };
            limits.push((owner, figures));
        }
        limits
    }

    fn own_figure(&mut self, value: &Value<'_>) -> Option<WrittenFigure> {
        if value.get_ref().is_table() {
            self.wrong(
                value,
                "an app has figures of its own, and nothing else of a limit; write e.g. \"12000/min\"",
            );
            return None;
        }
        let At { value: text, at } = self.string(value, "a figure")?;
        let digits = text
            .bytes()
            .take_while(|b| b.is_ascii_digit() || matches!(b, b'_' | b','));
        let mut digits = digits.filter(u8::is_ascii_digit).peekable();
        if digits.peek().is_some() && digits.all(|digit| digit == b'0') {
            self.wrong(
                value,
                "no call can ever satisfy a limit of 0; to let in none of the app's calls write suspended = true",
            );
            return None;
        }
        match Figure::parse(&text) {
            Ok(figure) => Some(WrittenFigure { at, text, figure }),
            Err(why) => {
                self.wrong(value, why);
                None
            }
        }
    }

    /// Where a certificate is. Never the certificate, which would be printed with the rest.
    fn secret_place(&mut self, value: &Value<'_>, key: &str) -> Option<At<String>> {
        if value.get_ref().as_str().is_some_and(looks_secret) {
            let at = self.at(value);
            self.mistakes.add(
                at,
                key,
                "this looks like a certificate itself; write it into a file or a variable, and its name here",
            );
            return None;
        }
        let place = self.string(value, key)?;
        if place.value.is_empty() {
            self.wrong(
                value,
                format!("empty; write where the certificate is, or leave {key} out"),
            );
            return None;
        }
        Some(place)
    }

    fn networks(&mut self, value: &Value<'_>) -> Vec<IpNet> {
        let Some(items) = value.get_ref().as_array() else {
            self.wrong(
                value,
                "allow is a list of networks, e.g. [\"203.0.113.0/24\"]",
            );
            return Vec::new();
        };
        if items.is_empty() {
            self.wrong(
                value,
                "an empty list would let nobody in; leave allow out to let all in, or write suspended = true",
            );
        }
        let mut networks = Vec::new();
        for item in items {
            let Some(text) = self.string(item, "a network") else {
                continue;
            };
            let text = text.value;
            let read = text
                .parse::<IpNet>()
                .or_else(|_| text.parse::<IpAddr>().map(IpNet::from));
            match read {
                Ok(network) => networks.push(canonical(network.trunc())),
                Err(_) => self.wrong(
                    item,
                    "not a network; write 203.0.113.0/24, 2001:db8::/32 or one address",
                ),
            }
        }
        networks
    }
}

/// Callers' addresses are canonical: an IPv4-mapped network is one of IPv4.
fn canonical(network: IpNet) -> IpNet {
    let mapped = match network {
        IpNet::V6(v6) if v6.prefix_len() >= 96 => {
            v6.addr().to_ipv4_mapped().zip(Some(v6.prefix_len() - 96))
        }
        IpNet::V4(_) | IpNet::V6(_) => None,
    };
    mapped
        .and_then(|(addr, prefix)| Ipv4Net::new(addr, prefix).ok())
        .map_or(network, IpNet::V4)
}
