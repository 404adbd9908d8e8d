"""A pod as a kubelet would start it, of this machine's own means: the image's content as a root file
system that is read-only, volumes as a kubelet lays them out, one user without rights. The runtime's seccomp filter alone is missing."""

import atexit
import contextlib
import ctypes
import fcntl
import functools
import http.client
import http.server
import json
import math
import os
import shutil
import signal
import socket
import struct
import subprocess
import tempfile
import threading
import time
from pathlib import Path

import render

BINARY = Path(os.environ["FLOODGATE_BIN"])
USER = 65532
POD_IP = "10.42.0.7"
BACKEND_IP = "10.42.2.1"
REDIS_IP = "10.42.1.9"
CLUSTER_IPS = ["10.42.1.0", "10.42.1.1", "10.42.1.2"]
# One of a network that no config trusts.
CALLER_IP = "192.0.2.1"
TOKEN = "a-token-of-the-tests-0123456789"
PASSWORD = "a-password-of-the-tests"
# Beside the binary: hard links need one file system.
WORK = Path(tempfile.mkdtemp(prefix="deploy-", dir=BINARY.parent))
atexit.register(shutil.rmtree, WORK, ignore_errors=True)

_LIBC = ctypes.CDLL(None, use_errno=True)
_PR_CAPBSET_DROP, _PR_SET_NO_NEW_PRIVS = 24, 38


def soon(what, is_so, limit=120):
    """Waits until something holds."""
    end = time.monotonic() + limit
    while not (held := is_so()):
        if time.monotonic() > end:
            raise AssertionError(f"not in {limit} s: {what}")
        time.sleep(0.05)
    return held


@functools.cache
def network():
    """Addresses of the cluster, on this namespace's own loopback, and with each its whole network."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as one:
        addresses = ["127.0.0.1", POD_IP, BACKEND_IP, REDIS_IP, *CLUSTER_IPS, CALLER_IP]
        for i, address in enumerate(addresses):
            name = (f"lo:{i}" if i else "lo").encode()
            family = struct.pack("=H2x4s8x", socket.AF_INET, socket.inet_aton(address))
            # SIOCSIFADDR, SIOCSIFFLAGS (up, running)
            fcntl.ioctl(one, 0x8916, struct.pack("=16s16s8x", name, family))
            fcntl.ioctl(one, 0x8914, struct.pack("=16sH22x", name, 0x1 | 0x40))


def build_image(folder):
    """The image's content."""
    script = render.DEPLOY / "image/rootfs"
    subprocess.run([script, BINARY, folder], check=True)
    return folder


@functools.cache
def image():
    """The image's content, made once."""
    return build_image(WORK / "image")


@functools.cache
def certificate():
    """A certificate for a.example and b.example, and its key."""
    crt, key = WORK / "tls.crt", WORK / "tls.key"
    subprocess.run(
        ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes"]
        + ["-days", "30", "-subj", "/CN=a.example", "-addext", "subjectAltName=DNS:a.example,DNS:b.example"]
        + ["-out", crt, "-keyout", key],
        check=True,
        capture_output=True,
    )
    return crt.read_text(), key.read_text()


def outside(name):
    """What is in a Secret or ConfigMap that is made elsewhere."""
    crt, key = certificate()
    return {
        "floodgate-admin": {"token": TOKEN},
        "floodgate-redis": {"password": PASSWORD},
        "floodgate-apps": {"acme-shop": "0f0e0d0c0b0a09080706050403020100\n"},
        "redis-ca": {"ca.crt": crt},
    }.get(name, {"tls.crt": crt, "tls.key": key})


