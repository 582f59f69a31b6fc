"""Downloads a file over HTTP; partial content stays in ``NAME.part``, and a later attempt requests the rest.

A dead mirror fails within `TIMEOUT_S`. A broken connection is resumed, as long as each attempt receives some
bytes.
"""

from __future__ import annotations

import http.client
import urllib.error
import urllib.request
from typing import TYPE_CHECKING

from foldserve.training.errors import DatasetError

if TYPE_CHECKING:
    from pathlib import Path

    from foldserve.terminal import Terminal

# For connecting and for each read: far longer than a working server pauses, short enough to try another.
TIMEOUT_S = 6.0
_CHUNK_BYTES = 256 * 1024
_ATTEMPTS = 4


def download(url: str, part: Path, *, limit_bytes: int, terminal: Terminal) -> None:
    """Download ``url`` into ``part``, resuming after the bytes that it already has.

    Raises:
        DatasetError: the server cannot be reached, refuses, breaks off or sends more than ``limit_bytes``.
    """
    for attempt in range(1, _ATTEMPTS + 1):
        before = part.stat().st_size if part.exists() else 0
        try:
            _fetch_rest(url, part, limit_bytes, terminal)
        except (OSError, http.client.HTTPException) as error:  # URLError and timeouts are OSErrors
            after = part.stat().st_size if part.exists() else 0
            if attempt == _ATTEMPTS or after <= before:
                raise DatasetError(f"{url}: {_reason(error)}") from error
            terminal.say(f"{url}: {_reason(error)} after {after:,} bytes; resuming")
        else:
            return


def _fetch_rest(url: str, part: Path, limit_bytes: int, terminal: Terminal) -> None:
    start = part.stat().st_size if part.exists() else 0
    request = urllib.request.Request(url, headers={"User-Agent": "foldserve"})  # noqa: S310  # our own mirrors
    if start:
        request.add_header("Range", f"bytes={start}-")
    try:
        response = urllib.request.urlopen(request, timeout=TIMEOUT_S)  # noqa: S310
    except urllib.error.HTTPError as error:
        error.close()
        if start and error.code == http.HTTPStatus.REQUESTED_RANGE_NOT_SATISFIABLE:
            return  # nothing is left to send; the caller checks whether the file is complete
        raise
    with response:
        if response.status != http.HTTPStatus.PARTIAL_CONTENT:
            start = 0  # the server cannot resume and sends the whole file
        elif not response.headers.get("Content-Range", "").startswith(f"bytes {start}-"):
            part.unlink()
            raise http.client.HTTPException("the server resumed at another position than requested")
        length = response.headers.get("Content-Length")
        total = start + int(length) if length and length.isdigit() else None
        received = start
        with (
            part.open("ab" if start else "wb") as stream,
            terminal.downloading(part.stem, total, start) as advance,
        ):
            while chunk := response.read(_CHUNK_BYTES):
                received += len(chunk)
                if received > limit_bytes:
                    raise DatasetError(
                        f"{url}: sends more than the expected maximum of {limit_bytes:,} bytes"
                    )
                stream.write(chunk)
                advance(len(chunk))
    if total is not None and received < total:  # http.client reports no error if the connection breaks
        raise http.client.HTTPException(f"the connection broke at {received:,} of {total:,} bytes")


def _reason(error: Exception) -> str:
    reason = getattr(error, "reason", None) or error
    return str(getattr(reason, "strerror", None) or reason) or type(error).__name__
