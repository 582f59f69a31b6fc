"""A model's own settings: ``REPOSITORY/NAME/model.toml``, each key of which stands before the server's flags.

The file lies beside the versions, not in them: how a model is run is a choice of the deployment.
"""

from __future__ import annotations

import difflib
import os
import re
import tomllib
from dataclasses import replace
from typing import TYPE_CHECKING, Annotated, Any

from pydantic import BaseModel, Field, ValidationError

from serving.errors import ArtifactError, SettingsError
from serving.runtime_options import ConvSearch, GraphOptimization  # noqa: TC001  # pydantic reads the annotations
from serving.safe_files import read_inside
from serving.shown import shown
from serving.version_policy import ALL_VERSIONS, VersionPolicy

if TYPE_CHECKING:
    from pathlib import Path

    from pydantic_core import ErrorDetails

    from serving.model import ModelSettings

SETTINGS_FILE = "model.toml"

_MIB = 1024 * 1024
# A file with every key and a comment on each has 2 KiB. Python's reader takes a second for one dotted key of
# this length, and four times as long for twice as much.
_MOST_BYTES = 16 * 1024
_NAMED_FAULTS = 3
_SHOWN_BITS = 128
_HEADER = re.compile(r"\s*\[([^\[\]]+)\]")

_Rows = Annotated[int, Field(ge=1, le=65536, strict=True)]


class CudaSettings(BaseModel, frozen=True, extra="forbid", strict=True, use_attribute_docstrings=True):
    """The table ``[cuda]``: what counts on the GPU only."""

    cudnn_conv_algo_search: ConvSearch | None = None
    """How cuDNN chooses its convolutions: HEURISTIC (the default) at once, EXHAUSTIVE by trying all at each
    new batch size, DEFAULT takes the first that works."""
    use_tf32: bool | None = None
    """Compute fp32 with 10 bits of mantissa: faster, and so far off that most golden pairs refuse it."""
    gpu_mem_limit_mib: int | None = Field(default=None, ge=1)
    """Most MiB of the GPU's memory that one session's arena takes."""


class ModelFile(BaseModel, frozen=True, extra="forbid", strict=True, use_attribute_docstrings=True):
    """What ``model.toml`` may say. A key that is left out is as the server's flags say."""

    version_policy: VersionPolicy | None = None
    """Which versions are served: "all" (the default), { latest = 2 } for the newest that prove themselves, or
    { specific = [1, 3] }."""
    max_batch_size: _Rows | None = None
    """As --max-batch-size: most images in one execution."""
    max_queue_rows: int | None = Field(default=None, ge=1)
    """As --max-queue-rows: most images that may wait."""
    max_queue_mib: int | None = Field(default=None, ge=1)
    """As --max-queue-mib, for the images that wait for this model."""
    max_queue_delay_ms: float | None = Field(default=None, ge=0, le=10_000)
    """As --max-queue-delay-ms: milliseconds that a request may wait for company."""
    instances: int | None = Field(default=None, ge=1, le=256)
    """As --instances: executions that may run at the same time."""
    intra_op_threads: int | None = Field(default=None, ge=1, le=1024)
    """As --intra-op-threads: threads that one execution may use."""
    inter_op_threads: int | None = Field(default=None, ge=1, le=1024)
    """Operators that one execution may run at the same time; above 1 only networks with branches gain."""
    graph_optimization: GraphOptimization | None = None
    """How far ONNX Runtime rewrites the graph: "none", "basic", "extended" or "all" (the default)."""
    arena: bool | None = None
    """Keep freed memory for the next execution (the default). Without it less is held and runs are slower."""
    batch_invariant: bool | None = None
    """As --batch-invariant: the same bits in any batch."""
    warm_up_sizes: tuple[_Rows, ...] | None = Field(default=None, strict=False)
    """Batch sizes that are run before the version serves; by default 1, 2, 4 and so on to max_batch_size."""
    cuda: CudaSettings = CudaSettings()
    """The table of CUDA's options."""


def read_model_settings(
    model_folder: Path, defaults: ModelSettings, within: Path
) -> tuple[ModelSettings, VersionPolicy]:
    """Return how a model's versions are run and which of them: ``defaults`` where its file says nothing.

    Raises:
        SettingsError: the file cannot be read or followed; the message says line and key.
    """
    path = model_folder / SETTINGS_FILE
    if not os.path.lexists(path):
        return defaults, ALL_VERSIONS
    try:
        text = read_inside(path, within, _MOST_BYTES).decode()
        file = ModelFile.model_validate(tomllib.loads(text))
    except ArtifactError as error:
        raise SettingsError(str(error)) from None
    except ValidationError as error:
        raise SettingsError(_describe_all(error, text)) from None
    except ValueError as error:  # TOMLDecodeError, UnicodeDecodeError, a number of thousands of digits
        raise SettingsError(f"{SETTINGS_FILE} is not TOML: {error}") from None
    except RecursionError:
        raise SettingsError(f"{SETTINGS_FILE} is nested too deep to be read") from None
    return _merged(file, defaults), file.version_policy or ALL_VERSIONS


def _merged(file: ModelFile, defaults: ModelSettings) -> ModelSettings:
    """Return ``defaults`` with what the file says put in its place, in the units of `ModelSettings`."""
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
    """Return one fault in words: "model.toml line 3: max_batch: there is no such key; did you mean ...?"."""
    location = [str(part) for part in detail["loc"] if not isinstance(part, int)]
    if detail["type"] == "extra_forbidden":
        near = difflib.get_close_matches(location[-1], _keys_beside(location), n=1)
        message = "there is no such key" + (f"; did you mean {near[0]}?" if near else "")
    else:
        message = f"{detail['msg'].removeprefix('Value error, ')}, given {_given_text(detail['input'])}"
    return f"{SETTINGS_FILE} line {_line_of(location, text)}: {'.'.join(location)}: {message}"


def _given_text(value: object) -> str:
    """Return a value of the file, shown: of one that holds others, or is very large, only the kind."""
    if isinstance(value, dict | list):
        return "a table" if isinstance(value, dict) else "an array"
    if isinstance(value, int) and value.bit_length() > _SHOWN_BITS:  # Python may refuse to write its digits
        return f"a number of {value.bit_length()} bits"
    return shown(str(value))


def _keys_beside(location: list[str]) -> list[str]:
    tables: dict[str, type[BaseModel]] = {"cuda": CudaSettings, "version_policy": VersionPolicy}
    table = tables.get(location[0], ModelFile) if len(location) > 1 else ModelFile
    return list(table.model_fields)


def _line_of(location: list[str], text: str) -> int:
    """Return the line that sets the key at ``location``, or the innermost table around it; 1 where none does.

    Python's TOML reader keeps no places, so the text is looked through: table headers, and keys before "=".
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
