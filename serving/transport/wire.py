"""What both transports do alike: bytes to messages, errors to statuses. The same words for the same fault."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, TypeVar, cast

from google.protobuf.message import DecodeError

from serving.errors import INTERNAL_ERROR_TEXT, InvalidArgumentError, ResourceExhaustedError, ServingError
from serving.field_count import UNCOUNTED_BYTES, MalformedError, check_field_count
from serving.message_limit import LEAST_TYPED_BYTES
from serving.shown import escaped

if TYPE_CHECKING:
    from google.protobuf.descriptor import Descriptor
    from google.protobuf.message import Message

    from serving.message_limit import MessageLimit

_M = TypeVar("_M", bound="Message")

# A message of so many bytes is read in a thread of its own: a millisecond or more.
LARGE_BYTES = 1024 * 1024

# Statuses travel in HTTP/2 headers: beyond some 8 kB clients report an error of their own instead.
_MAX_TEXT = 2000

_log = logging.getLogger(__name__)


def parse(message_type: type[_M], content: bytes, limit: MessageLimit) -> _M:
    """Return the message that ``content`` is.

    Raises:
        ResourceExhaustedError: it is larger than messages may be; it is refused without being parsed.
        InvalidArgumentError: it is no such message, or one of too many fields or typed pixels.
    """
    if not limit.allows(len(content)):
        raise ResourceExhaustedError(
            f"the message has {len(content)} bytes, at most {limit.max_bytes()} are taken: send fewer "
            "images at a time, or raise the server's --max-message-mib"
        )
    return parse_bounded(message_type, content, limit)


def parse_bounded(message_type: type[_M], content: bytes, limit: MessageLimit | None = None) -> _M:
    """Return the message that ``content``, of any size, is.

    Raises:
        InvalidArgumentError: it is no such message, or one of too many fields or typed pixels.
    """
    try:
        if len(content) > UNCOUNTED_BYTES:
            _check_contents(message_type, content, limit)
        return message_type.FromString(content)
    except (DecodeError, MalformedError):
        raise InvalidArgumentError(
            f"the {len(content)} bytes received are no {message_type.DESCRIPTOR.full_name} message; is the "
            "client made from another definition of the protocol?"
        ) from None


def _check_contents(message_type: type[Message], content: bytes, limit: MessageLimit | None) -> None:
    typed_bytes = check_field_count(cast("Descriptor", message_type.DESCRIPTOR), content)
    if typed_bytes > LEAST_TYPED_BYTES and (limit is None or typed_bytes > limit.max_typed_bytes()):
        raise InvalidArgumentError(
            f"the message has {typed_bytes} bytes of pixels as typed contents, more than a full batch of any "
            "model that serves: send them in raw_input_contents, or fewer images at a time"
        )


def to_status(error: Exception) -> tuple[str, str]:
    """Return the gRPC status by name and its message; errors that nobody meant to raise are logged.

    The error forgets what it was raised through. That holds the message, and mostly something that comes to
    hold the error, a call or a future: a circle, which would stay in memory until the garbage collector comes
    by.
    """
    status, text = "INTERNAL", INTERNAL_ERROR_TEXT
    if isinstance(error, ServingError):
        status, text = error.status, escaped(str(error))
    else:
        _log.error("a call failed", exc_info=error)
    error.__traceback__ = error.__context__ = None
    return status, text if len(text) <= _MAX_TEXT else text[:_MAX_TEXT] + "…"
