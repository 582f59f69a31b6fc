"""Calls over HTTP with http.client alone, so that nothing between test and server is clever."""

from __future__ import annotations

import http.client
import json
from typing import TYPE_CHECKING, Any, NamedTuple

if TYPE_CHECKING:
    import ssl
    from collections.abc import Mapping

    from numpy.typing import NDArray

JSON_LENGTH = "Inference-Header-Content-Length"
TIMEOUT_S = 60


class Answer(NamedTuple):
    """An answer; ``headers`` by lower-case name."""

    status: int
    headers: Mapping[str, str]
    content: bytes

    @property
    def plain(self) -> Any:
        """The content as JSON."""
        return json.loads(self.content)

    @property
    def error(self) -> str:
        """The message of an answer that refuses."""
        return str(self.plain["error"])


def call(
    address: str,
    path: str,
    body: bytes | str | None = None,
    *,
    method: str | None = None,
    headers: Mapping[str, str] | None = None,
    tls: ssl.SSLContext | None = None,
) -> Answer:
    """GET ``path``, or POST to it if there is a ``body``, and return the answer."""
    connection = (
        http.client.HTTPConnection(address, timeout=TIMEOUT_S)
        if tls is None
        else http.client.HTTPSConnection(address, timeout=TIMEOUT_S, context=tls)
    )
    try:
        connection.request(method or ("GET" if body is None else "POST"), path, body, dict(headers or {}))
        response = connection.getresponse()
        found = {name.lower(): value for name, value in response.getheaders()}
        return Answer(response.status, found, response.read())
    finally:
        connection.close()


def json_body(images: NDArray[Any], **fields: Any) -> str:
    """Return an inference request with its pixels in JSON."""
    return json.dumps({"inputs": [tensor(images) | {"data": images.ravel().tolist()}]} | fields)


def binary_body(images: NDArray[Any], **fields: Any) -> tuple[bytes, dict[str, str]]:
    """Return an inference request with its pixels behind the JSON, and its headers; so is the answer."""
    content = images.tobytes()
    sized = tensor(images) | {"parameters": {"binary_data_size": len(content)}}
    plain = {"inputs": [sized], "parameters": {"binary_data_output": True}} | fields
    head = json.dumps(plain).encode()
    return head + content, {JSON_LENGTH: str(len(head))}


def tensor(images: NDArray[Any]) -> dict[str, Any]:
    """Return the input's name, datatype and shape."""
    return {"name": "image", "datatype": "UINT8", "shape": list(images.shape)}
