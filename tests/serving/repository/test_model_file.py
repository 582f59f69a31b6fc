"""Tests ``model.toml``: its keys, their effects, and the messages for invalid files."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from foldserve.runtime.model_settings import ModelSettings
from foldserve.runtime.options import CudaOptions
from foldserve.serving.errors import SettingsError
from foldserve.serving.repository.model_file import ModelFile, read_model_settings
from foldserve.serving.repository.version_policy import ALL_VERSIONS, VersionPolicy
from tests.conftest import ROOT

if TYPE_CHECKING:
    from pathlib import Path

DEFAULTS = ModelSettings(device="cpu", max_batch_size=16, intra_op_threads=3)


def read(folder: Path, text: str) -> tuple[ModelSettings, VersionPolicy]:
    (folder / "tiny").mkdir(exist_ok=True)
    (folder / "tiny" / "model.toml").write_text(text)
    return read_model_settings(folder / "tiny", DEFAULTS, folder)


def fault(folder: Path, text: str) -> str:
    with pytest.raises(SettingsError) as caught:
        read(folder, text)
    return str(caught.value)


def test_flags_apply_to_a_model_without_a_file(tmp_path: Path) -> None:
    assert read_model_settings(tmp_path, DEFAULTS, tmp_path) == (DEFAULTS, ALL_VERSIONS)
    assert read(tmp_path, "") == (DEFAULTS, ALL_VERSIONS)


def test_every_key_has_its_effect(tmp_path: Path) -> None:
    settings, policy = read(
        tmp_path,
        """
        version_policy = { specific = [1, 3] }
        max_batch_size = 8
        max_queue_rows = 100
        max_queue_mib = 2
        max_queue_delay_ms = 1.5
        instances = 2
        intra_op_threads = 4
        inter_op_threads = 2
        graph_optimization = "basic"
        arena = false
        batch_invariant = true
        warm_up_sizes = [1, 8]
        [cuda]
        cudnn_conv_algo_search = "EXHAUSTIVE"
        use_tf32 = true
        gpu_mem_limit_mib = 3
        """,
    )
    assert settings == ModelSettings(
        device="cpu",
        max_batch_size=8,
        max_queue_rows=100,
        max_queue_mib=2,
        max_queue_delay_ms=1.5,
        instances=2,
        intra_op_threads=4,
        inter_op_threads=2,
        graph_optimization="basic",
        arena=False,
        batch_invariant=True,
        warm_up_sizes=(1, 8),
        cuda=CudaOptions(cudnn_conv_algo_search="EXHAUSTIVE", use_tf32=True, gpu_mem_limit_mib=3),
    )
    assert settings.max_queue_bytes == 2 * 1024 * 1024
    assert settings.max_queue_delay_s == 0.0015
    assert policy == VersionPolicy(specific=(1, 3))


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        pytest.param(
            "instances = 2\nmax_batch = 3\n",
            "model.toml line 2: max_batch: there is no such key; did you mean max_batch_size?",
            id="unknown key",
        ),
        pytest.param(
            "arena = true\n\n[cuda]\n# a comment\nuse_tf = true\n",
            "model.toml line 5: cuda.use_tf: there is no such key; did you mean use_tf32?",
            id="unknown key of a table",
        ),
        pytest.param(
            "cuda.use_tf = true\n",
            "model.toml line 1: cuda.use_tf: there is no such key; did you mean use_tf32?",
            id="dotted key",
        ),
        pytest.param(
            'device = "cpu"\n', "model.toml line 1: device: there is no such key", id="only the server's"
        ),
        pytest.param(
            "max_batch_size = 0\n",
            "model.toml line 1: max_batch_size: Input should be greater than or equal to 1, given '0'",
            id="too small",
        ),
        pytest.param(
            '\ninstances = "two"\n',
            "model.toml line 2: instances: Input should be a valid integer, given 'two'",
            id="text for a number",
        ),
        pytest.param(
            "version_policy = { latest = 0 }\n",
            "model.toml line 1: version_policy.latest: Input should be greater than or equal to 1, given '0'",
            id="policy out of range",
        ),
        pytest.param(
            "version_policy = { latest = 1, specific = [1] }\n",
            'model.toml line 1: version_policy: give "all", { latest = 2 } or { specific = [1, 3] }, given',
            id="two policies",
        ),
        pytest.param(
            "instances = true\n", "instances: Input should be a valid integer", id="boolean for a number"
        ),
        pytest.param("instances 2\n", "model.toml is not valid TOML: Expected '='", id="not TOML"),
        pytest.param("instances = 1\ninstances = 2\n", "(at line 2, column 14)", id="twice"),
    ],
)
def test_invalid_settings_are_reported_with_line_and_key(tmp_path: Path, text: str, expected: str) -> None:
    assert expected in fault(tmp_path, text)


def test_settings_that_are_not_text_or_lie_outside_are_refused(tmp_path: Path) -> None:
    (tmp_path / "models" / "tiny").mkdir(parents=True)
    path = tmp_path / "models" / "tiny" / "model.toml"
    path.write_bytes(b"\xff\xfe")
    with pytest.raises(SettingsError, match=r"model\.toml is not valid TOML: .*utf-8"):
        read_model_settings(path.parent, DEFAULTS, tmp_path / "models")
    path.unlink()
    (tmp_path / "elsewhere.toml").write_text("instances = 2\n")
    path.symlink_to(tmp_path / "elsewhere.toml")
    with pytest.raises(SettingsError, match="leads out of the repository"):
        read_model_settings(path.parent, DEFAULTS, tmp_path / "models")


def test_every_key_is_documented() -> None:
    page = (ROOT / "docs" / "reference" / "model-settings.md").read_text()
    rows = {line.split("`")[1] for line in page.splitlines() if line.startswith("| `")}
    keys = {*ModelFile.model_fields} - {"cuda"} | {f"cuda.{name}" for name in CudaOptions.model_fields}
    assert keys <= rows, "keys without a row: run `make reference`"
    described = [*ModelFile.model_fields.values(), *CudaOptions.model_fields.values()]
    assert all(field.description for field in described)


@pytest.mark.parametrize(
    ("given", "versions", "expected"),
    [
        pytest.param("all", [1, 2, 10], [10, 2, 1], id="all"),
        pytest.param({"latest": 2}, [1, 2, 10], [10, 2, 1], id="latest looks at all until enough serve"),
        pytest.param({"specific": [1, 7]}, [1, 2, 10], [1], id="specific"),
    ],
)
def test_policies_try_the_newest_first(given: object, versions: list[int], expected: list[int]) -> None:
    assert VersionPolicy.model_validate(given).candidates(versions) == expected


def test_only_the_latest_policy_limits_the_count() -> None:
    latest = VersionPolicy.model_validate({"latest": 2})
    assert [latest.is_enough(count) for count in (0, 1, 2, 3)] == [False, False, True, True]
    assert not ALL_VERSIONS.is_enough(100)
