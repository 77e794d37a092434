"""The expressions that more than one dashboard asks with."""

from typing import Final

from grafana.generate.metrics import select

RANGE: Final = "$__range"
"""The window of totals: the dashboard's whole time range."""

RATE: Final = "$__rate_interval"

ALERTS: Final = 'ALERTS{alertstate="firing", alertname=~"Capgo.+", app_id=~"|$app"}'
"""Our alerts that fire for the chosen apps, and those about the exporter, which have no app."""

APP_ALERTS: Final = 'ALERTS{alertstate="firing", alertname=~"Capgo.+", app_id=~"$app"}'
EXPORTER_ALERTS: Final = 'ALERTS{alertstate="firing", alertname=~"Capgo.+", app_id=""}'

DEVICES_SUMMED: Final = "capgo:devices_summed:const"
RULES_LOADED: Final = "capgo:threshold_rollbacks_min:const"
"""Is there if Prometheus has loaded `prometheus/rules`."""

_FAILURES: Final = "capgo_update_failures_total"
_Z: Final = 1.96  # of a 95 % interval
_Z2: Final = 3.8416


def total(expression: str, *by: str) -> str:
    """Add up by some labels, or into one number."""
    return f"sum by ({', '.join(by)}) ({expression})" if by else f"sum({expression})"


def highest(expression: str, *by: str) -> str:
    """Take the highest of the replicas."""
    return f"max by ({', '.join(by)}) ({expression})" if by else f"max({expression})"


def increase(selector: str, window: str = RANGE) -> str:
    """Count what a counter rose by in a window."""
    return f"increase({selector}[{window}])"


def rate(selector: str) -> str:
    """Give a counter's rise a second."""
    return f"rate({selector}[{RATE}])"


def per_step(selector: str, *by: str) -> str:
    """Count events in each interval of a graph: no event is lost between two intervals, and none is in both."""
    return f"{total(rate(selector), *by)} * $__interval_ms / 1000"


def quantile(share: float, histogram: str, *by: str, window: str = RATE) -> str:
    """Give the time within which a share of what a histogram saw was done.

    Args:
        share: 0 to 1.
        histogram: the selector of the buckets.
        by: labels to tell apart.
        window: over which the quantile is taken.
    """
    seen = rate(histogram) if window == RATE else increase(histogram, window)
    return f"histogram_quantile({share}, {total(seen, 'le', *by)})"


def installs(*by: str, window: str = RANGE, without: tuple[str, ...] = ()) -> str:
    """Count the bundles that were activated."""
    return total(increase(select("capgo_installs_total", without=without), window), *by)


def fails(*by: str, window: str = RANGE, without: tuple[str, ...] = ()) -> str:
    """Count the updates that failed."""
    return total(increase(select(_FAILURES, without=without), window), *by)


def attempts(*by: str, window: str = RANGE, without: tuple[str, ...] = ()) -> str:
    """Count the updates that were tried: those that were activated and those that failed."""
    return f"({installs(*by, window=window, without=without)} + {fails(*by, window=window, without=without)})"


def rollbacks(*by: str, window: str = RANGE, without: tuple[str, ...] = ()) -> str:
    """Count the roll-backs: `update_fail`, and electron's `set_fail`, which means the same there."""
    mobile, electron = rollback_selectors(without=without)
    return total(f"{increase(mobile, window)} or {increase(electron, window)}", *by)


def rollbacks_per_step(*by: str) -> str:
    """Count the roll-backs in each interval of a graph."""
    mobile, electron = rollback_selectors()
    return f"{total(f'{rate(mobile)} or {rate(electron)}', *by)} * $__interval_ms / 1000"


def rollback_selectors(*, without: tuple[str, ...] = ()) -> tuple[str, str]:
    """Give the selectors of what is a roll-back on phones, and on electron."""
    return (
        select(_FAILURES, 'reason="update_fail"', without=without),
        select(_FAILURES, 'platform="electron"', 'reason="set_fail"', without=without),
    )


def share(part: str, whole: str, matching: str = "") -> str:
    """Divide, where there is something to divide by.

    Args:
        part: the numerator.
        whole: the denominator.
        matching: how the two find each other, if they have different labels.
    """
    return f"{part} / {matching}({whole} > 0)"


def fail_ratio(*by: str, window: str = RANGE, without: tuple[str, ...] = ()) -> str:
    """Give the share of the updates that failed."""
    return share(fails(*by, window=window, without=without), attempts(*by, window=window, without=without))


def wilson(failed: str, installed: str) -> str:
    """Give the lower end of the 95 % interval of the share that failed: few updates that failed prove little.

    It is Wilson's bound `(p + z²/2n - z√((p(1-p) + z²/4n)/n)) / (1 + z²/n)`, numerator and denominator times `2n`,
    so that each number stands in it as rarely as can be.
    """
    attempted = f"({failed} + {installed})"
    root = f"sqrt({_Z2} + 4 * {failed} * {installed} / ({attempted} > 0))"
    return f"(2 * {failed} + {_Z2} - {_Z} * {root}) / (2 * ({attempted} + {_Z2}))"


def wilson_of_fails(*by: str, window: str = RANGE, without: tuple[str, ...] = ()) -> str:
    """Give the lower bound of the share of updates that failed."""
    return wilson(fails(*by, window=window, without=without), installs(*by, window=window, without=without))


def joined(expression: str, *by: str) -> str:
    """Join the replicas' distinct devices: the highest, or the sum if the rules say that they share none."""
    return f"({total(expression, *by)} and on () {DEVICES_SUMMED} == 1 or {highest(expression, *by)})"


def newest(rank: int) -> str:
    """Give 1 for the version of each app that has a rank: 1 is the newest, 2 the one before."""
    matchers = ('order="first_seen"', f'rank="{rank}"')
    return highest(select("capgo_version_rank_info", *matchers, without=("version",)), "app_id", "version")


def of_rank(expression: str, rank: int) -> str:
    """Keep what an expression says, by app and version, about the version of a rank."""
    return f"{expression} * on (app_id, version) {newest(rank)}"


def devices(window: str, *by: str) -> str:
    """Count distinct devices; platforms may be added up, as a device has one, replicas and windows may not."""
    return total(joined(select("capgo_devices", f'window="{window}"'), "app_id", "platform"), *by)


def firing(*by: str, alerts: str = ALERTS) -> str:
    """Count our alerts that fire."""
    return f"count by ({', '.join(by)}) ({alerts})" if by else f"count({alerts})"


def firing_or_none() -> str:
    """Count our alerts that fire: 0 if none does, nothing if Prometheus does not know our rules."""
    return f"{firing()} or 0 * count({RULES_LOADED})"
