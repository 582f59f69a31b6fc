"""Parses messages and turns errors into gRPC statuses, so that both transports answer alike."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, TypeVar, cast

from google.protobuf.message import DecodeError

from foldserve.errors import FoldserveError
from foldserve.serving.errors import INTERNAL_ERROR_TEXT, InvalidArgumentError, ResourceExhaustedError
from foldserve.serving.protocol.field_count import UNCOUNTED_BYTES, MalformedError, check_field_count
from foldserve.serving.services.message_limit import LEAST_TYPED_BYTES
from foldserve.text import escaped

if TYPE_CHECKING:
    from google.protobuf.descriptor import Descriptor
    from google.protobuf.message import Message

    from foldserve.serving.services.message_limit import MessageLimit

_M = TypeVar("_M", bound="Message")

# Parsing a message of this size takes a millisecond or more, so it runs in a thread of its own.
LARGE_BYTES = 1024 * 1024

# Statuses travel in HTTP/2 headers; if they exceed some 8 kB, clients report an error of their own instead.
_MAX_TEXT = 2000

_log = logging.getLogger(__name__)


def parse(message_type: type[_M], content: bytes, limit: MessageLimit) -> _M:
    """Parse ``content``, unless it is larger than ``limit``.

    Raises:
        ResourceExhaustedError: it is larger than ``limit``; it is refused without being parsed.
        InvalidArgumentError: it is not such a message, or has too many fields or typed pixels.
    """
    if not limit.allows(len(content)):
        raise ResourceExhaustedError(
            f"the message has {len(content)} bytes; the server accepts at most {limit.max_bytes()}: send "
            "fewer images per request, or raise the server's --max-message-mib"
        )
    return parse_bounded(message_type, content, limit)


def parse_bounded(message_type: type[_M], content: bytes, limit: MessageLimit | None = None) -> _M:
    """Parse ``content`` of any size.

    Raises:
        InvalidArgumentError: it is not such a message, or has too many fields or typed pixels.
    """
    try:
        if len(content) > UNCOUNTED_BYTES:
            _check_contents(message_type, content, limit)
        return message_type.FromString(content)
    except (DecodeError, MalformedError):
        raise InvalidArgumentError(
            f"cannot parse the {len(content)} bytes received as {message_type.DESCRIPTOR.full_name}; was the "
            "client generated from a different .proto?"
        ) from None


def _check_contents(message_type: type[Message], content: bytes, limit: MessageLimit | None) -> None:
    typed_bytes = check_field_count(cast("Descriptor", message_type.DESCRIPTOR), content)
    if typed_bytes > LEAST_TYPED_BYTES and (limit is None or typed_bytes > limit.max_typed_bytes()):
        raise InvalidArgumentError(
            f"the message has {typed_bytes} bytes of pixels as typed contents, more than a full batch of any "
            "model served here: send them in raw_input_contents, or fewer images per request"
        )


def to_status(error: Exception) -> tuple[str, str]:
    """Return the name and message of the gRPC status for ``error``; unexpected errors are logged.

    Clears the error's traceback and context. They refer to the request's message and often, through a call
    or a future, to the error itself: such a cycle would stay in memory until the next garbage collection.
    """
    status, text = "INTERNAL", INTERNAL_ERROR_TEXT
    if isinstance(error, FoldserveError):
        status, text = error.status, escaped(str(error))
    else:
        _log.error("a call failed unexpectedly", exc_info=error)
    error.__traceback__ = error.__context__ = None
    return status, text if len(text) <= _MAX_TEXT else text[:_MAX_TEXT] + "…"