class Volume:
    """Files as a kubelet writes them: behind a link, which is changed in one step."""

    def __init__(self, folder, mode, group):
        self.folder, self.mode, self.group, self.turn = folder, mode, group, 0
        folder.mkdir(parents=True)
        os.chmod(folder, 0o2775 if group else 0o755)

    def write(self, files):
        self.turn += 1
        data = self.folder / f"..2026_11_21_{self.turn:04}"
        data.mkdir(mode=0o755)
        for name, text in files.items():
            path = data / name
            path.write_text(text)
            os.chmod(path, self.mode)
            os.chown(path, 0, self.group)
            if not (self.folder / name).is_symlink():
                (self.folder / name).symlink_to(f"..data/{name}")
        link = self.folder / "..data_tmp"
        link.symlink_to(data.name)
        old = os.readlink(self.folder / "..data") if (self.folder / "..data").is_symlink() else None
        os.replace(link, self.folder / "..data")
        if old:
            shutil.rmtree(self.folder / old)


class Pod:
    """A pod of a Deployment, out of everything that was rendered with it."""

    def __init__(self, made, deployment=None, env=None, ip=POD_IP):
        network()
        deployment = deployment or render.floodgates(made)[0]
        self.spec = deployment["spec"]["template"]["spec"]
        self.container = self.spec["containers"][0]
        self.made, self.ip, self.process = made, ip, None
        self.dir = Path(tempfile.mkdtemp(prefix="pod-", dir=WORK))
        self.root = self.dir / "root"
        self.log = self.dir / "log"
        self.mounted = []
        self.volumes = {}
        self.env = self._environment() | (env or {})
        # Here the pods and the backend are in one network: the same port is another address's too.
        for name in ["FLOODGATE_LISTEN", "FLOODGATE_ADMIN"]:
            self.env[name] = self.env[name].replace("0.0.0.0:", f"{ip}:")
        self._lay_out()

    def _environment(self):
        env = render.environment(self.container)
        for one in self.container["env"]:
            field = one.get("valueFrom", {}).get("resourceFieldRef")
            if field:
                assert (field["resource"], field["divisor"]) == ("requests.cpu", "1")
                cpu = str(self.container["resources"]["requests"]["cpu"])
                cpu = float(cpu[:-1]) / 1000 if cpu.endswith("m") else float(cpu)
                env[one["name"]] = str(math.ceil(cpu))
        return env

    def _mount(self, *arguments):
        subprocess.run(["mount", *map(str, arguments)], check=True)
        self.mounted.append(arguments[-1])

    def _lay_out(self):
        subprocess.run(["cp", "-al", image(), self.root], check=True)
        names = {
            self.ip: "pod",
            BACKEND_IP: "im-backend im.backend.svc files.backend.svc",
            REDIS_IP: "redis redis.data.svc",
        }
        hosts = [f"{ip} {of}\n" for ip, of in names.items()]
        hosts += [f"{ip} redis-cluster-{i}.redis-cluster\n" for i, ip in enumerate(CLUSTER_IPS)]
        # As a container runtime does: these two are the pod's own.
        (self.root / "etc/hosts").write_text("127.0.0.1 localhost\n" + "".join(hosts))
        (self.root / "etc/resolv.conf").write_text("")
        for mount in self.container["volumeMounts"]:
            (self.root / mount["mountPath"].lstrip("/")).mkdir(parents=True, exist_ok=True)
        self._mount("--bind", self.root, self.root)
        self._mount("-t", "proc", "proc", self.root / "proc")
        self._mount("-t", "tmpfs", "-o", "size=64k,mode=755", "tmpfs", self.root / "dev")
        for device in ["null", "zero", "urandom"]:
            (self.root / "dev" / device).touch()
            self._mount("--bind", f"/dev/{device}", self.root / "dev" / device)
        volumes = {volume["name"]: volume for volume in self.spec["volumes"]}
        for mount in self.container["volumeMounts"]:
            volume = self._volume(volumes[mount["name"]])
            self.volumes[mount["name"]] = volume
            at = self.root / mount["mountPath"].lstrip("/")
            self._mount("--bind", volume.folder, at)
            self._mount("-o", "remount,bind,ro", at)
            self.mounted.pop()
        self._mount("-o", "remount,bind,ro", self.root)
        self.mounted.pop()

    def _volume(self, volume):
        """A ConfigMap of this release, or what else a cluster would have."""
        (kind, source), = [(k, v) for k, v in volume.items() if k != "name"]
        if kind == "secret":
            files, mode = outside(source["secretName"]), source["defaultMode"]
            laid = Volume(self.dir / volume["name"], mode, self.spec["securityContext"]["fsGroup"])
        else:
            own = [
                one["data"]
                for one in self.made
                if one["kind"] == "ConfigMap" and one["metadata"]["name"] == source["name"]
            ]
            files = own[0] if own else outside(source["name"])
            laid = Volume(self.dir / volume["name"], 0o644, self.spec["securityContext"]["fsGroup"])
        if "items" in source:
            files = {item["path"]: files[item["key"]] for item in source["items"]}
        laid.write(files)
        return laid

    def _become(self):
        """In the child: the container's root, user, and no rights."""
        os.chroot(self.root)
        os.chdir("/")
        context = self.spec["securityContext"]
        for capability in range(64):
            _LIBC.prctl(_PR_CAPBSET_DROP, capability, 0, 0, 0)
        os.setgroups([context["fsGroup"]])
        os.setresgid(*[context["runAsGroup"]] * 3)
        os.setresuid(*[context["runAsUser"]] * 3)
        if _LIBC.prctl(_PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) != 0:
            raise OSError(ctypes.get_errno(), "no_new_privs")

    def exec(self, *arguments):
        """Runs the image's program to its end."""
        return subprocess.run(
            ["/floodgate", *arguments],
            env=self.env,
            preexec_fn=self._become,
            capture_output=True,
            text=True,
            timeout=120,
            check=False,
        )

    def start(self):
        """Runs the container's own command, until its probes are content."""
        with open(self.log, "ab") as log:
            self.process = subprocess.Popen(
                ["/floodgate", *self.container["args"]],
                env=self.env,
                preexec_fn=self._become,
                stdout=log,
                stderr=log,
            )
        try:
            soon("the pod starts", lambda: self.probe("startupProbe"))
            soon("the pod is ready", lambda: self.probe("readinessProbe"))
        except AssertionError as error:
            raise AssertionError(f"{error}: {self.log.read_text()}") from None
        return self

    def probe(self, which):
        """What the kubelet would think."""
        assert self.process.poll() is None, self.log.read_text()
        probe = self.container[which]["httpGet"]
        (port,) = [p["containerPort"] for p in self.container["ports"] if p["name"] == probe["port"]]
        try:
            status, _ = get(f"{self.ip}:{port}", probe["path"], timeout=self.container[which]["timeoutSeconds"] * 5)
        except OSError:
            return False
        return 200 <= status < 400

    @contextlib.contextmanager
    def writable(self):
        """As for the kubelet, to which the root file system is its own folder."""
        subprocess.run(["mount", "-o", "remount,bind,rw", self.root], check=True)
        yield
        subprocess.run(["mount", "-o", "remount,bind,ro", self.root], check=True)

    def terminate(self):
        """As a kubelet does, after preStop."""
        self.process.send_signal(signal.SIGTERM)

    def metrics(self):
        """The text of /metrics."""
        status, text = get(f"{self.ip}:9090", "/metrics", {"Authorization": f"Bearer {TOKEN}"})
        assert status == 200, text
        return text

    def close(self):
        if self.process and self.process.poll() is None:
            self.process.kill()
            self.process.wait()
        for at in reversed(self.mounted):
            subprocess.run(["umount", "--lazy", str(at)], check=True)
        shutil.rmtree(self.dir)

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.close()


