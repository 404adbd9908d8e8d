use super::*;

fn options(target: &str) -> Options {
    Options {
        target: target.to_owned(),
        allowed: Vec::new(),
        authority: None,
        pace: Pace {
            from: 100.0,
            to: 100.0,
            lasts: Duration::from_secs(1),
        },
        connections: 1,
        http2: false,
        threads: 1,
        timeout: Duration::from_secs(1),
        seed: 1,
    }
}

fn refused(options: &Options) -> String {
    target(options)
        .err()
        .map(|error| error.to_string())
        .unwrap_or_default()
}

#[test]
fn only_this_machine_is_loaded_unasked() {
    for here in [
        "http://127.0.0.1:8080",
        "http://[::1]:80/",
        "http://127.9.9.9",
    ] {
        assert_eq!(refused(&options(here)), "", "{here}");
    }
    for there in [
        "http://192.0.2.1",
        "http://192.0.2.1:8080/",
        "http://[2001:db8::1]",
    ] {
        assert!(
            refused(&options(there)).contains("--allow-target"),
            "{there}"
        );
    }
    let mut asked = options("http://192.0.2.1:8080");
    asked.allowed = vec!["192.0.2.2".to_owned()];
    assert!(refused(&asked).contains("--allow-target 192.0.2.1"));
    asked.allowed.push("192.0.2.1".to_owned());
    assert_eq!(refused(&asked), "");
}

#[test]
fn what_is_no_target_is_said() {
    for text in [
        "",
        "127.0.0.1:80",
        "ftp://127.0.0.1",
        "http://127.0.0.1/a",
        "http://u@127.0.0.1",
        "http://127.0.0.1?q",
    ] {
        assert!(
            refused(&options(text)).contains("no URL"),
            "{text}: {}",
            refused(&options(text))
        );
    }
    assert!(refused(&options("https://127.0.0.1")).contains("--ca FILE"));
    let mut asked = options("https://127.0.0.1");
    asked.authority = Some("/nowhere.pem".to_owned());
    assert!(refused(&asked).contains("/nowhere.pem: cannot be read"));
}

#[test]
fn calls_are_handed_on_when_they_are_due_and_counted_when_they_are_not_taken() {
    let (clock, over) = (Clock::start(), AtomicBool::new(false));
    let begin = clock.now().mono_us;
    let mut early = 0;
    let mut handed = 0;
    let missed = keep_pace(
        clock,
        &over,
        |n| (n < 20).then(|| Duration::from_millis(n * 2)),
        |n, due| {
            handed += 1;
            early += u32::from(clock.now().mono_us < due || due < begin + n * 2_000);
            n % 2 == 0
        },
    );
    assert_eq!((handed, missed, early), (20, 10, 0));
}
