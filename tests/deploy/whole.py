"""What stands around the gateways of a whole deployment: callers, the backend's record, a balancer,
a Redis Cluster and Prometheus; each a process, on addresses of this namespace's own."""

import contextlib
import functools
import http.client
import json
import multiprocessing
import os
import pickle
import re
import socket
import subprocess
import tempfile
import threading
import time
import urllib.parse
from pathlib import Path

import pod
import render
from judge import Call
from pod import Backend, get, soon

# Where pods can be, each with its place at the balancer and at Prometheus.
POD_IPS = [f"10.42.0.{10 + n}" for n in range(10)]
BALANCER, BALANCER_STATS = "10.42.3.1:80", "10.42.3.1:9000"
PROMETHEUS = "10.42.4.1:9090"
# What three masters and their replicas have.
REDIS_IPS = [*pod.CLUSTER_IPS, "10.42.1.3", "10.42.1.4", "10.42.1.5"]
# A call of each caller every so often: more than twice what the limits admit.
PERIOD = 0.05
CALLERS = 3
# One call of so many is to the route with a limit of the day.
ONE_OF_DAY = 4
_FORK = multiprocessing.get_context("fork")


class Child:
    """A process of ours that ends when it is told to, and leaves what it has noted."""

    def __init__(self, work):
        self.ends = _FORK.Event()
        fd, name = tempfile.mkstemp(dir=pod.WORK)
        os.close(fd)
        self.left = Path(name)
        # In one of its own: what forks the gateways has no threads.
        self.process = _FORK.Process(target=self._run, args=(work,), daemon=True)
        self.process.start()

    def _run(self, work):
        noted = work(self.ends)
        with self.left.open("wb") as file:
            pickle.dump(noted, file)

    def end(self):
        """What it has noted."""
        self.ends.set()
        self.process.join(120)
        assert self.process.exitcode == 0, self.process.exitcode
        with self.left.open("rb") as file:
            return pickle.load(file)

    def close(self):
        if self.process.is_alive():
            self.process.kill()
        self.process.join()


class Stamped(list):
    """Calls, each with when it came."""

    def append(self, call):
        super().append((time.monotonic(), call))


def backend():
    """The backend, which notes when each call came, and its ID."""

    def record(ends):
        with Backend() as one:
            one.seen = seen = Stamped()
            ends.wait()
        return [(at, fields["x-call-id"]) for at, (_, fields) in seen]

    return Child(record)


BEARER = "Bearer YWMt-a-token"


class Load:
    """Callers of some apps, who call on whatever happens."""

    def __init__(self, apps):
        self.apps = apps
        # For each app: calls, denied ones, and those of them over the limit of the day.
        self.done = _FORK.Array("q", 3 * len(apps))
        self.child = Child(self._call)

    def _call(self, ends):
        noted = []
        callers = [
            threading.Thread(target=self._caller, args=(ends, noted, number, f"192.0.2.{2 + CALLERS * number + nth}"))
            for number in range(len(self.apps))
            for nth in range(CALLERS)
        ]
        for caller in callers:
            caller.start()
        for caller in callers:
            caller.join()
        return noted

    def _caller(self, ends, noted, number, address):
        app, connection, due = self.apps[number], None, time.monotonic()
        host, port = BALANCER.split(":")
        nth = 0
        while not ends.is_set():
            route = "t-day" if nth % ONE_OF_DAY == 0 else "t-window"
            call = Call(f"{address}-{nth}", app, route)
            nth += 1
            connection = connection or http.client.HTTPConnection(host, int(port), 60, (address, 0))
            fields = {"authorization": BEARER, "x-call-id": call.id}
            call.sent = time.monotonic()
            try:
                connection.request("GET", f"/{app}/{route}", headers=fields)
                answer = connection.getresponse()
                answer.read()
                call.status, call.pod = answer.status, answer.getheader("x-pod")
            except (OSError, http.client.HTTPException):
                connection.close()
                connection = None
            call.answered = time.monotonic()
            noted.append(call)
            with self.done.get_lock():
                self.done[3 * number] += 1
                self.done[3 * number + 1] += call.status == 429
                self.done[3 * number + 2] += call.status == 429 and route == "t-day"
            # Nothing is made up for: a slow machine has less load, not a burst.
            due = max(due + PERIOD, time.monotonic())
            ends.wait(due - time.monotonic())
        if connection:
            connection.close()

    def end(self):
        return self.child.end()

    def close(self):
        self.child.close()

    def each(self, what):
        """Of each app: 0 calls, 1 denied ones, 2 those over the limit of the day."""
        return self.done[what::3]

    def go_on(self, seconds):
        """Until each app has called for so long, at half of the pace at least, and was denied some of it."""
        calls = int(seconds / PERIOD * CALLERS / 2)
        begun, before = time.monotonic(), [self.each(what) for what in (0, 1)]

        def is_done():
            made, denied = (
                [now - then for now, then in zip(self.each(what), before[what])] for what in (0, 1)
            )
            return time.monotonic() - begun > seconds and min(made) >= calls and min(denied) > 0

        soon("every app has called, and was denied", is_done, 120)

    def use_up_the_day(self):
        soon("the limit of the day is reached", lambda: min(self.each(2)) > 0, 120)


