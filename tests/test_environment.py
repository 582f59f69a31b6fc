"""Settings from the environment: the documented variables and no others."""

import ast
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from foldserve import cli
from foldserve.cli import COMMANDS
from foldserve.demo.children import ending_with_us
from foldserve.environment import flag_fields, variable
from tests.support.sources import PACKAGE_FOLDERS, ROOT, source_files

# Enough for each command's settings to be whole.
WORDS = {
    "inspect": ["lenet"],
    "classify": ["a.png", "--model", "m"],
    "token": ["--name", "a"],
    "evaluate": ["models/m", "--data", "d"],
    "predict": ["models/m", "d", "--out", "o.csv"],
    "completion": ["bash"],
    "models promote": ["m", "1"],
    "models rollback": ["m"],
    "models delete": ["m", "1"],
    "models diff": ["m", "1", "2"],
    "runs compare": ["runs/a"],
}
FOREIGN_VALUES = ["release", "app:*", "", "1", '{"epochs": 2, "repository": "/elsewhere", "list": {}}']


def given(command: str) -> list[str]:
    return [*command.split(), *WORDS.get(command, [])]


@pytest.mark.parametrize("value", FOREIGN_VALUES)
@pytest.mark.parametrize("command", COMMANDS)
def test_variables_without_the_prefix_change_nothing(command: str, value: str) -> None:
    """Named after commands, flags and settings, in all spellings that a settings library may look for."""
    fields = COMMANDS[command].config.model_fields
    names = {*cli.Foldserve.model_fields, *cli.Models.model_fields, *fields}
    names |= {
        f"{command.rsplit(maxsplit=1)[-1]}{joint}{field}" for field in fields for joint in ("_", "__", ".")
    }
    foreign = {spelt: value for name in names for spelt in (name, name.upper())}
    assert cli.parse(given(command), foreign) == cli.parse(given(command), {})


@pytest.mark.parametrize(
    ("module", "words"),
    [
        pytest.param("foldserve", ["models", "list", "--repository", "."], id="models list"),
        pytest.param("foldserve", ["serve", "--repository", "nowhere"], id="serve"),
        pytest.param("foldserve", ["train", "--epochs", "0"], id="train"),
        pytest.param("benchmarks.serving", ["--rounds", "0"], id="serving benchmark"),
        pytest.param("benchmarks.instances", ["--rounds", "x"], id="instances benchmark"),
    ],
)
def test_no_program_reads_the_process_environment(module: str, words: list[str], tmp_path: Path) -> None:
    """The real process, with a .env file beside: what it prints is what it prints without them."""
    foreign = {"DEBUG": "release", "TRAIN": '{"epochs": 2}', "SERVE": '{"port": "x"}', "MODELS": "x"}
    foreign |= {"port": "x", "epochs": "x", "seconds": "x", "device": "x", "repository": "/elsewhere"}
    (tmp_path / ".env").write_text("".join(f"{name}={value}\n" for name, value in foreign.items()))
    places = {"PYTHONPATH": str(ROOT)}
    plain, disturbed = (
        subprocess.run(
            [sys.executable, "-m", module, *words],
            capture_output=True,
            text=True,
            cwd=folder,
            env=os.environ | places | environment,
            check=False,
        )
        for folder, environment in ((ROOT / "docs", {}), (tmp_path, foreign))
    )
    assert (disturbed.returncode, disturbed.stdout, disturbed.stderr) == (
        plain.returncode,
        plain.stdout,
        plain.stderr,
    )


@pytest.mark.parametrize(
    ("words", "name", "value", "field", "expected"),
    [
        pytest.param("serve", "FOLDSERVE_SERVE_PORT", "9000", "port", 9000, id="number"),
        pytest.param("serve", "FOLDSERVE_SERVE_METRICS", "false", "metrics", False, id="switched off"),
        pytest.param("serve", "FOLDSERVE_SERVE_TOKENS", "/etc/t", "tokens", Path("/etc/t"), id="path"),
        pytest.param("classify a.png", "FOLDSERVE_CLASSIFY_MODEL", "m", "model", "m", id="required"),
        pytest.param("models list", "FOLDSERVE_MODELS_LIST_SERVER", "h:1", "server", "h:1", id="group"),
        pytest.param(
            "train", "FOLDSERVE_TRAIN_ARCH", "alexnet", "run_dir", Path("runs/alexnet"), id="recipe"
        ),
        pytest.param("export r", "FOLDSERVE_EXPORT_MEAN", "0.1,0.2", "mean", (0.1, 0.2), id="several"),
        pytest.param(
            "export r", "FOLDSERVE_EXPORT_BATCH_SIZES", "4", "batch_sizes", (4,), id="one of several"
        ),
    ],
)
def test_a_flags_variable_sets_it(words: str, name: str, value: str, field: str, expected: object) -> None:
    assert getattr(cli.parse(words.split(), {name: value}), field) == expected


