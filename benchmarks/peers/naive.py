"""What most people would write: the same labels, tags and fields; nothing durable, nothing deduplicated."""

import sys

from aiohttp import web
from influxdb_client import InfluxDBClient, Point, WriteOptions, WritePrecision
from prometheus_client import CONTENT_TYPE_LATEST, Counter, generate_latest

EVENTS = Counter("capgo_events", "Capgo events", ["app_id", "action", "platform", "version_name"])
FIELDS = ("device_id", "old_version_name", "version_os", "plugin_version", "is_emulator", "is_prod")
writer = InfluxDBClient(url=sys.argv[2], token="t", org="o").write_api(  # noqa: S106 -- the sink asks for none
    write_options=WriteOptions(batch_size=5000, flush_interval=1000)
)


async def stats(request: web.Request) -> web.Response:
    """Count each event and hand its point to the batching writer."""
    data = await request.json()
    for event in data if isinstance(data, list) else [data]:
        EVENTS.labels(event["app_id"], event["action"], event["platform"], event["version_name"]).inc()
        point = Point("capgo_stats").time(event["timestamp"], WritePrecision.MS)
        for tag in ("app_id", "action", "platform", "version_name"):
            point = point.tag(tag, event[tag])
        for field in FIELDS:
            point = point.field(field, event[field])
        writer.write(bucket="b", record=point)
    return web.json_response({"status": "ok"})


async def metrics(request: web.Request) -> web.Response:
    """Show the counters."""
    del request
    return web.Response(body=generate_latest(), headers={"Content-Type": CONTENT_TYPE_LATEST})


if __name__ == "__main__":
    app = web.Application(client_max_size=1 << 25)
    app.router.add_post("/stats", stats)
    app.router.add_get("/metrics", metrics)
    web.run_app(app, host="127.0.0.1", port=int(sys.argv[1]), access_log=None, print=None)
