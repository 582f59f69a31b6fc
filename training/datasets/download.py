"""One file over HTTP, resumable: the bytes so far stay in ``NAME.part``; a later attempt asks for the rest.

A dead mirror fails within `TIMEOUT_S`; a broken connection is taken up again where it broke, as long as each
attempt brings some bytes.
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

# For connecting and for each read: far above any sound server's pause, short enough to try the next mirror.
TIMEOUT_S = 6.0
_CHUNK_BYTES = 256 * 1024
_ATTEMPTS = 4


def download(url: str, part: Path, *, limit_bytes: int, terminal: Terminal) -> None:
    """Fetch ``url`` into ``part``, going on from the bytes that are there already.

    Raises:
        DatasetError: the server cannot be reached, refuses, breaks off or sends over ``limit_bytes``.
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
            return  # nothing is left to send: the caller's check tells whether the file is whole
        raise
    with response:
        if response.status != http.HTTPStatus.PARTIAL_CONTENT:
            start = 0  # the server does not resume and sends all of it
        elif not response.headers.get("Content-Range", "").startswith(f"bytes {start}-"):
            part.unlink()
            raise http.client.HTTPException("the server resumed at another place than it was asked for")
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
                    raise DatasetError(f"{url}: sends more than the {limit_bytes:,} bytes expected at most")
                stream.write(chunk)
                advance(len(chunk))
    if total is not None and received < total:  # http.client ends a read that breaks off without an error
        raise http.client.HTTPException(f"the connection broke at {received:,} of {total:,} bytes")


def _reason(error: Exception) -> str:
    reason = getattr(error, "reason", None) or error
    return str(getattr(reason, "strerror", None) or reason) or type(error).__name__
