"""Runs PyTorch code in float64, even if it asks for float32 by name.

`Module.double` converts the weights to float64. A network whose own code calls ``x.float()``,
``.to(torch.float16)`` or ``torch.zeros(4)`` would then mix two types and fail, so every such request is
answered with float64.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Self

import torch
from torch.overrides import TorchFunctionMode

if TYPE_CHECKING:
    from collections.abc import Callable

_NARROWER = {torch.float32, torch.float16, torch.bfloat16}
_CASTS = {torch.Tensor.float, torch.Tensor.half, torch.Tensor.bfloat16}


class InFloat64(TorchFunctionMode):
    """Makes PyTorch use float64 if code asks for a narrower float or for the default."""

    def __enter__(self) -> Self:
        self._default = torch.get_default_dtype()
        torch.set_default_dtype(torch.float64)
        super().__enter__()  # type: ignore[no-untyped-call]
        return self

    def __exit__(self, *error: object) -> None:
        super().__exit__(*error)  # type: ignore[no-untyped-call]
        torch.set_default_dtype(self._default)

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Any,  # as PyTorch's protocol has it
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        """Call ``func`` with float64 in place of every narrower type."""
        if func in _CASTS:
            func = torch.Tensor.double
        return func(
            *[_widened(entry) for entry in args],
            **{name: _widened(entry) for name, entry in (kwargs or {}).items()},
        )


def _widened(argument: Any) -> Any:
    return torch.float64 if isinstance(argument, torch.dtype) and argument in _NARROWER else argument
