"""What the load scripts share."""
import os, re, resource, shutil, socket, subprocess, sys, time

ROOT = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
TICK = os.sysconf("SC_CLK_TCK")
RELEASE = os.path.join(os.environ.get("CARGO_TARGET_DIR", os.path.join(ROOT, "target")), "release")

# In a `location` of nginx: one limit of one app in a fixed window, asked for at Redis.
LUA_LIMIT = """
      access_by_lua_block {
        local redis = require("%(module)s"):new()
        redis:set_timeout(1000)
        if not redis:connect("127.0.0.1", %(redis)d) then return ngx.exit(503) end
        local used = redis:eval([[
          local used = redis.call("INCR", KEYS[1])
          if used == 1 then redis.call("EXPIRE", KEYS[1], 2) end
          return used]], 1, "app:" .. ngx.time())
        redis:set_keepalive(60000, 256)
        if used > 1000000 then return ngx.exit(429) end
      }
"""


def lua_redis():
    """The name of Debian's Lua client for Redis, if all of nginx is there."""
    if shutil.which("nginx") and os.path.exists("/usr/lib/nginx/modules/ngx_http_lua_module.so"):
        for path, name in (("resty/redis.lua", "resty.redis"), ("nginx/redis.lua", "nginx.redis")):
            if os.path.exists("/usr/share/lua/5.1/" + path):
                return name
    return None


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