def get(address, path, headers=None, method="GET", body=None, timeout=30):
    """A call, and its whole answer."""
    connection = http.client.HTTPConnection(address, timeout=timeout)
    with contextlib.closing(connection):
        connection.request(method, path, body=body, headers=headers or {})
        answer = connection.getresponse()
        return answer.status, answer.read().decode()


class Server(http.server.ThreadingHTTPServer):
    """One at which several gateways may connect at once."""

    request_queue_size = 128
    daemon_threads = True


class Backend:
    """A stand-in for the IM backend, as headless Service and pods would have it."""

    def __init__(self, port=8080):
        network()
        self.seen = []
        backend = self

        class Handler(http.server.BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"
            # Head and body are two writes: the second would wait for the caller's acknowledgement.
            disable_nagle_algorithm = True

            def do_GET(self):
                length = int(self.headers.get("content-length") or 0)
                self.rfile.read(length)
                backend.seen.append((self.path, dict(self.headers)))
                time.sleep(float(self.headers.get("x-delay") or 0))
                if self.headers.get("x-break"):
                    self.close_connection = True
                    self.connection.shutdown(socket.SHUT_RDWR)
                    return
                answer = json.dumps({"path": self.path}).encode()
                self.send_response(int(self.headers.get("x-status") or 200))
                self.send_header("content-type", "application/json")
                self.send_header("content-length", str(len(answer)))
                self.end_headers()
                self.wfile.write(answer)

            do_POST = do_PUT = do_DELETE = do_GET

            def log_message(self, *_):
                pass

        self.server = Server((BACKEND_IP, port), Handler)
        # Gateways are killed in the middle of calls.
        self.server.handle_error = lambda *_: None
        threading.Thread(target=self.server.serve_forever, daemon=True).start()

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.server.shutdown()
        self.server.server_close()


def redis_conf(example, folder):
    """The redis.conf of an example, with the paths of a pod in this folder."""
    made = render.objects((render.DEPLOY / f"examples/{example}.yaml").read_text())
    (folder / "password.conf").write_text(f"requirepass {PASSWORD}\nmasterauth {PASSWORD}\n")
    text = render.named(made, "ConfigMap")["data"]["redis.conf"]
    text = text.replace("/data", str(folder)).replace("/run/secrets/redis", str(folder))
    (folder / "redis.conf").write_text(text)
    return folder / "redis.conf"


@contextlib.contextmanager
def redis(example, *addresses, replicas=0):
    """Redis servers as an example has them; several are a cluster, with so many replicas of each
    master."""
    network()
    folder = Path(tempfile.mkdtemp(prefix="redis-", dir=WORK))
    servers = []
    try:
        for address in addresses:
            (folder / address).mkdir()
            options = ["--bind", address]
            if len(addresses) > 1:
                options += ["--cluster-announce-ip", address]
            if len(addresses) > 1 and not replicas:
                options += ["--min-replicas-to-write", "0"]
            conf = redis_conf(example, folder / address)
            servers.append(subprocess.Popen(["redis-server", conf, *options], stdout=subprocess.DEVNULL))
        asked = ["redis-cli", "--no-auth-warning", "-a", PASSWORD]

        def answers(address, command, expected):
            made = subprocess.run([*asked, "-h", address, *command], capture_output=True, text=True, check=False)
            return expected in made.stdout

        for address in addresses:
            soon(f"Redis at {address}", lambda address=address: answers(address, ["ping"], "PONG"))
        if len(addresses) > 1:
            nodes = [f"{address}:6379" for address in addresses]
            create = [*asked, "--cluster", "create", *nodes, "--cluster-replicas", str(replicas), "--cluster-yes"]
            subprocess.run(create, check=True, stdout=subprocess.DEVNULL, timeout=60)
            for address in addresses:
                info = ["cluster", "info"]
                soon("the cluster", lambda address=address: answers(address, info, "cluster_state:ok"))
        yield servers
    finally:
        for server in servers:
            server.kill()
            server.wait()
        shutil.rmtree(folder)
