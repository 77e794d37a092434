"""Downloads: which steps each platform reports, and how downloads fail."""

from random import Random
from typing import Final, NamedTuple

from exporter.simulate.clients import Profile, Shape

FILE: Final = "assets/chunk-7f3a.js"


class Step(NamedTuple):
    """A step of a download.

    Attributes:
        at: when it comes, as a share of the whole time.
        action: what is reported.
        by_worker: whether Android's download worker reports it, on its own.
    """

    at: float
    action: str
    by_worker: bool = False

    @property
    def is_arrival(self) -> bool:
        """Whether everything has arrived by then, and only has to be unpacked."""
        return self.action in {"download_zip_complete", "download_manifest_complete"}


def steps(profile: Profile, *, is_first: bool) -> list[Step]:
    """Give the steps of a download that succeeds.

    Args:
        profile: of the device.
        is_first: whether the app has downloaded nothing since it started; Android reports rising steps only then.
    """
    kind = "manifest" if profile.by_manifest else "zip"
    if profile.platform == "electron":
        return [*_rising(10, 90), Step(1.0, "download_complete")]
    if profile.platform == "ios":
        return _ios(kind) if profile.generation.shape is not Shape.EARLY else _ios("")
    rising = _rising(10, 70 if profile.by_manifest else 90) if is_first else []
    if profile.generation.shape is Shape.EARLY:
        return [*rising, Step(1.0, "download_complete")]
    return [
        Step(0.0, f"download_{kind}_start", by_worker=True),
        *rising,
        Step(0.97, f"download_{kind}_complete", by_worker=True),
        Step(1.0, "download_complete"),
    ]


def _rising(first: int, last: int) -> list[Step]:
    return [Step(percent / 105, f"download_{percent}") for percent in range(first, last + 1, 10)]


def _ios(kind: str) -> list[Step]:
    """Give iOS's steps: of a zip only a few, of a manifest some twice."""
    percents = (70, 80, 90) if kind != "manifest" else (10, 20, 20, 30, 40, 40, 50, 60, 60, 70)
    reached = [Step(0.1 + 0.8 * index / len(percents), f"download_{percent}") for index, percent in enumerate(percents)]
    begin = [Step(0.0, f"download_{kind}_start")] if kind else []
    end = [Step(0.96, f"download_{kind}_complete")] if kind else []
    return [*begin, Step(0.005, "download_0"), *reached, *end, Step(1.0, "download_complete")]


class FailureEvent(NamedTuple):
    """One of the events by which one failure is reported.

    Attributes:
        action: the reason.
        by_worker: whether Android's download worker reports it.
        file: the file it is about; empty: none.
    """

    action: str
    by_worker: bool = False
    file: str = ""


def _of_file(action: str) -> tuple[FailureEvent, ...]:
    return (
        FailureEvent(action, by_worker=True, file=FILE),
        FailureEvent(action, by_worker=True, file=f"{FILE}.map"),
        FailureEvent("download_fail"),
    )


_NETWORK: Final = (FailureEvent("download_fail"),)
_CHECKSUM: Final = (FailureEvent("checksum_fail"), FailureEvent("download_fail"))
_ANDROID_CHECKSUM: Final = (*_CHECKSUM, FailureEvent("finish_download_fail"))
_UNZIP: Final = (FailureEvent("unzip_fail"), FailureEvent("download_fail"))
_DECRYPT: Final = (FailureEvent("decrypt_fail"), FailureEvent("download_fail"))
_DISK: Final = (FailureEvent("insufficient_disk_space"), FailureEvent("download_fail"))
_MEMORY: Final = (FailureEvent("low_mem_fail"), FailureEvent("download_fail"))
_REQUIRED: Final = (FailureEvent("checksum_required"), FailureEvent("download_fail"))

# The events of one failure stand in the order in which they are sent, which begins with the most specific reason.
_ANY: Final = (_NETWORK, _NETWORK, _NETWORK, _NETWORK)
_FAILURES: Final = {
    "android zip": (*_ANY, _ANDROID_CHECKSUM, _ANDROID_CHECKSUM, _UNZIP, _DISK, _MEMORY, _DECRYPT, _REQUIRED),
    "android manifest": (
        *(*_ANY, _of_file("download_manifest_file_fail"), _of_file("download_manifest_file_fail")),
        *(_of_file("download_manifest_checksum_fail"), _of_file("download_manifest_brotli_fail"), _DISK, _REQUIRED),
    ),
    "ios zip": (*_ANY, _CHECKSUM, _CHECKSUM, _UNZIP, _DISK, _DECRYPT),
    "ios manifest": (
        *(*_ANY, _of_file("download_manifest_file_fail"), _of_file("download_manifest_checksum_fail")),
        *(_of_file("manifest_path_fail"), _DISK),
    ),
    "electron": (*_ANY, _CHECKSUM, _UNZIP),
    "early": (_NETWORK, _UNZIP),
}


def failure(profile: Profile, chance: Random) -> tuple[FailureEvent, ...]:
    """Choose how a download fails: one failure, reported by one to three events."""
    if profile.generation.shape is Shape.EARLY:
        kind = "early"
    elif profile.platform == "electron":
        kind = "electron"
    else:
        kind = f"{profile.platform} {'manifest' if profile.by_manifest else 'zip'}"
    return chance.choice(_FAILURES[kind])
