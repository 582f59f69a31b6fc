"""The metrics match the requests that were sent, over both transports."""

from __future__ import annotations

import re
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING

import grpc
from prometheus_client.openmetrics import parser as openmetrics

from foldserve.serving.pb import classifier_pb2, classifier_pb2_grpc
from foldserve.serving.pb import open_inference_pb2 as pb
from tests.support.artifacts import TinyNetwork
from tests.support.encoded_images import encode
from tests.support.scrape import get, scrape
from tests.support.server_process import SOURCE, ServerProcess, infer_request, status_of

if TYPE_CHECKING:
    from pathlib import Path

TINY = {"model": "tiny", "version": "2"}


def test_metrics_match_the_requests_and_rows_sent(server: ServerProcess, network: TinyNetwork) -> None:
    before = scrape(server)
    row_counts = [1 + index % 5 for index in range(60)]
    with ThreadPoolExecutor(8) as callers:
        list(callers.map(lambda count: server.infer(network.random_images(count)), row_counts))
    after = scrape(server)

    def grown(name: str, **labels: str) -> float:
        return after.value(name, **labels) - before.value(name, **labels)

    assert grown("foldserve_requests_total", **TINY, method="ModelInfer", code="OK") == 60
    assert grown("foldserve_rows_total", **TINY) == sum(row_counts)
    executions = grown("foldserve_executions_total", **TINY)
    assert 1 <= executions <= 60
    assert grown("foldserve_execution_rows_count", **TINY) == executions
    assert grown("foldserve_execution_rows_sum", **TINY) == sum(row_counts)
    assert grown("foldserve_compute_duration_seconds_count", **TINY) == executions
    for name in ("foldserve_queue_duration_seconds", "foldserve_request_duration_seconds"):
        assert grown(f"{name}_count", **TINY) == 60
        assert grown(f"{name}_bucket", **TINY, le="+Inf") == 60
    total_s = grown("foldserve_request_duration_seconds_sum", **TINY)
    assert total_s > grown("foldserve_queue_duration_seconds_sum", **TINY) > 0
    assert after.value("foldserve_pending_requests", **TINY) == 0
    assert after.value("foldserve_pending_rows", **TINY) == 0


def test_each_method_and_status_is_counted_separately(server: ServerProcess, network: TinyNetwork) -> None:
    before = scrape(server)
    image = network.random_images(1)
    list(server.stub.ModelStreamInfer(iter([infer_request(image)] * 3)))
    classify = classifier_pb2_grpc.ClassifierStub(server.channel).Classify
    classify(classifier_pb2.ClassifyRequest(model_name="tiny", images=[encode(image[0, 0])]))
    status_of(lambda: server.infer(image[:, :, 1:]))
    status_of(lambda: server.infer(image, "tiny", model_version="9"))
    status_of(lambda: server.channel.unary_unary("/inference.GRPCInferenceService/ModelInfer")(b"\xff\xff"))
    after = scrape(server)

    def grown(**labels: str) -> float:
        name = "foldserve_requests_total"
        return after.value(name, **labels) - before.value(name, **labels)

    assert grown(**TINY, method="ModelStreamInfer", code="OK") == 3
    assert grown(**TINY, method="Classify", code="OK") == 1
    assert grown(**TINY, method="ModelInfer", code="INVALID_ARGUMENT") == 1
    assert grown(model="tiny", version="", method="ModelInfer", code="NOT_FOUND") == 1
    assert grown(model="", version="", method="ModelInfer", code="INVALID_ARGUMENT") == 1


def test_unknown_model_names_never_become_labels(server: ServerProcess, network: TinyNetwork) -> None:
    before = scrape(server)
    for index in range(50):
        code, _ = status_of(lambda name=f"made-up-{index}": server.infer(network.random_images(1), name))  # type: ignore[misc]
        assert code == grpc.StatusCode.NOT_FOUND
    after = scrape(server)
    unknown = {"model": "", "version": "", "method": "ModelInfer", "code": "NOT_FOUND"}
    name = "foldserve_requests_total"
    assert after.value(name, **unknown) - before.value(name, **unknown) == 50
    assert after.label_values("model") <= {"", "tiny", "colour"}


