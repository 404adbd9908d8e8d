//! Files of apps: any text is taken or has mistakes that are inside it, and what is taken is found
//! by each of its names.
#![no_main]

use floodgate::identity::fold_app;
use floodgate::limit::KeyHasher;
use floodgate::spec::apps::{SecretPlace, mistakes_alone};
use floodgate::spec::compile::{Layer, Mistakes, compile};
use libfuzzer_sys::fuzz_target;

const ROUTES: &str = r#"
[editions]
v3 = { ip_copy = true }
v4 = {}
[select]
current = { app_key = "v3", app_id = "v4" }
[defaults]
limits = ["100/s"]
[[group]]
name = "account"
v3 = { limits = ["50/s"] }
[[route]]
name = "users-post"
calls = ["POST /users"]
v3 = { group = "account" }
[[route]]
name = "send"
calls = ["POST /send/{username}"]
cost = "to"
v3 = { limits = ["600 messages/min", "5/min per user"] }
v4 = { limits = ["100/s", "600 messages/min", "20 messages/s"] }
"#;

const CERTIFICATE: &str = "0123456789abcdef0123456789ABCDEF";

fuzz_target!(|data: &[u8]| {
    let Ok(text) = std::str::from_utf8(data) else {
        return;
    };
    let layer = |name: &str, text: &str| Layer {
        name: name.to_owned(),
        text: text.to_owned(),
    };
    let mut rules = compile(&[layer("routes.toml", ROUTES)], KeyHasher::new((1, 2)))
        .expect("the routes are good");
    let editions = rules.selection("current").expect("it is there");
    let layers = [layer("apps.toml", text)];
    placed(&mistakes_alone(&layers, &secret), text);
    if let Err(mistakes) = rules.add_apps(&layers, editions, &secret) {
        assert!(!mistakes.0.is_empty());
        placed(&mistakes, text);
        return;
    }
    assert!(mistakes_alone(&layers, &secret).0.is_empty());
    for app in rules.apps.iter() {
        assert!(!app.names.is_empty());
        for name in &app.names {
            assert!(!name.is_empty());
            assert_eq!(fold_app(name, true), *name, "calls have another name");
            let found = rules.apps.find(name).map(|app| app.name());
            assert_eq!(found, Some(app.name()));
        }
    }
});

fn secret(place: SecretPlace<'_>) -> Result<Option<String>, String> {
    match place {
        SecretPlace::File { path: "gone", .. } => Err("cannot read gone".to_owned()),
        SecretPlace::File { path: "bad", .. } => Ok(Some("no certificate".to_owned())),
        SecretPlace::File { path: "none", .. } => Ok(None),
        SecretPlace::File { .. } => Ok(Some(format!("{CERTIFICATE}\r\n\n{}\n", "ff".repeat(16)))),
        SecretPlace::Env(text) => Ok(Some(text.to_owned())),
    }
}

/// Each has its place, and says something. No certificate is told.
fn placed(mistakes: &Mistakes, text: &str) {
    for mistake in &mistakes.0 {
        assert_eq!(mistake.file, "apps.toml");
        let lines = text.matches('\n').count() + 1;
        assert!((1..=lines).contains(&mistake.line), "{mistake}: {lines}");
        assert!(!mistake.message.is_empty());
        assert!(text.contains(CERTIFICATE) || !mistake.to_string().contains(CERTIFICATE));
    }
}
