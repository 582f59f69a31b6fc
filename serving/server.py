"""Runs `foldserve serve`: assembles the server, loads the models, answers until SIGTERM, drains."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import logging
import os
import signal
import time
from typing import TYPE_CHECKING

from foldserve.replacing import write_replacing
from foldserve.runtime.cpus import find_cpus
from foldserve.runtime.memory import usable_memory_bytes
from foldserve.runtime.session import require_device, share_arena
from foldserve.runtime.time_limit import TimeLimit, end_process
from foldserve.serving.background import run_in_thread
from foldserve.serving.changes import Changes
from foldserve.serving.freed_memory import give_back_freed_memory
from foldserve.serving.observability.counter_history import LoadCounts
from foldserve.serving.observability.logs import announce, log_to_stderr
from foldserve.serving.observability.metrics import Metrics
from foldserve.serving.observability.model_metrics import ModelMetrics
from foldserve.serving.observability.server_metrics import ServerMetrics
from foldserve.serving.repository.layout import Layout
from foldserve.serving.repository.repository import ModelRepository
from foldserve.serving.repository.watcher import Watcher
from foldserve.serving.server_state import Lifecycle, ServerState
from foldserve.serving.services.inference import InferenceService
from foldserve.serving.services.management import ManagementService
from foldserve.serving.transport.backend import Backend
from foldserve.serving.transport.base import open_transport
from foldserve.serving.transport.descriptors import ConnectionGuard, share_descriptors
from foldserve.serving.transport.grpcio.library_logs import hush_libraries
from foldserve.serving.transport.settings import log_limits, log_who_may_call, wire_settings

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from foldserve.serving.config import ServeConfig
    from foldserve.serving.observability.page_server import PageServer
    from foldserve.serving.repository.index import ModelIndex
    from foldserve.serving.transport.base import Transport
    from foldserve.serving.transport.http.server import HttpTransport

_MIB = 1024 * 1024
_MODELS_SHARE = 0.8  # of the memory that this process may use

_log = logging.getLogger(__name__)


def serve(config: ServeConfig) -> int:
    """Serve until SIGTERM or SIGINT, drain, and return 0.

    Raises:
        ServingError: the repository cannot be read, the address is taken, or the requested device cannot run
            the models.
    """
    log_to_stderr(config.log_level, config.log_format)
    hush_libraries()
    require_device(config.device)
    share_arena(_max_model_memory_bytes(config))
    return asyncio.run(_serve(config))


async def _serve(config: ServeConfig) -> int:
    """Take the server through its states; see `ServerState`."""
    server = _Server(config)
    with _stop_signal() as stop:
        # Another server of the port answers what comes before this one can.
        is_loaded = config.reuse_port and await _load(config, server.repository, stop)
        if stop.is_set():
            server.abandon()
            return server.exit_status()
        await server.listen()
        try:
            await server.open_pages()
            if is_loaded or await _load(config, server.repository, stop):
                await server.enter_ready()
            await stop.wait()
            await server.enter_leaving()
        finally:
            await server.enter_draining()
            await server.enter_stopped()
    return server.exit_status()


class _Server:
    """The parts of a server, and what each change of its state does to them."""

    def __init__(self, config: ServeConfig) -> None:
        self._config = config
        self._lifecycle = Lifecycle()
        self._loads, self._loading = LoadCounts(), TimeLimit(config.load_timeout_s)
        self.repository = ModelRepository(
            config.repository,
            config.model_defaults,
            on_load=self._loads.count,
            settle_s=2 * config.poll_s,  # files that look the same at two polls have been written completely
            time_limit=self._loading,
            model_name=config.model_name,
        )
        # Logged after the repository was opened, so that a wrong path prints one error line and nothing else.
        _log.info("CPUs: %s", find_cpus())
        self._inference = InferenceService(
            self.repository.index,
            self._lifecycle,
            max_decoding_bytes=config.max_queue_mib * _MIB,
            max_image_pixels=config.max_image_pixels,
        )
        self._management = ManagementService(
            self.repository, self._lifecycle, model_control=config.allows_model_control
        )
        self._descriptors = share_descriptors()
        max_connections = self._descriptors.max_connections
        self._wire = wire_settings(config, self.repository.index, max_connections=max_connections)
        self._backend = Backend(self._inference, self._management, self._lifecycle)
        self._transport = open_transport(
            config.transport,
            self._backend,
            self._wire,
            why_not_native=config.why_not_native,
        )
        self._http = self._open_http() if config.http else None
        self._models = ModelMetrics(self.repository.index, self._inference, self._loads)
        self._page_server: PageServer | None = None
        self._watching = contextlib.ExitStack()
        self._port = 0
        changes = Changes()
        self.repository.index.subscribe(changes.notify)
        self._tasks = [
            asyncio.ensure_future(changes.follow(self._publish)),
            asyncio.ensure_future(give_back_freed_memory()),
        ]

    async def listen(self) -> None:
        """Answer gRPC, before any model is loaded.

        Raises:
            ListenError: the address is in use or does not belong to this machine.
        """
        await self._publish()
        self._port = await self._transport.start(self._config.host, self._config.port)
        log_who_may_call(self._config, self._wire)
        self._watching.enter_context(ConnectionGuard(self._port, self._descriptors))

    async def open_pages(self) -> None:
        """Write the port file, and serve the REST API, /metrics, /healthz and /readyz if they are wanted.

        Raises:
            ListenError: an address is in use or does not belong to this machine.
        """
        config = self._config
        _write_port(config.port_file, self._port)
        if self._http is not None:
            port = await self._http.start(config.host, config.http_port)
            _write_port(config.http_port_file, port)
            scheme = "http" if self._wire.credentials is None else "https"
            _log.info("the REST API on %s://%s:%d/v2", scheme, config.host, port)
        if config.metrics:
            self._page_server = self._open_page_server()
            port = await self._page_server.start(config.host, config.metrics_port)
            _write_port(config.metrics_port_file, port)
            _log.info("/metrics, /healthz and /readyz on http://%s:%d", config.host, port)
        announce(f"listening on {config.host}:{self._port}, loading {config.repository}", config.log_format)

    async def enter_ready(self) -> None:
        """Report readiness, now that the models are loaded, and follow the repository from now on."""
        config = self._config
        self._lifecycle.enter(ServerState.READY)
        _settle_garbage()
        log_limits(self._wire)
        await self._publish()
        announce(_ready_line(config, self._port, self.repository.index), config.log_format)
        if config.control == "poll":
            self._watching.enter_context(Watcher(self.repository, config.poll_s))

    def abandon(self) -> None:
        """Close what was prepared, if the server is stopped before it listens."""
        self._inference.close()
        self.repository.close(grace_s=1.0)
        for task in self._tasks:
            task.cancel()

    async def enter_leaving(self) -> None:
        """Report NOT_SERVING, and answer calls for as long as load balancers need to notice."""
        self._lifecycle.enter(ServerState.LEAVING)
        await self._transport.publish_health()
        await asyncio.sleep(self._config.drain_delay_s)

    async def enter_draining(self) -> None:
        """Refuse new inference, load nothing more, and wait until the accepted requests are answered."""
        self._watching.close()
        self._lifecycle.enter(ServerState.DRAINING)
        self.repository.stop_loading()
        await self._transport.publish_health()
        give_up_s = time.monotonic() + self._config.grace_period_s
        await asyncio.gather(*(transport.drain(give_up_s) for transport in self._transports()))

    async def enter_stopped(self) -> None:
        """Close the connections, the models and the pages."""
        self._lifecycle.enter(ServerState.STOPPED)
        await asyncio.gather(*(transport.close() for transport in self._transports()))
        self._inference.close()
        self.repository.close(grace_s=1.0)  # nobody waits for an answer: only the running execution is left
        answered_count = self._models.answered_count()
        _log.info("drained: %d requests were answered OK since the start", answered_count)
        for task in self._tasks:
            task.cancel()
        if self._page_server is not None:
            await self._page_server.close()

    def _open_http(self) -> HttpTransport:
        # Imported only if it is wanted, so that a start takes no longer than it must.
        from foldserve.serving.transport.http.server import HttpTransport  # noqa: PLC0415

        return HttpTransport(
            self._backend,
            self.repository.index,
            self._wire,
            max_connections=self._descriptors.max_http,
        )

    def _open_page_server(self) -> PageServer:
        # Imported only if it is wanted: starlette and uvicorn take 35 ms and 4 MiB.
        from foldserve.serving.observability.page_server import PageServer  # noqa: PLC0415
        from foldserve.serving.observability.pages import Pages, Pulse  # noqa: PLC0415

        server = ServerMetrics(
            *(self._management, self._inference, self._lifecycle),
            port=self._port,
            transport=self._transport.name,
        )
        pages = Pages(self._management, Metrics(self._models, server), Pulse())
        return PageServer(pages, max_connections=self._descriptors.max_probes)

    def _transports(self) -> list[Transport | HttpTransport]:
        return [self._transport] if self._http is None else [self._transport, self._http]

    def exit_status(self) -> int:
        """Return 0; ends the process here if a load that hangs would keep it alive."""
        if self._loading.unfinished_count:
            _log.warning(
                "%d loads cannot be stopped; they end with the process", self._loading.unfinished_count
            )
            end_process(0)
        return 0

    async def _publish(self) -> None:
        self._models.note_changes()
        await self._transport.publish_health()


async def _load(config: ServeConfig, repository: ModelRepository, stop: asyncio.Event) -> bool:
    """Load the models while the server answers; return False if a signal came first."""
    only = config.load_model if config.control == "explicit" else None
    loaded = run_in_thread(lambda: repository.load_all(only), "load")
    stopped = asyncio.ensure_future(stop.wait())
    await asyncio.wait((loaded, stopped), return_when=asyncio.FIRST_COMPLETED)
    stopped.cancel()
    if not loaded.done():
        loaded.cancel()
        return False
    await loaded
    return True


def _max_model_memory_bytes(config: ServeConfig) -> int:
    """Return how much memory the models may take; the rest is for requests and the process itself."""
    if config.max_model_memory_mib is not None:
        return config.max_model_memory_mib * _MIB
    return int(usable_memory_bytes() * _MODELS_SHARE)


def _settle_garbage() -> None:
    """Exempt the objects of start-up from garbage collection: they stay, and each pass costs time."""
    gc.collect()
    gc.freeze()


@contextlib.contextmanager
def _stop_signal() -> Iterator[asyncio.Event]:
    """Yield an event that the first SIGTERM, SIGINT or SIGHUP sets; a second ends the process at once.

    SIGHUP comes when a terminal is closed, or its connection is lost; below nohup it is ignored.
    """
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()

    def on_signal(number: signal.Signals) -> None:
        if stop.is_set():
            os._exit(128 + number)
        _log.info("%s: draining; a second signal exits at once", number.name)
        stop.set()

    signals = [signal.SIGTERM, signal.SIGINT]
    if signal.getsignal(signal.SIGHUP) != signal.SIG_IGN:
        signals.append(signal.SIGHUP)
    for number in signals:
        loop.add_signal_handler(number, on_signal, number)
    try:
        yield stop
    finally:
        for number in signals:
            loop.remove_signal_handler(number)


def _ready_line(config: ServeConfig, port: int, index: ModelIndex) -> str:
    models = index.ready_models()
    others = [entry for entry in index.entries() if entry.state == "UNAVAILABLE"]
    others_text = "".join(f"; not served: {entry.name}/{entry.version}: {entry.reason}" for entry in others)
    if not models:
        layout = Layout(config.repository, config.model_name)
        nothing = others_text or f"; {layout.explain_emptiness()}"
        return f"not ready on {config.host}:{port}, no model serves{nothing}"
    providers = "+".join(sorted({model.verified.session.provider for model in models}))
    names = ", ".join(f"{model.name}/{model.version}" for model in models)
    most = max(model.verified.threads for model in models)
    threads = f"{most} thread{'s' if most > 1 else ''}"
    how = "; ".join([f"{providers}, {threads}", *sorted({model.verified.session.choice for model in models})])
    return f"serving on {config.host}:{port} ({how}): {names} ready{others_text}"


def _write_port(path: Path | None, port: int) -> None:
    if path is None:
        return
    write_replacing(path, f"{port}\n")
