"""`foldserve completion`: bash, zsh and fish, each started for real, complete what a user would type."""

from __future__ import annotations

import os
import pty
import re
import select
import shutil
import subprocess
import time
from typing import TYPE_CHECKING, Self

import pytest

from foldserve import cli
from foldserve.cli import COMMANDS
from foldserve.completion import completion_script
from foldserve.demo.children import ending_with_us
from foldserve.environment import flag_fields

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

# What is typed before the tab key, and the whole line afterwards.
CASES = {
    "exp": "export",
    "models ver": "models verify",
    "serve --trans": "serve --transport",
    "train --no-batch-n": "train --no-batch-norm",
    "serve --device cud": "serve --device cuda",
    "completion zs": "completion zsh",
    "models list --repository pict": "models list --repository pictures",
    "serve --tls-cert cert": "serve --tls-cert certificate.pem",
    "classify pictures/c": "classify pictures/cat.png",
    "evaluate models/le": "evaluate models/lenet",
    "classify --model len": "classify --model lenet",
    "classify --model-version 12": "classify --model-version 123",
    "classify a.png --deb": "classify a.png --debug",
}
_WAIT_S = 120.0  # generous: the test machine may be busy


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "pictures").mkdir()
    (tmp_path / "pictures" / "cat.png").touch()
    (tmp_path / "models" / "lenet" / "123").mkdir(parents=True)
    (tmp_path / "certificate.pem").touch()
    for shell in ("bash", "zsh", "fish"):
        (tmp_path / f"foldserve.{shell}").write_text(completion_script(shell))
    return tmp_path


class Terminal:
    """A shell in a pseudo-terminal, in which `foldserve` prints what it was called with."""

    def __init__(self, command: list[str], folder: Path, setup: str) -> None:
        program = shutil.which(command[0])
        if program is None:
            pytest.skip(f"needs {command[0]}")
        self._us, theirs = pty.openpty()
        environment = {"PATH": os.environ["PATH"], "TERM": "dumb", "HOME": str(folder), "LC_ALL": "C.UTF-8"}
        self._process = subprocess.Popen(
            ending_with_us([program, *command[1:]]),
            stdin=theirs,
            stdout=theirs,
            stderr=theirs,
            cwd=folder,
            env=environment,
            start_new_session=True,
        )
        os.close(theirs)
        self._type('foldserve() { echo "<$*>"; }\n')
        self._type(f"{setup}\n")
        self.called_with("begun")

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._process.kill()
        self._process.wait()
        os.close(self._us)

    def called_with(self, typed: str) -> str:
        """Type a line behind `foldserve`, which may end in a tab, and return the arguments that it got."""
        self._type(f"foldserve {typed}\n")
        seen, deadline_s = "", time.monotonic() + _WAIT_S
        while not (found := re.search(r"<([^<>$]*)>", seen)):
            ready, _, _ = select.select([self._us], [], [], max(0.0, deadline_s - time.monotonic()))
            assert ready, f"no answer; the terminal shows {seen!r}"
            seen += os.read(self._us, 4096).decode("utf-8", "replace")
        return found[1].strip()

    def _type(self, text: str) -> None:
        os.write(self._us, text.encode())


def test_bash_completes(folder: Path) -> None:
    with Terminal(["bash", "--norc", "--noprofile", "-i"], folder, "source ./foldserve.bash") as bash:
        _check(lambda typed: bash.called_with(f"{typed}\t"))


def test_zsh_completes(folder: Path) -> None:
    setup = (
        "autoload -U compinit; compinit -u -D; zstyle ':completion:*' insert-tab false; "
        'eval "$(cat foldserve.zsh)"'
    )
    with Terminal(["zsh", "-f", "-i"], folder, setup) as zsh:
        _check(lambda typed: zsh.called_with(f"{typed}\t"))


def test_fish_completes(folder: Path) -> None:
    program = shutil.which("fish")
    if program is None:
        pytest.skip("needs fish")
    code = "source foldserve.fish\n" + "\n".join(
        f"complete -C 'foldserve {typed}'; echo ---" for typed in CASES
    )
    environment = {"PATH": os.environ["PATH"], "HOME": str(folder), "LC_ALL": "C.UTF-8"}
    done = subprocess.run(
        [program, "--no-config", "-c", code],
        cwd=folder,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    answers = dict(zip(CASES, done.stdout.split("---\n"), strict=False))

    def complete(typed: str) -> str:
        (candidate,) = answers[typed].splitlines() or [""]
        return " ".join([*typed.split()[:-1], candidate.partition("\t")[0]])

    _check(complete)


def _check(complete: Callable[[str], str]) -> None:
    got = {typed: complete(typed).removesuffix("/") for typed in CASES}  # zsh takes a folder's slash back
    assert got == CASES


def test_bash_runs_no_command_that_a_folder_is_called(folder: Path) -> None:
    for name in ("$(touch${IFS}begun1)", "`touch${IFS}begun2`"):
        (folder / "models" / name).mkdir()
    (folder / "models" / "lenet" / "12$(touch${IFS}begun3)").mkdir()
    with Terminal(["bash", "--norc", "--noprofile", "-i"], folder, "source ./foldserve.bash") as bash:
        assert bash.called_with("classify --model len\t") == "classify --model lenet"
        assert bash.called_with("classify --model-version 12\t") == "classify --model-version 123"
    assert not list(folder.glob("begun*"))


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_every_command_and_flag_is_in_the_script(shell: str) -> None:
    script = completion_script(shell)
    for command, known in COMMANDS.items():
        assert command.split()[-1] in script
        for field in flag_fields(known.config):
            assert field.replace("_", "-") in script, f"--{field} of {command}"


def test_the_command_prints_the_script(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["completion", "bash"]) == 0
    assert capsys.readouterr().out == completion_script("bash") + "\n"


def test_an_unknown_shell_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["completion", "tcsh"]) == 2
    assert "'bash', 'zsh' or 'fish'" in capsys.readouterr().err
