"""Decompressing a body, within a bound."""

import gzip
import zlib
from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from exporter.bodies import BodyError, decompress

LIMIT = 10_000


def raw_deflate(data: bytes) -> bytes:
    """Compress without zlib's header, as some clients understand `deflate`."""
    compressor = zlib.compressobj(wbits=-15)
    return compressor.compress(data) + compressor.flush()


COMPRESSORS: dict[str, tuple[str, Callable[[bytes], bytes]]] = {
    "gzip": ("gzip", gzip.compress),
    "x-gzip": ("x-gzip", gzip.compress),
    "zlib": ("deflate", zlib.compress),
    "raw deflate": ("deflate", raw_deflate),
}
each_compressor = pytest.mark.parametrize(("encoding", "compress"), list(COMPRESSORS.values()), ids=list(COMPRESSORS))


@each_compressor
@given(data=st.binary(max_size=LIMIT))
def test_what_was_compressed_comes_back(encoding: str, compress: Callable[[bytes], bytes], data: bytes) -> None:
    """Both meanings of `deflate` are found in the wild; both are understood."""
    assert data == decompress(compress(data), encoding, LIMIT)


@each_compressor
def test_the_limit_is_on_the_decompressed_size(encoding: str, compress: Callable[[bytes], bytes]) -> None:
    """A body of exactly the limit passes, one byte more does not."""
    assert b"x" * LIMIT == decompress(compress(b"x" * LIMIT), encoding, LIMIT)
    with pytest.raises(BodyError) as caught:
        decompress(compress(b"x" * (LIMIT + 1)), encoding, LIMIT)
    assert (413, "too_large", "body_too_large") == (caught.value.status, caught.value.reason, caught.value.error)


def test_the_limit_is_on_all_members_together() -> None:
    """Several gzip members are one body."""
    member = gzip.compress(b"x" * (LIMIT // 2))
    assert b"x" * LIMIT == decompress(member * 2, "gzip", LIMIT)
    with pytest.raises(BodyError) as caught:
        decompress(member * 3, "gzip", LIMIT)
    assert 413 == caught.value.status


def test_a_million_empty_members_are_refused_at_once() -> None:
    """They would take minutes, because each copies what follows it."""
    with pytest.raises(BodyError, match="too many members") as caught:
        decompress(gzip.compress(b"") * 1_000_000, "gzip", LIMIT)
    assert 400 == caught.value.status


@each_compressor
@pytest.mark.parametrize(
    "damage",
    [
        lambda body: body[:-1],
        lambda body: body[: len(body) // 2],
        lambda body: body[:1],
        lambda body: b"\x00" + body,
    ],
    ids=["last byte", "half", "first byte only", "a byte in front"],
)
def test_a_cut_off_body_is_refused(
    encoding: str, compress: Callable[[bytes], bytes], damage: Callable[[bytes], bytes]
) -> None:
    """A body that is not whole is never taken for a shorter one."""
    with pytest.raises(BodyError) as caught:
        decompress(damage(compress(bytes(range(256)))), encoding, LIMIT)
    assert (400, "invalid_encoding", "invalid_content_encoding") == (
        caught.value.status,
        caught.value.reason,
        caught.value.error,
    )


@pytest.mark.parametrize("kind", ["gzip", "x-gzip", "zlib"])
@pytest.mark.parametrize("position", [-1, -4, -10])
def test_a_changed_body_is_refused(kind: str, position: int) -> None:
    """Where the encoding has a checksum, it is checked."""
    encoding, compress = COMPRESSORS[kind]
    body = bytearray(compress(bytes(range(256))))
    body[position] ^= 1
    with pytest.raises(BodyError) as caught:
        decompress(bytes(body), encoding, LIMIT)
    assert 400 == caught.value.status


@given(st.binary(), st.sampled_from(["gzip", "deflate"]))
def test_any_bytes_are_a_body_or_an_error(body: bytes, encoding: str) -> None:
    """Nothing but `BodyError` ever comes out."""
    try:
        assert LIMIT >= len(decompress(body, encoding, LIMIT))
    except BodyError as error:
        status = error.status
    else:
        status = 200
    assert status in {200, 400, 413}


def test_no_bytes_are_no_body() -> None:
    """An empty body stays empty, whatever it claims to be."""
    assert b"" == decompress(b"", "gzip", LIMIT)
