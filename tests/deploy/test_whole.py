"""A whole deployment on this machine, under load: three gateways as the chart has them behind a
balancer, a Redis Cluster, the backend, Prometheus. Gateways are replaced, killed, added and taken
away, a Redis master dies; callers, backend and Prometheus agree on what was admitted, and that it
was within the limits."""

import collections
import re
import sys
import time
import unittest

import pod
import render
import whole
from judge import OF_DAY, OF_WINDOW, SEEDING, WINDOW, Killed, Record, grown
from pod import Pod, soon

# In a cluster a store has a CPU, here all of it has two: what takes longer than this is an outage.
CONFIG = """
routes = ["shipped", "mine.toml"]
store_timeout = "1s"
"""
ROUTES = f"""
[[route]]
name = "t-first"
calls = ["GET /t-first"]
v3 = {{ limits = ["100/min"], ip_copy = false }}

[[route]]
name = "t-window"
calls = ["GET /t-window"]
v3 = {{ limits = ["{OF_WINDOW}/{WINDOW}s"] }}

[[route]]
name = "t-day"
calls = ["GET /t-day"]
v3 = {{ limits = ["{OF_DAY}/day"] }}
"""


def rendered():
    """The chart with the values for a Redis Cluster, and routes whose limits are soon reached."""
    values = render.values("redis-cluster")
    return render.chart(values | {"config": CONFIG + values["config"], "files": {"mine.toml": ROUTES}})


def figure(one, name):
    (found,) = re.findall(rf"^{name} (\d+)$", one.metrics(), re.MULTILINE)
    return int(found)


class Deployment:
    """The gateways, and what happens to them and to their store."""

    def __init__(self, made, redis, balancer):
        self.made, self.redis, self.balancer = made, redis, balancer
        self.places = iter(whole.POD_IPS)
        self.pods, self.gone = [], []

    def add(self):
        one = Pod(self.made, ip=next(self.places))
        self.pods.append(one)
        one.start()

    def settle(self):
        """Until all share the store, and they alone get calls."""
        for one in self.pods:
            soon("the store is in use", lambda one=one: figure(one, "floodgate_store_up") == 1)
        self.balancer.wait_for(self.pods)

    def replace_all(self):
        """As the Deployment's strategy says: one more, and when it is ready one less."""
        update = render.floodgates(self.made)[0]["spec"]["strategy"]["rollingUpdate"]
        assert update == {"maxSurge": 1, "maxUnavailable": 0}, update
        for one in list(self.pods):
            self.add()
            soon("it gets calls", lambda: self.pods[-1].ip in self.balancer.uses())
            self.take_away(one)
        self.wait_until_gone()

    def take_away(self, one):
        one.terminate()
        self.pods.remove(one)
        self.gone.append(one)

    def wait_until_gone(self):
        for one in self.gone:
            code = one.process.wait(timeout=120)
            assert code == 0, one.log.read_text()
        self.settle()

    def kill_gateway(self):
        one, begun = self.pods[0], time.monotonic()
        one.process.kill()
        one.process.wait()
        killed = Killed(one.ip, begun, time.monotonic())
        # As a kubelet does, in the same pod.
        one.start()
        self.settle()
        killed.ended = time.monotonic()
        return killed

    def kill_master(self, master):
        witness = next(ip for ip in whole.REDIS_IPS if ip != master)
        before, failures = self.redis.masters(witness), [self.failures(one) for one in self.pods]
        begun = time.monotonic()
        self.redis.kill(master)
        killed = Killed(master, begun, time.monotonic())
        soon("all miss it", lambda: all(self.failures(one) > had for one, had in zip(self.pods, failures)))
        soon("a replica is promoted", lambda: len(self.redis.masters(witness) - before) == 1)
        # That takes no writes without a replica of its own.
        self.redis.restart(master)
        self.redis.wait_for_replica(master)
        self.settle()
        killed.ended = time.monotonic() + SEEDING
        return killed

    def failures(self, one):
        return figure(one, "floodgate_store_failures_total")

    def close(self):
        for one in self.pods + self.gone:
            one.close()


