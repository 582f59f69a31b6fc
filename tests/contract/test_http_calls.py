"""One list of calls: the same answers and the same words over REST as over gRPC, beside either transport."""

from __future__ import annotations

import json
import urllib.parse
from typing import TYPE_CHECKING, Any, NamedTuple

import grpc
import numpy as np
import pytest

from foldserve.serving.pb import classifier_pb2, classifier_pb2_grpc
from foldserve.serving.pb import open_inference_pb2 as pb
from foldserve.serving.transport.http.plain import to_plain
from tests.support.artifacts import TinyNetwork
from tests.support.encoded_images import encode
from tests.support.http_calls import JSON_LENGTH, Answer, binary_body, call, json_body, tensor
from tests.support.server_process import ServerProcess, infer_request, outputs_of, status_of

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from numpy.typing import NDArray

# By gRPC's status; google/rpc/code.proto has this mapping.
HTTP_STATUS = {"INVALID_ARGUMENT": 400, "NOT_FOUND": 404, "UNAVAILABLE": 503, "UNIMPLEMENTED": 501}
IMAGES = TinyNetwork(seed=2).random_images(3)


@pytest.fixture(scope="module", params=["grpcio", "native"])
def http_server(
    repository: Path, tmp_path_factory: pytest.TempPathFactory, request: pytest.FixtureRequest
) -> Iterator[ServerProcess]:
    folder = tmp_path_factory.mktemp(f"http-{request.param}")
    with ServerProcess(repository, folder, "--http", "--transport", request.param) as process:
        yield process


class Call(NamedTuple):
    """A call in both forms: gRPC's method and message, REST's path and body."""

    method: str
    message: Any
    path: str
    body: str | None = None
    ok_status: int = 200


def infer_calls() -> dict[str, Call]:
    """Inference, right and wrong, with pixels in JSON."""

    def infer(images: NDArray[Any], path: str = "tiny", model: str = "tiny", **fields: Any) -> Call:
        message = infer_request(images, model, **fields)
        plain: dict[str, Any] = {key: fields[key] for key in ("id",) if key in fields}
        return Call("ModelInfer", message, f"/v2/models/{path}/infer", json_body(images, **plain))

    def changed(**fields: Any) -> Call:
        message = infer_request(IMAGES)
        for name, value in fields.items():
            target = getattr(message.inputs[0], name)
            if isinstance(value, list):
                del target[:]
                target.extend(value)
            else:
                setattr(message.inputs[0], name, value)
        data = [] if "datatype" in fields else IMAGES.ravel().tolist()
        plain = {"inputs": [tensor(IMAGES) | fields | {"data": data}]}
        return Call("ModelInfer", message, "/v2/models/tiny/infer", json.dumps(plain))

    def with_outputs(*outputs: dict[str, Any]) -> Call:
        message = infer_request(IMAGES)
        for output in outputs:
            added = message.outputs.add(name=output["name"])
            for key, value in output.get("parameters", {}).items():
                added.parameters[key].int64_param = value
        return Call("ModelInfer", message, "/v2/models/tiny/infer", json_body(IMAGES, outputs=list(outputs)))

    empty = pb.ModelInferRequest(model_name="tiny")
    return {
        "inference": infer(IMAGES, id="7 ü"),
        "one image": infer(IMAGES[:1]),
        "a version": infer(IMAGES, "tiny/versions/1", model_version="1"),
        "a version that is not there": infer(IMAGES, "tiny/versions/9", model_version="9"),
        "a version that is no number": infer(IMAGES, "tiny/versions/x", model_version="x"),
        "an unknown model": infer(IMAGES, "nope", model="nope"),
        "a model without versions": infer(IMAGES, "empty", model="empty"),
        "another model's images": infer(IMAGES, "colour", model="colour"),
        "images of another size": infer(np.zeros((1, 1, 7, 8), np.uint8)),
        "no batch dimension": infer(np.zeros((1, 8, 8), np.uint8)),
        "channels last": infer(np.zeros((2, 8, 8, 1), np.uint8)),
        "floats": changed(datatype="FP32"),
        "an unknown datatype": changed(datatype="\u202eX"),
        "another input": changed(name="pixels"),
        "no inputs": Call("ModelInfer", empty, "/v2/models/tiny/infer", '{"inputs": []}'),
        "one output": with_outputs({"name": "logits"}),
        "outputs in another order": with_outputs({"name": "probabilities"}, {"name": "logits"}),
        "classes": with_outputs({"name": "probabilities", "parameters": {"classification": 2}}),
        "no classes": with_outputs({"name": "probabilities", "parameters": {"classification": 0}}),
        "an unknown output": with_outputs({"name": "labels"}),
        "an output twice": with_outputs({"name": "logits"}, {"name": "logits"}),
        "shared memory": with_outputs({"name": "logits", "parameters": {"shared_memory_region": 1}}),
    }


