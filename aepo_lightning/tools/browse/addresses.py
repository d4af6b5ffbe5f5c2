"""Which addresses a tool may connect to: public ones only, judged at the moment of connecting."""

import ipaddress
import socket
from typing import Any

IPAddress = ipaddress.IPv4Address | ipaddress.IPv6Address

_NAT64 = ipaddress.ip_network("64:ff9b::/96")
_GLOBAL_UNICAST = ipaddress.ip_network("2000::/3")
# The special-purpose registries of IANA, whatever the version of `ipaddress` says of them, and with those that are
# routed but belong to the network itself: relays and the sinks of reverse look-ups.
_FORBIDDEN = tuple(
    map(
        ipaddress.ip_network,
        (
            *("0.0.0.0/8", "10.0.0.0/8", "100.64.0.0/10", "127.0.0.0/8", "169.254.0.0/16", "172.16.0.0/12"),
            *("192.0.0.0/24", "192.0.2.0/24", "192.31.196.0/24", "192.52.193.0/24", "192.88.99.0/24"),
            *("192.168.0.0/16", "192.175.48.0/24", "198.18.0.0/15", "198.51.100.0/24", "203.0.113.0/24"),
            *("224.0.0.0/4", "240.0.0.0/4"),
            # Within the unicast space of IPv6: protocol assignments with Teredo, benchmarks and ORCHID; documentation;
            # AS112; what was never given out or was given back.
            *("2001::/23", "2001:db8::/32", "2620:4f:8000::/48", "2d00::/8", "2e00::/7", "3000::/4"),
        ),
    )
)
_ISATAP = 0x5EFE
_ISATAP_FLAGS = 0x0300_0000
"""The two bits of an interface identifier that say whether it is unique and whether it is that of a group."""


class ForbiddenAddressError(OSError):
    """A page led to an address inside some network. An `OSError`, so that an HTTP client takes it for no connection."""


def is_public(text: str) -> bool:
    """Return whether an IP address belongs to the public internet.

    IPv6 addresses that wrap an IPv4 address (mapped, 6to4, NAT64, ISATAP) are judged by what they wrap as well.

    Args:
        text: An address as the operating system writes it; a zone such as `%eth0` makes it local.
    """
    try:
        address = ipaddress.ip_address(text)
    except ValueError:
        return False
    if getattr(address, "scope_id", None):
        return False
    return all(map(_is_reachable, _all_of(address)))


def _is_reachable(address: IPAddress) -> bool:
    if isinstance(address, ipaddress.IPv6Address) and address not in _GLOBAL_UNICAST:
        return False
    is_special = address.is_multicast or any(address in network for network in _FORBIDDEN)
    return address.is_global and not is_special


def _all_of(address: IPAddress) -> list[IPAddress]:
    """Return what must be public for an address to be: itself, unless it is a mere wrapper, and what it wraps."""
    if isinstance(address, ipaddress.IPv4Address):
        return [address]
    last = ipaddress.IPv4Address(int(address) & 0xFFFFFFFF)
    if address.ipv4_mapped or address in _NAT64:
        return [last]  # the wrapper is not routed itself
    wrapped = [address.sixtofour] if address.sixtofour else []
    if (int(address) >> 32) & 0xFFFFFFFF & ~_ISATAP_FLAGS == _ISATAP:
        wrapped.append(last)
    return [address, *wrapped]


def guarded_socket(info: tuple[Any, ...]) -> socket.socket:
    """Return a socket for an address that a host name was resolved to, if the address is public.

    It runs just before each connection, also those of redirects, with the address that is connected to: a name that is
    resolved anew, or an address written in an odd way, gains nothing.

    Raises:
        ForbiddenAddressError: If it is not public.
    """
    family, kind, protocol, _, address = info
    if family not in (socket.AF_INET, socket.AF_INET6) or not is_public(str(address[0])):
        raise ForbiddenAddressError("the address is not on the public internet.")
    return socket.socket(family, kind, protocol)
