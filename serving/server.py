"""`foldserve serve`: assemble the server, load what proves itself, answer until SIGTERM, drain."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import logging
import os
import signal
from typing import TYPE_CHECKING

from foldserve.runtime.cpus import find_cpus
from foldserve.runtime.memory import usable_memory_bytes
from foldserve.runtime.session import require_device, share_arena
from foldserve.runtime.time_limit import TimeLimit, end_process
from foldserve.serving.background import run_in_thread
from foldserve.serving.changes import Changes
from foldserve.serving.freed_memory import give_back_freed_memory
from foldserve.serving.observability.counter_history import LoadCounts
from foldserve.serving.observability.http_endpoint import HttpEndpoint
from foldserve.serving.observability.logs import announce, log_to_stderr
from foldserve.serving.observability.metrics import Metrics
from foldserve.serving.observability.model_metrics import ModelMetrics
from foldserve.serving.observability.pages import Pages, Pulse
from foldserve.serving.observability.server_metrics import ServerMetrics
from foldserve.serving.repository.layout import Layout
from foldserve.serving.repository.repository import ModelRepository
from foldserve.serving.repository.watcher import Watcher
from foldserve.serving.services.inference import InferenceService
from foldserve.serving.services.management import ManagementService
from foldserve.serving.transport.base import open_transport
from foldserve.serving.transport.descriptors import ConnectionGuard, share_descriptors
from foldserve.serving.transport.grpcio.library_logs import hush_libraries
from foldserve.serving.transport.settings import log_limits, log_who_may_call, wire_settings

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from foldserve.serving.config import ServeConfig
    from foldserve.serving.repository.index import ModelIndex
    from foldserve.serving.transport.base import Transport

_MIB = 1024 * 1024
_MODELS_SHARE = 0.8  # of the memory that this process may use

_log = logging.getLogger(__name__)


def serve(config: ServeConfig) -> int:
    """Serve until SIGTERM or SIGINT, drain, and return 0.

    Raises:
        ServingError: the repository cannot be read, the address is taken, or the device asked for cannot run
            the models.
    """
    log_to_stderr(config.log_level, config.log_format)
    hush_libraries()
    require_device(config.device)
    share_arena(_most_memory_bytes(config))
    return asyncio.run(_serve(config))


async def _serve(config: ServeConfig) -> int:
    loads, changes, loading = LoadCounts(), Changes(), TimeLimit(config.load_timeout_s)
    repository = ModelRepository(
        config.repository,
        config.model_defaults,
        on_load=loads.count,
        settle_s=2 * config.poll_s,  # two looks that see the same: what was being written is settled
        time_limit=loading,
        model_name=config.model_name,
    )
    repository.index.subscribe(changes.notify)
    _log.info("processors: %s", find_cpus())  # after what a wrong path ends with one readable line
    servicer = InferenceService(
        repository.index,
        max_decoding_bytes=config.max_queue_mib * _MIB,
        max_image_pixels=config.max_image_pixels,
    )
    control = ManagementService(repository, servicer, model_control=config.allows_model_control)
    descriptors = share_descriptors()
    wire = wire_settings(config, repository.index, max_connections=descriptors.max_connections)
    transport = open_transport(
        config.transport, servicer, control, wire, why_not_native=config.why_not_native
    )
    models, endpoint = ModelMetrics(repository.index, servicer, loads), HttpEndpoint(descriptors.max_probes)

    async def publish() -> None:
        models.note_changes()
        await transport.publish_health()

    following = asyncio.ensure_future(changes.follow(publish))
    trimming = asyncio.ensure_future(give_back_freed_memory())
    with _stop_signal() as stop, contextlib.ExitStack() as watching:
        await publish()
        # Another server of the port answers what comes before this one can.
        loaded = config.reuse_port and await _load(config, repository, stop)
        if stop.is_set():
            servicer.close()
            repository.close(grace_s=1.0)
            return _end(loading)
        port = await transport.start(config.host, config.port)
        log_who_may_call(config, wire)
        watching.enter_context(ConnectionGuard(port, descriptors))
        try:
            _write_port(config.port_file, port)
            server = ServerMetrics(control, servicer, port=port, transport=transport.name)
            await _open_endpoint(config, endpoint, Pages(control, Metrics(models, server), Pulse()))
            announce(f"listening on {config.host}:{port}, loading {config.repository}", config.log_format)
            if loaded or await _load(config, repository, stop):
                control.end_loading()
                _settle_garbage()
                log_limits(wire)
                await publish()
                announce(_ready_line(config, port, repository.index), config.log_format)
                if config.control == "poll":
                    watching.enter_context(Watcher(repository, config.poll_s))
            await stop.wait()
            await _leave(config, transport, servicer)
        finally:
            watching.close()  # what changes from now on is the next server's
            await _drain(config, transport, servicer, repository)
            _log.info("drained: %d requests were answered OK since the start", models.answered_count())
            following.cancel()
            trimming.cancel()
            await endpoint.close()
    return _end(loading)


async def _open_endpoint(config: ServeConfig, endpoint: HttpEndpoint, pages: Pages) -> None:
    if config.metrics:
        port = await endpoint.start(config.host, config.metrics_port, pages.by_path())
        _write_port(config.metrics_port_file, port)
        _log.info("/metrics, /healthz and /readyz on http://%s:%d", config.host, port)


async def _load(config: ServeConfig, repository: ModelRepository, stop: asyncio.Event) -> bool:
    """Load while the server answers; return False where a signal came first."""
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


async def _leave(config: ServeConfig, transport: Transport, servicer: InferenceService) -> None:
    """Say NOT_SERVING, and answer everything for as long as balancers need to notice."""
    servicer.announce_drain()
    await transport.enter_shutdown()
    await asyncio.sleep(config.drain_delay_s)


async def _drain(
    config: ServeConfig, transport: Transport, servicer: InferenceService, repository: ModelRepository
) -> None:
    """Refuse new calls, and finish what was accepted."""
    servicer.begin_drain()
    repository.stop_loading()
    await transport.enter_shutdown()
    await transport.stop(config.grace_period_s)
    servicer.close()
    repository.close(grace_s=1.0)  # nobody waits for an answer any more: only the running execution is left


def _end(loading: TimeLimit) -> int:
    """Return the exit status 0, or end the process with it where loads would keep it from ending."""
    if loading.unfinished_count:
        _log.warning("%d loads cannot be stopped; they end with the process", loading.unfinished_count)
        end_process(0)
    return 0


def _most_memory_bytes(config: ServeConfig) -> int:
    """Return how much the models may take; the rest is for requests, and for this process itself."""
    if config.max_model_memory_mib is not None:
        return config.max_model_memory_mib * _MIB
    return int(usable_memory_bytes() * _MODELS_SHARE)


def _settle_garbage() -> None:
    """Take what start-up made out of the collector's sight: it stays, and going through it costs time."""
    gc.collect()
    gc.freeze()


@contextlib.contextmanager
def _stop_signal() -> Iterator[asyncio.Event]:
    """Give an event that the first SIGTERM or SIGINT sets; a second one ends the process at once."""
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()

    def on_signal(number: signal.Signals) -> None:
        if stop.is_set():
            os._exit(128 + number)
        _log.info("%s: draining; a second signal exits at once", number.name)
        stop.set()

    signals = (signal.SIGTERM, signal.SIGINT)
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
    sibling = path.with_name(f".{path.name}.writing")
    sibling.write_text(f"{port}\n")
    sibling.replace(path)