def management_calls() -> dict[str, Call]:
    """The other RPCs."""
    loading = pb.RepositoryModelLoadRequest
    unloading = pb.RepositoryModelUnloadRequest
    strange = loading(model_name="tiny")
    strange.parameters["config"].SetInParent()
    with_config = json.dumps({"parameters": {"config": "{}"}})
    load = "/v2/repository/models/{}/load".format
    unload = "/v2/repository/models/{}/unload".format
    return {
        "server metadata": Call("ServerMetadata", pb.ServerMetadataRequest(), "/v2"),
        "model metadata": Call("ModelMetadata", pb.ModelMetadataRequest(name="tiny"), "/v2/models/tiny"),
        "an old version's metadata": Call(
            "ModelMetadata", pb.ModelMetadataRequest(name="tiny", version="1"), "/v2/models/tiny/versions/1"
        ),
        "an unknown model's metadata": Call(
            "ModelMetadata", pb.ModelMetadataRequest(name="a b"), "/v2/models/a%20b"
        ),
        "config": Call("ModelConfig", pb.ModelConfigRequest(name="tiny"), "/v2/models/tiny/config"),
        "an unknown model's config": Call(
            "ModelConfig", pb.ModelConfigRequest(name="é"), "/v2/models/%C3%A9/config"
        ),
        "statistics of a version that is not there": Call(
            "ModelStatistics",
            pb.ModelStatisticsRequest(name="tiny", version="7"),
            "/v2/models/tiny/versions/7/stats",
        ),
        "a model that is ready": Call(
            "ModelReady", pb.ModelReadyRequest(name="tiny"), "/v2/models/tiny/ready"
        ),
        "the index": Call("RepositoryIndex", pb.RepositoryIndexRequest(), "/v2/repository/index", ""),
        "the index of what is ready": Call(
            "RepositoryIndex",
            pb.RepositoryIndexRequest(ready=True),
            "/v2/repository/index",
            '{"ready": true}',
        ),
        "loading an unknown model": Call("RepositoryModelLoad", loading(model_name="nope"), load("nope"), ""),
        "loading with parameters": Call("RepositoryModelLoad", strange, load("tiny"), with_config),
        "unloading an unknown model": Call(
            "RepositoryModelUnload", unloading(model_name="nope"), unload("nope"), "{}"
        ),
    }


CALLS = infer_calls() | management_calls()
# Parts of the message that REST leaves out, since an answer has one subject.
_INNER = {"ModelConfig": "config", "RepositoryIndex": "models"}


@pytest.mark.parametrize("name", CALLS)
def test_rest_answers_as_grpc_does(http_server: ServerProcess, name: str) -> None:
    chosen = CALLS[name]
    answer = call(http_server.api_address, chosen.path, chosen.body)
    response, error = ask(http_server, chosen)
    if error is not None:
        assert (answer.status, answer.error) == (HTTP_STATUS[error.code().name], error.details())
        return
    assert answer.status == 200, answer.content
    if chosen.method == "ModelInfer":
        assert_same_inference(answer, response)
    elif chosen.method == "ModelReady":
        assert answer.plain == {"name": "tiny", "ready": response.ready}
    else:
        plain = to_plain(response)
        expected = plain[_INNER[chosen.method]] if chosen.method in _INNER else plain
        assert answer.plain == expected


def ask(server: ServerProcess, chosen: Call) -> tuple[Any, grpc.RpcError | None]:
    """Return the response over gRPC, or the error in its place."""
    try:
        return getattr(server.stub, chosen.method)(chosen.message, timeout=60), None
    except grpc.RpcError as error:
        return None, error


