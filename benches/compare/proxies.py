"""The proxies that are compared: each in front of the same upstream, with one worker, an access log
in a file, connections to the upstream kept open, and, where it limits, a limit of each app and one
of each address that are never reached on `/o/{app}/load/…`, and one that always is on `/o/{app}/empty`.
"""
import os, re, shutil, subprocess, sys, time

sys.path.insert(0, os.path.join(os.path.dirname(os.path.abspath(__file__)), "..", "load"))
from load import LUA_LIMIT, RELEASE, cpu, free_port, lua_redis, wait_for

ROUTES = """
[[route]]
name = "load"
calls = ["GET /load/{username}"]
v3 = { limits = ["1000000/s"] }
[[route]]
name = "messages"
calls = ["POST /load/messages"]
cost = "to"
max_recipients = 600
v3 = { limits = ["1000000 messages/s"] }
[[route]]
name = "empty"
calls = ["GET /empty"]
v3 = { limits = ["1/3600s"] }
"""

NGINX = """
worker_processes 1; daemon off; pid %(folder)s/nginx.pid; error_log %(folder)s/error.log crit;
include /etc/nginx/modules-enabled/*.conf;
events { worker_connections 8192; }
http {
  log_format line '$remote_addr $request $status $body_bytes_sent $request_time';
  access_log %(folder)s/access.log line buffer=64k;
  client_body_temp_path %(folder)s; proxy_temp_path %(folder)s; fastcgi_temp_path %(folder)s;
  uwsgi_temp_path %(folder)s; scgi_temp_path %(folder)s;
  %(zones)s
  upstream backend { server %(upstream)s; keepalive 1024; keepalive_requests 100000000; }
  server {
    listen 127.0.0.1:%(port)d backlog=4096; listen 127.0.0.1:%(h2)d http2 backlog=4096;
    keepalive_requests 100000000; http2_max_concurrent_streams 256;
    location / {
      %(limits)s
      proxy_pass http://backend; proxy_http_version 1.1; proxy_set_header Connection "";
    }
    %(empty)s
  }
}
"""
ZONES = r"""
  map $uri $app { ~^/o/(?<name>[^/]+)/ $name; default ""; }
  limit_req_zone $app zone=app:32m rate=1000000r/s;
  limit_req_zone $binary_remote_addr zone=ip:32m rate=1000000r/s;
  limit_req_zone $app zone=empty:1m rate=1r/m;
  limit_req_status 429; limit_req_log_level info;
"""
LIMITS = "limit_req zone=app burst=100000 nodelay; limit_req zone=ip burst=100000 nodelay;"
EMPTY = "location ~ ^/o/[^/]+/empty$ { limit_req zone=empty; proxy_pass http://backend; }"

HAPROXY = """
global
  nbthread 1
  maxconn 8192
  stats socket %(folder)s/%(name)s.sock
  log 127.0.0.1:%(log)d format raw local0
defaults
  mode http
  log global
  option httplog
  option http-keep-alive
  http-reuse always
  timeout connect 5s
  timeout client 60s
  timeout server 60s
%(tables)s
frontend callers
  bind 127.0.0.1:%(port)d
  bind 127.0.0.1:%(h2)d proto h2
%(limits)s
  default_backend upstream
backend upstream
  server one %(upstream)s maxconn 4096 pool-max-conn 4096
"""
TABLES = """
backend app
  stick-table type string len 32 size 1m expire 2s store http_req_rate(1s)
backend ip
  stick-table type ip size 1m expire 2s store http_req_rate(1s)
backend empty
  stick-table type string len 32 size 1m expire 1h store http_req_rate(1h)
"""
STICK = """
  acl is_empty path_end /empty
  http-request track-sc0 path,field(3,/) table app
  http-request track-sc1 src table ip
  http-request track-sc2 path,field(3,/) table empty if is_empty
  http-request deny deny_status 429 if { sc_http_req_rate(0) gt 1000000 } or { sc_http_req_rate(1) gt 1000000 }
  http-request deny deny_status 429 if is_empty { sc_http_req_rate(2) gt 1 }
"""

