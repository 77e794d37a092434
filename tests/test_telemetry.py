"""What the exporter tells about itself: names, help, values from the start, no secrets; and its document."""

import asyncio
import re
import subprocess
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

import pytest
from prometheus_client.core import Metric
from prometheus_client.parser import text_string_to_metric_families
from structlog.testing import capture_logs

from exporter import telemetry
from exporter.labels import Labels
from tests.support import everything
from tests.support.inprocess import ManualClock, Running, running
from tests.support.tables import table_rows

DOCUMENT = Path(__file__).parents[1] / "docs" / "metrics.md"
README = Path(__file__).parents[1] / "README.md"
PREFIX = "capgo_exporter_"
EVENTS = "capgo_stats_events_total"
# Units that are no base units, as parts of a name.
OTHER_UNITS = {
    "ms",
    "us",
    "ns",
    "millis",
    "milliseconds",
    "minutes",
    "hours",
    "days",
    "kb",
    "mb",
    "kib",
    "mib",
    "percent",
}
# What a name says that must come with a unit.
UNITS = {"duration": "seconds", "interval": "seconds", "gap": "seconds", "window": "seconds", "timestamp": "seconds"}
# Families that are named after what one of their labels tells apart.
NAMED_AFTER_A_LABEL = {
    "capgo_exporter_label_overflow_total": {"label"},
    "capgo_channel_updates_total": {"channel"},
    "capgo_download_kind_duration_seconds": {"kind"},
    "capgo_version_devices": {"version"},
    "capgo_version_affected_devices": {"version"},
    "capgo_version_issue_free_ratio": {"version"},
    "capgo_version_adoption_ratio": {"version"},
    "capgo_version_first_seen_timestamp_seconds": {"version"},
    "capgo_version_rank_info": {"version", "rank"},
}
EVENT = {"app_id": "com.example.shop", "platform": "ios", "action": "set", "version_name": "1.0.0", "device_id": "d"}
SECRETS = {
    "ingest_token": "secret-of-the-devices",
    "metrics_token": "secret-of-prometheus",
    "hash_key": "secret-of-the-hashes",
    "influx_token": "secret-of-influxdb",
}


class Documented(NamedTuple):
    """A row of the table of metrics."""

    name: str
    kind: str
    labels: str
    meaning: str


def families(page: str) -> dict[str, Metric]:
    """Index the families of a page by the name that a query uses, those of the process left out."""
    parsed = [family for family in text_string_to_metric_families(page) if not family.name.startswith("process_")]
    return {f"{family.name}_total" if family.type == "counter" else family.name: family for family in parsed}


def label_names(family: Metric) -> list[str]:
    """Return the label names of a family, without the bounds of buckets."""
    return [name for name in family.samples[0].labels if name != "le"]


async def page_of(exporter: Running) -> dict[str, Metric]:
    """Return the families that a person sees."""
    return families(await exporter.metrics())


# --- names ------------------------------------------------------------------------------------------------------------


async def full_page() -> dict[str, Metric]:
    """Return the families of an exporter of which each has a sample."""
    clock = ManualClock()
    async with running(everything.SETTINGS, clock.clock) as exporter:
        await everything.fill(exporter, clock)
        return await page_of(exporter)


async def test_names_follow_the_conventions() -> None:
    """Every name has our prefix, `_total` if and only if it counts, base units, and no label's name in it."""
    found = await full_page()
    assert EVENTS in found
    for name, family in found.items():
        parts = set(name.split("_"))
        assert name.startswith("capgo_"), name
        assert (family.type == "counter") == name.endswith("_total"), name
        assert set() == parts & OTHER_UNITS, name
        for word, unit in UNITS.items():
            assert word not in parts or name.endswith(f"_{unit}"), name
        # `label` in capgo_exporter_label_overflow_total is no value of that label, nor `kind` and `channel` of theirs.
        named = {label for label in label_names(family) if f"_{label}_" in f"{name}_"}
        assert NAMED_AFTER_A_LABEL.get(name, set()) == named, name


async def test_every_metric_has_help() -> None:
    """Every family says what it is, in a sentence."""
    async with running() as exporter:
        found = await page_of(exporter)
    assert {} == {
        name: each.documentation for name, each in found.items() if not re.match(r"\S.{9,}\.$", each.documentation)
    }


async def test_process_metrics_are_there() -> None:
    """The page has the process's own metrics, from the same registry."""
    async with running() as exporter:
        page = await exporter.metrics()
    for name in ("process_cpu_seconds_total", "process_resident_memory_bytes", "process_open_fds"):
        assert f"\n{name} " in page