def assert_same_inference(answer: Answer, response: pb.ModelInferResponse) -> None:
    assert answer.plain["model_version"] == response.model_version
    assert answer.plain.get("id", "") == response.id
    assert answer.plain["parameters"]["model_sha256"] == response.parameters["model_sha256"].string_param
    for given, expected, raw in zip(
        answer.plain["outputs"], response.outputs, response.raw_output_contents, strict=True
    ):
        assert (given["name"], given["datatype"]) == (expected.name, expected.datatype)
        assert given["shape"] == list(expected.shape)
        if expected.datatype == "FP32":
            assert np.float32(given["data"]).tobytes() == raw
        else:
            assert "".join(given["data"]).encode() in raw.replace(raw[:4], b"")


def test_readiness_of_a_model_that_is_not_there_says_what_is(http_server: ServerProcess) -> None:
    """Over gRPC, where an answer has no room for words, it is false."""
    for path, words in (("nope", "it has 'colour', 'tiny'"), ("tiny/versions/9", "it has 1, 2")):
        answer = call(http_server.api_address, f"/v2/models/{path}/ready")
        assert answer.status == 404
        assert words in answer.error


@pytest.mark.parametrize(
    ("path", "body", "words"),
    [
        ("systemsharedmemory/status", None, "send tensors in the messages"),
        ("systemsharedmemory/region/r/register", "{}", "send tensors in the messages"),
        ("cudasharedmemory/unregister", "", "send tensors in the messages"),
        ("trace/setting", None, "--log-level debug logs each request"),
        ("models/tiny/versions/1/trace/setting", "{}", "--log-level debug logs each request"),
        ("logging", None, "start the server with --log-level"),
        ("models/tiny/generate_stream", "{}", "send images to /infer or /classify"),
    ],
)
def test_what_only_triton_has_is_unimplemented(
    http_server: ServerProcess, path: str, body: str | None, words: str
) -> None:
    answer = call(http_server.api_address, f"/v2/{path}", body)
    assert answer.status == 501
    assert words in answer.error


def test_every_status_of_the_list_is_seen(http_server: ServerProcess) -> None:
    """The list above would prove little if every call succeeded, or every one failed."""
    statuses = {call(http_server.api_address, entry.path, entry.body).status for entry in CALLS.values()}
    assert statuses == {200, 400, 404, 501}


def test_binary_tensors_give_the_bytes_of_grpc(http_server: ServerProcess) -> None:
    body, headers = binary_body(IMAGES)
    expected = http_server.infer(IMAGES)
    for content, length in ((body, headers[JSON_LENGTH]), (IMAGES.tobytes(), "0")):
        answer = call(
            http_server.api_address, "/v2/models/tiny/infer", content, headers={JSON_LENGTH: length}
        )
        head = int(answer.headers[JSON_LENGTH.lower()])
        assert answer.content[head:] == b"".join(expected.raw_output_contents)
        outputs = json.loads(answer.content[:head])["outputs"]
        assert [output["parameters"]["binary_data_size"] for output in outputs] == [36, 36]


def test_a_picture_is_classified_as_over_grpc(http_server: ServerProcess) -> None:
    picture = encode(IMAGES[0, 0])
    request = classifier_pb2.ClassifyRequest(model_name="tiny", images=[picture], top_k=3)
    stub = classifier_pb2_grpc.ClassifierStub(http_server.channel)
    expected = to_plain(stub.Classify(request, timeout=60))
    # curl --data-binary says that the body is a form; nothing depends on that.
    headers = {"Content-Type": "application/x-www-form-urlencoded"}
    path = "/v2/models/tiny/classify?top_k=3"
    answer = call(http_server.api_address, path, picture, headers=headers).plain
    assert answer["labels"] == expected["results"][0]["labels"]
    assert len(answer["labels"]) == 3
    assert (answer["model_version"], answer["model_sha256"]) == ("2", expected["model_sha256"])
    old = call(http_server.api_address, "/v2/models/tiny/versions/1/classify", picture).plain
    assert (old["model_version"], len(old["labels"])) == ("1", 1)


