"""Reads the settings of one model, ``REPOSITORY/NAME/model.toml``, which override the server's flags.

The file lies beside the version folders, not in them: how a model is run is a choice of the deployment.
"""

from __future__ import annotations

import difflib
import os
import re
import tomllib
from typing import TYPE_CHECKING

from pydantic import BaseModel, ValidationError

from foldserve.errors import ArtifactError
from foldserve.files import read_regular_file
from foldserve.runtime.model_settings import FileSettings
from foldserve.runtime.options import CudaOptions
from foldserve.serving.errors import SettingsError
from foldserve.serving.repository.version_policy import ALL_VERSIONS, VersionPolicy
from foldserve.text import quote

if TYPE_CHECKING:
    from pathlib import Path

    from pydantic_core import ErrorDetails

    from foldserve.runtime.model_settings import ModelSettings

SETTINGS_FILE = "model.toml"

# A file with every key and a comment on each has 2 KiB. Python's TOML parser takes a second for one dotted
# key of this length, and four times as long for twice the length.
_MAX_BYTES = 16 * 1024
_NAMED_FAULTS = 3
_SHOWN_BITS = 128
_HEADER = re.compile(r"\s*\[([^\[\]]+)\]")


class ModelFile(FileSettings, frozen=True, extra="forbid", strict=True):
    """The keys of ``model.toml``. A key that is left out has the value of the server's flag."""

    version_policy: VersionPolicy = ALL_VERSIONS
    """Versions to serve: "all" (the default), { latest = 2 } for the newest ones that pass verification, or
    { specific = [1, 3] }."""


def read_model_settings(
    model_folder: Path, defaults: ModelSettings, within: Path
) -> tuple[ModelSettings, VersionPolicy]:
    """Return a model's settings, with ``defaults`` for keys that its file leaves out, and its version policy.

    Raises:
        SettingsError: the file is unreadable or invalid; the message names line and key.
    """
    path = model_folder / SETTINGS_FILE
    if not os.path.lexists(path):
        return defaults, ALL_VERSIONS
    try:
        text = read_regular_file(path, within, _MAX_BYTES).decode()
        file = ModelFile.model_validate(tomllib.loads(text))
    except ArtifactError as error:
        raise SettingsError(str(error)) from None
    except ValidationError as error:
        raise SettingsError(_describe_all(error, text)) from None
    except ValueError as error:  # TOMLDecodeError, UnicodeDecodeError, a number of thousands of digits
        raise SettingsError(f"{SETTINGS_FILE} is not valid TOML: {error}") from None
    except RecursionError:
        raise SettingsError(f"{SETTINGS_FILE} is nested too deeply to be read") from None
    given = {key: getattr(file, key) for key in file.model_fields_set if key != "version_policy"}
    return defaults.model_copy(update=given), file.version_policy


def _describe_all(error: ValidationError, text: str) -> str:
    faults = error.errors(include_url=False)
    more = len(faults) - _NAMED_FAULTS
    described = "; ".join(_describe(fault, text) for fault in faults[:_NAMED_FAULTS])
    return f"{described}; and {more} more" if more > 0 else described


def _describe(detail: ErrorDetails, text: str) -> str:
    """Return one error as text: "model.toml line 3: max_batch: there is no such key; did you mean ...?"."""
    location = [str(part) for part in detail["loc"] if not isinstance(part, int)]
    if detail["type"] == "extra_forbidden":
        near = difflib.get_close_matches(location[-1], _keys_beside(location), n=1)
        message = "there is no such key" + (f"; did you mean {near[0]}?" if near else "")
    else:
        message = f"{detail['msg'].removeprefix('Value error, ')}, given {_given_text(detail['input'])}"
    return f"{SETTINGS_FILE} line {_line_of(location, text)}: {'.'.join(location)}: {message}"


def _given_text(value: object) -> str:
    """Return a value as text; only its kind if it is a table, an array or a huge number."""
    if isinstance(value, dict | list):
        return "a table" if isinstance(value, dict) else "an array"
    if isinstance(value, int) and value.bit_length() > _SHOWN_BITS:  # Python may refuse to print its digits
        return f"a number of {value.bit_length()} bits"
    return quote(str(value))


def _keys_beside(location: list[str]) -> list[str]:
    tables: dict[str, type[BaseModel]] = {"cuda": CudaOptions, "version_policy": VersionPolicy}
    table = tables.get(location[0], ModelFile) if len(location) > 1 else ModelFile
    return list(table.model_fields)


def _line_of(location: list[str], text: str) -> int:
    """Return the line that sets the key at ``location`` or the innermost table around it; 1 if none does.

    Python's TOML parser reports no positions, so this searches for table headers and keys before "=".
    """
    table: list[str] = []
    best_line, best_depth = 1, 0
    for number, line in enumerate(text.splitlines(), 1):
        if header := _HEADER.match(line):
            table = path = _parts(header[1])
        elif "=" in line:
            path = [*table, *_parts(line.partition("=")[0])]
        else:
            continue
        if best_depth < len(path) <= len(location) and location[: len(path)] == path:
            best_line, best_depth = number, len(path)
    return best_line


def _parts(dotted: str) -> list[str]:
    return [part.strip().strip("\"'") for part in dotted.split(".")]
