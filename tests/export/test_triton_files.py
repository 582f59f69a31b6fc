"""`export --triton`: a configuration for other servers, beside the versions, which ours ignores."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

import pytest

from foldserve.artifact.format import read_artifact
from foldserve.artifact.numbering import LAST_VERSION_FILE
from foldserve.export.config import ExportConfig
from foldserve.export.errors import SourceError
from foldserve.export.pipeline import export_model
from foldserve.export.triton_files import CONFIG_FILE, LABELS_FILE, check_triton_files
from foldserve.runtime.session import Session
from tests.export.conftest import LABELS
from tests.support.foreign_clients import CLIENTS, report_of
from tests.support.server_process import ServerProcess

if TYPE_CHECKING:
    from pathlib import Path


def export(run_dir: Path, repository: Path, **settings: bool) -> int:
    return export_model(
        ExportConfig(source=run_dir, repository=repository, name="lenet", triton=True, **settings)
    )


def test_configuration_is_what_triton_defines_and_fits_the_file(run_dir: Path, tmp_path: Path) -> None:
    export(run_dir, tmp_path)
    folder = tmp_path / "lenet"
    config = report_of(sys.executable, CLIENTS / "triton_config_script.py", folder / CONFIG_FILE)
    session = Session(read_artifact(folder / "1").model, device="cpu")
    tensors = [*config["input"], *config["output"]]
    for tensor, spec in zip(tensors, [*session.inputs, *session.outputs], strict=True):
        assert (tensor["name"], tensor["data_type"]) == (spec.name, f"TYPE_{spec.datatype}")
        assert [int(side) for side in tensor["dims"]] == list(spec.shape[1:])  # Triton adds the batch
    assert (config["backend"], config["max_batch_size"], config["dynamic_batching"]) == (
        "onnxruntime",
        32,
        {},
    )
    assert "name" not in config  # the folder's name counts, so that it can be renamed
    (labels_file,) = {output["label_filename"] for output in config["output"]}
    assert (folder / labels_file).read_text().splitlines() == list(LABELS)


def test_our_own_server_ignores_the_files(run_dir: Path, tmp_path: Path) -> None:
    export(run_dir, tmp_path / "models")
    with ServerProcess(tmp_path / "models", tmp_path / "server") as server:
        assert "lenet/1 ready" in server.log
        assert "config.pbtxt" not in server.log


def test_second_export_replaces_the_files_and_leaves_nothing_else(run_dir: Path, tmp_path: Path) -> None:
    export(run_dir, tmp_path)
    (tmp_path / "lenet" / LABELS_FILE).unlink()
    export(run_dir, tmp_path)
    expected = ["1", CONFIG_FILE, LAST_VERSION_FILE, LABELS_FILE]
    assert sorted(path.name for path in (tmp_path / "lenet").iterdir()) == expected


@pytest.mark.parametrize("content", [b"", b'name: "mine"\n', b"\xff\xfe\n" * 100])
def test_configuration_of_somebody_else_is_not_touched(run_dir: Path, tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "lenet" / CONFIG_FILE
    path.parent.mkdir()
    path.write_bytes(content)
    with pytest.raises(SourceError, match="was not written by foldserve: move it away"):
        export(run_dir, tmp_path)
    assert path.read_bytes() == content
    assert list(path.parent.iterdir()) == [path]


def test_folder_without_configuration_is_fine(tmp_path: Path) -> None:
    check_triton_files(tmp_path / "none")
