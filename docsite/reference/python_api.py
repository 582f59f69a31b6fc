"""Describes the public Python names, from their signatures and docstrings."""

from __future__ import annotations

import inspect
from typing import TYPE_CHECKING

import foldserve
from docsite.reference.markdown import docstring, head
from foldserve.local.answers import Predictions
from foldserve.serving import errors
from foldserve.serving.client.channel import ConnectionOptions
from foldserve.serving.client.messages import Classification, Description, IndexEntry, Label

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

_TEXT = """\
`import foldserve` loads nothing heavy; each name is imported on first use. Everything else in
the package may change from one release to the next."""
_RESULTS = (Description, IndexEntry, Classification, Label, Predictions, ConnectionOptions)


def page() -> str:
    """Return the page."""
    public = [
        getattr(foldserve, name) for name in foldserve.__all__ if inspect.isclass(getattr(foldserve, name))
    ]
    return "\n".join(
        [
            head("Python", _TEXT),
            "`foldserve.__version__` is the version of the package.\n",
            *(_described_class(each, f"foldserve.{each.__name__}") for each in public),
            "## What they return and take\n",
            *(_described_class(each, each.__name__, level=3) for each in _RESULTS),
            "## Errors\n",
            "All derive from `foldserve.errors.FoldserveError`. `Client` and `AsyncClient` raise, from",
            "`foldserve.serving.errors`:\n",
            *(_errors()),
            "",
        ]
    )


def _errors() -> Iterator[str]:
    for name, error in vars(errors).items():
        if inspect.isclass(error) and issubclass(error, errors.ServingError) and "status" in vars(error):
            yield f"- `{name}` ({error.status})"


def _described_class(subject: type, name: str, level: int = 2) -> str:
    parts = [f"{'#' * level} {name}\n"]
    construct = vars(subject).get("__init__")
    if construct:
        parts.append(_code(f"{subject.__name__}{_signature(construct)}"))
    parts += [docstring(subject), ""]
    if construct and construct.__doc__:
        parts += [docstring(construct), ""]
    for member, value in vars(subject).items():
        function = value.fget if isinstance(value, property) else value
        if member.startswith("_") or not inspect.isfunction(function):
            continue
        words = "property" if isinstance(value, property) else _kind(function)
        shown = member if isinstance(value, property) else f"{member}{_signature(function)}"
        parts += [f"**`{member}`** ({words})\n", *([] if isinstance(value, property) else [_code(shown)])]
        parts += [docstring(function), ""]
    return "\n".join(parts)


def _kind(function: object) -> str:
    return "coroutine" if inspect.iscoroutinefunction(function) else "method"


def _code(text: str) -> str:
    return f"```text\n{text}\n```\n"


class _Unquoted:
    """An annotation that is shown as it is written, not as a string."""

    def __init__(self, text: object) -> None:
        self._text = str(text)

    def __repr__(self) -> str:
        return self._text


def _signature(function: Callable[..., object]) -> str:
    signature = inspect.signature(function)
    parameters = [
        each.replace(annotation=_Unquoted(each.annotation)) for each in signature.parameters.values()
    ]
    returned = _Unquoted(signature.return_annotation)
    text = str(signature.replace(parameters=parameters[1:], return_annotation=returned))
    return text.removesuffix(" -> None")
