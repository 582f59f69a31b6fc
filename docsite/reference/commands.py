"""Describes the commands and their flags, from the parser that reads them."""

from __future__ import annotations

import argparse
import re

from docsite.reference.markdown import code, head, one_line, table
from foldserve.cli import COMMANDS, build_parser
from foldserve.environment import variable

_NOTHING = ("", "None", "()", "[]")  # defaults that say no more than that the flag is not given
_DEFAULT = re.compile(r"\s*\((?:default: (?P<default>.*)|required)\)$", flags=re.DOTALL)
_TEXT = """\
`foldserve COMMAND --help` prints the same. Each flag can also be set in the environment, as
`FOLDSERVE_<COMMAND>_<FLAG>`: [Settings from the
environment](../operations.md#settings-from-the-environment).

A command ends with status 0 if it worked, 1 if it failed, 2 if it was called wrongly, and 130
if it was interrupted. Errors are one line; `--debug` shows the traceback."""


def page() -> str:
    """Return the page."""
    parsers = dict(_parsers(build_parser(), ()))
    links = "\n".join(
        f"- [`foldserve {name}`](#{_anchor(name)}): {_help(parsers[name])}" for name in COMMANDS
    )
    return "\n".join(
        [head("Commands", f"{_TEXT}\n\n{links}"), *(_section(name, parsers[name]) for name in COMMANDS)]
    )


def _parsers(
    parser: argparse.ArgumentParser, names: tuple[str, ...]
) -> list[tuple[str, argparse.ArgumentParser]]:
    """Return each command's parser, by the command's name."""
    found = [(" ".join(names), parser)]
    for action in parser._actions:  # argparse has no other way to list them
        if isinstance(action, argparse._SubParsersAction):
            for name, below in action.choices.items():
                found += _parsers(below, (*names, name))
    return found


def _help(parser: argparse.ArgumentParser) -> str:
    return one_line(parser.description or "")


def _anchor(name: str) -> str:
    return f"foldserve-{name.replace(' ', '-')}"


def _section(name: str, parser: argparse.ArgumentParser) -> str:
    rows = [_row(action) for action in parser._actions if action.dest != "help"]
    example = variable(name, "flag").removesuffix("FLAG")
    text = f"{_help(parser)}\n\nIn the environment: `{example}...`\n"
    return f"## foldserve {name}\n\n{text}\n{table(('flag', 'value', 'default', 'meaning'), rows)}"


def _row(action: argparse.Action) -> tuple[str, str, str, str]:
    text = one_line(action.help or "")
    found = _DEFAULT.search(text)
    default = (found["default"] or "") if found else ""
    text = _DEFAULT.sub("", text)
    if found and found["default"] is None:
        text = f"{text} Required."
    if not action.option_strings:
        return (code(str(action.metavar or action.dest).upper()), "", "", text)
    flags = " ".join(code(flag) for flag in action.option_strings)
    value = "" if action.nargs == 0 or isinstance(action, argparse.BooleanOptionalAction) else _value(action)
    return (flags, value, "" if default in _NOTHING else code(default), text)


def _value(action: argparse.Action) -> str:
    if action.choices is not None:
        return ", ".join(code(str(choice)) for choice in action.choices)
    text = str(action.metavar or "")
    choices = re.fullmatch(r"\{(.*)\}", text)
    return ", ".join(code(choice) for choice in choices[1].split(",")) if choices else code(text)
