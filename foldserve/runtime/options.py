"""Defines ONNX Runtime's options, and classifies its failures. Does not import ONNX Runtime."""

from __future__ import annotations

import re
from typing import Literal

from pydantic import BaseModel, Field

Device = Literal["auto", "cpu", "cuda"]
GraphOptimization = Literal["none", "basic", "extended", "all"]
ConvSearch = Literal["DEFAULT", "HEURISTIC", "EXHAUSTIVE"]

# Shape arithmetic on a few integers, which ONNX Runtime keeps on the CPU on purpose. If any other operator
# stays there, the device does not run the model.
_SHAPE_OPERATORS = {"Cast", "Concat", "Constant", "ConstantOfShape", "Gather", "Range", "ReduceProd"}
_SHAPE_OPERATORS |= {"Shape", "Size", "Slice", "Squeeze", "Unsqueeze"}

# "CUDA failure 700: an illegal memory access was encountered ; GPU=0 ; ...", "CUDNN failure 8: ...".
_CUDA_FAILURE = re.compile(r"\b(CUDA|CUDNN|CUBLAS) (?:failure|error) (\d+)", re.IGNORECASE)
# Failures of one allocation or one unsupported call, after which the device goes on:
# cudaErrorMemoryAllocation; _ALLOC_FAILED and _NOT_SUPPORTED of cuBLAS, of cuDNN 8 (2, 9) and of cuDNN 9
# (4003, 4004, 3xxx).
_HARMLESS = {"CUDA": {2}, "CUBLAS": {3, 15}, "CUDNN": {2, 9, 4003, 4004, *range(3000, 4000)}}


class CudaOptions(BaseModel, frozen=True, extra="forbid", use_attribute_docstrings=True):
    """Options that count on the GPU only: the table ``[cuda]`` of model.toml."""

    cudnn_conv_algo_search: ConvSearch = "HEURISTIC"
    """How cuDNN chooses its convolutions: HEURISTIC at once, EXHAUSTIVE (ONNX Runtime's own default) by
    trying all of them at each new batch size, DEFAULT takes the first that works."""
    use_tf32: bool = False
    """Compute fp32 with 10 bits of mantissa: faster, but off by near 1e-3, so most golden pairs refuse it."""
    gpu_mem_limit_mib: int | None = Field(default=None, ge=1)
    """Most MiB of the GPU's memory for one session's arena."""

    def to_provider_options(self) -> dict[str, str]:
        """Return the options as the CUDA provider spells them."""
        options = {
            "use_tf32": "1" if self.use_tf32 else "0",
            "cudnn_conv_algo_search": self.cudnn_conv_algo_search,
        }
        if self.gpu_mem_limit_mib is not None:
            options["gpu_mem_limit"] = str(self.gpu_mem_limit_mib * 1024 * 1024)
        return options


class RuntimeOptions(BaseModel, frozen=True, extra="forbid", use_attribute_docstrings=True):
    """ONNX Runtime's options of one session."""

    inter_op_threads: int = Field(default=1, ge=1, le=1024)
    """Operators that one execution may run at the same time; only networks with branches gain from 2."""
    graph_optimization: GraphOptimization = "all"
    """How far ONNX Runtime rewrites the graph."""
    arena: bool = True
    """Keep freed memory for the next execution. Without it less memory is held and runs are slower."""
    cuda: CudaOptions = CudaOptions()
    """Options that count on the GPU only."""


def is_device_loss(message: str) -> bool:
    """Tell whether an execution's error means that this process has lost the GPU.

    CUDA then answers every later call of the process with the same error.
    """
    found = _CUDA_FAILURE.search(message)
    return found is not None and int(found[2]) not in _HARMLESS[found[1].upper()]


def heavy_operators(operators: list[str]) -> list[str]:
    """Return the operators that are more than shape arithmetic, sorted, without duplicates."""
    return sorted(set(operators) - _SHAPE_OPERATORS)
