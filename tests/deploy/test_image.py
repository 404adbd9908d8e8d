"""The image's content is small and the same each time, and runs as it would in a cluster."""

import http.client
import json
import os
import re
import shutil
import stat
import subprocess
import threading
import time
import unittest
from pathlib import Path

import pod
import render
from pod import Backend, Pod, get, soon

IMAGE = render.DEPLOY / "image"
# An address that calls with any token get an answer by: an opaque one is the backend's to judge.
BEARER = {"Authorization": "Bearer YWMt-a-token"}


def dockerfile():
    text = (IMAGE / "Dockerfile").read_text()
    lines = re.sub(r"\\\n", " ", text).splitlines()
    return [tuple(line.split(None, 1)) for line in lines if line.strip() and not line.startswith("#")]


class Content(unittest.TestCase):
    def digest(self, folder):
        command = ["tar", "--sort=name", "--numeric-owner", "-cf", "-", "-C", folder, "."]
        with subprocess.Popen(command, stdout=subprocess.PIPE) as tar:
            found = subprocess.run(["sha256sum"], stdin=tar.stdout, capture_output=True, check=True)
        return found.stdout

    def test_the_same_binary_makes_the_same_bytes(self):
        again = pod.build_image(pod.WORK / "again")
        self.addCleanup(shutil.rmtree, again)
        self.assertEqual(self.digest(pod.image()), self.digest(again))

    def test_there_is_nothing_in_it_but_what_it_needs(self):
        expected = re.compile(
            r"floodgate|etc/(passwd|group|nsswitch\.conf|ssl/certs/ca-certificates\.crt)"
            r"|(usr/)?lib(64)?/([^/]+/)?(ld-linux[-\w]*|libc|libm|libgcc_s|libpthread|libdl)\.so\.\d+"
            r"|usr/share/doc/[^/]+/(copyright|LICENSE)"
        )
        size = 0
        for folder, _, files in os.walk(pod.image()):
            for path in (os.path.join(folder, file) for file in files):
                name = os.path.relpath(path, pod.image())
                self.assertRegex(name, rf"^({expected.pattern})$")
                found = os.lstat(path)
                self.assertFalse(found.st_mode & (stat.S_ISUID | stat.S_ISGID | stat.S_IWOTH), name)
                self.assertEqual((found.st_mtime, found.st_uid), (0, 0), name)
                size += 0 if name == "floodgate" else found.st_size
        # The gateway itself is of the debug profile here.
        self.assertLess(size, 8 << 20)

    def test_the_dockerfile_makes_it_of_nothing_else(self):
        lines = dockerfile()
        last = max(i for i, line in enumerate(lines) if line[0] == "FROM")
        self.assertEqual(lines[last], ("FROM", "scratch"))
        final = dict(lines[last + 1 :])
        self.assertEqual(final["COPY"].split(), ["--from=build", "/rootfs", "/"])
        self.assertEqual(final["USER"], f"{pod.USER}:{pod.USER}")
        self.assertEqual(json.loads(final["ENTRYPOINT"]), ["/floodgate"])
        build = " ".join(line[1] for line in lines[:last] if line[0] == "RUN")
        self.assertIn("cargo build --release --locked", build)
        self.assertIn("deploy/image/rootfs target/release/floodgate /rootfs", build)

    def test_the_build_needs_no_more_than_it_is_given(self):
        given = (IMAGE / "Dockerfile.dockerignore").read_text().splitlines()
        self.assertIn("*", given)
        context = pod.WORK / "context"
        self.addCleanup(shutil.rmtree, context)
        for name in [line[1:] for line in given if line.startswith("!")]:
            whole = render.REPOSITORY / name
            (context / name).parent.mkdir(parents=True, exist_ok=True)
            copy = shutil.copytree if whole.is_dir() else shutil.copy
            copy(whole, context / name)
        command = ["cargo", "metadata", "--locked", "--offline", "--format-version=1", "--no-deps"]
        read = subprocess.run(command, cwd=context, capture_output=True, text=True, check=False)
        self.assertEqual(read.returncode, 0, read.stderr)
        # What is compiled in must be there as well.
        for source in (context / "src").rglob("*.rs"):
            if "test" in source.name:
                continue
            for file in re.findall(r'include_(?:str|bytes)!\("([^"]+)"\)', source.read_text()):
                if "tests" not in source.parts and "tests/data" not in file:
                    self.assertTrue((source.parent / file).exists(), f"{source}: {file}")


