"""Connects to the server, reports whether it answers, and connects again once it is back."""

from __future__ import annotations

import threading
import time
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from foldserve.serving.client.sync_client import Client
from foldserve.serving.errors import CredentialsError, DeadlineExceededError, ServingError, UnavailableError
from foldserve.text import legible

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from foldserve.serving.client.channel import ConnectionOptions
    from foldserve.serving.client.messages import IndexEntry

# Several visitors ask at the same time; one question to the server answers them all.
_FRESH_S = 1.0
# Short, as a visitor waits for it; the page asks again every few seconds.
_CONNECT_S = 1.0
_MODELS_NAMED = 3


@dataclass(frozen=True)
class ServerStatus:
    """What the server answered when it was asked for its models.

    Attributes:
        is_reached: whether it answered at all.
        trouble: why it did not, or why it has nothing to serve; "" if all is well.
        models: the versions that are ready by model, the newest first.
    """

    is_reached: bool
    trouble: str = ""
    models: dict[str, list[str]] = field(default_factory=dict)


class ServerConnection:
    """A connection to one server that outlives the server. Methods may be called from any thread."""

    def __init__(
        self,
        server: str,
        options: ConnectionOptions,
        *,
        timeout_s: float,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """Prepare to connect to ``server``, "HOST:PORT", once it is needed."""
        self.server = server
        self._options = options
        self._timeout_s = timeout_s
        self._clock = clock
        self._client: Client | None = None
        self._connecting = threading.Lock()
        self._asking = threading.Lock()
        self._status = ServerStatus(is_reached=False)
        self._fresh_until = -1.0

    def client(self) -> Client:
        """Return the client, connected.

        Raises:
            UnavailableError: no server answers, or not with this TLS and token.
            CredentialsError: a file of the connection cannot be read.
        """
        with self._connecting:
            if self._client is None:
                self._client = Client(
                    self.server, timeout_s=self._timeout_s, connect_timeout_s=_CONNECT_S, **self._options
                )
            return self._client

    def forget(self) -> None:
        """Connect anew for the next call: a channel that failed for long waits minutes before it tries again.

        Calls under way keep the old channel, which is closed with the last of them.
        """
        with self._connecting:
            self._client = None

    def status(self) -> ServerStatus:
        """Return what the server answers now, or answered within the last second."""
        with self._asking:
            if self._clock() >= self._fresh_until:
                self._status = self._ask()
                self._fresh_until = self._clock() + _FRESH_S
            return self._status

    def _ask(self) -> ServerStatus:
        try:
            client = self.client()
        except (UnavailableError, CredentialsError) as error:
            return ServerStatus(is_reached=False, trouble=legible(str(error)))
        try:
            index = client.index()
        except (UnavailableError, DeadlineExceededError):
            self.forget()
            # gRPC's own words here are about its channel. The next attempt finds out why.
            return ServerStatus(is_reached=False, trouble=f"no server answers at {legible(self.server)}")
        except ServingError as error:
            return ServerStatus(is_reached=True, trouble=f"the server refuses: {legible(str(error))}")
        return _status_of(index)


def _status_of(index: Sequence[IndexEntry]) -> ServerStatus:
    models: dict[str, list[str]] = {}
    for entry in index:
        if entry.state == "READY":
            models.setdefault(entry.name, []).append(entry.version)
    for versions in models.values():
        versions.sort(key=lambda version: (len(version), version), reverse=True)
    trouble = "" if models else _why_nothing_serves(index)
    return ServerStatus(is_reached=True, trouble=trouble, models=dict(sorted(models.items())))


def _why_nothing_serves(index: Sequence[IndexEntry]) -> str:
    reasons = [
        f"{legible(entry.name)}/{entry.version}: {legible(entry.reason) or entry.state}" for entry in index
    ]
    if not reasons:
        return "the server has no models; export one into its repository"
    more = f"; and {len(reasons) - _MODELS_NAMED} more" if len(reasons) > _MODELS_NAMED else ""
    return f"no model is ready: {'; '.join(reasons[:_MODELS_NAMED])}{more}"
