//! The settings of the store.

use std::path::PathBuf;

use super::{MILLISECOND, Reader, SECOND};
use crate::cli::layers::Mistake;
use crate::cli::value::{self, ValueError};
use crate::settings::StoreSettings;
use crate::store::redis::connect::{RedisOptions, Secret};

pub(super) fn read(reader: &mut Reader) -> Option<StoreSettings> {
    let store = reader.one("store", |text| match text {
        "memory" => Ok(StoreSettings::Memory),
        _ => RedisOptions::parse(text)
            .map(StoreSettings::Redis)
            .map_err(ValueError::Store),
    });
    let username = text(reader, "store_username");
    let password = text(reader, "store_password").map(Secret::new);
    let password_file = reader.file("store_password_file");
    let sentinel_username = text(reader, "store_sentinel_username");
    let sentinel_password = text(reader, "store_sentinel_password").map(Secret::new);
    let ca = reader.file("store_ca");
    let client_cert = reader.file("store_client_cert");
    let client_key = reader.file("store_client_key");
    let prefix = reader.one("store_prefix", value::prefix);
    let timeout = reader.time("store_timeout", MILLISECOND);
    let leases = reader.switch("store_leases");
    let slot_lease = reader.time("store_slot_lease", SECOND);
    let min_gateways = reader.one("min_gateways", |text| value::number(text, 1, 10_000));
    let allow_eviction = reader.switch("store_allow_eviction");
    let mut options = match store? {
        StoreSettings::Memory => return Some(StoreSettings::Memory),
        StoreSettings::Redis(options) => options,
    };
    let password = match (password, password_file) {
        (None, Some(path)) => Some(secret_in(reader, path, "store_password_file")?),
        (password, _) => password,
    };
    options.username = username.or(options.username);
    options.password = password.or(options.password);
    options.sentinel_username = sentinel_username;
    options.sentinel_password = sentinel_password;
    options.ca = ca;
    options.client_cert = client_cert;
    options.client_key = client_key;
    options.prefix = prefix?;
    options.timeout = timeout?;
    options.leases = leases?;
    options.slot_lease = slot_lease?;
    options.min_gateways = min_gateways?;
    options.allow_eviction = allow_eviction?;
    Some(StoreSettings::Redis(options))
}

/// A text, if one is given.
fn text(reader: &mut Reader, key: &str) -> Option<String> {
    let given = reader.given(key).pop()?;
    if given.text.is_empty() {
        let why = ValueError::Empty;
        reader.mistakes.push(Mistake::Value { given, why });
        return None;
    }
    Some(given.text)
}

/// What is in the file that `setting` names.
pub(super) fn secret_in(
    reader: &mut Reader,
    path: PathBuf,
    setting: &'static str,
) -> Option<Secret> {
    match reader.files.read_secret(&path) {
        Ok(text) => Some(Secret::new(text.trim_end_matches(['\r', '\n']))),
        Err(source) => {
            reader.mistakes.push(Mistake::Unreadable {
                path,
                source,
                setting,
            });
            None
        }
    }
}
