//! The table of settings: the one definition from which flags, environment variables, keys of
//! `floodgate.toml`, the help and the reference are made.

mod entries;
mod pools;

pub(super) use entries::SETTINGS;
pub(super) use pools::POOL;

use crate::settings::RESTART;

/// One setting.
#[derive(Clone, Copy, Debug)]
pub(super) struct Setting {
    /// Its key in `floodgate.toml`.
    pub(super) key: &'static str,
    /// Its flag, without the dashes.
    pub(super) flag: &'static str,
    /// What a value looks like.
    pub(super) value: &'static str,
    /// Whether it takes a list.
    pub(super) many: bool,
    /// Whether a password may be in it: it is never printed.
    pub(super) secret: bool,
    /// The value when nothing is given.
    pub(super) default: Option<&'static str>,
    /// Heading in the help and the reference.
    pub(super) group: &'static str,
    /// What it does, in one line.
    pub(super) help: &'static str,
    /// What else there is to know.
    pub(super) more: &'static str,
}

/// What a setting is that says nothing else of itself.
const ONE: Setting = Setting {
    key: "",
    flag: "",
    value: "",
    many: false,
    secret: false,
    default: None,
    group: "",
    help: "",
    more: "",
};

impl Setting {
    /// The environment variable.
    pub(super) fn env(&self) -> String {
        env_name(self.flag)
    }

    /// Whether a change waits for a restart.
    pub(super) fn needs_restart(&self) -> bool {
        RESTART.contains(&self.key)
    }

    /// Whether the flag alone means `true`.
    pub(super) fn is_switch(&self) -> bool {
        self.value == "true|false" && self.default == Some("false")
    }
}

/// The environment variable that belongs to a flag.
pub(super) fn env_name(flag: &str) -> String {
    format!("FLOODGATE_{}", flag.replace('-', "_").to_uppercase())
}

/// The setting with this key.
pub(super) fn setting(key: &str) -> Option<&'static Setting> {
    SETTINGS.iter().find(|setting| setting.key == key)
}
