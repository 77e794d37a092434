-- wrk script: each request is a batch of BATCH events of a device that nobody else is, so that every event is distinct.
-- A device has one app and one platform, and goes from version to version, each with all its steps.
local batch, run = tonumber(os.getenv("BATCH")), os.getenv("RUN")
local platforms, actions = { "android", "ios", "electron" }, { "get", "set", "download_complete", "download_fail" }
for step = 10, 90, 10 do actions[#actions + 1] = "download_" .. step end
local now, sent = os.time() * 1000, 0
local headers = { ["Content-Type"] = "application/json" }

local function event(t, n)
  return string.format(
    '{"platform":"%s","device_id":"%s-%s","app_id":"com.example.%s","custom_id":"","version_build":"1.2.0",' ..
    '"version_code":"120","version_os":"%d","version_name":"1.%d.%d","old_version_name":"","plugin_version":"8.51.14",' ..
    '"is_emulator":false,"is_prod":true,"install_source":"google_play","defaultChannel":"production",' ..
    '"action":"%s","timestamp":%d}',
    platforms[t % 3 + 1], run, "DEVICE", t % 2 == 0 and "app" or "shop", 13 + t % 3, math.floor(n / #actions) % 2,
    math.floor(n / #actions) % 10, actions[n % #actions + 1], now + n)
end

-- A batch is written once with a place for the device, so that the load costs little.
local templates = {}
function init()
  for t = 1, 50 do
    local events = {}
    for n = 1, batch do events[n] = event(t, t * batch + n) end
    local body = batch == 1 and events[1] or "[" .. table.concat(events, ",") .. "]"
    templates[t] = wrk.format("POST", "/stats", headers, (body:gsub("DEVICE", "0000000000")))
  end
end

function request()
  sent = sent + 1
  local device = string.format("%010d", sent)
  return (templates[sent % 50 + 1]:gsub("0000000000", device))
end

function done(summary, latency)
  local e = summary.errors
  io.write(string.format('JSON {"requests":%d,"microseconds":%d,"p99_microseconds":%d,"errors":%d}\n', summary.requests,
    summary.duration, latency:percentile(99), e.connect + e.read + e.write + e.status + e.timeout))
end
