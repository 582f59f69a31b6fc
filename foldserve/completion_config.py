"""Defines the settings of `foldserve completion`."""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel
from pydantic_settings import CliPositionalArg  # noqa: TC002  # pydantic reads the annotations

Shell = Literal["bash", "zsh", "fish"]


class CompletionConfig(BaseModel, frozen=True, extra="forbid", use_attribute_docstrings=True):
    """Print a script with which a shell completes foldserve's commands, flags and values.

    For this session: eval "$(foldserve completion bash)", the same for zsh, or in fish:
    foldserve completion fish | source. docs/install.md says how to keep it.
    """

    shell: CliPositionalArg[Shell]
    """Shell that the script is for: bash, zsh or fish."""
