"""A caller who hangs up while being answered is nobody's fault, and leaves nothing in the log."""

from __future__ import annotations

import asyncio
import logging

import grpc
import pytest

from foldserve.serving.transport.grpcio.builtin_services import refuse
from foldserve.serving.transport.grpcio.library_logs import hush_libraries

GRPC_LOG = logging.getLogger("grpc._cython.cygrpc")


@pytest.fixture(autouse=True)
def hushed() -> None:
    hush_libraries()


@pytest.mark.parametrize("error", [grpc.aio.InternalError("execute_batch"), grpc.aio.UsageError("finished")])
def test_grpc_log_lines_about_hang_ups_are_dropped(
    caplog: pytest.LogCaptureFixture, error: Exception
) -> None:
    try:
        raise error
    except type(error):
        GRPC_LOG.exception("ExecuteBatchError raised in core by servicer method [/a/b]")
    assert not caplog.records


def test_other_grpc_log_lines_are_kept(caplog: pytest.LogCaptureFixture) -> None:
    GRPC_LOG.error("a fault", exc_info=ValueError("of ours"))
    GRPC_LOG.warning("a warning")
    assert [record.message for record in caplog.records] == ["a fault", "a warning"]


def test_no_status_is_set_after_a_hang_up(caplog: pytest.LogCaptureFixture) -> None:
    gone = grpc.aio.InternalError("execute_batch")
    with pytest.raises(grpc.aio.InternalError):
        asyncio.run(refuse(None, gone))  # type: ignore[arg-type]  # not reached
    assert not caplog.records
