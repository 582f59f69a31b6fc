"""Evaluates a network on images that it was not trained on, without augmentation and in float32."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch.nn import functional as F

from foldserve.training.engine.distributed import SINGLE_PROCESS

if TYPE_CHECKING:
    from torch import Tensor, nn

    from foldserve.training.datasets import Examples
    from foldserve.training.engine.distributed import ProcessGroup

# uint8 values per batch: large enough for full speed, small enough for any memory.
_BATCH_VALUES = 500 * 28 * 28
_SMALLEST_BATCH, _LARGEST_BATCH = 8, 500


@dataclass(frozen=True)
class Evaluation:
    """Mean cross entropy, accuracy and macro-F1 0..1, predicted classes int64 [N] and their probabilities.

    The tensors are on the CPU.
    """

    loss: float
    accuracy: float
    macro_f1: float
    predictions: Tensor
    confidences: Tensor


@torch.inference_mode()
def evaluate(
    model: nn.Module, examples: Examples, process_group: ProcessGroup = SINGLE_PROCESS
) -> Evaluation:
    """Evaluate ``model`` (pixels to logits) in eval mode on all of ``examples``, then restore its mode.

    Each process evaluates its shard of the images; all return the same result.
    """
    was_training = model.training
    model.eval()
    device = next((tensor.device for tensor in (*model.parameters(), *model.buffers())), torch.device("cpu"))
    share = process_group.shard(examples.images)
    # An empty shard still has to exchange logits of the right width, so it computes one image and drops it.
    batches = torch.split(share if len(share) else examples.images[:1], _batch_size(examples.images))
    logits = torch.cat([model(images.to(device)) for images in batches]).float()[: len(share)]
    logits = process_group.gather(logits, len(examples)).cpu()
    model.train(was_training)
    labels = examples.labels.cpu()
    confidences, predictions = logits.softmax(dim=1).max(dim=1)
    return Evaluation(
        loss=F.cross_entropy(logits, labels).item(),
        accuracy=(predictions == labels).double().mean().item(),
        macro_f1=macro_f1(labels, predictions),
        predictions=predictions,
        confidences=confidences,
    )


def macro_f1(targets: Tensor, predictions: Tensor) -> float:
    """Return the mean over the classes of F1 = 2 TP / (2 TP + FP + FN), as scikit-learn's f1_score does.

    Each class counts the same, however rare. Classes that neither ``targets`` nor ``predictions`` (int64 [N])
    have are left out.
    """
    count = int(torch.maximum(targets.max(), predictions.max())) + 1
    right = torch.bincount(targets[targets == predictions], minlength=count).double()
    either = torch.bincount(targets, minlength=count) + torch.bincount(predictions, minlength=count)
    return (2 * right / either)[either > 0].mean().item()


def _batch_size(images: Tensor) -> int:
    return max(_SMALLEST_BATCH, min(_LARGEST_BATCH, _BATCH_VALUES // images[0].numel()))
