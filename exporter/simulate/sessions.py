"""Sessions: a device's life from one use of the app to the next."""

from typing import Final

from exporter.simulate.device import Device
from exporter.simulate.scenario import HOUR_MS
from exporter.simulate.updates import Updater, Waits

_DAY_MS: Final = 86_400_000
_SHORTEST_BREAK_MS: Final = 90_000
_OFFLINE_SPELLS_PER_DAY: Final = 0.25
_CRASHES: Final = {
    "android": (
        ("app_crash", {"exit_reason": "REASON_CRASH", "exit_description": "crash"}),
        ("app_crash_native", {"exit_reason": "REASON_CRASH_NATIVE", "exit_description": "native crash"}),
        ("app_anr", {"exit_reason": "REASON_ANR", "exit_description": "user request after error"}),
        ("webview_render_process_gone", {"source": "render_process_gone"}),
    ),
    "ios": (
        ("app_crash", {"exit_reason": "crash"}),
        ("webview_content_process_terminated", {"source": "content_process"}),
    ),
}
_WEB_ERRORS: Final = (
    ("webview_javascript_error", {"error_type": "javascript_error", "message": "Uncaught ReferenceError: a"}),
    ("webview_unhandled_rejection", {"error_type": "unhandled_rejection", "message": "NetworkError"}),
    ("webview_resource_error", {"error_type": "resource_error", "source": "https://cdn.example.com/logo.svg"}),
    ("webview_security_policy_violation", {"error_type": "security_policy_violation", "source": "img-src"}),
    ("webview_unclean_restart", {"source": "unclean_restart"}),
)
_STRAINS: Final = {
    "android": ("app_memory_warning", "app_killed_low_memory", "app_killed_excessive_resource_usage"),
    "ios": ("app_memory_warning", "app_killed_low_memory"),
}
_RARE: Final = ("os_version_changed", "native_app_version_changed")


class Life:
    """What a device does, session after session."""

    def __init__(self, device: Device, updater: Updater, start_ms: int) -> None:
        """Set the device; some use their apps much, some little.

        Args:
            device: whose life it is.
            updater: keeps its bundle new.
            start_ms: when the scenario begins.
        """
        self._device = device
        self._updater = updater
        self._start_ms = start_ms
        self._goes_offline = device.luck("offline") < device.scenario.offline_share
        self._use = device.scenario.sessions_per_day * device.scenario.speed * device.chance.lognormvariate(-0.32, 0.8)
        self._crash: tuple[str, dict[str, str]] | None = None
        self._is_warm = False
        self._shortest_break_ms = 0

    def live(self) -> Waits:
        """Use the app again and again, more by day than by night."""
        device = self._device
        while True:
            yield from self._break()
            spell = device.offline_until_ms > device.timeline.now_ms
            device.outbox.is_online = not spell and not device.happens(device.scenario.noise.offline_session)
            if device.profile.platform == "electron":
                yield from self._desktop_session()
            else:
                yield from self._session()
            device.outbox.suspend()

    def _break(self) -> Waits:
        """Wait for the next session: often at the busiest hour, seldom at night."""
        device = self._device
        chance = device.chance
        waited_ms, self._shortest_break_ms = self._shortest_break_ms, _SHORTEST_BREAK_MS
        while True:
            # The mean of the day's activity is 0.55 of the busiest hour's.
            waited_ms += int(chance.expovariate(self._use / 0.55) * _DAY_MS)
            hours = (device.timeline.now_ms + waited_ms) / HOUR_MS
            # An hour of the epoch begins a day at midnight; with `speed`, days are shorter.
            if chance.random() < device.scenario.activity(hours):
                break
        if self._goes_offline and device.happens(_OFFLINE_SPELLS_PER_DAY * waited_ms * device.scenario.speed / _DAY_MS):
            spell_hours = chance.uniform(3.0, 40.0) / device.scenario.speed
            device.offline_until_ms = device.timeline.now_ms + int(spell_hours * HOUR_MS)
        yield waited_ms

    def _session(self) -> Waits:
        device = self._device
        if self._is_warm and self._crash is None and device.happens(0.4):
            device.outbox.resume()
        else:
            yield from self._launch()
        device.say("app_moved_to_foreground")
        yield 800 + device.chance.randrange(2000)
        if device.outbox.may_update:
            yield from self._updater.check()
        yield from self._use_app()
        crash = self._draw_crash()
        if crash is not None:
            self._crash = crash
            return
        device.say("app_moved_to_background")
        if device.pending:
            yield 100
            yield from self._updater.activate()
        yield 3000
        self._is_warm = True

    def _launch(self) -> Waits:
        device = self._device
        chance = device.chance
        device.outbox.launch()
        self._updater.has_downloaded = False
        if not device.profile.generation.reports_health:
            self._crash = None
            return
        device.say("app_launch_start", metadata={"launch_started_at": str(device.timeline.now_ms)})
        if self._crash is not None:
            action, metadata = self._crash
            device.say(action, metadata=metadata)
            self._crash = None
        loaded_ms = int(400 * chance.lognormvariate(0.0, 0.5))
        yield loaded_ms
        device.say("webview_dom_content_loaded", metadata={"duration_ms": str(int(loaded_ms * 0.8))})
        device.say("webview_page_loaded", metadata={"duration_ms": str(loaded_ms)})
        if device.happens(device.scenario.noise.strain / 4):
            yield 30_000
            device.say("app_launch_timeout", metadata={"timeout_ms": "30000"})
            return
        ready_ms = int(500 * chance.lognormvariate(0.0, 0.6))
        yield ready_ms
        device.say("app_launch_ready", metadata={"duration_ms": str(loaded_ms + ready_ms)})

    def _use_app(self) -> Waits:
        device = self._device
        noise = device.scenario.noise
        usage_ms = int(min(40_000 * device.chance.lognormvariate(0.0, 0.8), 600_000))
        yield usage_ms // 2
        if device.profile.generation.reports_health:
            if device.happens(noise.web_error):
                action, metadata = device.chance.choice(_WEB_ERRORS)
                device.say(action, metadata=metadata)
            if device.happens(noise.strain):
                device.say(device.chance.choice(_STRAINS[device.profile.platform]))
            if device.happens(noise.strain / 4):
                device.say(device.chance.choice(_RARE))
        if device.happens(noise.reset) and not device.pending:
            old, device.current = device.current, "builtin"
            device.say("reset", old_version=old)
        yield usage_ms - usage_ms // 2

    def _draw_crash(self) -> tuple[str, dict[str, str]] | None:
        """Tell how the app crashed in this session, None if it did not; it is reported at the next launch."""
        device = self._device
        crashes = _CRASHES[device.profile.platform]
        if self._updater.crashes():
            return crashes[0]
        return device.chance.choice(crashes) if device.happens(device.scenario.noise.crash) else None

    def _desktop_session(self) -> Waits:
        """Start a desktop app, which says `set` at every launch."""
        device = self._device
        device.outbox.launch()
        self._updater.has_downloaded = False
        if device.pending:
            yield from self._updater.activate()
        else:
            device.say("set", extra={"bundle_id": f"bundle-{device.current}"})
        yield 1000
        device.say("app_moved_to_foreground")
        yield 1500
        if device.outbox.may_update:
            yield from self._updater.check()
        yield from self._use_app()
        device.say("app_moved_to_background")
        yield 3000
