"""The command line: one validated settings object per command, one readable line per error."""

import re
import shlex
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path

import pytest
from pydantic import BaseModel

import foldserve
from foldserve import cli
from foldserve.cli import COMMANDS
from foldserve.environment import flag_fields
from foldserve.misuse import describe_misuse

ROOT = Path(__file__).parent.parent


def run(*arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-W", "error", "-m", "foldserve", *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=False, cwd=ROOT)


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_has_help(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match="0"):
        cli.main([*command.split(), "--help"])
    assert capsys.readouterr().out.startswith(f"usage: foldserve {command}")


@pytest.mark.parametrize("command", COMMANDS)
def test_every_flag_has_a_help_text(command: str) -> None:
    fields = COMMANDS[command].config.model_fields
    silent = [name for name, field in fields.items() if not field.description]
    assert not silent


@pytest.mark.parametrize("command", COMMANDS)
def test_an_unknown_flag_is_named_and_the_near_miss_suggested(
    command: str, capsys: pytest.CaptureFixture[str]
) -> None:
    counts = {"completion": 1, "inspect": 1, "export": 1, "classify": 1, "evaluate": 1, "predict": 2}
    counts |= {"models promote": 2, "models rollback": 1, "models delete": 2, "models diff": 3}
    counts |= {"runs compare": 1}
    positional = ["1"] * counts.get(command, 0)
    assert cli.main([*command.split(), *positional, "--hepl"]) == 2
    error = capsys.readouterr().err
    assert error.startswith(f"foldserve {command}: unknown argument --hepl; did you mean --help?")
    assert error.count("\n") == 1


@pytest.mark.parametrize(
    ("given", "nearest"),
    [
        pytest.param("clasify", "classify", id="command"),
        pytest.param("trian --epochs 1", "train", id="command with flags"),
        pytest.param("models lst", "list", id="command of a group"),
        pytest.param("--hepl", "--help", id="flag of no command"),
        pytest.param("serve --prot 8001", "--port", id="flag"),
        pytest.param("serve --prot=8001", "--port", id="flag with its value"),
        pytest.param("serve --max_batch_size 8", "--max-batch-size", id="underscores"),
        pytest.param("serve --no-metrcs", "--no-metrics", id="flag that switches off"),
        pytest.param("serve --device cdua", "cuda", id="choice"),
        pytest.param("export runs/a --precision int4", "int8", id="choice of another command"),
        pytest.param("train --schedule cosin", "cosine", id="choice of training"),
    ],
)
def test_the_nearest_is_suggested(given: str, nearest: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(given.split()) == 2
    error = capsys.readouterr().err
    assert f"; did you mean {nearest}?" in error
    assert error.count("\n") == 1


def test_an_unknown_command_lists_the_known_ones(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["nothing-like-it"]) == 2
    error = capsys.readouterr().err
    assert "unknown command 'nothing-like-it'" in error
    assert all(command.partition(" ")[0] in error for command in COMMANDS)
    assert "did you mean" not in error


@pytest.mark.parametrize("command", COMMANDS)
def test_no_flag_of_another_command_is_suggested(command: str) -> None:
    """Nor the one that was given: `serve --weights` was answered with "did you mean --weights?"."""
    everywhere = {name for known in COMMANDS.values() for name in flag_fields(known.config)}
    fields = COMMANDS[command].config.model_fields
    own = {"--help", "--debug"} | {f"--{no}{name.replace('_', '-')}" for name in fields for no in ("", "no-")}
    for name in sorted(everywhere - fields.keys()):
        flag = "--" + name.replace("_", "-")
        error = describe_misuse(
            f"error parsing CLI: unrecognized arguments: {flag} value", COMMANDS[command].config
        )
        assert error.startswith(f"unknown argument {flag}")
        suggested = re.search(r"did you mean (\S+)\?", error)
        assert suggested is None or suggested.group(1) in own


def test_a_flag_of_another_command_is_unknown(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["serve", "--weights", "a.pt"]) == 2
    assert capsys.readouterr().err == (
        "foldserve serve: unknown argument --weights (see `foldserve serve --help`)\n"
    )


@pytest.mark.parametrize("words", ["models", "--port 1 serve", "models --verify"])
def test_a_missing_command_is_asked_for(words: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(words.split()) == 2
    error = capsys.readouterr().err
    assert "expected a command (" in error
    assert error.count("\n") == 1


def test_an_unexpected_word_is_named_as_an_argument(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["serve", "models"]) == 2
    assert "unexpected argument 'models'" in capsys.readouterr().err


def test_no_command_shows_help(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match="0"):
        cli.main([])
    assert "subcommands" in capsys.readouterr().out


def test_the_version_is_that_of_the_installed_package(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match="0"):
        cli.main(["--version"])
    assert capsys.readouterr().out == f"foldserve {version('foldserve')}\n"
    assert foldserve.__version__ == version("foldserve")
    assert cli.main(["--versoin"]) == 2
    assert "did you mean --version?" in capsys.readouterr().err
    assert cli.main(["models", "--version"]) == 2, "a command has no version of its own"


def test_public_names_are_the_clients_the_local_model_and_the_version() -> None:
    assert foldserve.__all__ == ["AsyncClient", "Client", "LocalModel", "__version__"]
    assert all(getattr(foldserve, name) for name in foldserve.__all__)
    assert dir(foldserve) == foldserve.__all__
    with pytest.raises(AttributeError, match="no attribute 'Cleint'"):
        _ = foldserve.Cleint


def test_a_missing_required_flag_is_named(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["classify", "picture.png"]) == 2
    assert "--model is required" in capsys.readouterr().err


@pytest.mark.parametrize("value", ["-1", "ten"])
def test_a_bad_value_is_shown_with_its_flag(value: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["train", f"--epochs={value}"]) == 2
    error = capsys.readouterr().err
    assert "--epochs" in error
    assert value in error
    assert error.count("\n") == 1


def test_an_expected_error_is_one_line_and_its_traceback_comes_with_debug(tmp_path: Path) -> None:
    missing = str(tmp_path / "nothing-here")
    plain = run("export", missing, "--repository", str(tmp_path / "models"))
    assert plain.returncode == 1
    assert plain.stderr.startswith("foldserve export: ")
    assert missing in plain.stderr
    assert plain.stderr.count("\n") == 1
    debugged = run("export", missing, "--repository", str(tmp_path / "models"), "--debug")
    assert debugged.returncode == 1
    assert "Traceback" in debugged.stderr


@pytest.mark.parametrize(
    "document", ["README.md", *sorted(str(p.relative_to(ROOT)) for p in ROOT.glob("docs/**/*.md"))]
)
def test_commands_in_the_documents_parse(document: str) -> None:
    """Every `foldserve ...` line of a shell block is one that the console script takes."""
    blocks = re.findall(r"```(?:sh|console|bash)\n(.*?)```", (ROOT / document).read_text(), flags=re.DOTALL)
    text = "\n".join(blocks).replace("\\\n", " ")
    lines = [line.removeprefix("$ ").removeprefix(".venv/bin/") for line in text.splitlines()]
    # Where the output goes, and that it is not waited for, is the shell's.
    lines = [line.partition(" > ")[0].removesuffix(" &") for line in lines]
    commands = [shlex.split(line, comments=True)[1:] for line in lines if line.startswith("foldserve ")]
    for words in commands:
        if "--help" not in words:
            assert isinstance(cli.parse([word for word in words if word != "--debug"], {}), BaseModel)
    if document == "README.md":
        assert len(commands) >= 5


SPARING = """
import gc, os, sys
from foldserve import cli

seen = {}

class Module:
    @staticmethod
    def run(config):
        policy = os.environ.get("OMP_WAIT_POLICY")
        seen.update(policy=policy, enabled=gc.isenabled(), frozen=gc.get_freeze_count())
        return 0

def load(name):
    seen["while loading"] = gc.isenabled()
    return Module

cli.import_module = load
cli.COMMANDS |= {
    name: cli.Command(command.config, "somewhere:run", (), command.spares_cpu)
    for name, command in cli.COMMANDS.items()
}
assert cli.main(sys.argv[1:]) == 0
print(seen["policy"], seen["while loading"], seen["enabled"], seen["frozen"] > 0)
"""


@pytest.mark.parametrize(
    ("words", "policy", "expected"),
    [
        (["export", "runs/lenet"], None, "PASSIVE False True True"),
        (["export", "runs/lenet"], "ACTIVE", "ACTIVE False True True"),
        (["train"], None, "None True True False"),
    ],
)
def test_an_export_spares_the_processor(
    words: list[str], policy: str | None, expected: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """PyTorch's threads sleep while they wait, unless the user says otherwise, and collections are short."""
    monkeypatch.delenv("OMP_WAIT_POLICY", raising=False)
    if policy is not None:
        monkeypatch.setenv("OMP_WAIT_POLICY", policy)
    command = [sys.executable, "-c", SPARING, *words]
    done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=ROOT)
    assert done.stdout.strip() == expected, done.stderr
