"""A small data set in Fashion-MNIST's format, and a server that hands its files out, well or badly."""

from __future__ import annotations

import gzip
import hashlib
import math
import struct
import threading
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import TYPE_CHECKING

import numpy as np

from foldserve.training.datasets.idx import IdxFile
from foldserve.training.datasets.sources import Source

if TYPE_CHECKING:
    from pathlib import Path

SHAPES = {
    "train_images": (60, 8, 8),
    "train_labels": (60,),
    "test_images": (20, 8, 8),
    "test_labels": (20,),
}


def idx_content(shape: tuple[int, ...], seed: int) -> bytes:
    """An IDX file of random bytes: they do not compress, so the packed file is as long as this."""
    pixels = np.random.default_rng(seed).integers(0, 256, math.prod(shape), dtype=np.uint8)
    return struct.pack(f">HBB{len(shape)}I", 0, 8, len(shape), *shape) + pixels.tobytes()


def make_contents() -> dict[str, bytes]:
    """Unpacked content by part."""
    return {part: idx_content(shape, seed) for seed, (part, shape) in enumerate(SHAPES.items())}


def make_source(package_folder: Path, mirrors: tuple[str, ...] = (), package: str | None = None) -> Source:
    return Source(
        name="small",
        files={
            part: IdxFile(part.replace("_", "-"), SHAPES[part], hashlib.sha256(content).hexdigest())
            for part, content in make_contents().items()
        },
        package_folder=package_folder,
        package=package,
        mirrors=mirrors,
    )


def write_folder(folder: Path, *, packed: bool = True) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    for part, content in make_contents().items():
        name = part.replace("_", "-")
        if packed:
            (folder / f"{name}.gz").write_bytes(gzip.compress(content, mtime=0))
        else:
            (folder / name).write_bytes(content)
    return folder


@dataclass
class Mirror:
    """A real HTTP server on loopback; its faults are set per file name, its requests remembered."""

    files: dict[str, bytes]
    break_at: dict[str, list[int]] = field(
        default_factory=dict
    )  # bytes after which to hang up, a request each
    honours_range: bool = True
    requests: list[tuple[str, str | None]] = field(default_factory=list)  # name and its Range header

    def __post_init__(self) -> None:
        mirror = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:  # the name http.server calls
                mirror.answer(self)

            def log_message(self, *_: object) -> None:
                pass

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._thread = threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.01})
        self._thread.start()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self._server.server_port}"

    def answer(self, handler: BaseHTTPRequestHandler) -> None:
        name, asked = handler.path.removeprefix("/"), handler.headers.get("Range")
        self.requests.append((name, asked))
        if name not in self.files:
            handler.send_error(404)
            return
        content, start = self.files[name], 0
        if asked and self.honours_range:
            start = int(asked.removeprefix("bytes=").removesuffix("-"))
            if start >= len(content):
                handler.send_error(416)
                return
            handler.send_response(206)
            handler.send_header("Content-Range", f"bytes {start}-{len(content) - 1}/{len(content)}")
        else:
            handler.send_response(200)
        handler.send_header("Content-Length", str(len(content) - start))
        handler.end_headers()
        breaks = self.break_at.get(name, [])
        handler.wfile.write(content[start : breaks.pop(0) if breaks else None])

    def close(self) -> None:
        self._server.shutdown()
        self._thread.join()
        self._server.server_close()
