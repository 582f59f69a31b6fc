"""`foldserve serve`: assemble the server, load what proves itself, answer until SIGTERM, drain."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import signal
import sys
import threading
from typing import TYPE_CHECKING

from serving.errors import DeviceError
from serving.model import ModelSettings
from serving.repository import Repository
from serving.servicer import Servicer
from serving.session import require_device
from serving.transport.grpcio import SERVICE, GrpcioTransport

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from serving.config import ServeConfig

_MIB = 1024 * 1024

_log = logging.getLogger(__name__)


def serve(config: ServeConfig) -> int:
    """Serve until SIGTERM or SIGINT, drain, and return 0.

    Raises:
        ServingError: the repository cannot be read, the address is taken, or the device asked for cannot run
            the models.
    """
    _log_to_stderr(config.log_level)
    require_device(config.device)
    return asyncio.run(_serve(config))


async def _serve(config: ServeConfig) -> int:
    settings = _to_settings(config)
    repository = Repository(config.repository, settings)
    servicer = Servicer(repository)
    transport = GrpcioTransport(servicer, max_message_bytes=config.max_message_mib * _MIB)
    with _stop_signal() as stop:
        await _set_health(transport, servicer, repository)
        port = await transport.start(config.host, config.port)
        try:
            if config.port_file is not None:
                _write_port(config.port_file, port)
            print(f"foldserve: listening on {config.host}:{port}, loading {config.repository}", flush=True)
            if await _load(repository, stop):
                servicer.end_loading()
                await _set_health(transport, servicer, repository)
                print(_ready_line(config, settings, port, repository), flush=True)
            await stop.wait()
        finally:
            await _drain(config, transport, servicer, repository)
    return 0


async def _load(repository: Repository, stop: asyncio.Event) -> bool:
    """Load in a thread of its own while the server answers; return False where a signal came first."""
    loop = asyncio.get_running_loop()
    loaded: asyncio.Future[None] = loop.create_future()

    def finish(error: DeviceError | None) -> None:
        if not loaded.done():
            loaded.set_exception(error) if error else loaded.set_result(None)

    def load() -> None:
        error = None
        try:
            repository.load_all()
        except DeviceError as device_error:
            error = device_error
        with contextlib.suppress(RuntimeError):  # the loop has been closed: nobody waits
            loop.call_soon_threadsafe(finish, error)

    # Not the loop's executor: its threads are waited for at exit, and a load that hangs must not keep SIGTERM
    # from ending the process.
    threading.Thread(target=load, name="load", daemon=True).start()
    stopped = asyncio.ensure_future(stop.wait())
    await asyncio.wait((loaded, stopped), return_when=asyncio.FIRST_COMPLETED)
    stopped.cancel()
    if not loaded.done():
        loaded.cancel()
        return False
    await loaded
    return True


async def _set_health(transport: GrpcioTransport, servicer: Servicer, repository: Repository) -> None:
    ready = servicer.is_ready()
    for service in ("", SERVICE):
        await transport.set_health(service, serving=ready)
    serving = {model.name for model in repository.ready_models()}
    for name in {entry.name for entry in repository.index()}:
        await transport.set_health(name, serving=name in serving)


async def _drain(
    config: ServeConfig, transport: GrpcioTransport, servicer: Servicer, repository: Repository
) -> None:
    """Say NOT_SERVING first, then refuse new calls, then finish what was accepted."""
    await transport.enter_shutdown()
    servicer.begin_drain()
    await transport.stop(config.grace_period_s)
    repository.close(grace_s=1.0)  # nobody waits for an answer any more: only the running execution is left
    _log.info("drained")


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
        instance_count=config.instances,
        intra_op_threads=config.intra_op_threads,
    )


def _ready_line(config: ServeConfig, settings: ModelSettings, port: int, repository: Repository) -> str:
    models = repository.ready_models()
    refused = [entry for entry in repository.index() if entry.state == "UNAVAILABLE"]
    refused_text = "".join(f"; refused {entry.name}/{entry.version}: {entry.reason}" for entry in refused)
    if not models:
        nothing = refused_text or "; the repository is empty"
        return f"foldserve: not ready on {config.host}:{port}, no model serves{nothing}"
    providers = "+".join(sorted({model.verified.session.provider for model in models}))
    names = ", ".join(f"{model.name}/{model.version}" for model in models)
    threads = f"{settings.threads} thread{'s' if settings.threads > 1 else ''}"
    return f"foldserve: serving on {config.host}:{port} ({providers}, {threads}): {names} ready{refused_text}"


def _write_port(path: Path, port: int) -> None:
    sibling = path.with_name(f".{path.name}.writing")
    sibling.write_text(f"{port}\n")
    sibling.replace(path)


def _log_to_stderr(level: str) -> None:
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(name)s: %(message)s"))
    logging.basicConfig(level=level.upper(), handlers=[handler])
