"""Processes that we start end when we end, even by SIGKILL."""

from __future__ import annotations

import ast
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from foldserve.demo.children import ending_with_us, environment_without_settings
from tests.support.artifacts import TinyNetwork
from tests.support.repository_changes import eventually

ROOT = Path(__file__).parents[2]
# Each prints its children's process ids and then waits, but not for ever if the signal has no effect.
WAITS = "import time; time.sleep(120)"
# A shell starts background jobs with SIGINT ignored, which children inherit.
TAKES_SIGINT = "import signal; signal.signal(signal.SIGINT, signal.default_int_handler)\n"
PARENTS = {
    "any program": f"""
import subprocess, sys
from foldserve.demo.children import ending_with_us
child = subprocess.Popen(ending_with_us([sys.executable, "-c", "{WAITS}"]), start_new_session=True)
print(child.pid, flush=True)
{WAITS}
""",
    "demo's server": f"""
import sys
from pathlib import Path
from foldserve.demo.server_process import running_server
with running_server(Path("models"), device="cpu", log=Path("log")):
    print(*Path(f"/proc/self/task/{{__import__('os').getpid()}}/children").read_text().split(), flush=True)
    {WAITS}
""",
    "tests' server": f"""
from pathlib import Path
from tests.support.server_process import ServerProcess
with ServerProcess(Path("models").absolute(), Path("server").absolute()) as server:
    print(server.process.pid, flush=True)
    {WAITS}
""",
    "benchmark's servers": f"""
from contextlib import ExitStack
from pathlib import Path
from benchmarks.serving.contestants import Contestant
from benchmarks.serving.networks import Network
from benchmarks.serving.server_process import running
network = Network("tiny", Path("models"), Path("models/tiny/1/model.onnx"), (1, 8, 8))
with ExitStack() as stack:
    contestants = (Contestant("foldserve", "native"), Contestant("bare_native"), Contestant("bare_aio"))
    servers = [stack.enter_context(running(contestant, network)) for contestant in contestants]
    print(*(server.process.pid for server in servers), flush=True)
    {WAITS}
""",
}


def is_running(pid: int) -> bool:
    """Tell whether a process runs; a zombie, whose status nobody has asked for, does not."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


@pytest.mark.parametrize(
    ("parent", "number"),
    [
        *((parent, signal.SIGKILL) for parent in PARENTS),
        ("benchmark's servers", signal.SIGTERM),
        ("benchmark's servers", signal.SIGINT),
    ],
)
def test_children_end_with_their_parent(parent: str, number: signal.Signals, tmp_path: Path) -> None:
    TinyNetwork().publish(tmp_path / "models" / "tiny")
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    with subprocess.Popen(
        ending_with_us([sys.executable, "-c", TAKES_SIGINT + PARENTS[parent]]),
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
        cwd=tmp_path,
        env=environment,
    ) as process:
        assert process.stdout is not None
        children = [int(text) for text in process.stdout.readline().split()]
        assert children
        assert all(map(is_running, children))
        process.send_signal(number)
        process.wait(60)
    eventually(lambda: not any(map(is_running, children)), "the children end")


def test_a_child_whose_parent_has_ended_meanwhile_does_not_begin() -> None:
    command = ending_with_us([sys.executable, "-c", "print('begun')"])
    command[command.index(str(os.getpid()))] = "1"  # not who started it
    ended = subprocess.run(command, capture_output=True, text=True, check=False)
    assert (ended.returncode, ended.stdout) == (128 + signal.SIGTERM, "")


def test_a_child_is_the_program_itself() -> None:
    """By the same process id, with its arguments, variables and status."""
    code = "import os, sys; print(os.getpid(), sys.argv[1:], os.environ['FOR_IT']); sys.exit(3)"
    command = [sys.executable, "-c", code, "a b", "--c"]
    with subprocess.Popen(
        ending_with_us(command), stdout=subprocess.PIPE, text=True, env=os.environ | {"FOR_IT": "1"}
    ) as child:
        output, _ = child.communicate()
    assert output == f"{child.pid} ['a b', '--c'] 1\n"
    assert child.returncode == 3


def test_a_server_of_our_own_takes_no_settings_of_the_user(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FOLDSERVE_SERVE_TLS_CERT", "/somebody/elses.pem")
    assert not [name for name in environment_without_settings() if name.startswith("FOLDSERVE_")]


@pytest.mark.parametrize("package", ["benchmarks", "foldserve", "examples", "tests"])
def test_every_started_process_ends_with_its_parent(package: str) -> None:
    """Every Popen, and in benchmarks and demo whatever is waited for as well."""
    for path in sorted((ROOT / package).rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text())):
            if not isinstance(node, ast.Call) or not isinstance(node.func, ast.Attribute):
                continue
            starts = {"Popen"} if package == "tests" else {"Popen", "run", "call", "check_output"}
            if ast.unparse(node.func.value) == "subprocess" and node.func.attr in starts:
                where = f"{path.relative_to(ROOT)}:{node.lineno}"
                assert ast.unparse(node.args[0]).startswith("ending_with_us("), f"{where} may outlive us"
