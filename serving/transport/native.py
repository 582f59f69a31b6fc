"""The inference over pygrpc-native: HTTP/2 and gRPC in Rust, outside the interpreter's lock, calls in batches.

Unary inference is taken here. Everything else (management, health, reflection, streams) is passed on by the
front, frame by frame, to the grpcio transport on a Unix socket, so all of it answers alike.

What it cannot do, and grpcio can: TLS; refuse a large message, or one without a token, before it is held in
memory (here it is refused before it is parsed); unpack compressed messages in bounded memory; limits on
connections, their age and idle time. It also reserves whatever a message's header claims, and the process
aborts where that is not to be had. So it is for callers who are trusted: see `ServeConfig.trusts_callers`.
"""

from __future__ import annotations

import asyncio
import logging
import math
import secrets
import socket
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any

from pygrpc_native import EVENT_CANCEL, NativeGrpcFront

from foldserve.serving.addresses import common_port, listen_addresses, to_target
from foldserve.serving.errors import CancelledError, ListenError, TransportMissingError
from foldserve.serving.services.inference import UNARY_METHODS
from foldserve.serving.transport.draining import wait_until_idle
from foldserve.serving.transport.grpcio.server import GrpcioTransport, cannot_listen
from foldserve.serving.transport.status import LARGE_BYTES, parse, to_status

if TYPE_CHECKING:
    from collections.abc import Sequence

    from foldserve.serving.server_state import Lifecycle
    from foldserve.serving.services.inference import InferenceService
    from foldserve.serving.services.management import ManagementService
    from foldserve.serving.services.requests import InferenceRequest, Reply
    from foldserve.serving.transport.settings import WireSettings

# A second I/O thread made a call half as dear again on two processors (36 us, not 24, null handler).
_IO_THREADS = 1
# Events taken at once: two full batches of single images, by default.
_MAX_EVENTS = 64
# Threads that read large messages. Parsing holds the interpreter's lock, so more only take turns: sixteen of
# them, on as many CPUs, left a GPU idle nine tenths of the time.
_LARGE_READERS = 2
# What was taken is served in halves of at least so many: the first half's callers, and the thread that
# talks to them, go on while the second half runs. Served whole, all callers wait for the model and then the
# model for all callers: with 32 of them on two processors a quarter of the time was idle, and is now a tenth,
# for a fifth more requests/s. (Where Linux schedules server and client as one group, started from one shell,
# they overlapped before, and it is some 4 % fewer.)
_LEAST_EVENTS = 8
# Finds a dead client in a minute and a half instead of two hours.
_KEEPALIVE_MS = 60_000
# respond() only hands an answer over; a front closed at once loses it (81 of 200 answers, none after 10 ms).
_FLUSH_S = 0.2
_POLL_S = 0.02
_STATUS_CODES = {
    "CANCELLED": 1,
    "UNKNOWN": 2,
    "INVALID_ARGUMENT": 3,
    "DEADLINE_EXCEEDED": 4,
    "NOT_FOUND": 5,
    "PERMISSION_DENIED": 7,
    "RESOURCE_EXHAUSTED": 8,
    "UNIMPLEMENTED": 12,
    "INTERNAL": 13,
    "UNAVAILABLE": 14,
    "UNAUTHENTICATED": 16,
}

_log = logging.getLogger(__name__)


