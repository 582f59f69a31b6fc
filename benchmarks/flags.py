"""Reads the settings of a benchmark from its command line alone."""

from __future__ import annotations

import sys
from typing import TypeVar

from pydantic import BaseModel
from pydantic_settings import CliSettingsSource

Config = TypeVar("Config", bound=BaseModel)


def parse_flags(config: type[Config], program: str) -> Config:
    """Return the settings that `python -m PROGRAM` was given.

    Raises:
        pydantic.ValidationError: a value cannot be used.
        SystemExit: the flags cannot be parsed, or help was asked for.
    """
    # Not CliApp, which would read the environment too, without a prefix.
    source: CliSettingsSource[Config] = CliSettingsSource(
        config,  # type: ignore[arg-type]  # it takes any model
        cli_parse_args=sys.argv[1:],
        cli_prog_name=f"python -m {program}",
        cli_kebab_case=True,
        cli_implicit_flags=True,
        cli_hide_none_type=True,
        cli_avoid_json=True,
    )
    return config.model_validate(source())