class Balancer:
    """HAProxy before all places where a pod can be; asks /ready, and tells callers who got their call."""

    CONFIG = f"""
global
    stats socket ipv4@{BALANCER_STATS}
defaults
    mode http
    timeout connect 5s
    timeout client 60s
    timeout server 60s
    # A machine that is slow is not down; what refuses is, and what answers 503.
    timeout check 10s
    option redispatch 1
    option forwardfor
frontend in
    bind {BALANCER}
    http-after-response set-header x-pod %[srv_name]
    default_backend gateways
backend gateways
    balance roundrobin
    option httpchk GET /ready
    default-server check port 9090 inter 200ms fall 2 rise 2
{{servers}}
"""

    def __init__(self):
        folder = Path(tempfile.mkdtemp(prefix="balancer-", dir=pod.WORK))
        servers = "".join(f"    server {ip} {ip}:8080\n" for ip in POD_IPS)
        config = folder / "haproxy.cfg"
        config.write_text(self.CONFIG.format(servers=servers))
        self.log = folder / "log"
        with self.log.open("wb") as log:
            self.process = subprocess.Popen(["haproxy", "-db", "-f", config], stdout=log, stderr=log)

    def uses(self):
        """The pods that get calls."""
        try:
            with socket.create_connection(BALANCER_STATS.split(":")) as stats:
                stats.sendall(b"show stat\n")
                text = b"".join(iter(functools.partial(stats.recv, 65536), b"")).decode()
        except OSError:
            assert self.process.poll() is None, self.log.read_text()
            return set()
        lines = [line.split(",") for line in text.splitlines() if line.startswith("gateways,")]
        return {line[1] for line in lines if line[1] in POD_IPS and not line[17].startswith("DOWN")}

    def wait_for(self, pods):
        """Until these get calls, and no others."""
        soon("the balancer uses the pods", lambda: self.uses() == {one.ip for one in pods})

    def close(self):
        self.process.kill()
        self.process.wait()


def place(labels):
    """The pod of a series."""
    return labels["instance"].split(":")[0]


class Prometheus:
    """The real one, which scrapes as the chart's PodMonitor says, only more often."""

    def __init__(self, made):
        (endpoint,) = render.named(made, "PodMonitor")["spec"]["podMetricsEndpoints"]
        assert endpoint["port"] == "admin"
        folder = Path(tempfile.mkdtemp(prefix="prometheus-", dir=pod.WORK))
        secret = endpoint["authorization"]["credentials"]
        token = pod.outside(secret["name"])[secret["key"]]
        scrape = {
            "job_name": "floodgate",
            "metrics_path": endpoint["path"],
            "authorization": {"type": endpoint["authorization"]["type"], "credentials": token},
            "static_configs": [{"targets": [f"{ip}:9090" for ip in POD_IPS]}],
        }
        config = {"global": {"scrape_interval": "1s", "scrape_timeout": "1s"}, "scrape_configs": [scrape]}
        # JSON is YAML.
        (folder / "prometheus.yml").write_text(json.dumps(config))
        command = ["prometheus", f"--config.file={folder}/prometheus.yml", f"--storage.tsdb.path={folder}/data"]
        command += [f"--web.listen-address={PROMETHEUS}", "--log.level=warn"]
        self.log = folder / "log"
        with self.log.open("wb") as log:
            self.process = subprocess.Popen(command, stdout=log, stderr=log)
        soon("Prometheus is ready", self._is_ready)

    def _is_ready(self):
        assert self.process.poll() is None, self.log.read_text()
        try:
            return get(PROMETHEUS, "/-/ready")[0] == 200
        except OSError:
            return False

    def query(self, query):
        """What it makes of a query: labels, and the value or the samples."""
        status, text = get(PROMETHEUS, f"/api/v1/query?{urllib.parse.urlencode({'query': query})}")
        assert status == 200, text
        found = json.loads(text)["data"]["result"]
        return [(one["metric"], one.get("values") or one["value"]) for one in found]

    def scrapes(self, ip):
        """When it scraped a pod, Unix seconds."""
        ((_, samples),) = self.query(f'up{{instance="{ip}:9090"}}[1h]')
        return [at for at, is_up in samples if is_up == "1"]

    def close(self):
        self.process.kill()
        self.process.wait()


class RedisCluster:
    """Three masters and their replicas."""

    def __init__(self, servers):
        self.servers = servers
        for ip in REDIS_IPS:
            soon(f"{ip} knows the cluster", lambda ip=ip: len(self.nodes(ip)) == len(REDIS_IPS))
        for ip in set(REDIS_IPS) - self.masters():
            self.wait_for_replica(ip)

    def cli(self, ip, *command):
        asked = ["redis-cli", "--no-auth-warning", "-a", pod.PASSWORD, "-h", ip, *command]
        return subprocess.run(asked, capture_output=True, text=True, check=False, timeout=60).stdout

    def nodes(self, ip):
        """Address and flags of each node, as one of them knows them."""
        lines = [line.split() for line in self.cli(ip, "cluster", "nodes").splitlines()]
        return [(line[1].split(":")[0], line[2]) for line in lines]

    def masters(self, ip=REDIS_IPS[0]):
        return {node for node, flags in self.nodes(ip) if "master" in flags and "fail" not in flags}

    def wait_for_replica(self, ip):
        def is_in_step():
            told = self.cli(ip, "info", "replication")
            return "role:slave" in told and "master_link_status:up" in told

        soon(f"{ip} is a replica in step", is_in_step)

    def counters(self, master):
        return {key for key in self.cli(master, "--scan").split() if re.search(r"\}[0-9a-f]+$", key)}

    def kill(self, ip):
        server = self.servers[REDIS_IPS.index(ip)]
        server.kill()
        server.wait()

    def restart(self, ip):
        """As a kubelet does."""
        at = REDIS_IPS.index(ip)
        self.servers[at] = subprocess.Popen(self.servers[at].args, stdout=subprocess.DEVNULL)


@contextlib.contextmanager
def made(*makers):
    """Makes one after the other, and closes them all."""
    with contextlib.ExitStack() as stack:
        yield [stack.enter_context(contextlib.closing(make())) for make in makers]
