"""Carries out `foldserve completion`: prints a script that shtab makes of the command line's parsers.

The script is static: a press of the tab key starts no Python. Names of models are those in the folder
`models`, the default repository; a server is not asked.
"""

from __future__ import annotations

import argparse
import re
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, cast, get_args, get_origin

import shtab

from foldserve.cli import COMMANDS, build_parser

if TYPE_CHECKING:
    from collections.abc import Iterator

    from foldserve.completion_config import CompletionConfig

_FOLDERS = frozenset({"repository", "run_dir", "data_dir"})
# Arguments that are paths, but may be something else as well, and so are text to the parser.
_PERHAPS_PATHS = frozenset({"against", "dataset", "init", "model", "source", "target"})
# Only plain names: bash expands what is listed, so that a folder called $(command) would be run.
_LIST_MODELS = "ls models 2>/dev/null | grep -x '[A-Za-z0-9._+-]*'"
_LIST_VERSIONS = (
    "find models -mindepth 2 -maxdepth 2 -name '[0-9]*' 2>/dev/null"
    " | sed 's|.*/||' | grep -x '[0-9]*' | sort -un"
)
_LONGEST_HELP = 80


def _output_of(command: str) -> dict[str, Any]:
    """Return what shtab takes to complete by the lines that a shell command prints.

    shtab's own form for zsh runs the command once, when the script is loaded.
    """
    return shtab.cmd(command) | {"zsh": rf"{{compadd -- \$({command})}}"}


def print_completion(config: CompletionConfig) -> int:
    """Print the script for the shell and return 0."""
    print(completion_script(config.shell))
    return 0


def completion_script(shell: str) -> str:
    """Return the script for ``shell``, "bash", "zsh" or "fish"."""
    root = build_parser()
    for parser in _parsers(root):
        command = parser.prog.partition(" ")[2]
        if command in COMMANDS:
            parser.add_argument("--debug", action="store_true", help="show the traceback of an error")
            _annotate(parser, COMMANDS[command].config.model_fields)
        parser.description = _shortened(parser.description)
        for action in parser._actions:  # argparse offers no other way to its arguments
            action.help = _shortened(action.help)
    return shtab.complete(root, shell)


def _parsers(parser: argparse.ArgumentParser) -> Iterator[argparse.ArgumentParser]:
    yield parser
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            for child in action.choices.values():
                yield from _parsers(cast("argparse.ArgumentParser", child))


def _annotate(parser: argparse.ArgumentParser, fields: dict[str, Any]) -> None:
    """Tell shtab what the values of the arguments are, by the types and names of their settings."""
    for action in parser._actions:
        name = action.dest.rpartition(".")[2]
        if name not in fields or action.nargs == 0:
            continue
        parts = list(_parts(fields[name].annotation))
        choices = [str(value) for part in parts if get_origin(part) is Literal for value in get_args(part)]
        if choices:
            action.choices = choices
        elif name == "model_version":
            action.complete = _output_of(_LIST_VERSIONS)  # type: ignore[attr-defined]  # shtab's own attribute
        elif name in ("model_name", "load_model") or (name == "model" and action.option_strings):
            action.complete = _output_of(_LIST_MODELS)  # type: ignore[attr-defined]
        elif name in _FOLDERS:
            action.complete = shtab.DIRECTORY  # type: ignore[attr-defined]
        elif Path in parts or name in _PERHAPS_PATHS:
            action.complete = shtab.FILE  # type: ignore[attr-defined]


def _parts(annotation: Any) -> Iterator[Any]:
    """Yield a type and the types that it is made of."""
    yield annotation
    if get_origin(annotation) is not Literal:
        for part in get_args(annotation):
            yield from _parts(part)


def _shortened(text: str | None) -> str | None:
    """Return the first sentence of a help text, or its beginning: shells show it in one line."""
    if not text:
        return text
    first = re.split(r"[.;:](?:\s|$)", " ".join(text.split()), maxsplit=1)[0]
    return first if len(first) <= _LONGEST_HELP else first[:_LONGEST_HELP].rpartition(" ")[0] + " ..."
