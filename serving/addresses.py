"""Which addresses a host stands for when a server listens on it."""

from __future__ import annotations

import ipaddress
import socket

from serving.errors import ListenError

_LOOPBACK = ("127.0.0.1", "::1")


def listen_addresses(host: str) -> list[str]:
    """Return the addresses to listen on for ``host``: itself, or what the name stands for on this machine.

    "localhost" is both loopback addresses, whatever the hosts file says of it (RFC 6761, 6.3): clients may
    try either first.

    Raises:
        ListenError: the name stands for none of this machine's.
    """
    if _is_address(host):
        return [host]
    found = list(_LOOPBACK) if host == "localhost" else _resolve(host)
    own = [address for address in found if _is_own(address)]
    if not own:
        named = f"stands for {', '.join(found)}, none of which is" if found else "is no address or name of"
        raise ListenError(f"cannot listen on {host}: it {named} this machine's; choose another --host")
    return own


def to_target(address: str, port: int) -> str:
    """Return ADDRESS:PORT, with an IPv6 address in brackets."""
    return f"[{address}]:{port}" if ":" in address else f"{address}:{port}"


def common_port(addresses: list[str], port: int) -> int:
    """Return ``port``, or, where it is 0 and there are several addresses, one that is free on all of them."""
    if port or len(addresses) == 1:
        return port
    for _ in range(100):  # the first address's free port is rarely taken on another
        with _listener(addresses[0], 0) as first:
            chosen: int = first.getsockname()[1]
            try:
                for address in addresses[1:]:
                    _listener(address, chosen).close()
            except OSError:
                continue
        return chosen
    raise ListenError(
        f"cannot listen on {', '.join(addresses)}: no port is free on all; choose one with --port"
    )


def listening_sockets(host: str, port: int) -> list[socket.socket]:
    """Return sockets that listen on every address of ``host``, all on one port.

    Raises:
        OSError: an address is taken or not this machine's.
        ListenError: the host is no name of this machine's.
    """
    addresses = listen_addresses(host)
    port = common_port(addresses, port)
    opened: list[socket.socket] = []
    try:
        opened.extend(_listener(address, port) for address in addresses)
    except OSError:
        for listener in opened:
            listener.close()
        raise
    return opened


def _listener(address: str, port: int) -> socket.socket:
    """Return a socket that listens; "::" takes IPv4 as well, as gRPC's does."""
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    return socket.create_server((address, port), family=family, dualstack_ipv6=address == "::", backlog=128)


def _is_address(host: str) -> bool:
    try:
        ipaddress.ip_address(host)
    except ValueError:
        return False
    return True


def _resolve(name: str) -> list[str]:
    try:
        found = socket.getaddrinfo(name, None, type=socket.SOCK_STREAM)
    except (OSError, UnicodeError):  # UnicodeError: a label of more than 63 characters
        return []
    return list(dict.fromkeys(str(address[0]) for *_, address in found))


def _is_own(address: str) -> bool:
    try:
        _listener(address, 0).close()
    except OSError:
        return False
    return True
