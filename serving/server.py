"""`foldserve serve`: assemble the server, load what proves itself, answer until SIGTERM, drain."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import logging
import os
import signal
import time
from typing import TYPE_CHECKING

from foldserve.runtime.cpus import find_cpus
from foldserve.runtime.memory import usable_memory_bytes
from foldserve.runtime.model_settings import ModelSettings
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
from foldserve.serving.repository.folder_hints import explain_emptiness
from foldserve.serving.repository.repository import ModelRepository
from foldserve.serving.repository.watcher import Watcher
from foldserve.serving.server_state import Lifecycle, ServerState
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
        _to_settings(config),
        on_load=loads.count,
        settle_s=2 * config.poll_s,  # two looks that see the same: what was being written is settled
        time_limit=loading,
    )
    repository.subscribe(changes.notify)
    _log.info("processors: %s", find_cpus())  # after what a wrong path ends with one readable line
    lifecycle = Lifecycle()
    servicer = InferenceService(
        repository,
        lifecycle,
        max_decoding_bytes=config.max_queue_mib * _MIB,
        max_image_pixels=config.max_image_pixels,
    )
    control = ManagementService(repository, lifecycle, model_control=config.allows_model_control)
    descriptors = share_descriptors()
    wire = wire_settings(config, repository, max_connections=descriptors.max_connections)
    transport = open_transport(
        config.transport, servicer, control, lifecycle, wire, why_not_native=config.why_not_native
    )
    models, endpoint = ModelMetrics(repository, servicer, loads), HttpEndpoint(descriptors.max_probes)

    async def publish() -> None:
        models.note_changes()
        await transport.publish_health()

    following = asyncio.ensure_future(changes.follow(publish))
    trimming = asyncio.ensure_future(give_back_freed_memory())
    with _stop_signal() as stop, contextlib.ExitStack() as watching:
        await publish()
        port = await transport.start(config.host, config.port)
        log_who_may_call(config, wire)
        watching.enter_context(ConnectionGuard(port, descriptors))
        try:
            _write_port(config.port_file, port)
            server = ServerMetrics(control, servicer, lifecycle, port=port, transport=transport.name)
            await _open_endpoint(config, endpoint, Pages(control, Metrics(models, server), Pulse()))
            announce(f"listening on {config.host}:{port}, loading {config.repository}", config.log_format)
            if await _load(config, repository, stop):
                lifecycle.enter(ServerState.READY)
                _settle_garbage()
                log_limits(wire)
                await publish()
                announce(_ready_line(config, port, repository), config.log_format)
                if config.control == "poll":
                    watching.enter_context(Watcher(repository, config.poll_s))
            await stop.wait()
            lifecycle.enter(ServerState.LEAVING)
            await transport.publish_health()
            await asyncio.sleep(config.drain_delay_s)
        finally:
            watching.close()  # what changes from now on is the next server's
            lifecycle.enter(ServerState.DRAINING)
            repository.stop_loading()
            await transport.publish_health()
            await transport.drain(time.monotonic() + config.grace_period_s)
            lifecycle.enter(ServerState.STOPPED)
            await transport.close()
            servicer.close()
            repository.close(grace_s=1.0)  # nobody waits any more: only the running execution is left
            _log.info("drained: %d requests were answered OK since the start", models.answered_count())
            following.cancel()
            trimming.cancel()
            await endpoint.close()
    if loading.unfinished_count:
        _log.warning("%d loads cannot be stopped; they end with the process", loading.unfinished_count)
        end_process(0)
    return 0


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


def _to_settings(config: ServeConfig) -> ModelSettings:
    return ModelSettings(
        device=config.device,
        max_batch_size=config.max_batch_size,
        max_queue_rows=config.max_queue_rows,
        max_queue_bytes=config.max_queue_mib * _MIB,
        max_queue_delay_s=config.max_queue_delay_ms / 1000,
        instance_count=config.instances,
        intra_op_threads=config.intra_op_threads,
        batch_invariant=config.batch_invariant,
    )


def _ready_line(config: ServeConfig, port: int, repository: ModelRepository) -> str:
    models = repository.ready_models()
    others = [entry for entry in repository.index() if entry.state == "UNAVAILABLE"]
    others_text = "".join(f"; not served: {entry.name}/{entry.version}: {entry.reason}" for entry in others)
    if not models:
        nothing = others_text or f"; {explain_emptiness(config.repository)}"
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