ENVOY = """
admin: { address: { socket_address: { address: 127.0.0.1, port_value: %(admin)d } } }
static_resources:
  listeners:
  - address: { socket_address: { address: 127.0.0.1, port_value: %(port)d } }
    filter_chains:
    - filters:
      - name: envoy.filters.network.http_connection_manager
        typed_config:
          "@type": type.googleapis.com/envoy.extensions.filters.network.http_connection_manager.v3.HttpConnectionManager
          stat_prefix: ingress
          codec_type: AUTO
          access_log:
          - name: envoy.access_loggers.file
            typed_config:
              "@type": type.googleapis.com/envoy.extensions.access_loggers.file.v3.FileAccessLog
              path: %(folder)s/%(name)s.log
          route_config:
            virtual_hosts:
            - name: all
              domains: ["*"]
              routes:
%(routes)s
          http_filters:
%(filters)s
          - name: envoy.filters.http.router
            typed_config: { "@type": type.googleapis.com/envoy.extensions.filters.http.router.v3.Router }
  clusters:
  - name: upstream
    type: STATIC
    circuit_breakers: { thresholds: [{ max_connections: 8192, max_pending_requests: 8192, max_requests: 8192 }] }
    load_assignment:
      cluster_name: upstream
      endpoints: [{ lb_endpoints: [{ endpoint: { address: { socket_address: { address: %(host)s, port_value: %(to)s } } } }] }]
"""
BUCKET = """{ "@type": type.googleapis.com/envoy.extensions.filters.http.local_ratelimit.v3.LocalRateLimit,
                    stat_prefix: %(what)s, token_bucket: { max_tokens: %(tokens)s, tokens_per_fill: %(tokens)s, fill_interval: %(fill)s },
                    filter_enabled: { default_value: { numerator: 100 } }, filter_enforced: { default_value: { numerator: 100 } } }"""


class Proxy:
    """A proxy that runs. What it cannot do is not in `can`."""

    def __init__(self, name, child, port, h2=None, can=("get", "apps", "post"), of=None):
        self.name, self.child, self.port, self.h2 = name, child, port, h2
        self.can = set(can) | ({"h2"} if h2 else set())
        # Whose processor time and memory it is: workers.
        self.pids = of or [child.pid]

    def cpu(self):
        return sum(cpu(pid) for pid in self.pids)

    def memory(self):
        """Resident memory, MiB."""
        kib = 0
        for pid in {self.child.pid, *self.pids}:
            kib += int(re.search(r"VmRSS:\s+(\d+)", open(f"/proc/{pid}/status").read())[1])
        return kib / 1024


def workers(pid):
    """nginx listens before it has any."""
    for _ in range(500):
        found = subprocess.run(["pgrep", "-P", str(pid)], capture_output=True, text=True).stdout.split()
        if found:
            return [int(p) for p in found]
        time.sleep(0.02)
    sys.exit("nginx has no workers")


