"""Serves inference over pygrpc-native: HTTP/2 and gRPC in Rust, without the GIL, requests in batches.

This transport handles unary inference. It forwards everything else (management, health, reflection, streams)
frame by frame over a Unix socket to the grpcio transport, so that every RPC has one implementation.

Unlike grpcio it cannot: use TLS; refuse a large message, or one without a token, before it is held in memory
(here it is refused before it is parsed); decompress messages in bounded memory; limit connections, their age
and idle time. It also allocates the size that a message's header claims, and the process aborts if that
fails. So it is for trusted callers: see `ServeConfig.trusts_callers`.
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

import grpc
from pygrpc_native import EVENT_CANCEL, NativeGrpcFront

from foldserve.serving.addresses import common_port, listen_addresses, to_target
from foldserve.serving.errors import CancelledError, ListenError, TransportMissingError
from foldserve.serving.services.inference import UNARY_METHODS
from foldserve.serving.transport.draining import wait_until_idle
from foldserve.serving.transport.grpcio.server import GrpcioTransport, cannot_listen
from foldserve.serving.transport.status import LARGE_BYTES, parse, to_status

if TYPE_CHECKING:
    from collections.abc import Hashable, Sequence

    from foldserve.serving.services.inference import InferenceService
    from foldserve.serving.services.requests import InferenceRequest, Reply
    from foldserve.serving.transport.backend import Backend
    from foldserve.serving.transport.settings import WireSettings

# With a second I/O thread a call took 36 us instead of 24 on two CPUs (handler that does nothing).
_IO_THREADS = 1
# Events received at once: by default two full batches of single images.
_MAX_EVENTS = 64
# Threads that parse large messages. Parsing holds the GIL, so more threads only take turns: with sixteen, on
# as many CPUs, a GPU was idle nine tenths of the time.
_LARGE_READERS = 2
# Received events are served in two halves of at least this many: the callers of the first half, and the I/O
# thread, go on while the second half runs. If all are served at once, the callers wait for the model and then
# the model waits for the callers: with 32 callers on two CPUs a quarter of the time was idle, with halves a
# tenth, for a fifth more requests/s. (If Linux schedules server and client as one group, started from one
# shell, they overlapped anyway, and halves cost some 4 %.)
_LEAST_EVENTS = 8
# Detects a dead client in a minute and a half instead of two hours.
_KEEPALIVE_MS = 60_000
# respond() only queues an answer; closing the front at once loses it (81 of 200 answers, none after 10 ms).
_FLUSH_S = 0.2
_POLL_S = 0.02

_log = logging.getLogger(__name__)


class NativeTransport:
    """Serves unary inference natively and the rest through grpcio. Every method runs on the event loop.

    Args:
        backend: answers the calls.
        settings: limits and permissions at the wire, without those that only grpcio supports.

    Raises:
        TransportMissingError: the socket to grpcio cannot be created.
    """

    name = "native"

    def __init__(
        self,
        backend: Backend,
        settings: WireSettings,
    ) -> None:
        self._inference = backend.inference
        self._settings = settings
        self._inner_name = _free_socket_name()
        self._fallback = GrpcioTransport(backend, settings, is_fallback=True)
        self._listeners: list[_Listener] = []

    async def start(self, host: str, port: int) -> int:
        """Start listening and return the port; if ``port`` is 0, the operating system chooses.

        Raises:
            ListenError: the address is in use or does not belong to this machine.
        """
        addresses = listen_addresses(host)
        port = common_port(addresses, port)
        # A front listens on one address only, and localhost has two.
        for address in addresses:
            self._listeners.append(_Listener(to_target(address, port), self._inference, self._settings))
        await self._fallback.listen([f"unix-abstract:{self._inner_name}"])
        for listener in self._listeners:
            listener.start(fallback=f"\0{self._inner_name}")
        _log.info(
            "transport native: no TLS, no limits on connections; a message that is too large or has no valid "
            "token is refused only after it was received and decompressed"
        )
        return self._listeners[0].port

    async def publish_health(self) -> None:
        """Publish the current health of the server and each model to Check and Watch."""
        await self._fallback.publish_health()

    async def drain(self, give_up_s: float) -> None:
        """Wait until the running calls are answered and no more come; see `GrpcioTransport.drain`.

        Callers who are refused may try again at once, so the last refusals are held back until just before
        the port closes: they then come to another server.
        """
        while self._has_pending() and time.monotonic() < give_up_s:
            await asyncio.sleep(_POLL_S)
        for listener in self._listeners:
            listener.hold_refusals()
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
        for listener in self._listeners:
            listener.tell_refusals()
        await asyncio.sleep(_FLUSH_S)
        for listener in self._listeners:
            listener.close()

    def _has_pending(self) -> bool:
        return any(listener.has_pending() for listener in self._listeners)


class _Listener:
    """Serves unary inference on one address.

    Attributes:
        last_call_s: when the last call came, on time.monotonic's clock.

    Args:
        target: ADDRESS:PORT; with port 0 the operating system chooses.
        inference: answers inference.
        settings: limits and permissions at the wire.

    Raises:
        ListenError: the address is in use or does not belong to this machine.
    """

    def __init__(self, target: str, inference: InferenceService, settings: WireSettings) -> None:
        self.last_call_s = 0.0
        self._inference = inference
        self._limit = settings.message_limit
        self._permissions = settings.permissions
        self._methods = list(UNARY_METHODS.items())  # index: method id, in the order given to the front
        self._pending: dict[int, InferenceRequest] = {}
        self._answers: list[tuple[int, bytes]] = []  # made by the receiver, and not handed over yet
        self._holds_refusals = False
        self._refused: list[tuple[int, Exception]] = []  # held back, and not told yet
        self._large_reader = ThreadPoolExecutor(_LARGE_READERS, thread_name_prefix="read")
        self._receiver = threading.Thread(target=self._receive, name="receive", daemon=True)
        try:
            self._front = NativeGrpcFront(
                target,
                [(path, False) for path in UNARY_METHODS],
                io_threads=_IO_THREADS,
                call_details=True,  # deadlines and cancellations
                keepalive_time_ms=_KEEPALIVE_MS,
                max_concurrent_streams=settings.max_concurrent_streams,
                max_metadata_size=settings.max_metadata_bytes,
                reuse_port=settings.reuse_port,
            )
        except OSError as error:
            raise ListenError(cannot_listen(target)) from error

    @property
    def port(self) -> int:
        """The port that it listens on."""
        return self._front.bound_port

    def start(self, fallback: str) -> None:
        """Start serving; other RPCs go to the Unix socket ``fallback``."""
        self._front.set_fallback(fallback)
        self._front.start()
        self._receiver.start()

    def hold_refusals(self) -> None:
        """Refuse no call before `tell_refusals`; whoever is refused may try again at once, and here."""
        self._holds_refusals = True

    def tell_refusals(self) -> None:
        """Refuse what was held back."""
        refused, self._refused = self._refused, []
        for call_id, error in refused:
            self._fail(call_id, error)

    def close(self) -> None:
        """Close the connections and stop the threads."""
        self._front.close()
        if self._receiver.is_alive():
            self._receiver.join(timeout=1.0)
        self._large_reader.shutdown(wait=False, cancel_futures=True)

    def has_pending(self) -> bool:
        """Return whether a request is being parsed, or was accepted and is not answered yet."""
        return any(request.message is None for request in list(self._pending.values()))

    def _receive(self) -> None:
        """Receive events until the front is closed, as its only reader.

        The front's queue is unbounded, so nothing here may block.
        """
        while (events := self._front.recv_batch_details(_MAX_EVENTS)) is not None:
            self.last_call_s = now_s = time.monotonic()
            count = max(_LEAST_EVENTS, -(-len(events) // 2))
            for start in range(0, len(events), count):
                try:
                    self._take(events[start : start + count], now_s)
                except Exception:
                    # If the receiver ended, every later caller would wait for ever.
                    _log.exception("receiving calls failed")
            del events  # free large messages before waiting for the next ones

    def _take(self, events: Sequence[tuple[Any, ...]], now_s: float) -> None:
        """Serve ``events`` received at ``now_s`` on time.monotonic's clock."""
        requests: dict[int, InferenceRequest] = {}
        for event, call_id, method_id, payload, _, details in events:
            if event == EVENT_CANCEL:  # always after its request, often in the same batch
                self._cancel(call_id, requests)
                continue
            path, kind = self._methods[method_id]
            metadata, peer, remaining_s = details
            try:
                caller: Hashable = peer
                if self._permissions.are_checked:
                    caller = (peer, self._permissions.check(path, metadata))
                request = kind(
                    message=None,
                    deadline_s=math.inf if remaining_s is None else now_s + remaining_s,
                    caller=caller,
                    completion=call_id,
                )
                if self._inference.logs_requests:
                    request.peer = peer
                if len(payload) >= LARGE_BYTES:
                    self._pending[call_id] = request
                    self._large_reader.submit(self._take_large, request, payload)
                    continue
                request.message = parse(kind.request_type, payload, self._limit)
            except Exception as error:  # becomes a status, and is logged if unexpected
                self._inference.count_unread(kind.unary_method, error)
                self._fail(call_id, error)
                continue
            self._pending[call_id] = requests[call_id] = request
        if not requests:
            return
        try:
            self._inference.submit(list(requests.values()), self._on_reply, run_inline=True)
        finally:
            self._flush_answers()

    def _take_large(self, request: InferenceRequest, payload: bytes) -> None:
        """Parse and serve a large message, in a thread of its own so that it delays no other caller."""
        try:
            request.message = parse(request.request_type, payload, self._limit)
        except Exception as error:  # becomes a status, and is logged if unexpected
            self._inference.count_unread(request.unary_method, error)
            if self._pending.pop(request.completion, None) is not None:
                self._fail(request.completion, error)
            return
        self._inference.submit([request], self._on_reply)

    def _cancel(self, call_id: int, requests: dict[int, InferenceRequest]) -> None:
        if (unread := requests.pop(call_id, None)) is not None:
            self._inference.count_unread(unread.method, CancelledError("the caller cancelled at once"))
        request = self._pending.pop(call_id, None)
        if request is not None:
            request.cancelled = True

    def _on_reply(self, request: InferenceRequest, reply: Reply) -> None:
        """Queue the answer to ``request``. May run on any thread."""
        if self._pending.pop(request.completion, None) is None:  # cancelled: no caller waits
            return
        if not isinstance(reply, bytes):
            if self._holds_refusals:
                self._refused.append((request.completion, reply))
            else:
                self._fail(request.completion, reply)
        elif threading.current_thread() is self._receiver:
            self._answers.append((request.completion, reply))
        else:
            self._front.respond(request.completion, reply)

    def _flush_answers(self) -> None:
        """Pass the answers that the receiver thread made to the front, all at once.

        Each answer wakes the I/O thread if it sleeps. Passed one by one, with other answers being made
        between them, they would wake it again and again, which costs a twentieth of a small request's time.
        """
        answers, self._answers = self._answers, []
        for call_id, answer in answers:
            self._front.respond(call_id, answer)

    def _fail(self, call_id: int, error: Exception) -> None:
        status, text = to_status(error)
        self._front.fail(call_id, grpc.StatusCode[status].value[0], text)


def _free_socket_name() -> str:
    """Return a free name for an abstract Unix socket (unix(7)).

    Such a socket needs no folder, which could be missing, read-only or have too long a path, and it goes away
    with the process however that ends. Anyone on this machine may connect to it, as to the port itself;
    permissions are checked behind it.
    """
    name = f"foldserve-{secrets.token_hex(16)}"
    try:
        with socket.socket(socket.AF_UNIX) as probe:
            probe.bind(f"\0{name}")
    except OSError as error:
        raise TransportMissingError(
            "native, several times faster, needs an abstract Unix socket, which cannot be created here "
            f"({error})"
        ) from error
    return name