class NativeTransport:
    """Unary inference natively, the rest through grpcio. Methods run on the event loop, as GrpcioTransport's.

    Args:
        inference: what answers inference.
        management: what answers the rest.
        lifecycle: the server's state.
        settings: limits and permissions at the wire, none of those that only grpcio can do.

    Raises:
        TransportMissingError: there is no socket over which it could reach grpcio.
    """

    name = "native"

    def __init__(
        self,
        inference: InferenceService,
        management: ManagementService,
        lifecycle: Lifecycle,
        settings: WireSettings,
    ) -> None:
        self._inference = inference
        self._settings = settings
        self._inner_name = _free_socket_name()
        self._fallback = GrpcioTransport(inference, management, lifecycle, settings, is_fallback=True)
        self._listeners: list[_Listener] = []

    async def start(self, host: str, port: int) -> int:
        """Listen, and return the port: the operating system's choice where ``port`` is 0.

        Raises:
            ListenError: the address is taken or not this machine's.
        """
        addresses = listen_addresses(host)
        port = common_port(addresses, port)
        # A front listens on one address only; localhost has two.
        for address in addresses:
            self._listeners.append(_Listener(to_target(address, port), self._inference, self._settings))
        await self._fallback.listen([f"unix-abstract:{self._inner_name}"])
        for listener in self._listeners:
            listener.start(fallback=f"\0{self._inner_name}")
        _log.info(
            "transport native: no TLS, no limits on connections; a message is refused, by size or for want "
            "of a token, only once it is received and unpacked"
        )
        return self._listeners[0].port

    async def publish_health(self) -> None:
        """Tell Check and Watch what is true now of the server and each model."""
        await self._fallback.publish_health()

    async def drain(self, give_up_s: float) -> None:
        """Wait until the running calls are answered and no more come; see `GrpcioTransport.drain`."""
        while self._has_pending() and time.monotonic() < give_up_s:
            await asyncio.sleep(_POLL_S)  # grpcio, which then holds calls back, still answers health
        await asyncio.gather(
            self._fallback.drain(give_up_s),
            wait_until_idle(
                self._has_pending,
                lambda: max((listener.last_call_s for listener in self._listeners), default=0.0),
                give_up_s,
            ),
        )

    async def close(self) -> None:
        """Close the connections; calls that still run are cancelled."""
        await self._fallback.close()
        await asyncio.sleep(_FLUSH_S)
        for listener in self._listeners:
            listener.close()

    def _has_pending(self) -> bool:
        return any(listener.has_pending() for listener in self._listeners)