# --- values from the start --------------------------------------------------------------------------------------------


def own_series(found: Mapping[str, Metric]) -> dict[tuple[str, ...], float]:
    """Return the values of all series but those of the event counter, by name and labels."""
    samples = [sample for name, family in found.items() if name.startswith(PREFIX) for sample in family.samples]
    return {(each.name, *each.labels.values()): each.value for each in samples}


async def test_known_label_values_are_born_at_0() -> None:
    """At the first scrape every series whose labels are known is there, at 0, so that its first increase is seen."""
    async with running() as exporter:
        series = own_series(await page_of(exporter))
    expected = {
        *(("capgo_exporter_events_total", *pair) for pair in telemetry.EVENT_OUTCOMES),
        *(("capgo_exporter_bodies_rejected_total", reason) for reason in telemetry.BODY_PROBLEMS),
        *(
            ("capgo_exporter_label_overflow_total", label)
            for label in ("app_id", "action", "version", "channel", "series")
        ),
        *(("capgo_exporter_derived_skipped_total", reason) for reason in telemetry.SKIP_REASONS),
        *(("capgo_exporter_clock_corrected_total", direction) for direction in ("past", "future")),
        *(("capgo_exporter_delivery_retries_total", reason) for reason in telemetry.DELIVERY_FAILURES),
        *(("capgo_exporter_delivery_failing", reason) for reason in telemetry.DELIVERY_FAILURES),
        *(
            ("capgo_exporter_http_requests_total", *reversed((handler, str(code))))
            for handler, codes in telemetry.REPLIES.items()
            for code in codes
        ),
        *(("capgo_exporter_http_request_duration_seconds_count", handler) for handler in telemetry.REPLIES),
        *(("capgo_exporter_rejected_points_total", reason) for reason in ("beyond_retention", "refused", "too_large")),
        *(("capgo_exporter_delivery_requests_total", status) for status in ("204", "network", "timeout")),
    }
    assert dict.fromkeys(expected, 0.0) == {key: value for key, value in series.items() if key in expected}


async def test_no_series_of_its_own_appears_later(samples: Mapping[str, bytes]) -> None:
    """Whatever the exporter is asked and sent, no series about itself appears that was not there from the start."""
    async with running({"max_apps": 1, "max_versions_per_app": 1, "max_unknown_actions": 0}) as exporter:
        before = own_series(await page_of(exporter))
        for body in samples.values():
            await exporter.post(body)
        for bad in (b"not JSON", b'"text"', b"[1, {}]", b'{"action": "set"}', b'{"app_id": "a"}'):
            await exporter.post(bad)
        await exporter.post([{**EVENT, "action": "new", "timestamp": stamp} for stamp in (1, 1, 1 << 50)])
        await exporter.post(b"x", headers={"Content-Encoding": "gzip"})
        await exporter.post(b"x", headers={"Content-Encoding": "br"})
        for path in ("/healthz", "/readyz", "/", "/no"):
            await exporter.request("GET", path)
        await exporter.request("PUT", "/stats")
        await exporter.metrics(scraper=True)
        after = own_series(await page_of(exporter))
    assert before.keys() == after.keys()
    assert before != after


# --- secrets ----------------------------------------------------------------------------------------------------------


async def test_no_secret_is_shown() -> None:
    """No secret stands on the page, in the answers of the other endpoints, or in the log."""
    settings = {**SECRETS, "influx_url": "http://127.0.0.1:9", "influx_org": "o", "shutdown_timeout": "1s"}
    bearer = {"Authorization": f"Bearer {SECRETS['metrics_token']}"}
    with capture_logs() as logs:
        async with running(settings) as exporter:
            assert (await exporter.post(EVENT, path=f"/stats/{SECRETS['ingest_token']}")).status == 200
            assert (await exporter.post(EVENT, path="/stats/wrong")).status == 401
            replies = [
                await exporter.request("GET", path, headers={**bearer, "Accept": accept})
                for path in ("/metrics", "/healthz", "/readyz", "/")
                for accept in ("*/*", "application/openmetrics-text")
            ]
    assert {200} == {reply.status for reply in replies}
    shown = "\n".join([*(str(reply.headers) + reply.body.decode() for reply in replies), *map(str, logs)])
    assert "takes no points" in shown
    assert [] == [name for name, secret in SECRETS.items() if secret in shown]


