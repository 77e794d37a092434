"""Download progress, second half: how long downloads take, as one archive or file by file."""

from typing import Final

from grafana_foundation_sdk.models.dashboard import Panel

from grafana.generate import promql, thresholds
from grafana.generate.metrics import select
from grafana.generate.panels import About, Bad, bars, graph, heat
from grafana.generate.targets import Prom

PROD: Final = "Production only, whatever the environment above."

_DURATION: Final = "capgo_download_duration_seconds_bucket"
_KIND_DURATION: Final = "capgo_download_kind_duration_seconds"
_EVENTS: Final = "capgo_stats_events_total"


def durations() -> list[Panel]:
    """Show how long downloads take."""
    percentiles = [
        Prom(promql.quantile(share, select(_DURATION)), f"{name} percentile")
        for share, name in ((0.5, "50th"), (0.9, "90th"), (0.99, "99th"))
    ]
    return [
        graph(
            About(
                "Time of a download",
                f"Half, nine tenths, and 99 of 100 of the completed downloads took less. {PROD}",
                "a line above the dashed one, or all three that rise together: the server, or the bundle's size.",
            ),
            "s",
            percentiles,
            bad=Bad(thresholds.DOWNLOAD_SECONDS),
        ),
        heat(
            About(
                "Times of downloads",
                f"Completed downloads by the time they took; the darker, the more. {PROD}",
                "a second band above the usual one: some devices, or one region, are slow.",
            ),
            "s",
            Prom(promql.per_step(select(_DURATION), "le"), "{{le}}"),
        ),
        graph(
            About(
                "90th percentile by version",
                f"Nine of ten downloads of a version took less, over an hour. {PROD}",
                "the newest version's line well above the others: its bundle has grown.",
            ),
            "s",
            [
                Prom(
                    promql.quantile(0.9, select(_DURATION), "app_id", "version", window="1h"),
                    "{{app_id}} {{version}}",
                )
            ],
        ),
        graph(
            About(
                "90th percentile by platform",
                f"Nine of ten downloads on a platform took less, over an hour. {PROD}",
                "one platform's line that leaves the others.",
            ),
            "s",
            [Prom(promql.quantile(0.9, select(_DURATION), "platform", window="1h"), "{{platform}}")],
        ),
    ]


def kinds() -> list[Panel]:
    """Compare archives with manifests."""
    return [
        bars(
            About(
                "Zip and manifest",
                f"Completed downloads in each interval, as one archive or file by file. {PROD}",
                "one kind that stops, where both are in use.",
            ),
            "short",
            [Prom(promql.per_step(select(f"{_KIND_DURATION}_count"), "kind"), "{{kind}}")],
        ),
        graph(
            About(
                "Time by kind",
                f"Half, and nine tenths, of the completed downloads of each kind took less, over an hour. {PROD}",
                "manifests slower than archives: too many small files, or no HTTP/2.",
            ),
            "s",
            [
                Prom(promql.quantile(share, select(f"{_KIND_DURATION}_bucket"), "kind", window="1h"), legend)
                for share, legend in ((0.5, "{{kind}}, 50th percentile"), (0.9, "{{kind}}, 90th percentile"))
            ],
        ),
        graph(
            About(
                "Completed of those started, by kind",
                "Events that say a download of a kind was completed, as a share of those that say it began, in the "
                "hour before.",
                "one kind's line below the other's: its downloads break off.",
            ),
            "percentunit",
            [_completion("zip"), _completion("manifest")],
            width=24,
        ),
    ]


def _completion(kind: str) -> Prom:
    complete, start = (
        promql.total(promql.increase(select(_EVENTS, f'action="download_{kind}_{end}"'), "1h"))
        for end in ("complete", "start")
    )
    return Prom(promql.share(complete, start), kind)
