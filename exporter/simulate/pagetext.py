"""Small families as OpenMetrics, several times as fast as prometheus-client writes them: a backfill needs thousands."""

from typing import Final

from prometheus_client import CollectorRegistry
from prometheus_client.samples import Sample
from prometheus_client.utils import floatToGoString

EOF: Final = "# EOF\n"


def openmetrics(registry: CollectorRegistry) -> str:
    """Write a registry without exemplars and times, as `prometheus_client.openmetrics` does, without the end."""
    parts: list[str] = []
    for metric in registry.collect():
        parts.append(f"# HELP {metric.name} {_escape(metric.documentation)}\n# TYPE {metric.name} {metric.type}\n")
        parts += [f"{_name(sample)} {floatToGoString(sample.value)}\n" for sample in metric.samples]
    return "".join(parts)


def _name(sample: Sample) -> str:
    if not sample.labels:
        return sample.name
    pairs = ",".join([f'{label}="{_escape(value)}"' for label, value in sorted(sample.labels.items())])
    return f"{sample.name}{{{pairs}}}"


def _escape(text: str) -> str:
    if "\\" in text or "\n" in text or '"' in text:
        return text.replace("\\", r"\\").replace("\n", r"\n").replace('"', r"\"")
    return text
