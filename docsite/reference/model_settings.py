"""Describes the keys of model.toml, from the settings that read them."""

from __future__ import annotations

from typing import TYPE_CHECKING

from docsite.reference.markdown import code, head, table
from foldserve.runtime.model_settings import SharedSettings
from foldserve.runtime.options import CudaOptions
from foldserve.serving.repository.model_file import ModelFile

if TYPE_CHECKING:
    from pydantic.fields import FieldInfo

_TEXT = """\
`REPOSITORY/NAME/model.toml` sets how one model is run. A key that is left out has the value of
the server's flag, or the default below. How changes are followed: [Settings of a
model](../operations.md#settings-of-a-model)."""


def page() -> str:
    """Return the page."""
    rows = [_row(name, field) for name, field in ModelFile.model_fields.items() if name != "cuda"] + [
        _row(f"cuda.{name}", field) for name, field in CudaOptions.model_fields.items()
    ]
    return f"{head('Settings of a model', _TEXT)}\n{table(('key', 'default', 'meaning'), rows)}"


def _row(name: str, field: FieldInfo) -> tuple[str, str, str]:
    default = (
        code(f"--{name.replace('_', '-')}") if name in SharedSettings.model_fields else _toml(field.default)
    )
    return (code(name), default, field.description or "")


def _toml(value: object) -> str:
    if value is None or value == ():
        return ""
    return code(f'"{value}"' if not isinstance(value, bool | int | float) else str(value).lower())