class Settings(unittest.TestCase):
    """The settings that are shipped are good, as a pod would read them."""

    def test_every_shipped_configuration_is_good(self):
        checked = 0
        for source, made in render.sources():
            for deployment in render.floodgates(made):
                with self.subTest(source=source), Pod(made, deployment) as one:
                    ran = one.exec("check", *one.container["args"][1:])
                    self.assertEqual(ran.returncode, 0, ran.stdout + ran.stderr)
                    checked += 1
        self.assertGreaterEqual(checked, len(render.EXAMPLES) + len(render.OVERLAYS))

    def test_a_bad_one_would_be_found(self):
        made = render.chart(render.values("single") | {"config": 'upstreem = ["http://im-backend"]\n'})
        with Pod(made) as one:
            ran = one.exec("check", *one.container["args"][1:])
            self.assertEqual(ran.returncode, 1)
            self.assertIn("upstreem", ran.stdout + ran.stderr)


def calls(address, path="/o/a/users/x", **more):
    return get(address, path, BEARER | more)


class Running(unittest.TestCase):
    def test_a_pod_serves_without_any_right(self):
        with Backend() as backend, Pod(render.overlay("single")) as one:
            unwell = one.exec("health")
            self.assertEqual((unwell.returncode, unwell.stdout), (1, ""))
            one.start()
            status, body = calls(f"{pod.POD_IP}:8080")
            self.assertEqual((status, json.loads(body)), (200, {"path": "/o/a/users/x"}))
            self.assertEqual(len(backend.seen), 1)

            process = f"/proc/{one.process.pid}"
            with open(f"{process}/status", encoding="ascii") as file:
                told = dict(line.split(":", 1) for line in file)
            self.assertEqual(told["Uid"].split(), [str(pod.USER)] * 4)
            self.assertEqual(told["Gid"].split(), [str(pod.USER)] * 4)
            for rights in ["CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb"]:
                self.assertEqual(int(told[rights], 16), 0, rights)
            self.assertEqual(told["NoNewPrivs"].strip(), "1")
            for folder in ["", "etc/floodgate", "run/secrets/floodgate/admin", "usr"]:
                with self.assertRaisesRegex(OSError, "Read-only"):
                    open(f"{process}/root/{folder}/new", "w", encoding="ascii")
            # A worker for each CPU that is requested.
            names = [comm.read_text() for comm in Path(f"{process}/task").glob("*/comm")]
            self.assertEqual(len([name for name in names if "gateway-" in name]), 2, names)

            for health in [["health"], ["health", "--ready"]]:
                self.assertEqual(one.exec(*health).returncode, 0)
            admin = f"{pod.POD_IP}:9090"
            self.assertEqual(get(admin, "/metrics")[0], 401)
            self.assertEqual(get(admin, "/top")[0], 401)
            self.assertIn("floodgate_decisions_total", one.metrics())

    def test_a_pod_takes_a_config_that_changes_and_keeps_its_own_if_that_is_bad(self):
        with Backend(), Pod(render.overlay("single")) as one:
            one.start()
            config = render.named(one.made, "ConfigMap", "floodgate")["data"]["floodgate.toml"]

            def fields():
                connection = http.client.HTTPConnection(f"{pod.POD_IP}:8080", timeout=30)
                connection.request("GET", "/o/a/users/x", headers=BEARER)
                answer = connection.getresponse()
                answer.read()
                connection.close()
                self.assertEqual(answer.status, 200)
                return {name.lower() for name, _ in answer.getheaders()}

            self.assertIn("ratelimit", fields())
            one.volumes["config"].write({"floodgate.toml": config + 'ratelimit_headers = "off"\n'})
            soon("the new config is in use", lambda: "ratelimit" not in fields())
            self.assertEqual(self.figure(one.metrics(), "floodgate_config_last_reload_successful"), 1)
            one.volumes["config"].write({"floodgate.toml": config + 'ratelimit_headers = "of"\n'})
            told = "floodgate_config_last_reload_successful"
            soon("the bad one is told", lambda: self.figure(one.metrics(), told) == 0)
            self.assertNotIn("ratelimit", fields())
            one.volumes["config"].write({"floodgate.toml": config})
            soon("the good one is in use", lambda: "ratelimit" in fields())
            soon("and is told", lambda: self.figure(one.metrics(), told) == 1)

    def test_a_pod_ends_as_its_grace_period_allows(self):
        with Backend(), Pod(render.overlay("single")) as one:
            one.start()
            address = f"{pod.POD_IP}:8080"
            answers = []
            slow = threading.Thread(target=lambda: answers.append(calls(address, **{"x-delay": "12"})))
            slow.start()
            soon("the slow call runs", lambda: "floodgate_requests_in_flight 1" in one.metrics())
            kept = http.client.HTTPConnection(address, timeout=30)
            kept.request("GET", "/o/a/users/y", headers=BEARER)
            kept.getresponse().read()
            began = time.monotonic()
            one.terminate()
            soon("it wants no more calls", lambda: get(f"{pod.POD_IP}:9090", "/ready")[0] == 503)
            self.assertEqual(one.exec("health", "--ready").returncode, 1)
            self.assertEqual(one.exec("health").returncode, 0)
            # A kept connection is closed with its next answer; who comes anew is still served.
            kept.request("GET", "/o/a/users/y", headers=BEARER)
            answer = kept.getresponse()
            answer.read()
            self.assertEqual((answer.status, answer.getheader("connection")), (200, "close"))
            kept.close()
            self.assertEqual(calls(address)[0], 200)
            one.process.wait(timeout=60)
            took = time.monotonic() - began
            slow.join()
            self.assertEqual((one.process.returncode, answers[0][0]), (0, 200), one.log.read_text())
            delay = render.seconds(one.env["FLOODGATE_DRAIN_DELAY"])
            before = one.container["lifecycle"]["preStop"]["sleep"]["seconds"]
            self.assertGreater(took, delay - 0.5)
            self.assertLess(took + before, one.spec["terminationGracePeriodSeconds"])

    def shares(self, overlay, *addresses):
        """A pod of this overlay, and its Redis."""
        with pod.redis(overlay, *addresses), Backend(), Pod(render.overlay(overlay)) as one:
            asked = one.exec("check", "--connect", *one.container["args"][1:])
            self.assertEqual(asked.returncode, 0, asked.stdout + asked.stderr)
            one.start()
            address = f"{pod.POD_IP}:8080"

            def alone():
                return self.figure(one.metrics(), "floodgate_store_local_decisions_total")

            def is_shared():
                before = alone()
                return all(calls(address)[0] == 200 for _ in range(20)) and alone() == before

            # More than this gateway's share alone. A store that was empty a moment ago is told what
            # others gave before it is believed.
            soon("the store decides", is_shared)
            told = one.metrics()
            self.assertEqual(self.figure(told, "floodgate_store_gateways"), 1)
            self.assertGreater(self.figure(told, "floodgate_store_round_trips_total"), 0)

    def figure(self, told, name):
        (found,) = re.findall(rf"^{name} (\d+)$", told, re.MULTILINE)
        return int(found)

    def test_the_overlay_redis_shares_its_counters(self):
        self.shares("redis", pod.REDIS_IP)

    def test_the_overlay_redis_cluster_shares_its_counters(self):
        self.shares("redis-cluster", *pod.CLUSTER_IPS)
