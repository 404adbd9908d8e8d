"""Alerts mean what they say, and ask for what a running gateway has to tell."""

import http.client
import json
import re
import shutil
import subprocess
import threading
import unittest

import yaml

import pod
import render
from pod import Backend, Pod, get, soon

RULES = render.CHART / "files/prometheusrule.yaml"
DASHBOARD = render.CHART / "files/floodgate.json"
ADAPTER = render.DEPLOY / "examples/prometheus-adapter-values.yaml"
BEARER = {"Authorization": "Bearer YWMt-a-token"}
# What Prometheus itself, and its operator, put beside the gateway's own labels.
OF_PROMETHEUS = {"namespace", "instance", "pod", "job", "le"}


def rules():
    """The rules as Prometheus reads them, out of the operator's object."""
    (group,) = yaml.load(RULES.read_text(), render.Strict)["spec"]["groups"]
    return group


def asked_by_alerts():
    return [(rule["alert"], rule["expr"]) for rule in rules()["rules"]]


def asked_by_dashboard():
    """Each query, with Grafana's variables as Grafana would fill them."""
    found = []
    for panel in json.loads(DASHBOARD.read_text())["panels"]:
        for target in panel.get("targets", []):
            query = target["expr"].replace("$__rate_interval", "5m").replace("$namespace", ".*")
            found.append((panel["title"], query))
    return found


def names(query):
    """The metrics of a query, each with the labels that it asks for by a matcher."""
    found = []
    for name, matchers in re.findall(r"\b(floodgate_\w+)\b(?:\{([^}]*)\})?", query):
        matched = re.findall(r'(\w+)\s*(?:=~|!~|!=|=)\s*"([^"]*)"', matchers)
        found.append((name, [(label, value) for label, value in matched if label not in OF_PROMETHEUS]))
    return found


def grouped(query):
    """The labels by which a query groups."""
    lists = re.findall(r"\b(?:by|on)\s*\(([^)]*)\)", query)
    labels = {label.strip() for one in lists for label in one.split(",")}
    return labels - OF_PROMETHEUS - {""}


class Exported:
    """What a gateway exports to which everything has happened that there is a metric for."""

    def __init__(self):
        self.series = {}

    def read(self, text):
        for name, labels in re.findall(r"^(floodgate_\w+)(?:\{(.*)\})? \S+$", text, re.MULTILINE):
            series = self.series.setdefault(name, [])
            series.append(dict(re.findall(r'(\w+)="([^"]*)"', labels)))

    def has(self, name, labels):
        return any(all(one.get(label) == value for label, value in labels) for one in self.series.get(name, []))


CONFIG = """
upstream = ["http://im-backend:8080", "http://files.backend.svc:81"]
routes = ["shipped", "mine.toml"]
apps = ["apps.toml"]
max_upstream_waiting = 2
health_check = "/health"
health_interval = "200ms"
dns_interval = "100ms"
retry_on = [503, "reset"]
retry_budget = 0
eject_after = 1
max_connections = 60
max_in_flight = 4000

[[pool]]
name = "adaptive"
routes = ["chatfiles"]
concurrency = "adaptive"
"""
FILES = {
    "mine.toml": """
[[route]]
name = "t-one"
calls = ["GET /t/one"]
v3 = { limits = ["1/60s"] }

[[route]]
name = "t-two"
calls = ["GET /t/two"]
v3 = { limits = [{ rate = "1/60s", mode = "report" }] }
""",
    "apps.toml": """
[[app]]
names = ["o#plan"]
plan = "free"
""",
}


def everything():
    """A gateway to which everything has happened that alerts and dashboard ask for."""
    values = render.values("redis") | {
        "config": CONFIG,
        "files": FILES,
        "tls": {"enabled": True, "secretNames": ["a-example"]},
    }
    exported = Exported()
    address = f"{pod.POD_IP}:8080"
    # `auto` would refuse plain HTTP where TLS is spoken; a share of eleven would deny nearly all.
    env = {"FLOODGATE_HTTPS_ONLY": "false", "FLOODGATE_MIN_GATEWAYS": "1"}
    with pod.redis("redis", pod.REDIS_IP), Backend(), Pod(render.chart(values), env=env) as one:
        one.start()
        for _ in range(3):
            for path in ["/o/a/users/x", "/o/a/t/one", "/o/a/t/two", "/o/plan/chatmessages/2020010100"]:
                get(address, path, BEARER)
        # A refund, a failure, a repeated attempt without budget.
        get(address, "/o/a/users/x", BEARER | {"x-status": "401"})
        get(address, "/o/a/users/x", BEARER | {"x-status": "503"})
        get(address, "/o/a/users/x", BEARER | {"x-break": "1"})
        # More than may wait.
        slow = [
            threading.Thread(target=get, args=(address, f"/o/slow{i}/users/y", BEARER | {"x-delay": "2"}))
            for i in range(8)
        ]
        for call in slow:
            call.start()
        for call in slow:
            call.join()
        soon("calls were shed", lambda: "floodgate_shed_total{" in one.metrics())
        # More connections than there may be.
        kept = [http.client.HTTPConnection(address) for _ in range(64)]
        for connection in kept:
            connection.connect()
        soon("connections are full", lambda: re.search(r'turned_away_total\{why="full"\} [1-9]', one.metrics()))
        for connection in kept:
            connection.close()
        # A name that is gone: the next look at it fails.
        hosts = one.root / "etc/hosts"
        with one.writable():
            hosts.write_text("127.0.0.1 localhost\n")
        soon("a name is gone", lambda: "lookup_failures_total{" in one.metrics())
        exported.read(one.metrics())
    return exported


