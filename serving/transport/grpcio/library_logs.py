"""Drops log lines of the transports' libraries that report nothing an operator can act on."""

from __future__ import annotations

import errno
import logging

import grpc


def hush_libraries() -> None:
    """Drop lines about callers who hang up and about connections refused for want of a descriptor."""
    logging.getLogger("grpc._cython.cygrpc").addFilter(_keep_unless_hang_up)
    logging.getLogger("pygrpc_native.server").addFilter(_keep_unless_out_of_descriptors)


def _keep_unless_hang_up(record: logging.LogRecord) -> bool:
    """Return False for a record about a caller who hung up while being answered.

    gRPC itself logs nothing if it learns of the hang-up before its answer fails.
    """
    error = record.exc_info[1] if record.exc_info else None
    return not isinstance(error, grpc.aio.InternalError | grpc.aio.UsageError)


def _keep_unless_out_of_descriptors(record: logging.LogRecord) -> bool:
    """Return False for a record about a connection without a descriptor; `ConnectionGuard` reports those."""
    return f"os error {errno.EMFILE}" not in record.getMessage()
