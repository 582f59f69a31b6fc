"""`foldserve serve` with a fault injected: an execution fails where an image's first pixel is 255."""

import sys
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from foldserve.cli import main
from foldserve.serving.model.runner import ModelRunner

_run = ModelRunner.__call__


def _fail(runner: ModelRunner, images: NDArray[np.uint8]) -> Sequence[NDArray[np.float32]]:
    if (images[:, 0, 0, 0] == 255).any():
        raise RuntimeError("the injected fault")
    return _run(runner, images)


if __name__ == "__main__":
    ModelRunner.__call__ = _fail  # type: ignore[method-assign]
    sys.exit(main())