def apps_by_master(redis, one):
    """For each master, two apps whose counters are there."""
    found = {master: [] for master in sorted(redis.masters())}
    for number in range(100):
        if all(len(apps) == 2 for apps in found.values()):
            return found
        before = {master: redis.counters(master) for master in found}
        headers = {"authorization": whole.BEARER, "x-call-id": "first"}
        path = f"/o/a{number}/t-first"
        # A store that is new is believed after a moment; until then small shares are none at all.
        soon("it is let in", lambda path=path: pod.get(f"{one.ip}:8080", path, headers)[0] == 200)
        (master,) = [master for master in found if redis.counters(master) - before[master]]
        if len(found[master]) < 2:
            found[master].append(f"o/a{number}")
    raise AssertionError(found)


class Whole(unittest.TestCase):
    def test_whatever_is_restarted_killed_or_added_limits_hold_and_no_call_fails(self):
        made = rendered()
        with (
            pod.redis("redis-cluster", *whole.REDIS_IPS, replicas=1) as servers,
            whole.made(
                whole.backend,
                whole.Balancer,
                lambda: whole.Prometheus(made),
            ) as (backend, balancer, prometheus),
            whole.made(lambda: Deployment(made, whole.RedisCluster(servers), balancer)) as (site,),
        ):
            for _ in range(3):
                site.add()
            site.settle()
            for one in site.pods:
                soon("they know each other", lambda one=one: figure(one, "floodgate_store_gateways") == 3)
            masters = apps_by_master(site.redis, site.pods[0])
            with whole.made(lambda: whole.Load(sum(masters.values(), []))) as (load,):
                happened = self.happens(site, load, victim=next(iter(masters)))
                calls = load.end()
            record = Record(
                calls=calls,
                victims=set(masters[happened["master"].what]),
                min_gateways=int(site.pods[0].env["FLOODGATE_MIN_GATEWAYS"]),
                gateways=3,
                # All old ones and all new ones, for a moment.
                most_gateways=6,
                **happened,
                **self.told(site, prometheus, happened["gateway"]),
                came=[(call, at) for at, call in backend.end() if call != "first"],
            )
        record.judge()
        print(*record.notes, sep="\n", file=sys.stderr)

    def happens(self, site, load, victim):
        phases = []

        def phase(what):
            phases.append((what, time.monotonic()))
            print(f"{phases[-1][1] - phases[0][1]:5.1f} s: {what}", file=sys.stderr)

        phase("three gateways")
        load.go_on(WINDOW)
        load.use_up_the_day()
        phase("a rolling restart")
        site.replace_all()
        load.go_on(1)
        phase("a killed gateway")
        gateway = site.kill_gateway()
        load.go_on(WINDOW)
        phase("a killed master")
        master = site.kill_master(victim)
        load.go_on(SEEDING + WINDOW)
        phase("five gateways")
        for _ in range(2):
            site.add()
        site.settle()
        load.go_on(WINDOW)
        phase("three gateways")
        for one in site.pods[3:]:
            site.take_away(one)
        site.wait_until_gone()
        load.go_on(1)
        phase("the end")
        return {"phases": phases, "gateway": gateway, "master": master}

    def told(self, site, prometheus, killed):
        """What Prometheus has, when nothing happens any more."""
        for one in site.pods + site.gone:
            self.assertNotIn("panicked", one.log.read_text())
        now = time.time()
        epoch = now - time.monotonic()
        for one in site.pods:
            soon("all of it is scraped", lambda one=one: prometheus.scrapes(one.ip)[-1] > now)
        told = collections.Counter()
        for labels, samples in prometheus.query("floodgate_decisions_total[1h]"):
            if labels["route"] in ("t-window", "t-day"):
                place = whole.place(labels)
                samples = [(at - epoch, float(value)) for at, value in samples]
                killed_at = killed.begun if place == killed.what else None
                told[place, labels["route"], labels["verb"]] += grown(samples, killed_at)
        resets = prometheus.query("sum by (instance) (resets(floodgate_decisions_total[1h])) > 0")
        alone = []
        for _, samples in prometheus.query("floodgate_store_local_decisions_total[1h]"):
            # What a pod did before its first scrape, it did since it was there.
            begun = (samples[0][0] - 10, "0")
            for (before, was), (at, is_now) in zip([begun, *samples], samples):
                if is_now not in (was, "0"):
                    alone.append((before - epoch, at - epoch))
        return {
            "epoch": epoch,
            "told": told,
            "restarted": [whole.place(labels) for labels, _ in resets],
            "scrapes": [at - epoch for at in prometheus.scrapes(killed.what)],
            "alone": alone,
        }
