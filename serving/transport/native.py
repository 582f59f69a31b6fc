"""The servicer over pygrpc-native: HTTP/2 and gRPC in Rust, outside the interpreter's lock, calls in batches.

Unary inference is taken here. Everything else (control, health, reflection, streams) is passed on by the
front, frame by frame, to the grpcio transport on a Unix socket, so all of it answers alike.

What it cannot do, and grpcio can: TLS; refuse a large message, or one without a token, before it is held in
memory (here it is refused before it is parsed); unpack compressed messages in bounded memory; limits on
connections, their age and idle time. Where clients are not trusted, put a proxy in front or use grpcio.
"""

from __future__ import annotations

import asyncio
import logging
import math
import tempfile
import threading
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pygrpc_native import EVENT_CANCEL, NativeGrpcFront

from serving.errors import CancelledError, ListenError
from serving.servicer import UNARY_CALLS
from serving.transport.grpcio import GrpcioTransport, cannot_listen
from serving.transport.quiet import until_quiet
from serving.transport.wire import parse, to_status

if TYPE_CHECKING:
    from collections.abc import Sequence

    from serving.calls import Call, Reply
    from serving.control import Control
    from serving.servicer import Servicer
    from serving.transport.settings import WireSettings

# A second I/O thread made a call half as dear again on two processors (36 us, not 24, null handler).
_IO_THREADS = 1
# Events taken at once: two full batches of single images, by default.
_MAX_EVENTS = 64
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
        servicer: what answers inference.
        control: what answers the rest.
        settings: limits and permissions at the wire, none of those that only grpcio can do.
    """

    name = "native"

    def __init__(self, servicer: Servicer, control: Control, settings: WireSettings) -> None:
        self._servicer = servicer
        self._settings = settings
        self._limit = settings.message_limit
        self._permissions = settings.permissions
        self._fallback = GrpcioTransport(servicer, control, settings, is_fallback=True)
        self._methods = list(UNARY_CALLS.items())  # by method id, which counts from 0 in the order given
        self._pending: dict[int, Call] = {}
        self._answers: list[tuple[int, bytes]] = []  # made by the receiver, and not handed over yet
        self._last_call_s = 0.0
        self._closing = False
        self._refused: list[tuple[int, Exception]] = []  # while it closes, and not told yet
        self._receiver = threading.Thread(target=self._receive, name="receive", daemon=True)
        self._front: NativeGrpcFront | None = None

    async def start(self, host: str, port: int) -> int:
        """Listen, and return the port: the operating system's choice where ``port`` is 0.

        Raises:
            ListenError: the address is taken or not this machine's.
        """
        address = f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
        try:
            front = NativeGrpcFront(
                address,
                [(path, False) for path in UNARY_CALLS],
                io_threads=_IO_THREADS,
                call_details=True,  # deadlines, and word of callers that hang up
                keepalive_time_ms=_KEEPALIVE_MS,
                max_concurrent_streams=self._settings.max_concurrent_streams,
                max_metadata_size=self._settings.max_metadata_bytes,
                reuse_port=self._settings.reuse_port,
            )
        except OSError as error:
            raise ListenError(cannot_listen(address)) from error
        # Readable by this user only: the socket is a way around nothing, but it is nobody else's business.
        self._socket_folder = tempfile.TemporaryDirectory(prefix="foldserve-")
        socket = Path(self._socket_folder.name) / "grpcio.sock"
        await self._fallback.listen(f"unix:{socket}")
        front.set_fallback(str(socket))
        front.start()
        self._front = front
        self._receiver.start()
        _log.info(
            "transport native: no TLS, no limits on connections; a message is refused, by size or for want "
            "of a token, only once it is received and unpacked"
        )
        return front.bound_port

    async def publish_health(self) -> None:
        """Tell Check and Watch what is true now of the server and each model."""
        await self._fallback.publish_health()

    async def enter_shutdown(self) -> None:
        """Publish NOT_SERVING for everything, for good."""
        await self._fallback.enter_shutdown()

    async def stop(self, grace_s: float) -> None:
        """Wait up to ``grace_s`` seconds for the running calls, then close; the rest are cancelled.

        Call it once the servicer refuses new calls. Callers who are refused may try again at once, so the
        last refusals are held back until just before the port closes: they then come to another server.
        """
        give_up_s = time.monotonic() + grace_s
        while self._has_accepted() and time.monotonic() < give_up_s:
            await asyncio.sleep(_POLL_S)
        self._closing = True
        await asyncio.gather(
            self._fallback.stop(grace_s),
            until_quiet(self._has_accepted, lambda: self._last_call_s, give_up_s),
        )
        if self._front is not None:
            refused, self._refused = self._refused, []
            for call_id, error in refused:
                self._fail(call_id, error)
            await asyncio.sleep(_FLUSH_S)
            self._front.close()
            self._receiver.join(timeout=1.0)
            self._socket_folder.cleanup()

    def _has_accepted(self) -> bool:
        """Tell whether a call is unanswered that was not refused: it has found its model."""
        return any(call.model is not None for call in list(self._pending.values()))

    def _receive(self) -> None:
        """Take events until the front is closed, as its only reader.

        Its queue is unbounded, so nothing here may wait.
        """
        assert self._front is not None
        while (events := self._front.recv_batch_details(_MAX_EVENTS)) is not None:
            self._last_call_s = now_s = time.monotonic()
            count = max(_LEAST_EVENTS, -(-len(events) // 2))
            for start in range(0, len(events), count):
                try:
                    self._take(events[start : start + count], now_s)
                except Exception:
                    # A receiver that ended would leave every later caller waiting.
                    _log.exception("taking calls failed")

    def _take(self, events: Sequence[tuple[Any, ...]], now_s: float) -> None:
        """Serve ``events``, which came at ``now_s`` on time.monotonic's clock."""
        calls: dict[int, Call] = {}
        for kind, call_id, method_id, payload, _, details in events:
            if kind == EVENT_CANCEL:  # always after its call, often in the same batch
                self._cancel(call_id, calls)
                continue
            path, call_type = self._methods[method_id]
            metadata, _, remaining_s = details
            try:
                if self._permissions.are_checked:
                    self._permissions.check(path, metadata)
                call = call_type(
                    message=parse(call_type.request_type, payload, self._limit),
                    deadline_s=math.inf if remaining_s is None else now_s + remaining_s,
                    ticket=call_id,
                )
            except Exception as error:  # becomes a status, and is logged where unknown
                self._servicer.count_unread(call_type.unary_method, error)
                self._fail(call_id, error)
                continue
            if self._servicer.logs_requests:
                call.peer = details[1]
            self._pending[call_id] = calls[call_id] = call
        if not calls:
            return
        try:
            self._servicer.submit(list(calls.values()), self._on_reply, lend_thread=True)
        finally:
            self._hand_over()

    def _cancel(self, call_id: int, calls: dict[int, Call]) -> None:
        if (unread := calls.pop(call_id, None)) is not None:
            self._servicer.count_unread(unread.method, CancelledError("the caller was gone at once"))
        call = self._pending.pop(call_id, None)
        if call is not None:
            call.cancelled = True

    def _on_reply(self, call: Call, reply: Reply) -> None:
        """Answer, from any thread: it is only handed over."""
        assert self._front is not None
        if self._pending.pop(call.ticket, None) is None:  # cancelled: nobody waits
            return
        if not isinstance(reply, bytes):
            if self._closing:
                self._refused.append((call.ticket, reply))
            else:
                self._fail(call.ticket, reply)
        elif threading.current_thread() is self._receiver:
            self._answers.append((call.ticket, reply))
        else:
            self._front.respond(call.ticket, reply)

    def _hand_over(self) -> None:
        """Answer what was run on the receiver's own thread, all at once.

        The first answer wakes the I/O thread. One by one, with others still to be written between them, they
        would wake it again and again: that is a twentieth of what a small request costs.
        """
        assert self._front is not None
        answers, self._answers = self._answers, []
        for call_id, answer in answers:
            self._front.respond(call_id, answer)

    def _fail(self, call_id: int, error: Exception) -> None:
        assert self._front is not None
        status, text = to_status(error)
        self._front.fail(call_id, _STATUS_CODES[status], text)
