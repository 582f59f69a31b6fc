"""Carries out `foldserve classify`: prints the server's labels for image files, as a table or JSON lines."""

from __future__ import annotations

import asyncio
import sys
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING

from rich.console import Console
from rich.progress import Progress

from foldserve.errors import ImageError
from foldserve.imaging.image_files import IMAGE_SUFFIXES, walk_images
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

# Several images per request save round trips; many requests keep batches full while files are read.
_IMAGES_PER_REQUEST = 8
_REQUESTS_IN_FLIGHT = 32
# Photographs are large: then fewer share a request, so that it stays well within a server's default limits.
_BYTES_PER_REQUEST = 4 * 1024 * 1024
# Delays before resending an image that a full server refused: other callers may be done by then.
_WAITS_S = (0.1, 0.2, 0.4, 0.8, 1.6)


@dataclass(frozen=True)
class _Answer:
    """The labels of one file, or the error."""

    path: Path
    labels: list[Label]
    error: str = ""
    is_unknown: bool = False


def classify(config: ClassifyConfig) -> int:
    """Print the most likely labels of each image; return 0, or 1 if a file failed (its error is printed).

    Raises:
        ImageError: a folder has no images.
        ServingError: no server answers, or it cannot classify for this model.
    """
    paths = find_images(config.images)
    return asyncio.run(_classify(config, paths))


async def _classify(config: ClassifyConfig, paths: Sequence[Path]) -> int:
    failed = False
    answers: list[_Answer] = []
    async with AsyncClient(config.server, timeout_s=config.timeout_s, **connection_options(config)) as client:
        # Every request names this version: an update during the run must not mix two models.
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
        finally:  # if the server is lost halfway, the answers so far are still printed
            _print_table(answers)
    return 1 if failed else 0


def find_images(given: Sequence[Path]) -> list[Path]:
    """Return the given files and, for folders, all image files below them that are not hidden, in order.

    Raises:
        ImageError: a folder has no image files.
    """
    paths: list[Path] = []
    for path in given:
        if not path.is_dir():
            paths.append(path)
            continue
        found = [path / name for name in walk_images(path)]
        if not found:
            raise ImageError(f"{path} has no image files (expected {', '.join(sorted(IMAGE_SUFFIXES))})")
        paths += found
    return paths


async def _ask_for_all(
    client: AsyncClient, config: ClassifyConfig, model: Description, paths: Sequence[Path]
) -> AsyncIterator[_Answer]:
    """Yield one answer per file, in order, with up to _REQUESTS_IN_FLIGHT requests in flight."""

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
    """Yield ``paths`` in order, in chunks of one request each."""
    chunk: list[Path] = []
    chunk_bytes = 0
    for path in paths:
        # A file that cannot be read is reported when it is sent.
        byte_count = path.stat().st_size if path.is_file() else 0
        if chunk and (len(chunk) == _IMAGES_PER_REQUEST or chunk_bytes + byte_count > _BYTES_PER_REQUEST):
            yield chunk
            chunk, chunk_bytes = [], 0
        chunk.append(path)
        chunk_bytes += byte_count
    if chunk:
        yield chunk


async def _ask(
    client: AsyncClient, config: ClassifyConfig, model: Description, paths: Sequence[Path]
) -> list[_Answer]:
    """Return the answers for some files. If one is bad, or all together are too large, send each alone."""
    for wait_s in (*_WAITS_S, None):
        try:
            answer: Classification = await client.classify(
                model.name,
                paths,
                model.version,
                top_k=config.top_k,
                min_confidence=config.min_confidence,
            )
        except (OSError, InvalidArgumentError, ResourceExhaustedError) as error:
            if len(paths) > 1:
                return [(await _ask(client, config, model, [path]))[0] for path in paths]
            if wait_s is None or not isinstance(error, ResourceExhaustedError):
                return [_Answer(paths[0], [], _explain(error))]
            await asyncio.sleep(wait_s)
        else:
            rows = zip(paths, answer.labels, answer.unknown, strict=True)
            return [_Answer(path, labels, is_unknown=unknown) for path, labels, unknown in rows]
    raise AssertionError("the last attempt returns")


def _explain(error: OSError | InvalidArgumentError | ResourceExhaustedError) -> str:
    if isinstance(error, OSError):
        return f" cannot be read: {error.strerror or error}"
    return ": " + str(error).removeprefix("image 0: ")


@contextmanager
def _progress(count: int) -> Iterator[Callable[[], None]]:
    """Show a progress bar while the block runs, if standard error is a terminal and files are many."""
    is_shown = sys.stderr.isatty() and count > _IMAGES_PER_REQUEST
    # rich captures standard output meanwhile and prints it above the bar. That is right only if both are the
    # terminal: a file or pipe would stay empty.
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
        if answer.is_unknown:
            line["unknown"] = True
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
            print(f"{name:<{width}}  {f'unknown ({labels})' if answer.is_unknown else labels}")
    for name, answer in zip(names, answers, strict=True):
        if answer.error:
            print(f"foldserve classify: {name}{escape_controls(answer.error)}", file=sys.stderr)
