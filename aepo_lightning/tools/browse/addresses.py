"""Which addresses a tool may connect to: public ones only, judged at the moment of connecting."""

import ipaddress
import socket
from typing import Any

IPAddress = ipaddress.IPv4Address | ipaddress.IPv6Address

_NAT64 = ipaddress.ip_network("64:ff9b::/96")
# Not public, whatever the version of `ipaddress` says: local NAT64, IPv4 in old disguises, site-local, documentation,
# segment routing, protocol assignments.
_FORBIDDEN = tuple(
    map(
        ipaddress.ip_network,
        ("64:ff9b:1::/48", "::/96", "::ffff:0:0:0/96", "fec0::/10", "3fff::/20", "5f00::/16", "192.0.0.0/24"),
    )
)


class ForbiddenAddressError(OSError):
    """A page led to an address inside some network. An `OSError`, so that an HTTP client takes it for no connection."""


def is_public(text: str) -> bool:
    """Return whether an IP address belongs to the public internet.

    IPv6 addresses that wrap an IPv4 address (mapped, 6to4, Teredo, NAT64) are judged by what they wrap as well.

    Args:
        text: An address as the operating system writes it; a zone such as `%eth0` makes it local.
    """
    try:
        address = ipaddress.ip_address(text)
    except ValueError:
        return False
    if getattr(address, "scope_id", None):
        return False
    return all(
        each.is_global and not each.is_multicast and not any(each in network for network in _FORBIDDEN)
        for each in _all_of(address)
    )


def _all_of(address: IPAddress) -> list[IPAddress]:
    found: list[IPAddress] = []
    if isinstance(address, ipaddress.IPv6Address):
        wrapped = [address.ipv4_mapped, address.sixtofour, *(address.teredo or ())]
        if address in _NAT64:
            wrapped.append(ipaddress.IPv4Address(int(address) & 0xFFFFFFFF))
        found = [each for each in wrapped if each is not None]
        if found and (address.ipv4_mapped or address in _NAT64):
            return found  # the wrapper is not routed itself
    return [address, *found]


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
