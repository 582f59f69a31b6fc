"""Reads ``REPOSITORY/NAME/model.toml``: a model's own settings, which override the server's flags.

The file is beside the versions, not in them, because how to run a model is a choice of the deployment.
"""

from __future__ import annotations

import difflib
import os
import re
import tomllib
from dataclasses import replace
from typing import TYPE_CHECKING, Annotated, Any

from pydantic import BaseModel, Field, ValidationError

from foldserve.errors import ArtifactError
from foldserve.files import read_regular_file
from foldserve.runtime.options import ConvSearch, GraphOptimization  # noqa: TC001  # pydantic reads the annotations
from foldserve.serving.errors import SettingsError
from foldserve.serving.repository.version_policy import ALL_VERSIONS, VersionPolicy
from foldserve.text import quote

if TYPE_CHECKING:
    from pathlib import Path

    from pydantic_core import ErrorDetails

    from foldserve.runtime.model_settings import ModelSettings

SETTINGS_FILE = "model.toml"

_MIB = 1024 * 1024
# A file with every key and a comment on each has 2 KiB. Python's TOML parser takes a second for one dotted
# key of this length, and four times as long for twice the length.
_MAX_BYTES = 16 * 1024
_NAMED_FAULTS = 3
_SHOWN_BITS = 128
_HEADER = re.compile(r"\s*\[([^\[\]]+)\]")

_Rows = Annotated[int, Field(ge=1, le=65536, strict=True)]


class CudaSettings(BaseModel, frozen=True, extra="forbid", strict=True, use_attribute_docstrings=True):
    """Defines the table ``[cuda]``, which is used on a GPU only."""

    cudnn_conv_algo_search: ConvSearch | None = None
    """How cuDNN chooses convolution algorithms: HEURISTIC (the default) predicts the fastest, EXHAUSTIVE
    measures all at each new batch size, DEFAULT takes the first that works."""
    use_tf32: bool | None = None
    """Compute fp32 with 10 bits of mantissa: faster, but too inexact for most golden pairs."""
    gpu_mem_limit_mib: int | None = Field(default=None, ge=1)
    """Largest memory arena of one session on the GPU, in MiB."""


class ModelFile(BaseModel, frozen=True, extra="forbid", strict=True, use_attribute_docstrings=True):
    """Defines the keys of ``model.toml``. The server's flags apply to keys that are left out."""

    version_policy: VersionPolicy | None = None
    """Which versions to serve: "all" (the default), { latest = 2 } for the newest two that load, or
    { specific = [1, 3] }."""
    max_batch_size: _Rows | None = None
    """As --max-batch-size: most images per execution."""
    max_queue_rows: int | None = Field(default=None, ge=1)
    """As --max-queue-rows: most queued images."""
    max_queue_mib: int | None = Field(default=None, ge=1)
    """As --max-queue-mib: most MiB of images queued for this model."""
    max_queue_delay_ms: float | None = Field(default=None, ge=0, le=10_000)
    """As --max-queue-delay-ms: longest time a request waits for a fuller batch, in milliseconds."""
    instances: int | None = Field(default=None, ge=1, le=256)
    """As --instances: executions at the same time."""
    intra_op_threads: int | None = Field(default=None, ge=1, le=1024)
    """As --intra-op-threads: threads per execution."""
    inter_op_threads: int | None = Field(default=None, ge=1, le=1024)
    """Operators that one execution may run at the same time; above 1 only networks with branches gain."""
    graph_optimization: GraphOptimization | None = None
    """How much ONNX Runtime optimizes the graph: "none", "basic", "extended" or "all" (the default)."""
    arena: bool | None = None
    """Keep freed memory for the next execution (the default). False uses less memory but is slower."""
    batch_invariant: bool | None = None
    """As --batch-invariant: give each image bit-identical outputs in any batch."""
    warm_up_sizes: tuple[_Rows, ...] | None = Field(default=None, strict=False)
    """Batch sizes to run before the version serves; by default 1, 2, 4 and so on to max_batch_size."""
    cuda: CudaSettings = CudaSettings()
    """Options for CUDA."""


