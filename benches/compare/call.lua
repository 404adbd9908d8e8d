-- wrk's part: GET or POST, of one app or of many; latencies to the thousandth.
local kind, apps = os.getenv("KIND"), tonumber(os.getenv("APPS") or "1")
local list = {}

function init(args)
  local headers = { ["Authorization"] = "Bearer YWMtload", ["Accept"] = "application/json" }
  local to = {}
  for n = 1, 10 do to[n] = '"user' .. n .. '"' end
  local body = '{"from":"admin","to":[' .. table.concat(to, ",") .. '],"type":"txt","body":{"msg":"hello, everybody"}}'
  for n = 1, apps do
    local app = "/o/app" .. n
    if kind == "post" then
      headers["Content-Type"] = "application/json"
      list[n] = wrk.format("POST", app .. "/load/messages", headers, body)
    elseif kind == "denied" then
      list[n] = wrk.format("GET", app .. "/empty", headers)
    else
      list[n] = wrk.format("GET", app .. "/load/alice", headers)
    end
  end
end

local nth = 0
function request()
  nth = nth % apps + 1
  -- A step that has no common divisor with the number of apps: they take turns in no order.
  return list[(nth * 7919) % apps + 1]
end

function done(summary, latency, requests)
  local errors = summary.errors
  io.write(string.format("RESULT %d %d %d %d %d %d %d\n", summary.requests, summary.duration,
    latency:percentile(50), latency:percentile(99), latency:percentile(99.9), errors.status,
    errors.connect + errors.read + errors.write + errors.timeout))
end
