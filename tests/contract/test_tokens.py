"""Bearer tokens and roles over both transports, with real clients."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any, NamedTuple

import grpc
import numpy as np
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc

from foldserve.serving.client.sync_client import Client
from foldserve.serving.errors import UnauthenticatedError
from foldserve.serving.pb import classifier_pb2, classifier_pb2_grpc
from foldserve.serving.pb import open_inference_pb2 as pb
from foldserve.serving.security.tokens import Caller, create_token, to_line
from tests.contract.test_commands import write_png
from tests.support.artifacts import TinyNetwork
from tests.support.server_process import ServerProcess, infer_request, status_of

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path
    from subprocess import CompletedProcess

    Command = Callable[..., CompletedProcess[str]]

UNAUTHENTICATED, DENIED = grpc.StatusCode.UNAUTHENTICATED, grpc.StatusCode.PERMISSION_DENIED
RELOAD_S = 10.0  # the file is looked at every second; the test machine may be busy


class Setting(NamedTuple):
    """A server that wants tokens, its file of them, and a token of each role."""

    server: ServerProcess
    file: Path
    infer: str
    admin: str


def bearer(token: str) -> tuple[tuple[str, str], ...]:
    return (("authorization", f"Bearer {token}"),)


@pytest.fixture(scope="module", params=["grpcio", "native"])
def setting(tmp_path_factory: pytest.TempPathFactory, request: pytest.FixtureRequest) -> Iterator[Setting]:
    folder = tmp_path_factory.mktemp(f"tokens-{request.param}")
    TinyNetwork().publish(folder / "models" / "tiny")
    infer, admin = create_token(), create_token()
    lines = [to_line(Caller("ci", "infer"), infer), to_line(Caller("ops", "admin"), admin)]
    (folder / "tokens").write_text("\n".join(lines))
    flags = ("--transport", request.param, "--tokens", str(folder / "tokens"))
    with ServerProcess(folder / "models", folder / "server", *flags) as server:
        yield Setting(server, folder / "tokens", infer, admin)


def calls_of(server: ServerProcess) -> dict[str, Callable[[Any], object]]:
    """Every kind of call, by name: each takes the metadata to send and returns once it is answered."""
    images = TinyNetwork().random_images(1)
    classifier = classifier_pb2_grpc.ClassifierStub(server.channel)
    reflection = reflection_pb2_grpc.ServerReflectionStub(server.channel)
    listing = reflection_pb2.ServerReflectionRequest(list_services="")
    listing_v1 = server.channel.stream_stream("/grpc.reflection.v1.ServerReflection/ServerReflectionInfo")
    classify = classifier_pb2.ClassifyRequest(model_name="tiny", images=[png()])
    stub = server.stub
    return {
        "ModelInfer": lambda metadata: stub.ModelInfer(infer_request(images), metadata=metadata),
        "Classify": lambda metadata: classifier.Classify(classify, metadata=metadata),
        "ModelStreamInfer": lambda metadata: list(
            stub.ModelStreamInfer(iter([infer_request(images)]), metadata=metadata)
        ),
        "ClassifyStream": lambda metadata: list(
            classifier.ClassifyStream(iter([classify]), metadata=metadata)
        ),
        "ModelMetadata": lambda metadata: stub.ModelMetadata(
            pb.ModelMetadataRequest(name="tiny"), metadata=metadata
        ),
        "RepositoryIndex": lambda metadata: stub.RepositoryIndex(
            pb.RepositoryIndexRequest(), metadata=metadata
        ),
        "ServerLive": lambda metadata: stub.ServerLive(pb.ServerLiveRequest(), metadata=metadata),
        "ServerReflectionInfo": lambda metadata: list(
            reflection.ServerReflectionInfo(iter([listing]), metadata=metadata)
        ),
        "ServerReflectionInfo of v1": lambda metadata: list(
            listing_v1(iter([listing.SerializeToString()]), metadata=metadata)
        ),
    }


def png() -> bytes:
    import io

    from PIL import Image

    file = io.BytesIO()
    Image.fromarray(np.zeros((8, 8), np.uint8)).save(file, "png")
    return file.getvalue()


@pytest.mark.parametrize(
    "name",
    [
        "ModelInfer",
        "Classify",
        "ModelStreamInfer",
        "ClassifyStream",
        "ModelMetadata",
        "RepositoryIndex",
        "ServerLive",
        "ServerReflectionInfo",
    ],
)
def test_every_call_needs_a_token_of_either_role(setting: Setting, name: str) -> None:
    call = calls_of(setting.server)[name]
    for metadata in ((), bearer(setting.infer + "x"), bearer(""), (("authorization", setting.infer),)):
        code, text = status_of(lambda given=metadata: call(given))  # type: ignore[misc]
        assert code == UNAUTHENTICATED
        assert "token" in text
        assert setting.infer not in text
    assert call(bearer(setting.infer))
    assert call(bearer(setting.admin))


def test_only_an_admin_loads_and_unloads(setting: Setting) -> None:
    stub = setting.server.stub
    load, unload = pb.RepositoryModelLoadRequest, pb.RepositoryModelUnloadRequest
    calls = ((stub.RepositoryModelUnload, unload), (stub.RepositoryModelLoad, load))
    for method, message in calls:
        request = message(model_name="tiny")
        assert status_of(lambda: method(request))[0] == UNAUTHENTICATED  # noqa: B023  # called at once
        code, text = status_of(lambda: method(request, metadata=bearer(setting.infer)))  # noqa: B023
        assert code == DENIED
        assert "needs a token of role 'admin'; the call's is 'infer'" in text
        method(request, metadata=bearer(setting.admin))
    assert "RepositoryModelUnload by ops" in setting.server.log


def test_health_needs_no_token(setting: Setting) -> None:
    """A load balancer has none to give."""
    health = health_pb2_grpc.HealthStub(setting.server.channel)
    serving = health_pb2.HealthCheckResponse.SERVING
    for service in ("", "tiny"):
        assert health.Check(health_pb2.HealthCheckRequest(service=service)).status == serving
    watch = health.Watch(health_pb2.HealthCheckRequest())
    assert next(watch).status == serving
    watch.cancel()


def test_client_and_commands_send_their_token(setting: Setting, tmp_path: Path, command: Command) -> None:
    network, address = TinyNetwork(), setting.server.address
    images = network.random_images(2)
    with Client(address, token=setting.infer) as client:
        assert np.abs(client.infer("tiny", images)["logits"] - network.logits(images)).max() < 1e-5
        assert setting.infer not in repr(client._connection)
    with Client(address) as client, pytest.raises(UnauthenticatedError, match="carries no token"):
        client.index()
    (tmp_path / "token").write_text(f"{setting.infer}\n")
    image = write_png(tmp_path / "image.png", np.zeros((8, 8), np.uint8))
    flags = ("--server", address, "--token-file", str(tmp_path / "token"))
    classified = command("classify", "--model", "tiny", *flags, str(image))
    assert classified.returncode == 0, classified.stderr
    refused = command("models", "list", "--server", address)
    assert refused.returncode == 1
    assert "--token-file or FOLDSERVE_TOKEN" in refused.stderr
    assert refused.stderr.count("\n") == 1


def test_commands_read_the_token_from_the_environment(
    setting: Setting, monkeypatch: pytest.MonkeyPatch, command: Command
) -> None:
    monkeypatch.setenv("FOLDSERVE_TOKEN", setting.infer)
    listed = command("models", "list", "--server", setting.server.address)
    assert listed.returncode == 0, listed.stderr
    assert "READY" in listed.stdout


def test_tokens_are_revoked_and_added_without_a_restart(setting: Setting) -> None:
    server, lines = setting.server, setting.file.read_text()
    token = create_token()
    call = calls_of(server)["ModelInfer"]
    added = setting.file.with_name("tokens.new")
    try:
        added.write_text(f"{lines}\n{to_line(Caller('late', 'infer'), token)}\n")
        added.replace(setting.file)
        wait_until(lambda: is_let_in(call, token))
        setting.file.write_text("this line is none\n")

        def has_looked() -> bool:
            assert is_let_in(call, token), "a file that went bad changes nothing"
            return "the tokens stay as they were" in server.log

        wait_until(has_looked)
        setting.file.write_text(lines)
        wait_until(lambda: not is_let_in(call, token))
        assert is_let_in(call, setting.infer)
    finally:
        setting.file.write_text(lines)


def is_let_in(call: Callable[[Any], object], token: str) -> bool:
    try:
        call(bearer(token))
    except grpc.RpcError as error:
        if error.code() != UNAUTHENTICATED:
            raise
        return False
    return True


def wait_until(condition: Callable[[], bool]) -> None:
    give_up_s = time.monotonic() + RELOAD_S
    while not condition():
        assert time.monotonic() < give_up_s
        time.sleep(0.1)


def test_log_contains_no_token(setting: Setting) -> None:
    """Whatever was called before, in whatever order the tests ran."""
    for call in calls_of(setting.server).values():
        call(bearer(setting.infer))
        status_of(lambda given=call: given(bearer("wrong" + setting.infer)))  # type: ignore[misc]
    assert setting.infer not in setting.server.log
    assert setting.admin not in setting.server.log
    assert "Traceback" not in setting.server.log


def test_tokens_are_not_sent_unencrypted_to_other_machines_by_default(
    repository: Path, tmp_path: Path, command: Command
) -> None:
    tokens = tmp_path / "tokens"
    made = command("token", "--name", "ops", "--role", "admin", "--tokens", str(tokens))
    assert made.returncode == 0
    token = made.stdout.strip()
    assert token not in tokens.read_text()
    assert token not in made.stderr
    assert tokens.stat().st_mode & 0o077 == 0
    flags = ("--repository", str(repository), "--host", "0.0.0.0", "--tokens", str(tokens))
    refused = command("serve", *flags)
    assert refused.returncode == 2
    assert "would send tokens in the clear" in refused.stderr
    with ServerProcess(repository, tmp_path / "server", *flags[2:], "--allow-plaintext-tokens") as server:
        with Client(server.address, token=token) as client:
            assert client.index()
        with Client(server.address, token=create_token()) as client, pytest.raises(UnauthenticatedError):
            client.index()
