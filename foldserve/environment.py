"""Reads settings from the environment: FOLDSERVE_<COMMAND>_<FLAG> and no other variables."""

from __future__ import annotations

import difflib
from typing import TYPE_CHECKING, Any, get_args, get_origin

from pydantic_settings import CliPositionalArg, SettingsError

if TYPE_CHECKING:
    from collections.abc import Mapping

    from pydantic import BaseModel

_POSITIONAL = get_args(CliPositionalArg[str])[1]  # marks positional arguments


def variable(command: str, field: str) -> str:
    """Return the variable that sets a flag: ("models list", "top_k") -> "FOLDSERVE_MODELS_LIST_TOP_K"."""
    return "_".join(("foldserve", *command.split(), field)).upper()


def flag_fields(config: type[BaseModel]) -> list[str]:
    """Return the fields that are flags, not positional arguments."""
    return [name for name, field in config.model_fields.items() if _POSITIONAL not in field.metadata]


def read_environment(
    command: str, config: type[BaseModel], environ: Mapping[str, str]
) -> dict[str, str | list[str]]:
    """Return the settings of ``command`` in ``environ``, by field, not yet validated.

    An empty variable counts as unset, as `docker compose` and CI systems pass on unset ones.
    Variables of other commands and others that begin with FOLDSERVE_ (Kubernetes sets some) are ignored.

    Raises:
        SettingsError: a variable has the command's prefix but matches none of its flags.
    """
    fields = {variable(command, field): field for field in flag_fields(config)}
    prefix = variable(command, "")
    settings: dict[str, str | list[str]] = {}
    for name, text in environ.items():
        if not name.startswith(prefix) or not text:
            continue
        if name not in fields:
            near = difflib.get_close_matches(name, fields, n=1)
            hint = f"did you mean {near[0]}?" if near else "unset it"
            raise SettingsError(f"the environment variable {name} sets no flag of this command; {hint}")
        field = fields[name]
        several = _takes_several(config.model_fields[field].annotation)
        settings[field] = text.split(",") if several else text
    return settings


def help_text(command: str, config: type[BaseModel]) -> str:
    """Return the text of `--help` about environment variables."""
    example = flag_fields(config)[0]
    text = (
        f"Each flag can also be set in the environment: --{example.replace('_', '-')} as\n"
        f"{variable(command, example)}. Flags take precedence. Separate several values by\n"
        "commas; use true for a flag and false for its --no- form. .env files and other\n"
        "variables are not read"
    )
    return text + (", except FOLDSERVE_TOKEN." if "token_file" in config.model_fields else ".")


def _takes_several(annotation: Any) -> bool:
    if get_origin(annotation) in (list, tuple):
        return True
    return any(_takes_several(part) for part in get_args(annotation))
