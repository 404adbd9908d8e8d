//! What the printed text of a limit says.

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Per {
    Seconds(u64),
    Day,
    AtOnce,
}

/// Unit, quota, period, scope: the words of `Unit::as_str` and `Scope::as_str`.
pub(crate) type Term = (&'static str, u32, Per, &'static str);

/// What a printed text means.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Reading {
    pub(crate) terms: Vec<Term>,
    /// The most recipients of one call.
    pub(crate) cap: Option<u32>,
}

fn number(text: &str) -> u32 {
    text.trim().parse().unwrap_or_else(|_| panic!("{text:?}"))
}

pub(crate) fn read(printed: &str) -> Reading {
    let mut reading = Reading::default();
    // A note in brackets is no limit of its own, but for the downstream messages (rule 8).
    let (text, note) = match printed.split_once('（') {
        Some((text, note)) => (text.trim(), note),
        None => (printed, ""),
    };
    let mut bullets: Vec<&str> = text.split("<br/>").map(str::trim).collect();
    if bullets.len() > 1 {
        assert_eq!(
            bullets.remove(0),
            "对于单个 app，该 REST API 存在以下三个限制："
        );
        assert_eq!(bullets.len(), 3, "{printed}");
    }
    for bullet in bullets {
        // What follows a full stop explains.
        let sentence = bullet.split('。').next().unwrap_or_default();
        for clause in sentence.split(['，', ',']) {
            clause_into(&mut reading, clause.trim_start_matches("- ").trim());
        }
    }
    if note.contains("1秒下行分发消息量限制是该频率的20倍") {
        let [("calls", calls, Per::Seconds(1), "app")] = reading.terms[..] else {
            panic!("{printed}");
        };
        reading
            .terms
            .push(("messages", calls * 20, Per::Seconds(1), "app"));
    } else {
        assert!(note.is_empty() || note == "可联系商务提升该上限）。");
    }
    reading.terms.sort_unstable();
    reading
}

fn clause_into(reading: &mut Reading, clause: &str) {
    let tasks = clause
        .strip_prefix("同时执行的任务不能超过")
        .and_then(|rest| rest.strip_suffix('个'));
    if let Some(tasks) = tasks {
        reading
            .terms
            .push(("tasks", number(tasks), Per::AtOnce, "app"));
        return;
    }
    // 每分钟限 1 次, 而且每天最多可发 100 次广播消息
    if let Some(every) = clause.trim_start_matches("而且").strip_prefix('每') {
        let (per, rest) = match every.strip_prefix("分钟") {
            Some(rest) => (Per::Seconds(60), rest),
            None => (Per::Day, every.strip_prefix('天').expect(clause)),
        };
        let figure = rest
            .strip_prefix("最多可发")
            .or_else(|| rest.strip_prefix('限'))
            .and_then(|rest| rest.trim_end_matches("广播消息").strip_suffix('次'));
        let figure = number(figure.expect(clause));
        reading.terms.push(("calls", figure, per, "app"));
        return;
    }
    let mut parts = clause.split('/').map(str::trim);
    let amount = parts.next().unwrap_or_default();
    let per = parts.next().unwrap_or_default();
    let digits = amount
        .find(|c: char| !c.is_ascii_digit())
        .unwrap_or(amount.len());
    let (figure, unit) = amount.split_at(digits);
    let figure = number(figure);
    let scope = match parts.next() {
        None | Some("App Key" | "App ID") => "app",
        Some("单用户 ID") => "user",
        Some(other) => panic!("{other:?} in {clause:?}"),
    };
    assert_eq!(parts.next(), None, "{clause:?}");
    let unit = match (unit.trim(), per) {
        ("人" | "个群" | "个聊天室", "次") => {
            assert_eq!(reading.cap.replace(figure), None);
            return;
        }
        ("次", _) | ("", "second") => "calls",
        ("条", _) => "messages",
        (other, _) => panic!("{other:?} in {clause:?}"),
    };
    let per = match per {
        "秒" | "second" => Per::Seconds(1),
        "分钟" => Per::Seconds(60),
        "天" => Per::Day,
        other => panic!("{other:?} in {clause:?}"),
    };
    reading.terms.push((unit, figure, per, scope));
}

/// What nobody prints (rule 4), and each combined group (rule 5).
pub(crate) fn default_figure() -> Reading {
    Reading {
        terms: vec![("calls", 100, Per::Seconds(1), "app")],
        cap: None,
    }
}

#[test]
fn printed_text_is_read_as_the_rules_say() {
    let own = |text| read(text).terms;
    let s = Per::Seconds;
    assert_eq!(own("100/second"), [("calls", 100, s(1), "app")]);
    assert_eq!(
        own("5 次/分钟/单用户 ID，100 次/秒/App ID"),
        [("calls", 5, s(60), "user"), ("calls", 100, s(1), "app")]
    );
    assert_eq!(
        own("每分钟最多可发 10 次，而且每天最多可发 100 次广播消息。"),
        [("calls", 10, s(60), "app"), ("calls", 100, Per::Day, "app")]
    );
    let listed = "对于单个 app，该 REST API 存在以下三个限制：<br/> - 20 条/秒/App ID   <br/> - 20 次/秒 <br/> -  3 个群/次";
    assert_eq!(
        read(listed),
        Reading {
            terms: vec![("calls", 20, s(1), "app"), ("messages", 20, s(1), "app")],
            cap: Some(3)
        }
    );
}