def test_several_values_are_separated_by_commas() -> None:
    environ = {"FOLDSERVE_SERVE_LOAD_MODEL": "a,b", "FOLDSERVE_SERVE_CONTROL": "explicit"}
    assert cli.parse(["serve"], environ).model_dump()["load_model"] == ["a", "b"]


def test_a_flag_wins_and_an_empty_variable_counts_as_none() -> None:
    environ = {"FOLDSERVE_SERVE_PORT": "9000", "FOLDSERVE_SERVE_HOST": ""}
    config = cli.parse(["serve", "--port", "7000"], environ).model_dump()
    assert (config["port"], config["host"]) == (7000, "127.0.0.1")


@pytest.mark.parametrize(
    ("words", "environ", "named"),
    [
        pytest.param("serve", {"FOLDSERVE_SERVE_PORT": "http"}, "FOLDSERVE_SERVE_PORT: ", id="no number"),
        pytest.param(
            "serve", {"FOLDSERVE_SERVE_METRICS": "maybe"}, "FOLDSERVE_SERVE_METRICS: ", id="no bool"
        ),
        pytest.param("serve", {"FOLDSERVE_SERVE_DEVICE": "cdua"}, "did you mean cuda?", id="near choice"),
        pytest.param("export r", {"FOLDSERVE_EXPORT_STD": "1,0"}, "FOLDSERVE_EXPORT_STD: ", id="own check"),
        pytest.param(
            "serve --host 0.0.0.0", {"FOLDSERVE_SERVE_TOKENS": "t"}, "FOLDSERVE_SERVE_TOKENS)", id="together"
        ),
        pytest.param(
            "serve", {"FOLDSERVE_SERVE_PROT": "1"}, "did you mean FOLDSERVE_SERVE_PORT?", id="misspelt"
        ),
        pytest.param(
            "classify a", {"FOLDSERVE_CLASSIFY_IMAGES": "b"}, "FOLDSERVE_CLASSIFY_IMAGES", id="no flag"
        ),
    ],
)
def test_a_wrong_variable_is_named(
    words: str,
    environ: dict[str, str],
    named: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    for name, value in environ.items():
        monkeypatch.setenv(name, value)
    assert cli.main(words.split()) == 2
    error = capsys.readouterr().err
    assert named in error
    assert error.count("\n") == 1


def test_variables_of_other_programs_are_ignored() -> None:
    """Kubernetes sets such ones in every container beside a service called foldserve."""
    environ = {"FOLDSERVE_PORT": "tcp://10.0.0.1:8001", "FOLDSERVE_SERVICE_HOST": "10.0.0.1"}
    environ |= {"FOLDSERVE_TRAIN_EPOCHS": "x", "FOLDSERVE_CACHE": "/cache"}
    assert cli.parse(["serve"], environ) == cli.parse(["serve"], {})


@pytest.mark.parametrize("command", COMMANDS)
def test_help_and_docs_say_how_the_environment_is_read(
    command: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit, match="0"):
        cli.main([*command.split(), "--help"])
    shown = capsys.readouterr().out
    for field in flag_fields(COMMANDS[command].config)[:1]:
        assert variable(command, field) in shown
    assert ("FOLDSERVE_TOKEN." in shown) == ("token_file" in COMMANDS[command].config.model_fields)
    assert "FOLDSERVE_<COMMAND>_<FLAG>" in (ROOT / "docs" / "operations.md").read_text()


def test_a_server_takes_its_settings_from_its_environment(tmp_path: Path) -> None:
    """The real process: the port that it was told is in the file that it was told."""
    (tmp_path / "models").mkdir()
    environ = {"FOLDSERVE_SERVE_PORT": "0", "FOLDSERVE_SERVE_PORT_FILE": str(tmp_path / "port")}
    environ |= {"FOLDSERVE_SERVE_METRICS": "no", "FOLDSERVE_SERVE_LOG_FORMAT": "json"}
    command = [sys.executable, "-m", "foldserve", "serve", "--repository", str(tmp_path / "models")]
    with subprocess.Popen(
        ending_with_us(command), stdout=subprocess.PIPE, text=True, env=os.environ | environ, cwd=ROOT
    ) as server:
        assert server.stdout is not None
        line = json.loads(server.stdout.readline())
        server.terminate()
    assert (tmp_path / "port").read_text().strip() in line["message"]


def test_no_settings_class_reads_the_environment_itself() -> None:
    """BaseSettings and CliApp (which makes one) take every variable by a field's name, without a prefix."""
    for path in source_files(*PACKAGE_FOLDERS, "benchmarks"):
        imported = {
            alias.name
            for node in ast.walk(ast.parse(path.read_text()))
            if isinstance(node, ast.ImportFrom) and node.module == "pydantic_settings"
            for alias in node.names
        }
        assert not imported & {"BaseSettings", "CliApp"}, path.relative_to(ROOT)
