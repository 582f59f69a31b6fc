"""Constant load on one model, in a process of its own, each answer checked; prints what came of it as JSON.

Arguments: the server's address, an .npz of ``image`` and of the ``logits`` of each network, a JSON file of
[[version, hash], ...] in the order in which they are to serve, and a file whose appearance ends the load. The
JSON file grows while this runs. Nothing is sent twice: a call that fails is counted and stays failed.
"""

from __future__ import annotations

import io
import json
import sys
import threading
from pathlib import Path

import grpc
import numpy as np
from PIL import Image

from foldserve.serving.pb import classifier_pb2, classifier_pb2_grpc, open_inference_pb2_grpc
from foldserve.serving.pb import open_inference_pb2 as pb

WORKERS = 6
CLASSIFYING_WORKERS = 2


class Worker(threading.Thread):
    """Asks one question after the other; its answers may never go back to what served before."""

    def __init__(self, address: str, known: Path, stop: Path, image: np.ndarray) -> None:
        super().__init__()
        self.channel = grpc.insecure_channel(address, options=[("grpc.enable_retries", 0)])
        self.known, self.stop, self.image = known, stop, image
        self.faults: list[str] = []
        self.seen: dict[str, tuple[str, np.ndarray]] = {}
        self.order: list[str] = []  # hashes, each time the answering one changes
        self.count = 0

    def run(self) -> None:
        while not self.stop.exists():
            try:
                version, digest, values = self.ask()
            except grpc.RpcError as error:
                self.faults.append(f"{error.code()}: {error.details()}")
                continue
            self.count += 1
            if not self.order or self.order[-1] != digest:
                self.order.append(digest)
            first_version, first = self.seen.setdefault(digest, (version, values))
            if version != first_version or not np.array_equal(values, first):
                self.faults.append(f"{digest} answered differently, as version {version}")

    def ask(self) -> tuple[str, str, np.ndarray]:
        stub = open_inference_pb2_grpc.GRPCInferenceServiceStub(self.channel)
        request = pb.ModelInferRequest(
            model_name="tiny",
            inputs=[{"name": "image", "datatype": "UINT8", "shape": self.image.shape}],
            raw_input_contents=[self.image.tobytes()],
        )
        answer = stub.ModelInfer(request, timeout=60)
        logits = np.frombuffer(answer.raw_output_contents[0], np.float32)
        return answer.model_version, answer.parameters["model_sha256"].string_param, logits

    def check(self, known: dict[str, tuple[int, str, np.ndarray]]) -> None:
        """Compare all that was seen with what each network says, and with the order of the swaps."""
        for digest, (version, values) in self.seen.items():
            if digest not in known:
                self.faults.append(f"{digest} was never to serve")
            elif known[digest][1] != version:
                self.faults.append(f"{digest} answered as version {version}, it is {known[digest][1]}")
            elif np.abs(values - self.expected(known[digest][2])).max() > 1e-5:
                self.faults.append(f"{digest} gave {values}, not {self.expected(known[digest][2])}")
        places = [known[digest][0] for digest in self.order if digest in known]
        if places != sorted(places):
            self.faults.append(f"answers went back to an older version: {places}")

    def expected(self, logits: np.ndarray) -> np.ndarray:
        return logits


class ClassifyingWorker(Worker):
    """The same through Classify, whose images wait to be decoded before they wait for the model."""

    def ask(self) -> tuple[str, str, np.ndarray]:
        buffer = io.BytesIO()
        Image.fromarray(self.image[0, 0]).save(buffer, "PNG")
        stub = classifier_pb2_grpc.ClassifierStub(self.channel)
        request = classifier_pb2.ClassifyRequest(model_name="tiny", images=[buffer.getvalue()], top_k=3)
        answer = stub.Classify(request, timeout=60)
        by_index = {label.index: label.probability for label in answer.results[0].labels}
        return (
            answer.model_version,
            answer.model_sha256,
            np.array([by_index[index] for index in sorted(by_index)]),
        )

    def expected(self, logits: np.ndarray) -> np.ndarray:
        powers = np.exp(logits - logits.max())
        return powers / powers.sum()


def main(address: str, arrays: Path, known: Path, stop: Path) -> None:
    contents = np.load(arrays)
    image = contents["image"]
    workers = [Worker(address, known, stop, image) for _ in range(WORKERS)]
    workers += [ClassifyingWorker(address, known, stop, image) for _ in range(CLASSIFYING_WORKERS)]
    for worker in workers:
        worker.start()
    print("started", flush=True)
    for worker in workers:
        worker.join()
    by_digest = {
        digest: (place, version, contents[digest])
        for place, (version, digest) in enumerate(json.loads(known.read_text()))
    }
    for worker in workers:
        worker.check(by_digest)
    print(
        json.dumps(
            {
                "answers": [worker.count for worker in workers],
                "hashes": len({digest for worker in workers for digest in worker.seen}),
                "faults": [fault for worker in workers for fault in worker.faults],
            }
        )
    )


if __name__ == "__main__":
    main(sys.argv[1], *map(Path, sys.argv[2:5]))