def read_model_settings(
    model_folder: Path, defaults: ModelSettings, within: Path
) -> tuple[ModelSettings, VersionPolicy]:
    """Return a model's settings and version policy; ``defaults`` apply to keys that its file leaves out.

    Raises:
        SettingsError: the file cannot be read or is invalid; the message has line and key.
    """
    path = model_folder / SETTINGS_FILE
    if not os.path.lexists(path):
        return defaults, ALL_VERSIONS
    try:
        text = read_regular_file(path, within, _MAX_BYTES).decode()
        file = ModelFile.model_validate(tomllib.loads(text))
    except ArtifactError as error:
        raise SettingsError(str(error)) from None
    except ValidationError as error:
        raise SettingsError(_describe_all(error, text)) from None
    except ValueError as error:  # TOMLDecodeError, UnicodeDecodeError, a number of thousands of digits
        raise SettingsError(f"{SETTINGS_FILE} is not valid TOML: {error}") from None
    except RecursionError:
        raise SettingsError(f"{SETTINGS_FILE} is nested too deeply") from None
    return _merged(file, defaults), file.version_policy or ALL_VERSIONS


def _merged(file: ModelFile, defaults: ModelSettings) -> ModelSettings:
    """Return ``defaults`` overridden by the file's keys, in the units of `ModelSettings`."""
    cuda, runtime = file.cuda, defaults.runtime
    settings = {
        "max_batch_size": file.max_batch_size,
        "max_queue_rows": file.max_queue_rows,
        "max_queue_bytes": None if file.max_queue_mib is None else file.max_queue_mib * _MIB,
        "max_queue_delay_s": None if file.max_queue_delay_ms is None else file.max_queue_delay_ms / 1000,
        "instance_count": file.instances,
        "intra_op_threads": file.intra_op_threads,
        "batch_invariant": file.batch_invariant,
        "warm_up_sizes": file.warm_up_sizes,
    }
    options = {
        "inter_op_threads": file.inter_op_threads,
        "graph_optimization": file.graph_optimization,
        "arena": file.arena,
        "cudnn_conv_algo_search": cuda.cudnn_conv_algo_search,
        "use_tf32": cuda.use_tf32,
        "gpu_mem_limit_bytes": None if cuda.gpu_mem_limit_mib is None else cuda.gpu_mem_limit_mib * _MIB,
    }
    return replace(defaults, **_given(settings), runtime=replace(runtime, **_given(options)))


def _given(values: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in values.items() if value is not None}


def _describe_all(error: ValidationError, text: str) -> str:
    faults = error.errors(include_url=False)
    more = len(faults) - _NAMED_FAULTS
    described = "; ".join(_describe(fault, text) for fault in faults[:_NAMED_FAULTS])
    return f"{described}; and {more} more" if more > 0 else described


def _describe(detail: ErrorDetails, text: str) -> str:
    """Return one fault as text: "model.toml line 3: max_batch: there is no such key; did you mean ...?"."""
    location = [str(part) for part in detail["loc"] if not isinstance(part, int)]
    if detail["type"] == "extra_forbidden":
        near = difflib.get_close_matches(location[-1], _keys_beside(location), n=1)
        message = "there is no such key" + (f"; did you mean {near[0]}?" if near else "")
    else:
        message = f"{detail['msg'].removeprefix('Value error, ')}, given {_given_text(detail['input'])}"
    return f"{SETTINGS_FILE} line {_line_of(location, text)}: {'.'.join(location)}: {message}"


def _given_text(value: object) -> str:
    """Return a value of the file as text; only its kind if it is a table, an array or very large."""
    if isinstance(value, dict | list):
        return "a table" if isinstance(value, dict) else "an array"
    if isinstance(value, int) and value.bit_length() > _SHOWN_BITS:  # Python may refuse to write its digits
        return f"a number of {value.bit_length()} bits"
    return quote(str(value))


def _keys_beside(location: list[str]) -> list[str]:
    tables: dict[str, type[BaseModel]] = {"cuda": CudaSettings, "version_policy": VersionPolicy}
    table = tables.get(location[0], ModelFile) if len(location) > 1 else ModelFile
    return list(table.model_fields)


def _line_of(location: list[str], text: str) -> int:
    """Return the line that sets the key at ``location`` or opens the innermost table around it, else 1.

    Python's TOML parser keeps no positions, so this searches the text for table headers and keys before "=".
    """
    table: list[str] = []
    best_line, best_depth = 1, 0
    for number, line in enumerate(text.splitlines(), 1):
        if header := _HEADER.match(line):
            table = path = _parts(header[1])
        elif "=" in line:
            path = [*table, *_parts(line.partition("=")[0])]
        else:
            continue
        if best_depth < len(path) <= len(location) and location[: len(path)] == path:
            best_line, best_depth = number, len(path)
    return best_line


def _parts(dotted: str) -> list[str]:
    return [part.strip().strip("\"'") for part in dotted.split(".")]
