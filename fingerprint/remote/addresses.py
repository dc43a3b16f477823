"""Which addresses may be connected to: public ones, unless the user allows others.

A link of a stranger, or a redirect of a stranger's server, could otherwise make this machine ask its own services, or
those of its network: a cloud's metadata service at 169.254.169.254 hands out credentials.
"""

from __future__ import annotations

import ipaddress
from typing import Final

Address = ipaddress.IPv4Address | ipaddress.IPv6Address

_NAT64: Final = (ipaddress.IPv6Network("64:ff9b::/96"), ipaddress.IPv6Network("64:ff9b:1::/48"))


def is_public(text: str) -> bool:
    """Whether an address, as ``getaddrinfo`` writes it, is one of the public Internet.

    IPv6 addresses that stand for an IPv4 address are judged by both.
    """
    try:
        address = ipaddress.ip_address(text.partition("%")[0])
    except ValueError:
        return False
    return all(one.is_global and not one.is_multicast and not one.is_reserved for one in _meant(address))


def _meant(address: Address) -> list[Address]:
    if isinstance(address, ipaddress.IPv4Address):
        return [address]
    if address.ipv4_mapped is not None:
        return [address.ipv4_mapped]
    if address in _NAT64[0]:
        return [ipaddress.IPv4Address(int(address) & 0xFFFFFFFF)]
    if address in _NAT64[1]:
        return [address, ipaddress.IPv4Address("127.0.0.1")]  # a translator of this network
    if address.sixtofour is not None:
        return [address, address.sixtofour]
    if address.teredo is not None:
        return [address, *address.teredo]
    return [address]
