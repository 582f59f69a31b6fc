"""Defines ONNX Runtime's options, and classifies its failures. Does not import ONNX Runtime."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Literal

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


@dataclass(frozen=True)
class RuntimeOptions:
    """Holds ONNX Runtime's options for one session.

    The CUDA options apply on a GPU only. TF32 is on by default in ONNX Runtime and errs near 1e-3;
    HEURISTIC avoids its default's exhaustive search at each new batch size.
    """

    inter_op_threads: int = 1
    graph_optimization: GraphOptimization = "all"
    arena: bool = True
    cudnn_conv_algo_search: ConvSearch = "HEURISTIC"
    use_tf32: bool = False
    gpu_mem_limit_bytes: int | None = None

    def to_cuda_options(self) -> dict[str, str]:
        """Return the options of the CUDA provider, with its names and spellings."""
        options = {
            "use_tf32": "1" if self.use_tf32 else "0",
            "cudnn_conv_algo_search": self.cudnn_conv_algo_search,
        }
        if self.gpu_mem_limit_bytes is not None:
            options["gpu_mem_limit"] = str(self.gpu_mem_limit_bytes)
        return options


def is_device_loss(message: str) -> bool:
    """Tell whether an execution's error means that this process has lost the GPU.

    CUDA then answers every later call of the process with the same error.
    """
    found = _CUDA_FAILURE.search(message)
    return found is not None and int(found[2]) not in _HARMLESS[found[1].upper()]


def heavy_operators(operators: list[str]) -> list[str]:
    """Return the operators that are more than shape arithmetic, sorted, without duplicates."""
    return sorted(set(operators) - _SHAPE_OPERATORS)
