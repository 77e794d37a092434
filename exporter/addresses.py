"""Whose request it is: the client's address, also behind proxies. It is kept nowhere; only a hash of it, in memory."""

from collections.abc import Iterable
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network, ip_address, ip_network
from typing import Final

from aiohttp import web

FORWARDED: Final = "X-Forwarded-For"
_HOUSEHOLD_BYTES: Final = 8
"""An IPv6 client has a /64 of addresses at least, and may change within it as it likes."""

_MAPPED_BITS: Final = 96
"""So many bits stand before an IPv4 address in IPv6's notation (RFC 4291, section 2.5.5.2)."""

_Address = IPv4Address | IPv6Address


class Clients:
    """Tells the client of a request by the connection, or by what trusted proxies say of it.

    A proxy adds the address that it saw to the right end of `X-Forwarded-For`; what stands further to the left may be
    anybody's invention. So the client is the rightmost hop that is no trusted proxy. A peer on a Unix socket is a
    process of this machine, and is trusted.
    """

    def __init__(self, trusted: Iterable[str] = ()) -> None:
        """Take the networks of the trusted proxies, as CIDR."""
        networks = [_unmapped(ip_network(text)) for text in trusted]
        self._v4 = [each for each in networks if isinstance(each, IPv4Network)]
        self._v6 = [each for each in networks if isinstance(each, IPv6Network)]

    def key(self, request: web.Request) -> bytes:
        """Give what all requests of a client have in common: the address, of IPv6 its /64; empty if nobody knows it."""
        address = _read(request.remote or "")
        if address is not None and not self._trusts(address):
            return _key(address)
        for hop in reversed(",".join(request.headers.getall(FORWARDED, [])).split(",")):
            behind = _read(hop)
            if behind is None:
                break  # what no proxy writes; whoever wrote it, the one before is the last that is known
            address = behind
            if not self._trusts(address):
                break
        return b"" if address is None else _key(address)

    def trusts_peer(self, request: web.Request) -> bool:
        """Tell whether a request comes from a trusted proxy."""
        address = _read(request.remote or "")
        return address is None or self._trusts(address)

    def _trusts(self, address: _Address) -> bool:
        if isinstance(address, IPv4Address):
            return any(address in network for network in self._v4)
        return any(address in network for network in self._v6)


def _read(hop: str) -> _Address | None:
    """Read an address, also with a port or brackets; an IPv4 address in IPv6's notation is an IPv4 address."""
    text = hop.strip().strip('"')
    if text.startswith("["):
        text = text[1:].partition("]")[0]
    elif text.count(":") == 1:
        text = text.partition(":")[0]
    try:
        address = ip_address(text)
    except ValueError:
        return None
    return (address.ipv4_mapped or address) if isinstance(address, IPv6Address) else address


def _unmapped(network: IPv4Network | IPv6Network) -> IPv4Network | IPv6Network:
    """Give a network of IPv4 addresses in IPv6's notation as what it is; addresses are read in the same way."""
    if isinstance(network, IPv4Network) or network.prefixlen < _MAPPED_BITS:
        return network
    mapped = network.network_address.ipv4_mapped
    return network if mapped is None else IPv4Network((mapped, network.prefixlen - _MAPPED_BITS))


def _key(address: _Address) -> bytes:
    return address.packed[:_HOUSEHOLD_BYTES] if isinstance(address, IPv6Address) else address.packed
