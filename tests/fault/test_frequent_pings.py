"""Proxies that ping their connections often, as deploy/envoy does to notice a hanging server, keep them."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

import grpc
import yaml
from grpc_health.v1 import health_pb2, health_pb2_grpc

from deploy.checks.envoy import CONFIG
from tests.support.artifacts import TinyNetwork
from tests.support.server_process import ServerProcess

if TYPE_CHECKING:
    from pathlib import Path

PINGS = 5  # gRPC closes a connection at the third that comes too early


def interval_s() -> float:
    """How often Envoy pings."""
    (cluster,) = yaml.safe_load(CONFIG.read_text())["static_resources"]["clusters"]
    (options,) = cluster["typed_extension_protocol_options"].values()
    interval = options["explicit_http_config"]["http2_protocol_options"]["connection_keepalive"]["interval"]
    return float(interval.removesuffix("s"))


def test_neither_a_call_nor_an_idle_connection_is_ended_by_pings(tmp_path: Path, transport: str) -> None:
    TinyNetwork().publish(tmp_path / "models" / "tiny")
    options = (
        ("grpc.keepalive_time_ms", round(1000 * interval_s())),
        ("grpc.keepalive_permit_without_calls", 1),
        ("grpc.http2.max_pings_without_data", 0),
        ("grpc.use_local_subchannel_pool", 1),
    )
    with (
        ServerProcess(tmp_path / "models", tmp_path / "server", "--transport", transport) as server,
        grpc.insecure_channel(server.address, options) as watching,
        grpc.insecure_channel(server.address, options) as idle,
    ):
        states: list[grpc.ChannelConnectivity] = []
        idle.subscribe(states.append, try_to_connect=True)
        grpc.channel_ready_future(idle).result(30)
        answers = health_pb2_grpc.HealthStub(watching).Watch(health_pb2.HealthCheckRequest())
        assert next(answers).status == health_pb2.HealthCheckResponse.SERVING
        time.sleep((PINGS + 0.5) * interval_s())
        assert answers.is_active(), answers.details()
        assert states[-1] is grpc.ChannelConnectivity.READY
        assert states.count(grpc.ChannelConnectivity.READY) == 1, states
