"""A real server process on a port that the operating system chose."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

import grpc
import numpy as np

from foldserve.demo.children import ending_with_us
from foldserve.serving.pb import open_inference_pb2 as pb
from foldserve.serving.pb import open_inference_pb2_grpc

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from numpy.typing import NDArray

SOURCE = Path(__file__).parents[2]
# What the servers of the tests run on: the GPU where `tests/contract/test_on_cuda.py` runs tests again.
DEVICE = os.environ.get("FOLDSERVE_TEST_DEVICE", "cpu")
PROVIDER = {"cpu": "CPUExecutionProvider", "cuda": "CUDAExecutionProvider"}[DEVICE]
START_S = 120.0  # generous: the test machine may be busy


class ServerProcess:
    """`foldserve serve` over ``repository``, its output kept in ``log``; a context manager.

    ``module`` stands for `foldserve` if a test runs it with something broken beneath it, ``prefix`` before
    the command, for what runs it elsewhere than here.
    """

    def __init__(
        self,
        repository: Path,
        folder: Path,
        *flags: str,
        module: str = "foldserve",
        prefix: Sequence[str] = (),
    ) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        port_file, self._log_path = folder / "port", folder / "server.log"
        self._metrics_port_file = folder / "metrics-port"
        self._api_port_file = folder / "http-port"
        command = [*prefix, sys.executable, "-m", module, "serve", "--repository", str(repository)]
        command += ["--port", "0", "--port-file", str(port_file), "--device", DEVICE]
        command += ["--metrics-port", "0", "--metrics-port-file", str(self._metrics_port_file)]
        command += ["--http-port", "0", "--http-port-file", str(self._api_port_file), *flags]
        environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(SOURCE)}
        with self._log_path.open("wb") as log:
            self.process = subprocess.Popen(
                ending_with_us(command), stdout=log, stderr=log, env=environment, cwd=folder
            )
        try:
            self._wait_for(port_file.exists, "listen")
            self.address = f"127.0.0.1:{port_file.read_text().strip()}"
            options = [("grpc.max_receive_message_length", -1), ("grpc.max_send_message_length", -1)]
            self.channel = grpc.insecure_channel(self.address, options=options)
            self.stub = open_inference_pb2_grpc.GRPCInferenceServiceStub(self.channel)
            self._wait_for(lambda: "serving on" in self.log or "not ready on" in self.log, "load")
        except BaseException:
            self.process.kill()
            self.process.wait()
            raise

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.channel.close()
        if self.process.poll() is None:
            self.process.kill()
            self.process.wait()

    @property
    def log(self) -> str:
        """What the server has printed and logged so far."""
        return self._log_path.read_text()

    @property
    def http_address(self) -> str:
        """HOST:PORT of /metrics, /healthz and /readyz."""
        return f"127.0.0.1:{self._metrics_port_file.read_text().strip()}"

    @property
    def api_address(self) -> str:
        """HOST:PORT of the REST API, if the flags have --http."""
        return f"127.0.0.1:{self._api_port_file.read_text().strip()}"

    def infer(self, images: NDArray[Any], model: str = "tiny", **fields: Any) -> pb.ModelInferResponse:
        """Send uint8 images as raw bytes and return the response."""
        response: pb.ModelInferResponse = self.stub.ModelInfer(
            infer_request(images, model, **fields), timeout=30
        )
        return response

    def _wait_for(self, condition: Callable[[], bool], what: str) -> None:
        give_up_s = time.monotonic() + START_S
        while not condition():
            if self.process.poll() is not None or time.monotonic() > give_up_s:
                raise AssertionError(f"the server did not {what}:\n{self.log}")
            time.sleep(0.02)


def infer_request(images: NDArray[Any], model: str = "tiny", **fields: Any) -> pb.ModelInferRequest:
    """Return a ModelInfer request with uint8 images as raw bytes."""
    return pb.ModelInferRequest(
        model_name=model,
        inputs=[{"name": "image", "datatype": "UINT8", "shape": images.shape}],
        raw_input_contents=[images.tobytes()],
        **fields,
    )


def outputs_of(response: pb.ModelInferResponse) -> dict[str, NDArray[np.float32]]:
    """Return the response's outputs by name."""
    return {
        output.name: np.frombuffer(raw, np.float32).reshape(tuple(output.shape))
        for output, raw in zip(response.outputs, response.raw_output_contents, strict=True)
    }


def status_of(call: Callable[[], object]) -> tuple[grpc.StatusCode, str]:
    """Return the status and message that ``call`` fails with."""
    try:
        call()
    except grpc.RpcError as error:
        return error.code(), error.details() or ""
    raise AssertionError("the call succeeded; it should have failed")


def run_cli(*arguments: str, timeout_s: float = 240) -> subprocess.CompletedProcess[str]:
    """Run the `foldserve` command line."""
    command = ending_with_us([sys.executable, "-m", "foldserve", *arguments])
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(SOURCE)}
    return subprocess.run(
        command, capture_output=True, text=True, timeout=timeout_s, env=environment, check=False
    )
