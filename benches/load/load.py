"""What the load scripts share."""
import os, re, resource, socket, subprocess, sys, time

ROOT = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
TICK = os.sysconf("SC_CLK_TCK")
RELEASE = os.path.join(os.environ.get("CARGO_TARGET_DIR", os.path.join(ROOT, "target")), "release")


def build():
    subprocess.run(["cargo", "build", "--release", "--locked", "--bin", "floodgate", "--examples"],
                   cwd=ROOT, check=True)


def free_port():
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return s.getsockname()[1]


def wait_for(port):
    for _ in range(500):
        try:
            socket.create_connection(("127.0.0.1", port)).close()
            return
        except OSError:
            time.sleep(0.02)
    sys.exit(f"nothing listens on {port}")


def cpu(pid):
    fields = open(f"/proc/{pid}/stat").read().rsplit(") ", 1)[1].split()
    return (int(fields[11]) + int(fields[12])) / TICK


def cpu_of_wrk():
    ended = resource.getrusage(resource.RUSAGE_CHILDREN)
    return ended.ru_utime + ended.ru_stime


def wrk(port, path, seconds, core):
    pin = ["taskset", "-c", core] if core else []
    out = subprocess.run(
        pin + ["wrk", "-t1", "-c64", f"-d{seconds}s", "-H", "Authorization: Bearer YWMtload",
               "-H", "Accept: application/json", f"http://127.0.0.1:{port}{path}"],
        capture_output=True, text=True, check=True).stdout
    return int(re.search(r"(\d+) requests in", out)[1])
