"""Where the exporter listens: with TLS, whose certificate may change, and on Unix sockets."""

import asyncio
import contextlib
import resource
import signal
import socket
import ssl
from pathlib import Path
from typing import Any

import aiohttp
import pytest

from exporter.tls import TlsListener
from tests.conftest import StartExporter
from tests.support.exporter import ExporterProcess
from tests.support.ports import wait_for
from tests.support.proxies import HOST, Certificate

EVENT = {"app_id": "com.example.shop", "platform": "ios", "action": "set", "version_name": "1.0.0", "device_id": "d"}


async def refused_start(exporter: ExporterProcess) -> tuple[int, list[str]]:
    """Start an exporter that cannot; returns its exit code and the lines that it printed besides its log."""
    exporter.spawn()
    code = await exporter.wait()
    await exporter.stop()
    return code, [str(line["raw"]) for line in exporter.logs() if "raw" in line]


# --- TLS --------------------------------------------------------------------------------------------------------------


def make_certificate(directory: Path) -> Certificate:
    """Make a certificate in a directory of its own."""
    directory.mkdir()
    return Certificate(directory)


def tls_settings(certificate: Certificate) -> dict[str, str]:
    """Return the settings for listening with a certificate."""
    return {
        "EXPORTER_TLS_CERTIFICATE": str(certificate.path),
        "EXPORTER_TLS_KEY": str(certificate.key_path),
        "EXPORTER_METRICS_LISTEN": "127.0.0.1:0",
    }


def metrics_url(exporter: ExporterProcess) -> str:
    """Return where the exporter shows metrics."""
    (line,) = exporter.events("listening")
    return f"{line['metrics_url']}/metrics"


def certificate_of(url: str) -> str:
    """Return the certificate that a server shows to a new connection, as PEM."""
    host, _, port = url.removeprefix("https://").partition(":")
    return ssl.get_server_certificate((host, int(port)))


@pytest.mark.server("openssl")
async def test_both_addresses_speak_tls(exporter_process: StartExporter, tmp_path: Path) -> None:
    """A client that trusts the certificate posts and reads; plain HTTP gets nothing."""
    certificate = make_certificate(tmp_path / "tls")
    exporter = await exporter_process(tls_settings(certificate))
    assert exporter.url.startswith("https://127.0.0.1:")
    async with aiohttp.ClientSession(connector=aiohttp.TCPConnector(ssl=certificate.trusted())) as session:
        async with session.post(f"{exporter.url}/stats", json=EVENT, server_hostname=HOST) as reply:
            assert (200, {"status": "ok"}) == (reply.status, await reply.json())
        async with session.get(metrics_url(exporter), server_hostname=HOST) as reply:
            assert "capgo_stats_events_total" in await reply.text()
        with pytest.raises(aiohttp.ClientConnectionError):
            await session.post(exporter.url.replace("https", "http") + "/stats", json=EVENT)
    assert 0 == await exporter.terminate()


@pytest.mark.server("openssl")
async def test_a_renewed_certificate_is_taken(exporter_process: StartExporter, tmp_path: Path) -> None:
    """When the files change, new connections get the new one; while they do not fit together, the old one."""
    certificate, renewed = make_certificate(tmp_path / "tls"), make_certificate(tmp_path / "renewed")
    exporter = await exporter_process(tls_settings(certificate))
    old, new = certificate.path.read_text(), renewed.path.read_text()
    assert old == await asyncio.to_thread(certificate_of, exporter.url)
    certificate.path.write_text(new)
    exporter.process.send_signal(signal.SIGHUP)
    await wait_for(
        lambda: exporter.events("the settings are wrong; the old ones stay"), message="the old key to be met"
    )
    assert old == await asyncio.to_thread(certificate_of, exporter.url)
    certificate.key_path.write_bytes(renewed.key_path.read_bytes())
    await wait_for(lambda: exporter.events("the settings were read anew"), "the new files to be read")
    assert new == await asyncio.to_thread(certificate_of, exporter.url)


class Asked(socket.socket):
    """A listener that counts how often it was asked for a connection."""

    times = 0

    def accept(self) -> tuple[socket.socket, Any]:
        """Count, and accept."""
        self.times += 1
        return super().accept()


async def test_a_connection_waits_for_a_file() -> None:
    """While no more files may be open, TLS connections wait and are asked for again; then they are taken."""
    with Asked() as listening, socket.socket() as client, contextlib.ExitStack() as files:
        listening.bind(("127.0.0.1", 0))
        listening.listen()
        listening.settimeout(0)
        soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
        resource.setrlimit(resource.RLIMIT_NOFILE, (min(soft, 256), hard))
        files.callback(resource.setrlimit, resource.RLIMIT_NOFILE, (soft, hard))
        taken: list[socket.socket] = []
        listener = TlsListener(listening, taken.append)
        files.callback(listener.close)
        with contextlib.ExitStack() as others:
            with contextlib.suppress(OSError):
                while True:
                    others.enter_context(socket.socket())
            client.connect(listening.getsockname())
            await wait_for(lambda: listening.times > 1, "a second attempt")
            assert [] == taken
        await wait_for(lambda: taken, "the connection to be taken")
        (server,) = taken
        assert client.getsockname() == server.getpeername()
        server.close()