# --- the document -----------------------------------------------------------------------------------------------------


async def test_table_of_metrics_equals_the_code() -> None:
    """The table in docs/metrics.md has every metric with its type, labels and help, in the order of the page."""
    found = await full_page()
    ordered = sorted(found, key=lambda name: (name != EVENTS, name.startswith(PREFIX)))
    expected = [
        Documented(
            f"`{name}`",
            found[name].type,
            ", ".join(f"`{label}`" for label in label_names(found[name])),
            found[name].documentation,
        )
        for name in ordered
    ]
    assert expected == [Documented(*row) for row in table_rows(DOCUMENT, "All metrics")]
    assert list(Labels._fields) == label_names(found[EVENTS])


def queries() -> list[str]:
    """Return the PromQL examples of the document and of the README."""
    examples = re.findall(r"^```promql\n(.*?)^```$", DOCUMENT.read_text(encoding="utf-8"), re.MULTILINE | re.DOTALL)
    return examples + readme_queries()


def readme_queries() -> list[str]:
    """Return the PromQL examples of the README."""
    return [row[1].strip("`") for row in table_rows(README, "Questions it answers")]


async def test_every_figure_has_an_example() -> None:
    """Each derived metric stands in a query of the document, and in one of the README."""
    figures = {name for name in await full_page() if not name.startswith(PREFIX) and name != EVENTS}
    assert len(figures) >= 20
    for examples in (queries()[: -len(readme_queries())], readme_queries()):
        assert set() == {name for name in figures if not any(name in query for query in examples)}


def test_queries_use_metrics_that_exist() -> None:
    """Every metric that an example names is in the table, or is a part of a histogram there."""
    documented = {row[0].strip("`") for row in table_rows(DOCUMENT, "All metrics")}
    named = {name for query in queries() for name in re.findall(r"\bcapgo_\w+", query)}
    assert len(named) >= 10
    assert set() == {name for name in named if re.sub(r"_(bucket|sum|count)$", "", name) not in documented} - documented


@pytest.mark.server("promtool")
async def test_queries_are_valid(tmp_path: Path) -> None:
    """Prometheus's own parser takes every example."""
    examples = queries()
    rules = "".join(
        f"  - record: example:{number}\n    expr: |\n" + "".join(f"      {line}\n" for line in query.splitlines())
        for number, query in enumerate(examples)
    )
    path = tmp_path / "rules.yml"
    path.write_text(f"groups:\n- name: examples\n  rules:\n{rules}", encoding="utf-8")
    promtool = await asyncio.to_thread(
        subprocess.run, ["promtool", "check", "rules", str(path)], capture_output=True, text=True, check=False
    )
    assert (0, "") == (promtool.returncode, promtool.stderr), promtool
    assert f"{len(examples)} rules found" in promtool.stdout


# --- reading tables ---------------------------------------------------------------------------------------------------


def test_table_rows_are_those_under_the_heading(tmp_path: Path) -> None:
    """The first table under the heading is read: cells are trimmed, escaped bars kept, its head and code left out."""
    path = tmp_path / "a.md"
    path.write_text(
        "# A\n\n| x |\n|---|\n| 0 |\n\n## B\n\ntext\n```\n# no heading\n| no | table |\n```\n"
        "| x | y |\n|---|---|\n| 1 | `a\\|b` |\n|2||\n\n| z |\n|---|\n| 3 |\n## C\n",
        encoding="utf-8",
    )
    assert [["1", "`a|b`"], ["2", ""]] == table_rows(path, "B")


@pytest.mark.parametrize(("heading", "message"), [("C", "no table under 'C'"), ("D", "no heading 'D'")])
def test_a_missing_table_is_an_error(tmp_path: Path, heading: str, message: str) -> None:
    """A heading or a table that is not there does not pass for an empty table."""
    path = tmp_path / "a.md"
    path.write_text("# C\n\ntext\n\n# E\n\n| x |\n|---|\n| 1 |\n", encoding="utf-8")
    with pytest.raises(LookupError, match=message):
        table_rows(path, heading)


@pytest.mark.parametrize(("settings", "value"), [({}, 0), ({"influx_url": "http://127.0.0.1:9"}, 1)])
async def test_whether_points_go_anywhere_is_told(settings: Mapping[str, str], value: int) -> None:
    """Alerts about a full journal have to know whether it is full by design."""
    async with running(dict(settings)) as server:
        assert value == await server.sample("capgo_exporter_delivery_configured")