class Parsed(unittest.TestCase):
    def promtool(self, files, *command):
        folder = pod.WORK / "promtool"
        folder.mkdir()
        self.addCleanup(shutil.rmtree, folder)
        for name, text in files.items():
            (folder / name).write_text(text)
        ran = subprocess.run(["promtool", *command], cwd=folder, capture_output=True, text=True, check=False)
        self.assertEqual(ran.returncode, 0, ran.stdout + ran.stderr)

    def test_the_alerts_are_good(self):
        self.promtool({"rules.yaml": yaml.safe_dump({"groups": [rules()]})}, "check", "rules", "rules.yaml")

    def test_the_alerts_are_raised_by_what_they_say(self):
        tests = (render.REPOSITORY / "tests/deploy/alerts.yaml").read_text()
        files = {"rules.yaml": yaml.safe_dump({"groups": [rules()]}), "alerts.yaml": tests}
        self.promtool(files, "test", "rules", "alerts.yaml")
        raised = {
            test["alertname"]
            for one in yaml.safe_load(tests)["tests"]
            for test in one["alert_rule_test"]
            if test["exp_alerts"]
        }
        self.assertEqual(raised, {alert for alert, _ in asked_by_alerts()})

    def test_every_alert_says_what_it_means(self):
        for rule in rules()["rules"]:
            self.assertIn(rule["labels"]["severity"], ["critical", "warning"], rule["alert"])
            self.assertTrue(rule["annotations"]["summary"], rule["alert"])

    def test_every_query_of_the_dashboard_can_be_parsed(self):
        asked = asked_by_dashboard()
        self.assertGreater(len(asked), 30)
        queries = [{"record": f"query:{i}", "expr": query} for i, (_, query) in enumerate(asked)]
        group = {"groups": [{"name": "dashboard", "rules": queries}]}
        self.promtool({"rules.yaml": yaml.safe_dump(group)}, "check", "rules", "rules.yaml")

    def test_the_panels_of_the_dashboard_are_whole(self):
        panels = json.loads(DASHBOARD.read_text())["panels"]
        self.assertEqual(len({panel["id"] for panel in panels}), len(panels))
        taken = set()
        for panel in panels:
            at = panel["gridPos"]
            self.assertLessEqual(at["x"] + at["w"], 24, panel["title"])
            cells = {(x, y) for x in range(at["x"], at["x"] + at["w"]) for y in range(at["y"], at["y"] + at["h"])}
            self.assertFalse(taken & cells, panel["title"])
            taken |= cells
            if panel["type"] != "row":
                self.assertTrue(panel["targets"] and panel["description"], panel["title"])


class Told(unittest.TestCase):
    @classmethod
    def setUpClass(cls):
        cls.exported = everything()

    def asked(self):
        yield from asked_by_alerts()
        yield from asked_by_dashboard()
        for rule in yaml.safe_load(ADAPTER.read_text())["rules"]["custom"]:
            filled = {"Series": rule["seriesQuery"].split("{")[0], "LabelMatchers": "", "GroupBy": "namespace, pod"}
            yield "prometheus-adapter", re.sub(r"<<\.(\w+)>>", lambda word: filled[word[1]], rule["metricsQuery"])

    def test_whatever_is_asked_for_is_exported(self):
        for what, query in self.asked():
            self.assertTrue(names(query), f"{what}: {query}")
            for name, labels in names(query):
                with self.subTest(asked_by=what, metric=name):
                    self.assertIn(name, self.exported.series)
                    self.assertTrue(self.exported.has(name, labels), labels)

    def test_whatever_is_grouped_by_is_a_label(self):
        for what, query in self.asked():
            known = {label for name, _ in names(query) for one in self.exported.series.get(name, []) for label in one}
            with self.subTest(asked_by=what):
                self.assertLessEqual(grouped(query), known)

    def test_whatever_is_exported_is_on_the_dashboard(self):
        shown = {name for _, query in asked_by_dashboard() for name, _ in names(query)}
        shown |= {name for _, query in asked_by_alerts() for name, _ in names(query)}
        missing = {re.sub("_(bucket|sum|count)$", "_bucket", name) for name in self.exported.series} - shown
        self.assertEqual(missing, set())
