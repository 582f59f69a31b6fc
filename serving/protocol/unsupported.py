"""Explains calls that this server does not have; Triton's clients have methods for some of them."""

from __future__ import annotations

import re

from foldserve.serving.protocol.names import CLASSIFIER_SERVICE, INFERENCE_SERVICE
from foldserve.text import quote

_SHARED_MEMORY = "shared memory is not supported; send tensors in the messages"
_TRACING = (
    "tracing is not supported; time spent in queue and model is in ModelStatistics and in the metrics, and "
    "--log-level debug logs each request"
)
_LOGGING = "log settings cannot be changed by calls; start the server with --log-level and --log-format"
_GENERATION = "models that generate are not supported; send images to /infer or /classify"

_METHODS = {
    "TraceSetting": _TRACING,
    "LogSettings": _LOGGING,
    **{
        f"{kind}SharedMemory{method}": _SHARED_MEMORY
        for kind in ("System", "Cuda")
        for method in ("Status", "Register", "Unregister")
    },
}
_PATHS = {
    re.compile(r"/v2/(system|cuda)sharedmemory(/.*)?"): _SHARED_MEMORY,
    re.compile(r"/v2/(models/[^/]+/(versions/[^/]+/)?)?trace/setting"): _TRACING,
    re.compile(r"/v2/logging"): _LOGGING,
    re.compile(r"/v2/models/[^/]+/(versions/[^/]+/)?generate(_stream)?"): _GENERATION,
}


def explain_method(path: str) -> str:
    """Return why the RPC ``path``, such as /inference.GRPCInferenceService/LogSettings, is not there."""
    service, _, method = path.removeprefix("/").partition("/")
    if service == INFERENCE_SERVICE and method in _METHODS:
        return _METHODS[method]
    return (
        f"no method {quote(path)}; the services are {INFERENCE_SERVICE} and {CLASSIFIER_SERVICE}: was the "
        "client generated from a different .proto?"
    )


def explain_path(path: str) -> str | None:
    """Return why HTTP's ``path`` is not there; None unless it is one of Triton's."""
    return next((text for pattern, text in _PATHS.items() if pattern.fullmatch(path)), None)
