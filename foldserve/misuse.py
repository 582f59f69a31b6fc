"""Says in one line what is wrong with a command line or a setting, and what is nearest to what was given."""

from __future__ import annotations

import difflib
import re
from typing import TYPE_CHECKING, Any, cast

from foldserve.environment import flag_fields

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from pydantic import BaseModel, ValidationError


def describe_misuse(text: str, config: type[BaseModel]) -> str:
    """Return the parser's message as one line, with the nearest flag of the command with ``config``."""
    text = text.removeprefix("error parsing CLI: ")
    _, unknown, rest = text.partition("unrecognized arguments: ")
    if not unknown:
        return " ".join(text.split())
    argument = rest.split()[0].partition("=")[0]
    if not argument.startswith("-"):
        return f"unexpected argument '{argument}'"
    return f"unknown argument {argument}{near(argument, _flags(config))}"


def one_line(error: ValidationError, by_environment: Mapping[str, str]) -> str:
    """Return all faults as one line; ``by_environment`` maps fields set by the environment to variables."""
    return "; ".join(_describe(cast("dict[str, Any]", fault), by_environment) for fault in error.errors())


def near(given: str, known: Iterable[str]) -> str:
    """Return a question that suggests the nearest of ``known``; "" if none is near."""
    found = difflib.get_close_matches(given, [one for one in known if one != given], n=1)
    return f"; did you mean {found[0]}?" if found else ""


def _flags(config: type[BaseModel]) -> list[str]:
    """Return the flags of a command as a user types them."""
    flags = ["--debug", "--help"]
    for field in flag_fields(config):
        flag = field.replace("_", "-")
        flags.append(f"--{flag}")
        if config.model_fields[field].annotation in (bool, bool | None):
            flags.append(f"--no-{flag}")
    return flags


def _describe(fault: Mapping[str, Any], by_environment: Mapping[str, str]) -> str:
    # ("lr",) -> "--lr"; pydantic puts a prefix before the messages of our own validators.
    text = fault["msg"].removeprefix("Value error, ")
    if not fault["loc"]:  # a fault of several settings together
        variables = ", ".join(sorted(by_environment.values()))
        return f"{text} (set in the environment: {variables})" if variables else text
    field = str(fault["loc"][0])
    flag = by_environment.get(field, "--" + field.replace("_", "-"))
    if text == "Field required":
        return f"{flag} is required"
    given = fault["input"]
    if isinstance(given, str | int | float) and str(given) not in text:
        text = f"{text} (given {given})"
    if fault["type"] == "literal_error":
        text += near(str(given), re.findall(r"'([^']*)'", fault["ctx"]["expected"]))
    return f"{flag}: {text}"
