"""One repository and one server process for all contract tests."""

from collections.abc import Callable, Iterator
from pathlib import Path
from subprocess import CompletedProcess

import pytest

from foldserve import cli
from foldserve.imaging import ImageSpec
from tests.support.artifacts import TinyNetwork
from tests.support.server_process import ServerProcess


@pytest.fixture(scope="session")
def network() -> TinyNetwork:
    return TinyNetwork(seed=2)


@pytest.fixture(scope="session")
def colour_network() -> TinyNetwork:
    return TinyNetwork(seed=3, image=ImageSpec("RGB", 6, 10, 12), class_count=5)


@pytest.fixture(scope="session")
def repository(
    tmp_path_factory: pytest.TempPathFactory, network: TinyNetwork, colour_network: TinyNetwork
) -> Path:
    folder = tmp_path_factory.mktemp("models")
    TinyNetwork(seed=1).publish(folder / "tiny")
    network.publish(folder / "tiny")
    colour_network.publish(folder / "colour")
    (folder / ".hidden" / "1").mkdir(parents=True)
    (folder / "empty").mkdir()
    return folder


@pytest.fixture(scope="session", params=["grpcio", "native"])
def server(
    repository: Path, tmp_path_factory: pytest.TempPathFactory, request: pytest.FixtureRequest
) -> Iterator[ServerProcess]:
    """A server over each transport: the whole suite must see no difference."""
    folder = tmp_path_factory.mktemp(f"server-{request.param}")
    with ServerProcess(repository, folder, "--transport", request.param) as process:
        yield process


@pytest.fixture
def command(capsys: pytest.CaptureFixture[str]) -> Callable[..., CompletedProcess[str]]:
    """The `foldserve` command line in this process, which has loaded all that each start would load again."""

    def run(*arguments: str) -> CompletedProcess[str]:
        capsys.readouterr()
        status = cli.main(list(arguments))
        printed = capsys.readouterr()
        return CompletedProcess(arguments, status, printed.out, printed.err)

    return run
