"""`foldserve serve` on a GPU that breaks: ONNX Runtime's answers, with CUDA's name and CUDA's failure.

No machine with a GPU is needed, and none would break on demand. Only onnxruntime itself is replaced, beneath
`runtime.session`: sessions compute on the processor, say that they are CUDA's, and fail as CUDA does after an
illegal access once the file named by LOST_GPU_FILE is there.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Any

import onnxruntime

from foldserve.runtime import session
from foldserve.runtime.session import CPU_PROVIDER, CUDA_PROVIDER

LOST = Path(os.environ["LOST_GPU_FILE"])
FAILURE = (
    "[ONNXRuntimeError] : 1 : FAIL : CUDA failure 700: an illegal memory access was encountered ; GPU=0 ; "
    "hostname=here ; file=/onnxruntime_src/onnxruntime/core/providers/cuda/gpu_data_transfer.cc ; line=92 ;"
)


class BreakingSession(onnxruntime.InferenceSession):  # type: ignore[misc]  # untyped
    """On the processor, by the name of CUDA."""

    def __init__(self, model: bytes, *_: object, **__: object) -> None:
        # What is looked at here is what happens when it breaks, not whether CUDA runs every node.
        super().__init__(model, onnxruntime.SessionOptions(), providers=[CPU_PROVIDER])

    def get_providers(self) -> list[str]:
        return [CUDA_PROVIDER, CPU_PROVIDER]

    def run(self, *arguments: Any) -> Any:
        if LOST.exists():
            raise RuntimeError(FAILURE)
        return super().run(*arguments)


class BreakingRuntime:
    """onnxruntime with a GPU that breaks."""

    InferenceSession = BreakingSession

    def __getattr__(self, name: str) -> Any:
        return getattr(onnxruntime, name)

    def get_available_providers(self) -> list[str]:
        return [CUDA_PROVIDER, CPU_PROVIDER]


if __name__ == "__main__":
    session.ort = BreakingRuntime()
    from foldserve.cli import main

    sys.exit(main())
