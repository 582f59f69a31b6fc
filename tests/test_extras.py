"""Missing extras: each command reports them at once, with the line that installs them."""

from __future__ import annotations

import re
import shlex
import subprocess
import sys
import tomllib
from importlib.machinery import ModuleSpec
from importlib.metadata import packages_distributions
from types import ModuleType
from typing import TYPE_CHECKING

import pytest

from foldserve import cli, extras
from foldserve.cli import COMMANDS
from foldserve.extras import EXTRAS
from tests.support.sources import ROOT, imported_packages, source_files

if TYPE_CHECKING:
    from pathlib import Path

PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
WORDS = {
    "train": ["--epochs", "1"],
    "inspect": ["lenet"],
    "export": ["runs/none"],
    "classify": ["a.png", "--model", "m"],
    "evaluate": ["models/m", "--data", "d"],
    "predict": ["models/m", "d", "--out", "o.csv"],
    "models promote": ["m", "1"],
    "models rollback": ["m"],
    "models delete": ["m", "1"],
    "models diff": ["m", "1", "2"],
    "runs compare": ["runs/none"],
}
# With --against a command of its own: it compares with PyTorch.
NEEDS = {command: (known.extras, WORDS.get(command, [])) for command, known in COMMANDS.items()}
NEEDS["models verify against"] = (cli._VERIFY_AGAINST.extras, ["--against", "runs/none"])
# Asked for with find_spec before they are imported.
OPTIONAL = {"pygrpc_native"}
BLOCK = "import sys\nfor name in {names!r}: sys.modules[name] = None\n"


def words_of(command: str) -> list[str]:
    return [*command.removesuffix(" against").split(), *NEEDS[command][1]]


def distributions(requirements: list[str]) -> set[str]:
    names = {re.split(r"[\[<>=;~]", text)[0].strip() for text in requirements}
    return {name.lower().replace("_", "-") for name in names}


def brought_by(*names: str) -> set[str]:
    """The distributions that extras of pyproject.toml bring, also by way of other extras of ours."""
    brought: set[str] = set()
    for name in names:
        for requirement in PROJECT["optional-dependencies"][name]:
            ours = re.fullmatch(r"foldserve\[(.*)\]", requirement)
            brought |= brought_by(*ours[1].split(",")) if ours else distributions([requirement])
    return brought


