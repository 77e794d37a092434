-- wrk script: sends the bodies of a file (BODIES, one a line, made by loads.py), each request of a device of its own.
-- A body was cut at its placeholders once, so that putting a device in is one `concat` and the load costs little.
-- With DEVICES, devices come again: so many of them.
local place, first = string.rep("@", 12), tonumber(os.getenv("FIRST") or "0")
local devices, some = tonumber(os.getenv("DEVICES") or "0"), string.rep("#", 12)
local bodies, sent = {}, first

local function cut(text)
  local pieces, from = {}, 1
  while true do
    local at, till = text:find(place, from, true)
    if not at then break end
    pieces[#pieces + 1], from = text:sub(from, at - 1), till + 1
  end
  pieces[#pieces + 1] = text:sub(from)
  return pieces
end

function init()
  local headers = { ["Content-Type"] = "application/json" }
  if os.getenv("CLOSE") == "1" then headers["Connection"] = "close" end
  for body in io.lines(os.getenv("BODIES")) do
    bodies[#bodies + 1] = cut(wrk.format("POST", nil, headers, body))
  end
end

function request()
  sent = sent + 1
  local text = table.concat(bodies[sent % #bodies + 1], string.format("%012d", sent))
  return devices == 0 and text or (text:gsub(some, string.format("%012d", sent % devices)))
end

function done(summary, latency)
  local e = summary.errors
  io.write(string.format('JSON {"requests":%d,"microseconds":%d,"p50":%d,"p99":%d,"errors":%d}\n', summary.requests,
    summary.duration, latency:percentile(50), latency:percentile(99),
    e.connect + e.read + e.write + e.status + e.timeout))
end
