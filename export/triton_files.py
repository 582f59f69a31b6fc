"""Writes what Triton and OpenVINO Model Server need beside a model's versions: a configuration and labels.

Both take the version folders as they are. Triton's ONNX Runtime backend could guess the rest; told, it also
batches requests, and names the classes in its classification extension.
https://docs.nvidia.com/deeplearning/triton-inference-server/user-guide/docs/user_guide/model_configuration.html
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from foldserve.artifact.format import IMAGE, LOGITS, PROBABILITIES
from foldserve.export.errors import SourceError
from foldserve.replacing import write_replacing

if TYPE_CHECKING:
    from pathlib import Path

    from foldserve.artifact.format import ModelMetadata

CONFIG_FILE = "config.pbtxt"
LABELS_FILE = "triton-labels.txt"

_FIRST_LINE = (
    "# Written by foldserve export --triton for Triton and OpenVINO Model Server; foldserve ignores it."
)
_MAX_BATCH_SIZE = 32  # as foldserve's own server batches by default


def check_triton_files(model_folder: Path) -> None:
    """Check that ``model_folder`` has no configuration that somebody else wrote.

    Raises:
        SourceError: it has one, which would be lost.
    """
    path = model_folder / CONFIG_FILE
    if not path.exists():
        return
    with path.open(encoding="utf-8", errors="replace") as file:
        if file.readline(len(_FIRST_LINE) + 1).rstrip("\n") != _FIRST_LINE:
            raise SourceError(
                f"{path} was not written by foldserve: move it away, or export without --triton"
            )


def write_triton_files(model_folder: Path, metadata: ModelMetadata) -> Path:
    """Write the configuration and the labels into ``model_folder``, and return the configuration's path.

    Raises:
        SourceError: the folder cannot be written.
    """
    labels = "".join(" ".join(label.splitlines()) + "\n" for label in metadata.labels)
    try:
        write_replacing(model_folder / LABELS_FILE, labels)
        write_replacing(model_folder / CONFIG_FILE, _configuration(metadata))
    except OSError as error:
        raise SourceError(f"{model_folder} cannot be written: {error.strerror or error}") from error
    return model_folder / CONFIG_FILE


def _configuration(metadata: ModelMetadata) -> str:
    """Return a ModelConfig in protobuf's text format; the folder names the model."""
    dims = ", ".join(map(str, metadata.image.shape))
    outputs = ",\n".join(
        f'  {{ name: "{name}" data_type: TYPE_FP32 dims: [ {len(metadata.labels)} ] '
        f'label_filename: "{LABELS_FILE}" }}'
        for name in (LOGITS, PROBABILITIES)
    )
    return f"""{_FIRST_LINE}
backend: "onnxruntime"
max_batch_size: {_MAX_BATCH_SIZE}
input [
  {{ name: "{IMAGE}" data_type: TYPE_UINT8 dims: [ {dims} ] }}
]
output [
{outputs}
]
dynamic_batching {{ }}
"""
