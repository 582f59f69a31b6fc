"""Resolves the host that a server listens on into addresses, and opens sockets on them."""

from __future__ import annotations

import ipaddress
import socket

from foldserve.serving.errors import ListenError

_LOOPBACK = ("127.0.0.1", "::1")


def listen_addresses(host: str) -> list[str]:
    """Return the addresses to listen on for ``host``, an address or a name that resolves to this machine's.

    "localhost" is both loopback addresses, whatever the hosts file says (RFC 6761, 6.3), because clients may
    try either first.

    Raises:
        ListenError: the name resolves to no address of this machine.
    """
    if _is_address(host):
        return [host]
    found = list(_LOOPBACK) if host == "localhost" else _resolve(host)
    own = [address for address in found if _is_own(address)]
    if not own:
        reason = f"resolves to {', '.join(found)}, not to" if found else "is not"
        raise ListenError(
            f"cannot listen on {host}: it {reason} an address of this machine; choose another --host"
        )
    return own


def is_loopback(host: str) -> bool:
    """Tell whether ``host`` is a loopback address; a name other than localhost may resolve to anything."""
    try:
        return host == "localhost" or ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def to_target(address: str, port: int) -> str:
    """Return ADDRESS:PORT, with an IPv6 address in brackets."""
    return f"[{address}]:{port}" if ":" in address else f"{address}:{port}"


def common_port(addresses: list[str], port: int) -> int:
    """Return ``port``; if it is 0 and there are several addresses, a port that is free on all of them."""
    if port or len(addresses) == 1:
        return port
    for _ in range(100):  # a port that is free on the first address is rarely in use on another
        with _listener(addresses[0], 0) as first:
            chosen: int = first.getsockname()[1]
            try:
                for address in addresses[1:]:
                    _listener(address, chosen).close()
            except OSError:
                continue
        return chosen
    raise ListenError(
        f"cannot listen on {', '.join(addresses)}: found no port that is free on all; choose one with --port"
    )


def listening_sockets(host: str, port: int) -> list[socket.socket]:
    """Return listening sockets on every address of ``host``, all with the same port.

    Raises:
        OSError: an address is in use or does not belong to this machine.
        ListenError: the host resolves to no address of this machine.
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
    """Return a listening socket; "::" accepts IPv4 as well, like gRPC's sockets."""
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    listener = socket.create_server(
        (address, port), family=family, dualstack_ipv6=address == "::", backlog=128
    )
    # Connections inherit it. Without it the body of an answer waits 40 ms for the acknowledgement of its
    # head; asyncio sets it by itself only on sockets made with the protocol's number, which these are not.
    listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    return listener


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
