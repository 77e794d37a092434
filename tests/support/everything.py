"""Events after which every metric has a sample."""

from typing import Any

from tests.support.inprocess import ManualClock, Running

TOKEN = "the release pipeline's"  # noqa: S105 -- no secret
SETTINGS = {"releases_token": TOKEN}
_APP = "com.example.shop"
_DEVICES = 25


def events(now_ms: int) -> list[dict[str, Any]]:
    """Give events of one day that touch every derived figure."""
    base = {"app_id": _APP, "platform": "ios", "version_name": "1.0.0", "is_prod": True, "channel": "production"}
    fleet = [
        {**base, "action": "set", "device_id": f"device-{number}", "old_version_name": "0.9.0", "timestamp": now_ms}
        for number in range(_DEVICES)
    ]
    one = {**base, "device_id": "device-0"}
    return [
        *fleet,
        {**one, "action": "set", "timestamp": now_ms - 2 * 3600 * 1000},
        {**one, "action": "update_fail", "timestamp": now_ms},
        {**one, "action": "download_zip_start", "timestamp": now_ms - 3000},
        {**one, "action": "download_complete", "timestamp": now_ms},
        {**one, "device_id": "device-1", "action": "download_10", "timestamp": now_ms},
        {**one, "action": "app_launch_ready", "timestamp": now_ms, "metadata": {"duration_ms": "700"}},
        {**one, "action": "webview_page_loaded", "timestamp": now_ms, "metadata": {"duration_ms": "400"}},
    ]


async def fill(exporter: Running, clock: ManualClock) -> None:
    """Send the events, mark a release, and let everything be counted."""
    assert 200 == (await exporter.post(events(clock.wall_ns // 1_000_000))).status
    mark = {"app_id": _APP, "version": "1.0.0", "channel": "production", "rollout_percentage": 10}
    headers = {"Authorization": f"Bearer {TOKEN}"}
    assert 200 == (await exporter.request("POST", "/releases", json=mark, headers=headers)).status
    clock.advance(60)
    assert exporter.exporter.derivation is not None
    await exporter.exporter.derivation.settle()
