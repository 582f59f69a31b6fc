"""Logs single requests: each one at debug, and those that failed unexpectedly as errors."""

from __future__ import annotations

import logging
import time
from typing import TYPE_CHECKING, Any

from foldserve.text import quote

if TYPE_CHECKING:
    from foldserve.serving.services.requests import InferenceRequest

# Of names and ids, which callers choose.
_MAX_CHARACTERS = 200

_log = logging.getLogger(__name__)


def requests_are_logged() -> bool:
    """Return whether `log_request` writes anything; called once, since it is slow to check per request."""
    return _log.isEnabledFor(logging.DEBUG)


def log_request(request: InferenceRequest, code: str, reason: str = "") -> None:
    """Log at debug the outcome of a request."""
    facts = _facts(request) | {"code": code, "total_s": round(time.monotonic() - request.received_s, 6)}
    if request.finished_s:
        facts["queue_s"] = round(request.started_s - request.queued_s, 6)
        facts["compute_s"] = round(request.finished_s - request.started_s, 6)
    times = ", ".join(
        f"{name.removesuffix('_s')} {facts[name] * 1000:.3f} ms"
        for name in ("queue_s", "compute_s", "total_s")
        if name in facts
    )
    _log.debug(
        "%s %s%s%s: %d rows, %s",
        *(_subject(facts), code, _origin(facts), f" ({reason})" if reason else "", len(request.rows), times),
        extra=facts | {"rows": len(request.rows)},
    )


def log_fault(request: InferenceRequest, error: Exception) -> None:
    """Log the traceback of a request that failed unexpectedly."""
    facts = _facts(request)
    _log.error("%s failed%s", _subject(facts), _origin(facts), exc_info=error, extra=facts)


def _facts(request: InferenceRequest) -> dict[str, Any]:
    facts: dict[str, Any] = {"method": request.method}
    if request.model is not None:
        facts |= {"model": request.model.name, "version": request.model.version_text}
        request_id = request.request_id
    else:  # refused before its message was read
        message = request.message
        facts |= {"model": message.model_name, "version": message.model_version}
        request_id = message.id
    facts = {name: text[:_MAX_CHARACTERS] for name, text in facts.items()}
    if request_id:
        facts["request_id"] = request_id[:_MAX_CHARACTERS]
    if request.peer:
        facts["peer"] = request.peer
    return facts


def _subject(facts: dict[str, Any]) -> str:
    """Return the beginning of a line, with callers' texts escaped so that they cannot forge lines."""
    model = "/".join(part for part in (facts["model"], facts["version"]) if part)
    return f"{facts['method']} {quote(model)}"


def _origin(facts: dict[str, Any]) -> str:
    request_id = f" id {quote(facts['request_id'])}" if "request_id" in facts else ""
    return request_id + (f" from {facts['peer']}" if "peer" in facts else "")