def test_model_and_server_are_described(server: ServerProcess) -> None:
    metadata = server.stub.ModelMetadata(pb.ModelMetadataRequest(name="tiny")).properties
    samples = scrape(server)  # after a call, without which there is no connection to count
    info = TINY | {"sha256": metadata["model_sha256"], "provider": metadata["provider"]}
    info |= {"precision": "fp32", "batch_invariant": metadata["batch_invariant"]}
    assert samples.value("foldserve_model_info", **info) == 1
    assert samples.value("foldserve_model_ready", **TINY) == 1
    assert samples.value("foldserve_model_threads", **TINY) >= 1  # measured
    assert samples.value("foldserve_model_loads_total", model="tiny", outcome="ready") == 2
    assert samples.value("foldserve_model_load_duration_seconds_count", model="tiny") == 2
    assert samples.value("foldserve_ready") == 1
    assert samples.value("foldserve_draining") == 0
    assert samples.value("foldserve_usable_processors") >= 1
    assert samples.value("foldserve_threads") >= 2
    assert samples.value("foldserve_connections") >= 1
    assert samples.value("process_resident_memory_bytes") > 1e6
    assert samples.total("foldserve_build_info") == 1


def test_every_metric_is_documented(server: ServerProcess) -> None:
    _, text = get(server, "/metrics")
    names = set(re.findall(r"^# TYPE (foldserve_\w+) ", text, flags=re.MULTILINE))
    assert len(names) > 15
    documented = (SOURCE / "docs" / "reference" / "metrics.md").read_text()
    assert [name for name in sorted(names) if f"`{name}`" not in documented] == []


def test_openmetrics_is_served_on_request(server: ServerProcess) -> None:
    _, text = get(server, "/metrics", {"Accept": "application/openmetrics-text; version=1.0.0"})
    assert text.endswith("# EOF\n")
    names = {family.name for family in openmetrics.text_string_to_metric_families(text)}
    assert {"foldserve_requests", "foldserve_request_duration_seconds"} <= names


def test_refused_and_swapped_versions_keep_their_counts(tmp_path: Path) -> None:
    """Counts outlive their version, go on when it is loaded again, and a refusal is counted as one."""
    folder = tmp_path / "models"
    network = TinyNetwork()
    network.publish(folder / "tiny")
    broken = network.publish(folder / "tiny")
    content = bytearray((broken / "model.onnx").read_bytes())
    content[len(content) // 2] ^= 1
    (broken / "model.onnx").write_bytes(content)
    image = network.random_images(1)
    first = {"model": "tiny", "version": "1", "method": "ModelInfer", "code": "OK"}
    with ServerProcess(folder, tmp_path / "server") as server:
        for _ in range(4):
            for _ in range(3):
                server.infer(image)
            server.stub.RepositoryModelUnload(pb.RepositoryModelUnloadRequest(model_name="tiny"))
            status_of(lambda: server.infer(image))
            load = pb.RepositoryModelLoadRequest(model_name="tiny")
            status_of(lambda request=load: server.stub.RepositoryModelLoad(request))  # type: ignore[misc]  # 2 is refused again
        samples = scrape(server)
        assert samples.value("foldserve_requests_total", **first) == 12
        assert samples.value("foldserve_rows_total", model="tiny", version="1") == 12
        unavailable = {"model": "tiny", "version": "", "method": "ModelInfer", "code": "UNAVAILABLE"}
        assert samples.value("foldserve_requests_total", **unavailable) == 4
        assert samples.value("foldserve_model_loads_total", model="tiny", outcome="ready") == 5
        assert samples.value("foldserve_model_loads_total", model="tiny", outcome="refused") >= 1
        assert samples.value("foldserve_model_ready", model="tiny", version="2") == 0
        assert samples.value("foldserve_model_load_duration_seconds_sum", model="tiny") > 0