def picture_faults() -> dict[str, tuple[bytes, Callable[[Any], None]]]:
    """Pictures that are none, and what makes the same request over gRPC."""
    sound = encode(IMAGES[0, 0])
    return {
        "no picture": (b"hello", lambda _: None),
        "a damaged picture": (sound[: len(sound) // 2], lambda _: None),
        "nothing": (b"", lambda request: request.ClearField("images")),
    }


@pytest.mark.parametrize("fault", picture_faults())
def test_bodies_that_are_no_picture_are_refused_as_over_grpc(http_server: ServerProcess, fault: str) -> None:
    content, change = picture_faults()[fault]
    request = classifier_pb2.ClassifyRequest(model_name="tiny", images=[content])
    change(request)
    stub = classifier_pb2_grpc.ClassifierStub(http_server.channel)
    _, words = status_of(lambda: stub.Classify(request, timeout=60))
    answer = call(http_server.api_address, "/v2/models/tiny/classify", content)
    assert (answer.status, answer.error) == (400, words)


@pytest.mark.parametrize(
    ("content", "what"),
    [
        (b'--x\r\nContent-Disposition: form-data; name="image"; filename="a.png"\r\n\r\n', "a form"),
        (b' {"image": "aGVsbG8="}', "JSON"),
        (b"[1, 2]", "JSON"),
        (b"data:image/png;base64,iVBORw0KGgo=", "a data URL"),
        (encode(IMAGES[0, 0]).translate(None, b"\r\n\0"), "a PNG that lost its line ends"),
    ],
)
def test_bodies_around_a_picture_are_refused_with_what_to_send(
    http_server: ServerProcess, content: bytes, what: str
) -> None:
    """As `curl --form` and many clients send it."""
    answer = call(http_server.api_address, "/v2/models/tiny/classify", content)
    assert answer.status == 400
    assert f"the body is {what}" in answer.error
    assert "send the picture itself as the body (curl --data-binary @picture.png)" in answer.error


@pytest.mark.parametrize("top_k", ["0", "-1", "x", "1.5", "99999999999", "²"])
def test_wrong_numbers_of_labels_are_refused(http_server: ServerProcess, top_k: str) -> None:
    path = f"/v2/models/tiny/classify?top_k={urllib.parse.quote(top_k)}"
    answer = call(http_server.api_address, path, encode(IMAGES[0, 0]))
    assert answer.status == 400
    assert "send the number of labels wanted, from 1 to 4294967295" in answer.error


def test_low_confidence_is_unknown_as_over_grpc(http_server: ServerProcess) -> None:
    path = "/v2/models/tiny/classify?min_confidence="
    picture = encode(IMAGES[0, 0])
    assert call(http_server.api_address, path + "0", picture).plain["unknown"] is False
    assert call(http_server.api_address, path + "1", picture).plain["unknown"] is True
    for wrong in ("x", "nan", "1.5"):
        answer = call(http_server.api_address, path + wrong, picture)
        assert answer.status == 400
        assert "send a probability from 0 to 1" in answer.error


def test_statistics_and_log_count_both_ways(http_server: ServerProcess) -> None:
    def counted() -> int:
        (entry,) = call(http_server.api_address, "/v2/models/tiny/versions/2/stats").plain["model_stats"]
        return int(entry["inference_count"])

    before = counted()
    call(http_server.api_address, "/v2/models/tiny/infer", json_body(IMAGES))
    http_server.infer(IMAGES)
    assert counted() - before == 2 * len(IMAGES)
    assert "Traceback" not in http_server.log


def test_answers_are_those_of_the_network(http_server: ServerProcess, network: TinyNetwork) -> None:
    body, headers = binary_body(IMAGES)
    answer = call(http_server.api_address, "/v2/models/tiny/infer", body, headers=headers)
    logits = np.frombuffer(answer.content[int(answer.headers[JSON_LENGTH.lower()]) :], np.float32)
    assert np.abs(logits[:9].reshape(3, 3) - network.logits(IMAGES)).max() < 1e-5
    assert (outputs_of(http_server.infer(IMAGES))["logits"] == logits[:9].reshape(3, 3)).all()
