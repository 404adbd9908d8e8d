//! Known apps: what the configuration says of an app beside the limits that hold for all.
//!
//! Compiled by [`crate::spec::apps`] from `[[app]]` entries; cannot be invalid. A part of the
//! ruleset, so that one pointer swaps limits and apps together.

use std::collections::HashMap;
use std::fmt;
use std::net::IpAddr;

use foldhash::fast::RandomState;
use ipnet::IpNet;

use crate::limit::total::Kind;
use crate::limit::{CounterKey, LimitId};
use crate::spec::EditionId;

/// Index of an app in [`Apps`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct AppId(usize);

/// What becomes of a call for an app that no entry names.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum UnknownApps {
    /// It is an app like any other.
    #[default]
    Allow,
    /// 404.
    Reject,
}

/// What an app has bought (套餐版本).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum AppPlan {
    /// 免费版.
    Free,
    /// 基础版.
    Basic,
    /// 进阶版.
    Advanced,
    /// 企业版.
    Enterprise,
}

impl AppPlan {
    /// All of them, as the documents list them.
    pub const ALL: [Self; 4] = [Self::Free, Self::Basic, Self::Advanced, Self::Enterprise];

    /// The word used in files, metrics and JSON.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Free => "free",
            Self::Basic => "basic",
            Self::Advanced => "advanced",
            Self::Enterprise => "enterprise",
        }
    }

    /// Its place among [`AppPlan::ALL`].
    #[must_use]
    pub fn index(self) -> usize {
        match self {
            Self::Free => 0,
            Self::Basic => 1,
            Self::Advanced => 2,
            Self::Enterprise => 3,
        }
    }
}

/// An app certificate, 32 hex digits: the key of its tokens. Never printed.
#[derive(Clone, PartialEq, Eq)]
pub struct Certificate(Box<str>);

impl Certificate {
    /// A certificate; `None` if this is none. Spelt as it is: its letters are the key.
    #[must_use]
    pub fn new(text: &str) -> Option<Self> {
        let is_good = text.len() == 32 && text.bytes().all(|b| b.is_ascii_hexdigit());
        is_good.then(|| Self(text.into()))
    }

    /// The 32 digits.
    #[must_use]
    pub fn expose(&self) -> &str {
        &self.0
    }
}

impl fmt::Debug for Certificate {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("***")
    }
}

/// One known app.
#[derive(Clone, Debug)]
pub struct App {
    /// Its names, folded as counters fold them: `org#app`, App ID. The first is the one by which
    /// counters, logs and answers know it. Never empty.
    pub names: Vec<String>,
    /// The counter key of the first name.
    pub key: CounterKey,
    /// Editions for the App Key and the App ID form; `None`: those that hold for all.
    pub editions: Option<(EditionId, EditionId)>,
    /// What it has bought; `None`: nobody knows, and nothing follows.
    pub plan: Option<AppPlan>,
    /// For how many days its messages are kept, where its plan does not say it.
    pub history_days: Option<u32>,
    /// How much it may hold, where its plan does not say it; `u64::MAX`: any number.
    pub totals: Vec<(Kind, u64)>,
    /// Keys of its tokens; several during a rotation, in the order in which they are written.
    pub certificates: Vec<Certificate>,
    /// Where its calls may come from; empty: from anywhere. No IPv4-mapped networks.
    pub allow: Vec<IpNet>,
    /// Whether none of its calls is let in.
    pub suspended: bool,
    /// Limits that differ: one for all, and the app's own with the same counter, by the first.
    pub limits: Vec<(LimitId, LimitId)>,
}

impl App {
    /// The name by which counters, logs and answers know it.
    #[must_use]
    pub fn name(&self) -> &str {
        self.names.first().map_or("", String::as_str)
    }