class _Listener:
    """Takes unary inference at one address.

    Attributes:
        last_call_s: when calls last came, on time.monotonic's clock.

    Args:
        target: ADDRESS:PORT; port 0 leaves it to the operating system.
        inference: what answers inference.
        settings: limits and permissions at the wire.

    Raises:
        ListenError: the address is taken or not this machine's.
    """

    def __init__(self, target: str, inference: InferenceService, settings: WireSettings) -> None:
        self.last_call_s = 0.0
        self._inference = inference
        self._limit = settings.message_limit
        self._permissions = settings.permissions
        self._methods = list(UNARY_METHODS.items())  # by method id, which counts from 0 in the order given
        self._pending: dict[int, InferenceRequest] = {}
        self._answers: list[tuple[int, bytes]] = []  # made by the receiver, and not handed over yet
        self._large_reader = ThreadPoolExecutor(_LARGE_READERS, thread_name_prefix="read")
        self._receiver = threading.Thread(target=self._receive, name="receive", daemon=True)
        try:
            self._front = NativeGrpcFront(
                target,
                [(path, False) for path in UNARY_METHODS],
                io_threads=_IO_THREADS,
                call_details=True,  # deadlines, and word of callers that hang up
                keepalive_time_ms=_KEEPALIVE_MS,
                max_concurrent_streams=settings.max_concurrent_streams,
                max_metadata_size=settings.max_metadata_bytes,
            )
        except OSError as error:
            raise ListenError(cannot_listen(target)) from error

    @property
    def port(self) -> int:
        """The port that it listens on."""
        return self._front.bound_port

    def start(self, fallback: str) -> None:
        """Serve; what is not taken here goes to the Unix socket ``fallback``."""
        self._front.set_fallback(fallback)
        self._front.start()
        self._receiver.start()

    def close(self) -> None:
        """Close what is open."""
        self._front.close()
        if self._receiver.is_alive():
            self._receiver.join(timeout=1.0)
        self._large_reader.shutdown(wait=False, cancel_futures=True)

    def has_pending(self) -> bool:
        """Tell whether a call is unanswered that was not refused: it is being read, or was accepted."""
        return any(request.message is None for request in list(self._pending.values()))

    def _receive(self) -> None:
        """Take events until the front is closed, as its only reader.

        Its queue is unbounded, so nothing here may wait.
        """
        while (events := self._front.recv_batch_details(_MAX_EVENTS)) is not None:
            self.last_call_s = now_s = time.monotonic()
            count = max(_LEAST_EVENTS, -(-len(events) // 2))
            for start in range(0, len(events), count):
                try:
                    self._take(events[start : start + count], now_s)
                except Exception:
                    # A receiver that ended would leave every later caller waiting.
                    _log.exception("taking calls failed")
            del events  # the next may be long in coming, and these may be large

    def _take(self, events: Sequence[tuple[Any, ...]], now_s: float) -> None:
        """Serve ``events``, which came at ``now_s`` on time.monotonic's clock."""
        requests: dict[int, InferenceRequest] = {}
        for event, call_id, method_id, payload, _, details in events:
            if event == EVENT_CANCEL:  # always after its call, often in the same batch
                self._cancel(call_id, requests)
                continue
            path, kind = self._methods[method_id]
            metadata, _, remaining_s = details
            try:
                if self._permissions.are_checked:
                    self._permissions.check(path, metadata)
                request = kind(
                    message=None,
                    deadline_s=math.inf if remaining_s is None else now_s + remaining_s,
                    completion=call_id,
                )
                if self._inference.logs_requests:
                    request.peer = details[1]
                if len(payload) >= LARGE_BYTES:
                    self._pending[call_id] = request
                    self._large_reader.submit(self._take_large, request, payload)
                    continue
                request.message = parse(kind.request_type, payload, self._limit)
            except Exception as error:  # becomes a status, and is logged where unknown
                self._inference.count_unread(kind.unary_method, error)
                self._fail(call_id, error)
                continue
            self._pending[call_id] = requests[call_id] = request
        if not requests:
            return
        try:
            self._inference.submit(list(requests.values()), self._on_reply, run_inline=True)
        finally:
            self._hand_over()

    def _take_large(self, request: InferenceRequest, payload: bytes) -> None:
        """Serve a call of a large message, in a thread of its own: reading it would hold up everybody."""
        try:
            request.message = parse(request.request_type, payload, self._limit)
        except Exception as error:  # becomes a status, and is logged where unknown
            self._inference.count_unread(request.unary_method, error)
            if self._pending.pop(request.completion, None) is not None:
                self._fail(request.completion, error)
            return
        self._inference.submit([request], self._on_reply)

    def _cancel(self, call_id: int, requests: dict[int, InferenceRequest]) -> None:
        if (unread := requests.pop(call_id, None)) is not None:
            self._inference.count_unread(unread.method, CancelledError("the caller was gone at once"))
        request = self._pending.pop(call_id, None)
        if request is not None:
            request.cancelled = True

    def _on_reply(self, request: InferenceRequest, reply: Reply) -> None:
        """Answer, from any thread: it is only handed over."""
        if self._pending.pop(request.completion, None) is None:  # cancelled: nobody waits
            return
        if not isinstance(reply, bytes):
            self._fail(request.completion, reply)
        elif threading.current_thread() is self._receiver:
            self._answers.append((request.completion, reply))
        else:
            self._front.respond(request.completion, reply)

    def _hand_over(self) -> None:
        """Answer what was run on the receiver's own thread, all at once.

        The first answer wakes the I/O thread. One by one, with others still to be written between them, they
        would wake it again and again: that is a twentieth of what a small request costs.
        """
        answers, self._answers = self._answers, []
        for call_id, answer in answers:
            self._front.respond(call_id, answer)

    def _fail(self, call_id: int, error: Exception) -> None:
        status, text = to_status(error)
        self._front.fail(call_id, _STATUS_CODES[status], text)


def _free_socket_name() -> str:
    """Return a name in the kernel's own name space for Unix sockets ("abstract", unix(7)).

    It needs no folder that may be missing, read-only or too long a path, and ends with the process however
    that ends. Whoever is on this machine may connect, as to the port itself: permissions are checked behind
    it.
    """
    name = f"foldserve-{secrets.token_hex(16)}"
    try:
        with socket.socket(socket.AF_UNIX) as probe:
            probe.bind(f"\0{name}")
    except OSError as error:
        raise TransportMissingError(
            f"native, several times faster, needs an abstract Unix socket, which cannot be had here ({error})"
        ) from error
    return name
