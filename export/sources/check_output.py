"""Checks that a PyTorch module can be served: images in, logits [N, K] out, repeatable."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from foldserve.export.errors import SourceError, first_line
from foldserve.export.image_shape import show_shape
from foldserve.export.verification.tolerances import runtime_tolerance

if TYPE_CHECKING:
    from foldserve.training.models import Normalized

_SEED = 1
_BATCH_SIZE = 2


def check_output(module: Normalized, image_shape: tuple[int, int, int]) -> int:
    """Run ``module``, in eval mode, twice on two images of noise; return its class count K.

    Raises:
        SourceError: it fails on such images, its output is not finite float32 [N, K], or is not repeatable.
    """
    noise = np.random.default_rng(_SEED).integers(0, 256, (_BATCH_SIZE, *image_shape), dtype=np.uint8)
    logits = _run(module, torch.from_numpy(noise), image_shape)
    if not logits.is_floating_point():
        raise SourceError(
            f"the network outputs {_dtype_name(logits)}, as after argmax: classes without their scores; let "
            "its factory return a network without that last step, which outputs logits [N, classes]"
        )
    if logits.ndim == 1:
        raise SourceError(
            "the network outputs one number per image; expected logits [N, classes]; for yes or no name both "
            "classes in --labels: a single logit, or its sigmoid, counts for the second then"
        )
    if logits.ndim != 2 or logits.shape[0] != _BATCH_SIZE or logits.shape[1] == 0:
        raise SourceError(
            f"the network turns {_BATCH_SIZE} images of {show_shape(image_shape)} into a tensor of shape "
            f"{list(logits.shape)}; expected logits [{_BATCH_SIZE}, classes]"
        )
    if logits.dtype != torch.float32:
        raise SourceError(f"the network outputs {_dtype_name(logits)}; expected float32 logits")
    if not torch.isfinite(logits).all():
        raise SourceError("the network outputs NaN or infinite logits for noise; its weights cannot be used")
    again = _run(module, torch.from_numpy(noise), image_shape)
    difference = float((again - logits).abs().max())
    if not difference <= runtime_tolerance(logits.numpy(), 0.0):
        raise SourceError(
            f"the network's logits for the same images differ by up to {difference:.2g} from call to call, "
            "although it is in eval mode: something in it is random (a functional dropout without "
            "training=self.training?)"
        )
    return int(logits.shape[1])


def _dtype_name(tensor: torch.Tensor) -> str:
    return str(tensor.dtype).removeprefix("torch.")


def _run(module: Normalized, pixels: torch.Tensor, image_shape: tuple[int, int, int]) -> torch.Tensor:
    try:
        with torch.inference_mode():
            output: Any = module(pixels)
    except Exception as error:  # the network's own code may raise anything
        raise SourceError(
            f"the network fails on images of {show_shape(image_shape)}: {type(error).__name__}: "
            f"{first_line(error)}"
        ) from error
    if not isinstance(output, torch.Tensor):
        raise SourceError(
            f"the network outputs a {type(output).__name__}; expected one tensor of logits [N, classes]: let "
            "the factory return a module that selects it"
        )
    return output
