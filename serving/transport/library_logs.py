"""Lines that the transports' libraries log and that are no news."""

from __future__ import annotations

import errno
import logging

import grpc


def hush_libraries() -> None:
    """Drop lines about callers who hang up and about connections for which there was no descriptor."""
    logging.getLogger("grpc._cython.cygrpc").addFilter(_is_no_hang_up)
    logging.getLogger("pygrpc_native.server").addFilter(_is_no_want_of_descriptors)


def _is_no_hang_up(record: logging.LogRecord) -> bool:
    """Tell whether a record is not of a caller who hung up while being answered.

    gRPC means to be silent about those, and is where it hears of the hang-up before its answer fails.
    """
    error = record.exc_info[1] if record.exc_info else None
    return not isinstance(error, grpc.aio.InternalError | grpc.aio.UsageError)


def _is_no_want_of_descriptors(record: logging.LogRecord) -> bool:
    """Tell whether a record is not of a connection without a descriptor: serving.descriptors tells of it."""
    return f"os error {errno.EMFILE}" not in record.getMessage()
