"""Lines about single requests: one each at debug, and one for each that failed by a fault of ours."""

from __future__ import annotations

import logging
import time
from typing import TYPE_CHECKING, Any

from foldserve.text import quote

if TYPE_CHECKING:
    from foldserve.serving.services.requests import InferenceRequest

# Of names and ids, which callers choose, in one line.
_MAX_CHARACTERS = 200

_log = logging.getLogger(__name__)


def requests_are_logged() -> bool:
    """Tell whether `log_request` writes anything; asked once, for it is too much to ask for every request."""
    return _log.isEnabledFor(logging.DEBUG)


def log_request(call: InferenceRequest, code: str, reason: str = "") -> None:
    """Log at debug how a request ended."""
    facts = _facts(call) | {"code": code, "total_s": round(time.monotonic() - call.received_s, 6)}
    if call.finished_s:
        facts["queue_s"] = round(call.started_s - call.queued_s, 6)
        facts["compute_s"] = round(call.finished_s - call.started_s, 6)
    times = ", ".join(
        f"{name.removesuffix('_s')} {facts[name] * 1000:.3f} ms"
        for name in ("queue_s", "compute_s", "total_s")
        if name in facts
    )
    _log.debug(
        "%s %s%s%s: %d rows, %s",
        *(_subject(facts), code, _origin(facts), f" ({reason})" if reason else "", len(call.rows), times),
        extra=facts | {"rows": len(call.rows)},
    )


def log_fault(call: InferenceRequest, error: Exception) -> None:
    """Log, with its traceback, that a request failed for a reason that nobody meant."""
    facts = _facts(call)
    _log.error("%s failed%s", _subject(facts), _origin(facts), exc_info=error, extra=facts)


def _facts(call: InferenceRequest) -> dict[str, Any]:
    facts: dict[str, Any] = {"method": call.method}
    if call.model is not None:
        facts |= {"model": call.model.name, "version": call.model.version_text}
        request_id = call.request_id
    else:  # refused before it was read
        message = call.message
        facts |= {"model": message.model_name, "version": message.model_version}
        request_id = message.id
    facts = {name: text[:_MAX_CHARACTERS] for name, text in facts.items()}
    if request_id:
        facts["request_id"] = request_id[:_MAX_CHARACTERS]
    if call.peer:
        facts["peer"] = call.peer
    return facts


def _subject(facts: dict[str, Any]) -> str:
    """Return what a line begins with; what callers chose is escaped, so that no line can be forged."""
    model = "/".join(part for part in (facts["model"], facts["version"]) if part)
    return f"{facts['method']} {quote(model)}"


def _origin(facts: dict[str, Any]) -> str:
    request_id = f" id {quote(facts['request_id'])}" if "request_id" in facts else ""
    return request_id + (f" from {facts['peer']}" if "peer" in facts else "")
