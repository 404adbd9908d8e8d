//! The reference of all settings, `reference.md`, made from the table; this test keeps it so.

use std::fmt::Write as _;

use super::table::{POOL, SETTINGS, env_name};

/// The text of `reference.md`.
fn reference() -> String {
    let mut text = String::from(
        "# Settings\n\n\
         Made from `src/cli/table.rs` by `BLESS=1 cargo test reference`; do not edit.\n\n\
         Every setting is a flag of `floodgate run`, an environment variable, or a key in the \
         TOML file that `--config FILE` names",
    );
    let _ = writeln!(
        text,
        " (or `{}`; no file is read unless it is named). A flag goes over the environment, the \
         environment over the file, the file over the default. A list replaces the list below \
         it; flags give one entry each, a variable separates its entries by commas, a key takes \
         an array. A variable that is empty is not set. Times are written with their unit: \
         `500ms`, `2s`, `5min`, `1h`. A reload takes every change but those of settings that are \
         marked *(restart)*: these wait for one, and the reload says so.",
        env_name("config")
    );
    let mut group = "";
    for setting in SETTINGS {
        if setting.group != group {
            group = setting.group;
            let _ = write!(
                text,
                "\n## {group}\n\n| flag | environment | key | default | |\n\
                 | --- | --- | --- | --- | --- |\n"
            );
        }
        let many = if setting.many { "…" } else { "" };
        let value = setting.value.replace('|', "\\|");
        let default = setting
            .default
            .map_or_else(|| "-".to_owned(), |default| format!("`{default}`"));
        let more = match setting.more {
            "" => String::new(),
            more => format!(". {more}"),
        };
        let restart = match setting.needs_restart() {
            true => " *(restart)*",
            false => "",
        };
        let _ = writeln!(
            text,
            "| `--{} {value}`{many} | `{}` | `{}` | {default} | {}{more}{restart} |",
            setting.flag,
            setting.env(),
            setting.key,
            setting.help,
        );
    }
    text.push_str(
        "\n## Pools\n\nFor calls that go elsewhere than to `upstream`, the file has a `[[pool]]` table \
         each, with these keys. What a pool does not say is as for `upstream`.\n\n\
         | key | value | |\n| --- | --- | --- |\n",
    );
    for key in POOL {
        let many = if key.many { "…" } else { "" };
        let more = match key.more {
            "" => String::new(),
            more => format!(". {more}"),
        };
        let value = key.value.replace('|', "\\|");
        let _ = writeln!(
            text,
            "| `{}` | `{value}`{many} | {}{more} |",
            key.key, key.help
        );
    }
    text
}

#[test]
#[expect(
    clippy::disallowed_methods,
    reason = "asks whether to write the file, in a test"
)]
fn the_reference_is_what_the_table_says() {
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/src/cli/reference.md");
    if std::env::var("BLESS").is_ok() {
        std::fs::write(path, reference()).unwrap();
    }
    let written = std::fs::read_to_string(path).unwrap_or_default();
    assert!(
        written == reference(),
        "src/cli/reference.md has drifted; run BLESS=1 cargo test reference"
    );
}
