"""`foldserve classify`: image files and folders -> the server's top labels, as a table or as JSON lines."""

from __future__ import annotations

import asyncio
import sys
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING

from rich.console import Console
from rich.progress import Progress

from foldserve.errors import ImageError
from foldserve.serving.client.async_client import AsyncClient
from foldserve.serving.client.channel import connection_options
from foldserve.serving.errors import InvalidArgumentError, ResourceExhaustedError
from foldserve.terminal_output import print_utf8, to_json_line
from foldserve.text import escape_controls

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Iterator, Sequence
    from pathlib import Path

    from foldserve.serving.client.messages import Classification, Description, Label
    from foldserve.serving.commands.command_configs import ClassifyConfig

_SUFFIXES = frozenset({".jpg", ".jpeg", ".png", ".webp", ".gif", ".bmp"})
# Several to a request spare the wire, and enough requests to keep batches full while files are read.
_IMAGES_A_REQUEST = 8
_REQUESTS_IN_FLIGHT = 32
# Photographs are large: fewer go together then, well within what servers take and hold by default.
_BYTES_A_REQUEST = 4 * 1024 * 1024
# Waits before an image that a full server refused is sent again: other callers may be gone by then.
_WAITS_S = (0.1, 0.2, 0.4, 0.8, 1.6)


@dataclass(frozen=True)
class _Answer:
    """What became of one file: its labels, or why it has none."""

    path: Path
    labels: list[Label]
    error: str = ""


def classify(config: ClassifyConfig) -> int:
    """Print each image's likeliest labels; return 0, or 1 where a file has none, of which it says why.

    Raises:
        ImageError: a folder has no images.
        ServingError: no server answers, or it cannot answer this.
    """
    paths = find_images(config.images)
    return asyncio.run(_classify(config, paths))


async def _classify(config: ClassifyConfig, paths: Sequence[Path]) -> int:
    failed = False
    answers: list[_Answer] = []
    async with AsyncClient(config.server, timeout_s=config.timeout_s, **connection_options(config)) as client:
        # The version described: an update halfway must not mix two models.
        model = await client.describe(config.model, config.model_version)
        try:
            with _progress(len(paths)) as advance:
                async for answer in _ask_for_all(client, config, model, paths):
                    advance()
                    failed |= bool(answer.error)
                    if config.jsonl:
                        print_utf8(_to_json(answer, model))
                    else:
                        answers.append(answer)
        finally:  # a server that is lost halfway takes nothing back that it has answered
            _print_table(answers)
    return 1 if failed else 0


def find_images(given: Sequence[Path]) -> list[Path]:
    """Return the files given and, for folders, every image file below them that is not hidden, in order.

    Raises:
        ImageError: a folder has none.
    """
    paths: list[Path] = []
    for path in given:
        if not path.is_dir():
            paths.append(path)
            continue
        found = sorted(
            file
            for file in path.rglob("*")
            if file.suffix.lower() in _SUFFIXES and not _is_hidden(file, path) and file.is_file()
        )
        if not found:
            raise ImageError(f"{path} has no image files (expected {', '.join(sorted(_SUFFIXES))})")
        paths += found
    return paths


def _is_hidden(file: Path, folder: Path) -> bool:
    """Tell whether ``file``, or a folder that it is in below ``folder``, begins with a dot."""
    return any(part.startswith(".") for part in file.relative_to(folder).parts)


async def _ask_for_all(
    client: AsyncClient, config: ClassifyConfig, model: Description, paths: Sequence[Path]
) -> AsyncIterator[_Answer]:
    """Yield an answer a file, in order, with up to _REQUESTS_IN_FLIGHT requests under way."""

    async def ask(chunk: Sequence[Path]) -> list[_Answer]:
        return await _ask(client, config, model, chunk)

    waiting: list[asyncio.Task[list[_Answer]]] = []
    try:
        for chunk in _chunks(paths):
            if len(waiting) >= _REQUESTS_IN_FLIGHT:
                for answer in await waiting.pop(0):
                    yield answer
            waiting.append(asyncio.create_task(ask(chunk)))
        while waiting:
            for answer in await waiting.pop(0):
                yield answer
    finally:
        for task in waiting:
            task.cancel()
        await asyncio.gather(*waiting, return_exceptions=True)


def _chunks(paths: Sequence[Path]) -> Iterator[list[Path]]:
    """Yield ``paths`` in order, as many together as one request should carry."""
    chunk: list[Path] = []
    chunk_bytes = 0
    for path in paths:
        byte_count = (
            path.stat().st_size if path.is_file() else 0
        )  # what cannot be read is said when it is sent
        if chunk and (len(chunk) == _IMAGES_A_REQUEST or chunk_bytes + byte_count > _BYTES_A_REQUEST):
            yield chunk
            chunk, chunk_bytes = [], 0
        chunk.append(path)
        chunk_bytes += byte_count
    if chunk:
        yield chunk


async def _ask(
    client: AsyncClient, config: ClassifyConfig, model: Description, paths: Sequence[Path]
) -> list[_Answer]:
    """Return the answers to some files; where one is bad, or all are too much, each is asked for alone."""
    for wait_s in (*_WAITS_S, None):
        try:
            answer: Classification = await client.classify(
                model.name, paths, model.version, top_k=config.top_k
            )
        except (OSError, InvalidArgumentError, ResourceExhaustedError) as error:
            if len(paths) > 1:
                return [(await _ask(client, config, model, [path]))[0] for path in paths]
            if wait_s is None or not isinstance(error, ResourceExhaustedError):
                return [_Answer(paths[0], [], _explain(error))]
            await asyncio.sleep(wait_s)
        else:
            return [_Answer(path, labels) for path, labels in zip(paths, answer.labels, strict=True)]
    raise AssertionError("the last attempt returns")


def _explain(error: OSError | InvalidArgumentError | ResourceExhaustedError) -> str:
    if isinstance(error, OSError):
        return f" cannot be read: {error.strerror or error}"
    return ": " + str(error).removeprefix("image 0: ")


@contextmanager
def _progress(count: int) -> Iterator[Callable[[], None]]:
    """Show a bar on standard error while the block runs, where that is a terminal and there is much to do."""
    is_shown = sys.stderr.isatty() and count > _IMAGES_A_REQUEST
    # rich takes what goes to standard output meanwhile and prints it above the bar: right where both are the
    # terminal; a file or pipe would stay empty.
    redirected = sys.stdout.isatty()
    console = Console(stderr=True)
    with Progress(console=console, transient=True, disable=not is_shown, redirect_stdout=redirected) as bar:
        task = bar.add_task("classifying", total=count)
        yield lambda: bar.advance(task)


def _to_json(answer: _Answer, model: Description) -> str:
    line: dict[str, object] = {"path": str(answer.path), "model": model.name, "version": model.version}
    if answer.error:
        line["error"] = answer.error.lstrip(": ")
    else:
        line["labels"] = [{"label": label.name, "probability": label.probability} for label in answer.labels]
    return to_json_line(line)


def _print_table(answers: Sequence[_Answer]) -> None:
    names = [escape_controls(str(answer.path)) for answer in answers]
    width = max(map(len, names), default=0)
    for name, answer in zip(names, answers, strict=True):
        if not answer.error:
            labels = "  ".join(
                f"{escape_controls(label.name)} {label.probability:.1%}" for label in answer.labels
            )
            print(f"{name:<{width}}  {labels}")
    for name, answer in zip(names, answers, strict=True):
        if answer.error:
            print(f"foldserve classify: {name}{escape_controls(answer.error)}", file=sys.stderr)
