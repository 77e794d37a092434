"""The command `capgo-exporter forget`."""

import asyncio
from collections.abc import Callable
from pathlib import Path
from typing import Final

import click

from exporter.journal.opening import FILE_NAME
from exporter.lineprotocol import clean, quote
from exporter.privacy import read_hash_key, stored_ids
from exporter.settings import Settings
from exporter.tools.influxdb import Influx, Kind, connected
from exporter.tools.keeper import journal_path, open_keeper
from exporter.tools.options import data_option, ending, influx_options, read_settings
from exporter.tools.problems import DataError, RemoteError, ToolError, UsageError

_ROUNDS: Final = 3
_CANNOT: Final = {
    Kind.V3: "InfluxDB 3.x deletes no points, only whole tables and databases; this device's points stay in it",
    Kind.UNKNOWN: "it does not say which version it is, so nothing is deleted there",
}
_NUMBERS_ONLY: Final = (
    "VictoriaMetrics keeps numbers only, so it has no device's id, and nothing there can be deleted by it"
)


@click.command("forget")
@click.argument("device_id")
@data_option
@influx_options
@ending
def forget(device_id: str, **options: str | None) -> None:
    """Delete what is stored of a device: in the journal, among the dead letters, and in InfluxDB 1.x and 2.x.

    It finds the id in upper and lower case, kept and hashed. It is safe while the exporter runs; events that the device
    sends afterwards are stored again. With several exporters, run it for each one's data directory. docs/privacy.md
    says what remains, and for how long.

    Exit codes: 0 done, 2 wrong settings, 4 the journal cannot be used, 5 something is left: InfluxDB or the exporter
    cannot be reached, refuses, or cannot delete.
    """
    if not device_id.strip():
        msg = "DEVICE_ID: is empty"
        raise UsageError(msg)
    try:
        device_id.encode()
    except UnicodeEncodeError:  # Python's stand-in for a byte that is no text
        msg = "DEVICE_ID: is not UTF-8, as every id is"
        raise UsageError(msg) from None
    settings = read_settings(**options)
    path = journal_path(settings.data_dir)
    # As they stand in points, which hold no control characters; an id too long for a field is not found.
    ids = tuple(dict.fromkeys(map(clean, _ids(settings, device_id.strip()))))
    asyncio.run(_forget(settings, path, ids))


def _ids(settings: Settings, device_id: str) -> tuple[str, ...]:
    configured = None if settings.hash_key is None else settings.hash_key.get_secret_value()
    try:
        return stored_ids(device_id, read_hash_key(settings.data_dir, configured))
    except OSError as error:
        msg = f"{error.filename}: {error.strerror}"
        raise DataError(msg) from error


async def _forget(settings: Settings, path: Path, ids: tuple[str, ...]) -> None:
    async with open_keeper(path.parent) as keeper:
        forgotten = await keeper.forget(tuple(map(quote, ids)))
        click.echo(
            f"journal: {forgotten.points} waiting points and {forgotten.dead_letter_points} dead letters deleted"
        )
        if forgotten.unreadable:
            _warn(f"{forgotten.unreadable} dead letters are damaged, and nobody can tell whose they are; discard them")
        # A change leaves the old bytes in empty pages of the file, and in the write-ahead log.
        try:
            await keeper.vacuum()
        except ToolError as error:
            _warn(f"{error}; until `capgo-exporter journal vacuum` is done, empty pages may hold what was deleted")
    for other in sorted(path.parent.glob(f"{FILE_NAME}.*")):
        _warn(f"{other}: an old journal that may hold the device, too; delete it if nobody needs it")
    if settings.influx_url is None:
        click.echo("InfluxDB: EXPORTER_INFLUX_URL is not set, so nothing is deleted there")
        return
    async with connected(settings) as influx:
        await _forget_in(influx, ids, lambda text: click.echo(f"InfluxDB: {text}"))


async def _forget_in(influx: Influx, ids: tuple[str, ...], tell: Callable[[str], None]) -> None:
    server = await influx.identify()
    if server.kind is Kind.VICTORIA:
        tell(_NUMBERS_ONLY)
        return
    if server.kind in _CANNOT:
        raise RemoteError(_CANNOT[server.kind])
    points = set(await influx.find(ids))
    found = len(points)
    for _ in range(_ROUNDS):
        await influx.delete(server.kind, list(points))
        points &= set(await influx.find(ids))  # New ones may come, from a device that still reports.
        if not points:
            tell(f"{found} points deleted")
            return
    msg = f"InfluxDB: {len(points)} of the device's points are still there after they were deleted"
    raise RemoteError(msg)


def _warn(text: str) -> None:
    click.echo(f"warning: {text}", err=True)