@pytest.mark.server("openssl")
async def test_a_token_is_taken_back_while_the_certificate_is_wrong(
    exporter_process: StartExporter, tmp_path: Path
) -> None:
    """Who renews certificates badly can still lock a leaked token out."""
    certificate = make_certificate(tmp_path / "tls")
    trusted = certificate.trusted()
    token = tmp_path / "token"
    token.write_text("leaked\n", encoding="ascii")
    exporter = await exporter_process({**tls_settings(certificate), "EXPORTER_INGEST_TOKEN_FILE": str(token)})
    certificate.path.write_text("nonsense")
    token.write_text("secret\n", encoding="ascii")
    exporter.process.send_signal(signal.SIGHUP)
    await wait_for(
        lambda: exporter.events("the settings are wrong; the old ones stay"), message="the certificate to be met"
    )
    async with aiohttp.ClientSession(connector=aiohttp.TCPConnector(ssl=trusted)) as session:
        found = []
        for shown in ("leaked", "secret"):
            async with session.get(f"{exporter.url}/stats?token={shown}", server_hostname=HOST) as response:
                found.append(response.status)
    assert [401, 200] == found


@pytest.mark.server("openssl")
@pytest.mark.parametrize("what", ["missing", "nonsense", "another's key"])
async def test_a_wrong_certificate_stops_the_start(tmp_path: Path, what: str) -> None:
    """The exit code is that of wrong settings, and the message names both files and what is wrong."""
    certificate = make_certificate(tmp_path / "tls")
    if what == "missing":
        certificate.path.unlink()
    elif what == "nonsense":
        certificate.path.write_text("nonsense")
    else:
        certificate.key_path.write_bytes(make_certificate(tmp_path / "other").key_path.read_bytes())
    code, (line,) = await refused_start(ExporterProcess(tmp_path / "exporter", tls_settings(certificate)))
    assert 2 == code
    assert line.startswith(f"error: EXPORTER_TLS_CERTIFICATE, EXPORTER_TLS_KEY: {certificate.path}, ")


# --- Unix sockets -----------------------------------------------------------------------------------------------------


async def ask(path: Path, method: str, target: str, **options: Any) -> tuple[int, str]:
    """Send a request to a Unix socket."""
    async with (
        aiohttp.ClientSession(connector=aiohttp.UnixConnector(str(path))) as session,
        session.request(method, f"http://exporter{target}", **options) as reply,
    ):
        return reply.status, await reply.text()


async def test_both_addresses_may_be_unix_sockets(exporter_process: StartExporter, tmp_path: Path) -> None:
    """They serve as ever, and are removed in the end; a peer is a local proxy, whose X-Forwarded-For is believed."""
    stats, private = tmp_path / "stats.sock", tmp_path / "metrics.sock"
    exporter = await exporter_process(
        {"EXPORTER_METRICS_LISTEN": f"unix:{private}", "EXPORTER_MAX_CLIENT_EVENTS_PER_SECOND": "1"},
        listen=f"unix:{stats}",
    )
    assert f"unix:{stats}" == exporter.url
    clients = [{"X-Forwarded-For": address} for address in ("203.0.113.7", "203.0.113.7", "203.0.113.8")]
    replies = [await ask(stats, "POST", "/stats", json=[EVENT] * 1000, headers=each) for each in clients]
    assert [200, 503, 200] == [status for status, _ in replies]
    assert 404 == (await ask(stats, "GET", "/metrics"))[0]
    status, page = await ask(private, "GET", "/metrics")
    assert 200 == status
    assert 'action="set",version="1.0.0",environment="prod"} 2000' in page
    assert 0 == await exporter.terminate()
    assert [False, False] == [stats.exists(), private.exists()]


async def test_a_socket_of_a_killed_process_is_replaced(exporter_process: StartExporter, tmp_path: Path) -> None:
    """Its file is still there, and nobody listens."""
    path = tmp_path / "stats.sock"
    exporter = await exporter_process(listen=f"unix:{path}")
    await exporter.kill9()
    assert path.exists()
    await exporter.start()
    assert 200 == (await ask(path, "POST", "/stats", json=EVENT))[0]


async def test_a_socket_that_another_one_made_meanwhile_stays(exporter_process: StartExporter, tmp_path: Path) -> None:
    """An exporter that stops leaves the next one's socket alone: nobody could reach it any more."""
    path = tmp_path / "stats.sock"
    exporter = await exporter_process(listen=f"unix:{path}")
    path.rename(tmp_path / "old.sock")  # so that the number of its file is not given to the next one
    with socket.socket(socket.AF_UNIX) as other:
        other.bind(str(path))
        assert 0 == await exporter.terminate()
        assert path.exists()


@pytest.mark.parametrize("what", ["a listener", "a busy listener", "a file", "no directory"])
async def test_a_path_that_cannot_be_listened_at(tmp_path: Path, what: str) -> None:
    """What somebody else uses stays as it is, and the exit code is that of an address that is taken."""
    path = tmp_path / "stats.sock"
    if what == "a file":
        path.write_text("mine")
    elif what == "no directory":
        path = tmp_path / "missing" / "stats.sock"
    with socket.socket(socket.AF_UNIX) as other, contextlib.ExitStack() as stack:
        if "listener" in what:
            other.bind(str(path))
            other.listen(0)
        if what == "a busy listener":
            stack.enter_context(socket.socket(socket.AF_UNIX)).connect(str(path))
        code, (line,) = await refused_start(ExporterProcess(tmp_path / "exporter", listen=f"unix:{path}"))
    assert 3 == code
    assert line.startswith(f"error: EXPORTER_LISTEN: {path}: ")
    assert (what != "no directory") == path.exists()
