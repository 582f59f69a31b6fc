"""Turns errors into HTTP answers: the status that fits, and the words that a gRPC caller would read."""

from __future__ import annotations

from http import HTTPStatus

from starlette.responses import JSONResponse, Response

from foldserve.serving.errors import ServingError
from foldserve.serving.transport.status import to_status

# By gRPC status; the others are faults of the server. google/rpc/code.proto has the same mapping.
_HTTP_STATUSES = {
    "INVALID_ARGUMENT": HTTPStatus.BAD_REQUEST,
    "NOT_FOUND": HTTPStatus.NOT_FOUND,
    "UNAVAILABLE": HTTPStatus.SERVICE_UNAVAILABLE,
    "RESOURCE_EXHAUSTED": HTTPStatus.TOO_MANY_REQUESTS,
    "DEADLINE_EXCEEDED": HTTPStatus.GATEWAY_TIMEOUT,
    "CANCELLED": 499,  # as nginx writes it: the caller has gone
    "UNIMPLEMENTED": HTTPStatus.NOT_IMPLEMENTED,
    "PERMISSION_DENIED": HTTPStatus.FORBIDDEN,
    "UNAUTHENTICATED": HTTPStatus.UNAUTHORIZED,
}
_RETRY_AFTER_S = "1"


class HttpError(ServingError):
    """A request that is refused before any service sees it, with the HTTP status of its class."""

    http_status = HTTPStatus.BAD_REQUEST
    status = "INVALID_ARGUMENT"


class BodyTooLargeError(HttpError):
    """The body is over the limit; the rest of it is not read."""

    http_status = HTTPStatus.REQUEST_ENTITY_TOO_LARGE
    status = "RESOURCE_EXHAUSTED"


class SlowBodyError(HttpError):
    """The body did not arrive in time."""

    http_status = HTTPStatus.REQUEST_TIMEOUT
    status = "DEADLINE_EXCEEDED"


class NoPageError(HttpError):
    """The path is unknown."""

    http_status = HTTPStatus.NOT_FOUND
    status = "NOT_FOUND"


class WrongMethodError(HttpError):
    """The path does not take this HTTP method."""

    http_status = HTTPStatus.METHOD_NOT_ALLOWED
    status = "UNIMPLEMENTED"


def to_response(error: Exception) -> Response:
    """Return the answer for ``error``: ``{"error": text}``, as Triton and KServe do; logs unexpected ones."""
    status, text = to_status(error)
    http_status: int = _HTTP_STATUSES.get(status, HTTPStatus.INTERNAL_SERVER_ERROR)
    if isinstance(error, HttpError):
        http_status = error.http_status
    headers = {}
    if http_status == HTTPStatus.UNAUTHORIZED:
        headers["WWW-Authenticate"] = "Bearer"
    if http_status in (HTTPStatus.SERVICE_UNAVAILABLE, HTTPStatus.TOO_MANY_REQUESTS):
        headers["Retry-After"] = _RETRY_AFTER_S
    if http_status in (HTTPStatus.REQUEST_ENTITY_TOO_LARGE, HTTPStatus.REQUEST_TIMEOUT):
        headers["Connection"] = "close"  # the rest of the body is not read
    return JSONResponse({"error": text}, http_status, headers)