@pytest.mark.parametrize(
    ("command", "module"),
    [(command, name) for command, (extras, _) in NEEDS.items() for extra in extras for name in EXTRAS[extra]],
)
def test_each_missing_package_is_named_with_the_line_that_installs_it(
    command: str, module: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    # The page's packages are in an environment of their own.
    for name in extras.missing_packages(NEEDS[command][0]).get("ui", []):
        stand_in = ModuleType(name)
        stand_in.__spec__ = ModuleSpec(name, None)
        monkeypatch.setitem(sys.modules, name, stand_in)
    monkeypatch.setitem(sys.modules, module, None)  # importing it fails as if it were not there
    monkeypatch.setattr(cli, "_load", lambda target: pytest.fail(f"{target} was begun"))
    assert cli.main(words_of(command)) == 1
    error = capsys.readouterr().err
    assert error.startswith(
        f"foldserve {command.removesuffix(' against')}: needs packages that are not installed: {module}; "
    )
    assert error.count("\n") == 1
    assert re.search(r"-m pip install -e '\S+\[\S+\]'$", error.strip())


@pytest.mark.parametrize("driver", [None, "/usr/bin/nvidia-smi"], ids=["cpu", "gpu"])
@pytest.mark.parametrize("command", NEEDS)
def test_one_line_installs_all_that_a_command_needs(
    command: str, driver: str | None, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """What the line names, by pyproject.toml, brings every package that was missing after a bare install."""
    monkeypatch.setattr(extras, "_has_nvidia_driver", lambda: driver is not None)
    runtime = "onnxruntime-gpu" if driver else "onnxruntime"
    needed = {name for extra in NEEDS[command][0] for name in EXTRAS[extra]}
    for name in needed:
        monkeypatch.setitem(sys.modules, name, None)
    if not needed:
        return
    assert cli.main(words_of(command)) == 1
    requirement = shlex.split(capsys.readouterr().err.partition("-m pip install ")[2])[-1]
    named = requirement.partition("[")[2].rstrip("]").split(",")
    assert "cpu" not in named, "an older name, which docs/install.md does not explain"
    assert len(set(named)) == len(named)
    brought = brought_by(*named)
    packages = packages_distributions()
    for name in needed - {"onnxruntime", "google.protobuf"}:
        # What is not installed here is called as its distribution is.
        assert distributions(packages.get(name, [name])) & brought
    assert runtime in brought or "onnxruntime" not in needed
    assert "protobuf" in brought or "google.protobuf" not in needed
    # Two builds of ONNX Runtime would overwrite each other's files.
    assert not ({"onnxruntime", "onnxruntime-gpu"} - {runtime}) & brought


def test_a_client_brings_grpc_and_protobuf_alone() -> None:
    assert brought_by("client") == {"grpcio", "protobuf"}


def test_all_brings_what_every_other_extra_brings_on_a_cpu() -> None:
    """But for the page, whose ranges do not fit constraints.txt."""
    others = PROJECT["optional-dependencies"].keys() - {"all", "dev", "gpu", "ui"}
    assert brought_by("all") == brought_by(*others)


@pytest.mark.parametrize("name", ["Client", "AsyncClient"])
def test_a_client_is_imported_with_its_own_extra_alone(name: str) -> None:
    others = {package for names in EXTRAS.values() for package in names} - set(EXTRAS["client"])
    code = BLOCK.format(names=sorted(others)) + f"import foldserve\nprint(foldserve.{name}.__name__)\n"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=True, capture_output=True, text=True)
    assert done.stdout.strip() == name


def test_every_import_is_in_the_base_or_in_an_extra() -> None:
    base = {"numpy", "PIL", "pydantic", "pydantic_core", "pydantic_settings", "rich", "shtab"}
    known = base | OPTIONAL | {name.partition(".")[0] for names in EXTRAS.values() for name in names}
    for path in source_files():
        unknown = imported_packages(path) - known - {"foldserve"} - sys.stdlib_module_names
        assert not unknown, f"{path.relative_to(ROOT)} imports {sorted(unknown)}"


def test_an_import_that_fails_later_is_explained_too(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def fail(_: object) -> int:
        raise ModuleNotFoundError("No module named 'onnx_ir.passes'", name="onnx_ir.passes")

    monkeypatch.setattr(cli, "_load", lambda _target: fail)
    assert cli.main(["token", "--name", "a"]) == 1
    assert re.search(r"not installed: onnx_ir; .* install .*\[export\]'$", capsys.readouterr().err.strip())


@pytest.mark.parametrize("command", NEEDS)
def test_a_command_needs_no_more_than_it_says(command: str) -> None:
    """In a process that has the command's own parts alone, everything that it imports is there."""
    extras, _ = NEEDS[command]
    own = {name for extra in extras for name in EXTRAS[extra]}
    others = {name for names in EXTRAS.values() for name in names} - own
    if "onnx" in own:
        others.discard("google.protobuf")  # which comes with it
    if not own or not others:
        return
    chosen = cli._VERIFY_AGAINST if command.endswith("against") else COMMANDS[command]
    code = BLOCK.format(names=sorted(others)) + f"from foldserve import cli\ncli._load({chosen.target!r})\n"
    subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=True)


def test_a_bare_install_can_make_tokens_and_show_help() -> None:
    names = sorted({name for names in EXTRAS.values() for name in names})
    for words in (["token", "--name", "a"], ["--help"], ["serve", "--help"]):
        code = BLOCK.format(names=names) + f"from foldserve import cli\nsys.exit(cli.main({words!r}))"
        subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=True, capture_output=True)


def test_install_line_of_a_wheel_names_the_project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Installed from a wheel no checkout is beside; pip then takes the foldserve that is installed."""
    monkeypatch.setattr(extras, "__file__", str(tmp_path / "foldserve/extras.py"))
    assert extras.how_to_install({"serve": ["grpc"]}).endswith("-m pip install 'foldserve[serve]'")


def test_install_line_uses_uv_in_an_environment_made_by_uv(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pip", None)
    line = extras.how_to_install({"serve": ["grpc"]})
    assert f"uv pip install --python {shlex.quote(sys.executable)} -e " in line