def every(start, folder, upstream, redis, log):
    """Starts all of them on core 0. `start(command, core)`; `log`: a port that swallows datagrams."""
    quiet = {"stdout": open(os.path.join(folder, "out"), "w"), "stderr": subprocess.STDOUT}
    routes = os.path.join(folder, "routes.toml")
    open(routes, "w").write(ROUTES)
    host, to = upstream.rsplit(":", 1)
    found = []

    port, h2 = free_port(), free_port()
    child = start([f"{RELEASE}/examples/load-bare", f"127.0.0.1:{port}", upstream, "1"], "0", **quiet)
    other = start([f"{RELEASE}/examples/load-bare", f"127.0.0.1:{h2}", upstream, "1", "h2c"], "0", **quiet)
    found.append(Proxy("bare pingora", child, port))
    found.append(Proxy("bare pingora, h2c", other, h2, h2, can=()))

    url = f"redis://127.0.0.1:{redis}"
    for name, store in (("memory", ["memory"]), ("Redis, leases", [url]),
                        ("Redis, exact", [url, "--store-leases", "false", "--store-prefix", "exact"])):
        port = free_port()
        child = start([f"{RELEASE}/floodgate", "run", "--listen", f"127.0.0.1:{port}", "--h2c",
                       "--admin", f"127.0.0.1:{free_port()}", "--upstream", f"http://{upstream}",
                       "--routes", "shipped", "--routes", routes, "--threads", "1", "--max-connections-per-ip", "8192",
                       "--max-in-flight", "8192", "--store", *store],
                      "0", stdout=open(os.path.join(folder, f"gateway-{name}.log"), "w"), stderr=subprocess.STDOUT)
        found.append(Proxy(f"gateway, {name}", child, port, port, can=("get", "apps", "post", "denied")))

    nginx = [("nginx", "", "", "", ("get", "apps", "post")), ("nginx, limit_req", ZONES, LIMITS, EMPTY, ("get", "apps", "post", "denied"))]
    module = lua_redis()
    if module:
        paths = 'lua_package_path "/usr/share/lua/5.1/?.lua;/usr/share/lua/5.1/nginx/?.lua;;";'
        nginx.append(("nginx + Lua + Redis", paths, LUA_LIMIT % {"module": module, "redis": redis}, "", ("get", "apps", "post")))
    for name, zones, limits, empty, can in nginx if shutil.which("nginx") else ():
        port, h2 = free_port(), free_port()
        inner = os.path.join(folder, re.sub(r"\W+", "-", name))
        os.mkdir(inner)
        conf = os.path.join(inner, "nginx.conf")
        open(conf, "w").write(NGINX % {"folder": inner, "zones": zones, "limits": limits, "empty": empty,
                                       "upstream": upstream, "port": port, "h2": h2})
        child = start(["nginx", "-c", conf], "0", **quiet)
        wait_for(port)
        found.append(Proxy(name, child, port, h2, can, workers(child.pid)))

    for name, tables, limits, can in (("HAProxy", "", "", ("get", "apps", "post")),
                                      ("HAProxy, stick tables", TABLES, STICK, ("get", "apps", "post", "denied"))):
        if not shutil.which("haproxy"):
            break
        port, h2 = free_port(), free_port()
        short = re.sub(r"\W+", "-", name)
        conf = os.path.join(folder, f"{short}.cfg")
        open(conf, "w").write(HAPROXY % {"folder": folder, "name": short, "log": log, "tables": tables, "limits": limits,
                                         "port": port, "h2": h2, "upstream": upstream})
        child = start(["haproxy", "-db", "-f", conf], "0", **quiet)
        found.append(Proxy(name, child, port, h2, can))

    envoy = shutil.which("envoy")
    to_upstream = '{ match: { prefix: "/" }, route: { cluster: upstream } }'
    local = "          - { name: envoy.filters.http.local_ratelimit, typed_config: %s }"
    always = BUCKET % {"what": "empty", "tokens": 1, "fill": "3600s"}
    never = BUCKET % {"what": "all", "tokens": 10000000, "fill": "1s"}
    at_empty = ('              - { match: { safe_regex: { regex: "/o/[^/]+/empty" } }, route: { cluster: upstream },\n'
                "                  typed_per_filter_config: { envoy.filters.http.local_ratelimit: %s } }\n" % always)
    for name, routes, filters, can in (
            ("Envoy", "", "", ("get", "apps", "post")),
            ("Envoy, local rate limit", at_empty, local % never, ("get", "apps", "post", "denied"))):
        if not envoy:
            break
        port = free_port()
        short = re.sub(r"\W+", "-", name)
        conf = os.path.join(folder, f"{short}.yaml")
        open(conf, "w").write(ENVOY % {"folder": folder, "name": short, "admin": free_port(), "port": port, "host": host, "to": to,
                                       "routes": routes + "              - " + to_upstream, "filters": filters})
        child = start([envoy, "-c", conf, "--concurrency", "1", "--disable-hot-restart", "-l", "error"], "0", **quiet)
        found.append(Proxy(name, child, port, port, can))
    for proxy in found:
        wait_for(proxy.port)
    return found