    /// Whether its calls may come from this address. An IPv4-mapped one is IPv4.
    #[must_use]
    pub fn allows(&self, ip: IpAddr) -> bool {
        let ip = ip.to_canonical();
        self.allow.is_empty() || self.allow.iter().any(|net| net.contains(&ip))
    }

    /// The limit that holds for this app where `id` holds for all.
    #[must_use]
    pub fn limit(&self, id: LimitId) -> LimitId {
        match self.limits.binary_search_by_key(&id, |(all, _)| *all) {
            Ok(at) => self.limits.get(at).map_or(id, |(_, own)| *own),
            Err(_) => id,
        }
    }
}

/// All known apps, by name.
#[derive(Clone, Debug, Default)]
pub struct Apps {
    all: Vec<App>,
    by_name: HashMap<String, AppId, RandomState>,
}

impl Apps {
    /// These apps. Their limits are sorted here; of a name that two have, the first keeps it.
    #[must_use]
    pub fn new(mut all: Vec<App>) -> Self {
        let mut by_name = HashMap::default();
        for (at, app) in all.iter_mut().enumerate() {
            app.limits.sort_unstable();
            for name in &app.names {
                by_name.entry(name.clone()).or_insert(AppId(at));
            }
        }
        Self { all, by_name }
    }

    /// The app of this folded name ([`crate::identity::fold_app`]). No allocation.
    #[must_use]
    pub fn find(&self, folded: &str) -> Option<&App> {
        self.find_id(folded).and_then(|id| self.get(id))
    }

    /// The same, by index: equal for all names of one app.
    #[must_use]
    pub fn find_id(&self, folded: &str) -> Option<AppId> {
        self.by_name.get(folded).copied()
    }

    /// The app of this index.
    #[must_use]
    pub fn get(&self, id: AppId) -> Option<&App> {
        self.all.get(id.0)
    }

    /// All of them, in the order of the files.
    pub fn iter(&self) -> impl Iterator<Item = &App> {
        self.all.iter()
    }

    /// How many there are.
    #[must_use]
    pub fn len(&self) -> usize {
        self.all.len()
    }

    /// Whether there is none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.all.is_empty()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn app(names: &[&str], limits: &[(u32, u32)]) -> App {
        App {
            names: names.iter().map(|name| (*name).to_owned()).collect(),
            key: CounterKey(0),
            editions: None,
            plan: None,
            history_days: None,
            totals: Vec::new(),
            certificates: Vec::new(),
            allow: Vec::new(),
            suspended: false,
            limits: limits
                .iter()
                .map(|(all, own)| (LimitId(*all), LimitId(*own)))
                .collect(),
        }
    }

    #[test]
    fn finding_an_app_and_its_limits_allocates_nothing() {
        let apps = Apps::new(vec![
            app(&["o#a", "id"], &[(7, 20), (3, 21)]),
            app(&["x"], &[]),
        ]);
        let mut found = 0;
        let run = allocation_counter::measure(|| {
            for name in ["o#a", "id", "x", "y", ""] {
                found += u32::from(apps.find(name).is_some());
            }
            let known = apps.find("id");
            for (id, own) in [(3, 21), (7, 20), (5, 5)] {
                let limit = known.map(|app| app.limit(LimitId(id)));
                found += u32::from(limit == Some(LimitId(own)));
            }
        });
        assert_eq!((found, run.count_total), (6, 0));
        assert_eq!(apps.find("id").unwrap().name(), "o#a");
    }

    #[test]
    fn a_certificate_is_32_hex_digits_and_is_not_printed() {
        let digits = "0123456789abcdefABCDEF0123456789";
        let certificate = Certificate::new(digits).unwrap();
        assert_eq!(certificate.expose(), digits);
        assert_eq!(format!("{certificate:?}"), "***");
        for text in [
            "",
            "0",
            &digits[1..],
            &format!("{digits}0"),
            &"g".repeat(32),
        ] {
            assert!(Certificate::new(text).is_none(), "{text}");
        }
    }
}
