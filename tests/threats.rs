//! What `SECURITY.md` and the threat model say shows something is there.
#![expect(clippy::expect_used, reason = "tests")]

use std::path::Path;

/// `(text, target)` of each link, without the anchors.
fn links(text: &str) -> Vec<(&str, &str)> {
    let mut links = Vec::new();
    let mut rest = text;
    while let Some(at) = rest.find("](") {
        let from = rest[..at].rfind('[').map_or(0, |open| open + 1);
        let after = &rest[at + 2..];
        let to = after.find(')').expect("the end of a link");
        links.push((&rest[from..at], &after[..to]));
        rest = &after[to..];
    }
    links
}

#[test]
fn every_test_that_is_named_exists() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let mut named = 0;
    let mut wrong = Vec::new();
    for page in ["SECURITY.md", "deploy/threat-model.md"] {
        let page = root.join(page);
        let text = std::fs::read_to_string(&page).expect("the page");
        let folder = page.parent().expect("a folder");
        for (name, target) in links(&text) {
            let Ok(file) = std::fs::read_to_string(folder.join(target)) else {
                wrong.push(format!("{target}: no such file"));
                continue;
            };
            let Some(name) = name.strip_prefix('`').and_then(|n| n.strip_suffix('`')) else {
                continue;
            };
            named += 1;
            let is_test = file.match_indices(&format!("fn {name}(")).any(|(at, _)| {
                let line = file[..at].rfind('\n').unwrap_or_default();
                let lines = file[..line].lines().rev().take(3);
                lines
                    .take_while(|line| line.trim().starts_with('#'))
                    .any(|line| line.contains("test]") || line.contains("test("))
            });
            if !is_test {
                wrong.push(format!("{target}: no test {name}"));
            }
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
    assert!(named > 60, "{named}");
}

#[test]
fn every_setting_that_is_named_exists() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let read = |file: &str| std::fs::read_to_string(root.join(file)).expect("a file");
    let (page, settings) = (read("deploy/threat-model.md"), read("src/cli/reference.md"));
    let words = page.split('`').skip(1).step_by(2);
    let mut known = 0;
    for word in words.filter(|word| word.starts_with("max_") || word.ends_with("_timeout")) {
        assert!(settings.contains(&format!("| `{word}` |")), "{word}");
        known += 1;
    }
    assert!(known > 15, "{known}");
}
