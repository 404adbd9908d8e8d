//! The report as one page that needs nothing else: no script, no font, no other file.

use std::fmt::Write as _;

use super::report::{Report, grouped, millis};

const STYLE: &str = "
:root{color-scheme:light dark;--ink:#1d2733;--faint:#7a8794;--line:#d8dee4;--back:#fff;--good:#1a7f37;--deny:#bf8700;--bad:#cf222e;--one:#0969da;--two:#8250df}
@media(prefers-color-scheme:dark){:root{--ink:#e6edf3;--faint:#9198a1;--line:#3d444d;--back:#0d1117;--good:#3fb950;--deny:#d29922;--bad:#f85149;--one:#4493f8;--two:#ab7df8}}
body{font:15px/1.5 system-ui,sans-serif;color:var(--ink);background:var(--back);max-width:72rem;margin:2rem auto;padding:0 1rem}
h1{font-size:1.4rem}h2{font-size:1.1rem;margin-top:2rem}
table{border-collapse:collapse;width:100%;font-variant-numeric:tabular-nums}
td,th{padding:.25rem .5rem;border-bottom:1px solid var(--line);text-align:right}
td:first-child,th:first-child{text-align:left}
.verdict{font-weight:600;padding:.6rem .8rem;border-left:4px solid var(--good)}
.verdict.bad{border-color:var(--bad)}
.bad td{color:var(--bad);font-weight:600}
svg{width:100%;height:auto;display:block}text{fill:var(--faint);font-size:11px}
.axis{stroke:var(--line)}.key{margin-right:1rem}.key b{display:inline-block;width:.8em;height:.8em;margin-right:.3em;border-radius:2px}
.scroll{overflow-x:auto}
";

const WIDTH: f64 = 960.0;
const HEIGHT: f64 = 240.0;
const LEFT: f64 = 70.0;
const BOTTOM: f64 = 24.0;

/// One line of a chart.
struct Line {
    name: &'static str,
    color: &'static str,
    values: Vec<f64>,
}

pub(super) fn page(report: &Report) -> String {
    let mut page = format!(
        "<!doctype html>\n<html lang=\"en\"><head><meta charset=\"utf-8\">\
         <meta name=\"viewport\" content=\"width=device-width\">\
         <title>Load on {target}</title><style>{STYLE}</style></head><body>\n\
         <h1>Load on {target}</h1>\n<p class=\"verdict{bad}\">{verdict}</p>\n\
         <p>{calls} calls in {seconds:.1} s at {from:.0} to {to:.0} a second, {connections} connections \
         (HTTP/{http}), seed {seed}; {missed} due and not sent. floodgate {version}.</p>\n",
        target = escaped(&report.target),
        bad = if report.is_exceeded() || report.is_void() {
            " bad"
        } else {
            ""
        },
        verdict = escaped(&report.verdict()),
        calls = grouped(report.counts.all()),
        seconds = report.seconds,
        from = report.rate_from,
        to = report.rate_to,
        connections = report.connections,
        http = if report.http2 { "2" } else { "1.1" },
        seed = report.seed,
        missed = grouped(report.missed),
        version = report.version,
    );
    let series = |value: fn(&super::tally::Second) -> u64| {
        report
            .series
            .iter()
            .map(|second| as_f64(value(second)))
            .collect::<Vec<_>>()
    };
    page.push_str("<h2>Calls a second</h2>\n");
    chart(
        &mut page,
        &[
            Line {
                name: "admitted",
                color: "var(--good)",
                values: series(|s| s.counts.admitted),
            },
            Line {
                name: "denied",
                color: "var(--deny)",
                values: series(|s| s.counts.denied),
            },
            Line {
                name: "failed",
                color: "var(--bad)",
                values: series(|s| s.counts.failed),
            },
        ],
        "",
    );
    page.push_str("<h2>Latency of admitted calls, from when they were due, ms</h2>\n");
    let milliseconds = |values: Vec<f64>| values.into_iter().map(|us| us / 1000.0).collect();
    chart(
        &mut page,
        &[
            Line {
                name: "p99",
                color: "var(--two)",
                values: milliseconds(series(|s| s.p99_us)),
            },
            Line {
                name: "p50",
                color: "var(--one)",
                values: milliseconds(series(|s| s.p50_us)),
            },
        ],
        " ms",
    );
    tables(&mut page, report);
    page.push_str("</body></html>\n");
    page
}

fn tables(page: &mut String, report: &Report) {
    page.push_str("<h2>Latency</h2>\n<table><tr><th>percentile</th>");
    for point in &report.distribution {
        let _ = write!(page, "<th>{}</th>", point.percentile);
    }
    page.push_str("</tr><tr><td>of admitted calls, from when due</td>");
    for point in &report.distribution {
        let _ = write!(page, "<td>{}</td>", millis(point.us));
    }
    page.push_str("</tr></table>\n<h2>Calls</h2>\n<table><tr><th>call</th><th>admitted</th><th>denied</th><th>failed</th><th>p50</th><th>p99</th><th>p99.9</th></tr>\n");
    for call in &report.calls {
        let _ = writeln!(
            page,
            "<tr><td>{}</td><td>{}</td><td>{}</td><td>{}</td><td>{}</td><td>{}</td><td>{}</td></tr>",
            escaped(&call.name),
            grouped(call.counts.admitted),
            grouped(call.counts.denied),
            grouped(call.counts.failed),
            millis(call.latency.p50_us),
            millis(call.latency.p99_us),
            millis(call.latency.p999_us),
        );
    }
    page.push_str("</table>\n<h2>Answers</h2>\n<table><tr><th>answer</th><th>calls</th></tr>\n");
    for (status, n) in &report.statuses {
        let _ = writeln!(page, "<tr><td>{status}</td><td>{}</td></tr>", grouped(*n));
    }
    for (why, n) in &report.errors {
        let _ = writeln!(
            page,
            "<tr class=\"bad\"><td>{}</td><td>{}</td></tr>",
            escaped(why),
            grouped(*n)
        );
    }
    page.push_str(
        "</table>\n<h2>Limits</h2>\n<div class=\"scroll\"><table><tr><th>whose</th><th>limit</th>\
         <th>allowed</th><th>most in one window</th><th>admitted</th><th>calls denied</th>\
         <th>denied with room</th></tr>\n",
    );
    for row in report
        .limits
        .iter()
        .filter(|row| row.admitted + row.denied > 0)
        .take(500)
    {
        let most = row.most_in_a_window.map_or_else(|| "-".to_owned(), grouped);
        let _ = writeln!(
            page,
            "<tr{}><td>{}</td><td>{}</td><td>{} {}{}</td><td>{most}</td><td>{}</td><td>{}</td><td>{}</td></tr>",
            if row.exceeded { " class=\"bad\"" } else { "" },
            escaped(&row.who),
            escaped(&row.limit),
            grouped(row.quota.into()),
            row.unit,
            escaped(&row.per),
            grouped(row.admitted),
            grouped(row.denied),
            grouped(row.denied_early),
        );
    }
    page.push_str("</table></div>\n");
}

fn chart(page: &mut String, lines: &[Line], unit: &str) {
    let points = lines
        .iter()
        .map(|line| line.values.len())
        .max()
        .unwrap_or_default();
    let most = lines
        .iter()
        .flat_map(|line| line.values.iter().copied())
        .fold(0.0_f64, f64::max);
    let top = nice(most);
    let step = (WIDTH - LEFT) / as_f64(points.saturating_sub(1).max(1) as u64);
    let y = |value: f64| (HEIGHT - BOTTOM) * (1.0 - value / top) + 4.0;
    let _ = write!(page, "<svg viewBox=\"0 0 {WIDTH} {HEIGHT}\" role=\"img\">");
    for part in [0.0, 0.5, 1.0] {
        let (at, value) = (y(top * part), top * part);
        let _ = write!(
            page,
            "<line class=\"axis\" x1=\"{LEFT}\" x2=\"{WIDTH}\" y1=\"{at:.1}\" y2=\"{at:.1}\"/>\
             <text x=\"{x}\" y=\"{text:.1}\" text-anchor=\"end\">{value}{unit}</text>",
            x = LEFT - 6.0,
            text = at + 4.0,
        );
    }
    let _ = write!(
        page,
        "<text x=\"{LEFT}\" y=\"{HEIGHT}\">0 s</text><text x=\"{WIDTH}\" y=\"{HEIGHT}\" text-anchor=\"end\">{points} s</text>"
    );
    for line in lines {
        let mut path = String::new();
        for (at, value) in line.values.iter().enumerate() {
            let x = LEFT + step * as_f64(at as u64);
            let _ = write!(
                path,
                "{}{x:.1} {:.1}",
                if at == 0 { "M" } else { "L" },
                y(*value)
            );
        }
        let _ = write!(
            page,
            "<path d=\"{path}\" fill=\"none\" stroke=\"{}\" stroke-width=\"1.8\"/>",
            line.color
        );
    }
    page.push_str("</svg>\n<p>");
    for line in lines {
        let _ = write!(
            page,
            "<span class=\"key\"><b style=\"background:{}\"></b>{}</span>",
            line.color, line.name
        );
    }
    page.push_str("</p>\n");
}

/// A round number that is no smaller.
fn nice(most: f64) -> f64 {
    let mut top = 1.0;
    for factor in [2.0, 2.5, 2.0].iter().cycle().take(60) {
        if top >= most {
            break;
        }
        top *= factor;
    }
    top
}

#[expect(clippy::cast_precision_loss, reason = "for a chart")]
fn as_f64(number: u64) -> f64 {
    number as f64
}

/// As text of a page.
fn escaped(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for c in text.chars() {
        match c {
            '<' => out.push_str("&lt;"),
            '>' => out.push_str("&gt;"),
            '&' => out.push_str("&amp;"),
            '"' => out.push_str("&quot;"),
            '\'' => out.push_str("&#39;"),
            c => out.push(c),
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn axes_end_at_round_numbers() {
        for (most, top) in [
            (0.0, 1.0),
            (1.0, 1.0),
            (1.5, 2.0),
            (4.0, 5.0),
            (6.0, 10.0),
            (170.0, 200.0),
            (990.0, 1000.0),
        ] {
            assert!((nice(most) - top).abs() < 1e-9, "{most}");
        }
    }

    #[test]
    fn nothing_of_a_mix_is_markup() {
        assert_eq!(escaped("<b a='\"'>&"), "&lt;b a=&#39;&quot;&#39;&gt;&amp;");
    }
}
