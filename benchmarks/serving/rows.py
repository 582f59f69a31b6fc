"""Lists the rows of the table: each is a ratio of two measurements, with its limit and its target."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from benchmarks.serving.contestants import Contestant, Transport
from benchmarks.serving.load import Load

if TYPE_CHECKING:
    from benchmarks.serving.config import Group

Metric = Literal["server_us", "requests_per_s", "images_per_s", "p50_us"]


@dataclass(frozen=True)
class Trial:
    """One thing to measure; without a contestant it is ONNX Runtime alone.

    That runs its best batch size, or with ``at_batch_of`` the mean one that this contestant forms under
    the load.
    """

    contestant: Contestant | None
    load: Load
    at_batch_of: Contestant | None = None

    def __str__(self) -> str:
        """Return the name in tables and messages."""
        if self.at_batch_of is not None:
            return f"raw ONNX Runtime, batch of {self.at_batch_of}"
        if self.contestant is None:
            return "raw ONNX Runtime"
        return f"{self.contestant}, {self.load.connections}x{self.load.streams}"


@dataclass(frozen=True)
class Row:
    """``metric`` of ``top`` divided by that of ``bottom``, taken in the same round."""

    title: str
    group: Group
    metric: Metric
    top: Trial
    bottom: Trial
    must: float
    goal: float

    @property
    def smaller_is_better(self) -> bool:
        """Tell which way the bound points: times should be small, rates large."""
        return self.metric in {"server_us", "p50_us"}

    def meets(self, ratio: float, bound: float) -> bool:
        """Tell whether ``ratio`` is on the right side of ``bound``."""
        return ratio <= bound if self.smaller_is_better else ratio >= bound


# Which network each group loads.
NETWORKS: dict[Group, Literal["lenet", "trained-lenet", "alexnet"]] = {
    "lenet": "lenet",
    "trained": "trained-lenet",
    "lone": "lenet",
    "rows": "lenet",
    "alexnet": "alexnet",
}


@dataclass(frozen=True)
class Share:
    """foldserve's own CPU time per request: that of ``served`` without the model's and that of ``echo``."""

    title: str
    group: Group
    served: Trial
    echo: Trial


_NATIVE = Contestant("foldserve", "native")
_GRPCIO = Contestant("foldserve", "grpcio")
# One stream a connection: HTTP/1.1 can do that too, and batches must then form across connections.
_BUSY = Load(connections=32)
_ONE_CONNECTION = Load(streams=32)
_LONE = Load()
_THIRTY_TWO_IMAGES = Load(connections=4, images=32)
_ALEXNET = Load(connections=16)


def _batching_on_to_off(transport: Transport) -> Row:
    served = Contestant("foldserve", transport)
    alone = Contestant("foldserve", transport, ("--max-batch-size", "1"))
    title = f"lone client p50, {transport}: batching on / off"
    return Row(title, "lone", "p50_us", Trial(served, _LONE), Trial(alone, _LONE), 1.05, 1.0)


ROWS = (
    Row(
        "LeNet at 32, native: server CPU a request / bare native loop",
        "lenet", "server_us", Trial(_NATIVE, _BUSY), Trial(Contestant("bare_native"), _BUSY), 1.35, 1.1,
    ),
    Row(
        "LeNet at 32, native: requests/s / mosec's",
        "lenet", "requests_per_s", Trial(_NATIVE, _BUSY), Trial(Contestant("bare_mosec"), _BUSY), 1.3, 2.0,
    ),
    Row(
        "LeNet at 32, grpcio: server CPU a request / bare grpc.aio batcher",
        "lenet", "server_us", Trial(_GRPCIO, _BUSY), Trial(Contestant("bare_aio"), _BUSY), 1.35, 1.1,
    ),
    Row(
        "LeNet, native: server CPU a request over 32 connections / over 1",
        "lenet", "server_us", Trial(_NATIVE, _BUSY), Trial(_NATIVE, _ONE_CONNECTION), 1.2, 1.05,
    ),
    Row(
        "LeNet of the demo at 32, native: server CPU a request / bare native loop",
        "trained", "server_us", Trial(_NATIVE, _BUSY), Trial(Contestant("bare_native"), _BUSY), 1.35, 1.1,
    ),
    Row(
        # The model, the same for both, takes a larger share of a request here.
        "LeNet of the demo at 32, native: requests/s / mosec's",
        "trained", "requests_per_s", Trial(_NATIVE, _BUSY), Trial(Contestant("bare_mosec"), _BUSY), 1.1, 1.3,
    ),
    Row(
        "LeNet of the demo at 32, grpcio: server CPU a request / bare grpc.aio batcher",
        "trained", "server_us", Trial(_GRPCIO, _BUSY), Trial(Contestant("bare_aio"), _BUSY), 1.35, 1.1,
    ),
    _batching_on_to_off("native"),
    _batching_on_to_off("grpcio"),
    Row(
        "LeNet, 32 images a request, native: images/s / raw",
        "rows", "images_per_s", Trial(_NATIVE, _THIRTY_TWO_IMAGES), Trial(None, _THIRTY_TWO_IMAGES), 0.6, 0.8,
    ),
    Row(
        "AlexNet-224 at 16, native: images/s / raw",
        "alexnet", "images_per_s", Trial(_NATIVE, _ALEXNET), Trial(None, _ALEXNET), 0.88, 0.95,
    ),
    Row(
        "AlexNet-224 at 16, native: images/s / raw at the same batch",
        "alexnet", "images_per_s",
        Trial(_NATIVE, _ALEXNET), Trial(None, _ALEXNET, at_batch_of=_NATIVE), 0.95, 1.0,
    ),
)  # fmt: skip

SHARES = (
    Share("LeNet at 32, native", "lenet", Trial(_NATIVE, _BUSY), Trial(Contestant("echo_native"), _BUSY)),
    Share("LeNet at 32, grpcio", "lenet", Trial(_GRPCIO, _BUSY), Trial(Contestant("echo_aio"), _BUSY)),
    Share(
        "LeNet of the demo at 32, native",
        "trained", Trial(_NATIVE, _BUSY), Trial(Contestant("echo_native"), _BUSY),
    ),
    Share(
        "LeNet of the demo at 32, grpcio",
        "trained", Trial(_GRPCIO, _BUSY), Trial(Contestant("echo_aio"), _BUSY),
    ),
)  # fmt: skip

# Measured beside the rows, for the second table: the bare loops under every load that foldserve gets.
EXTRA_TRIALS: dict[Group, tuple[Trial, ...]] = {
    "lenet": (
        Trial(Contestant("bare_native"), _ONE_CONNECTION),
        Trial(Contestant("bare_aio"), _ONE_CONNECTION),
    ),
    "trained": (),
    "lone": (Trial(Contestant("bare_native"), _LONE), Trial(Contestant("bare_aio"), _LONE)),
    "rows": (Trial(Contestant("bare_native"), _THIRTY_TWO_IMAGES),),
    "alexnet": (Trial(Contestant("bare_native"), _ALEXNET),),
}


def trials_of(group: Group) -> list[Trial]:
    """Return everything to measure in ``group``, each once, in a fixed order."""
    named = [trial for row in ROWS if row.group == group for trial in (row.top, row.bottom)]
    shares = [trial for share in SHARES if share.group == group for trial in (share.served, share.echo)]
    return list(dict.fromkeys([*named, *shares, *EXTRA_TRIALS[group]]))


def is_shared_out(group: Group, trial: Trial) -> bool:
    """Tell whether the model's part of ``trial`` is measured, too."""
    return any(share.group == group and share.served == trial for share in SHARES)
