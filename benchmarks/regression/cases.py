"""Lists what is compared: foldserve and a bare loop, with the same requests in the same batches.

Where callers race, the batches that form depend on how busy the machine is, and the cost of a request on the
batches; `benchmarks.serving` measures that. Here every batch is given.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Literal, TypeAlias

from benchmarks.regression import transports
from benchmarks.regression.in_process import in_process
from benchmarks.regression.over_the_wire import over_the_wire
from benchmarks.serving.contestants import Contestant
from benchmarks.serving.load import Load

if TYPE_CHECKING:
    from contextlib import AbstractContextManager

    from benchmarks.serving.networks import Network

CaseName = Literal[
    "batch-of-32",
    "batch-of-1",
    "32-images",
    "native-code",
    "grpcio-code",
    "native",
    "grpcio",
    "native-32-images",
]
# Measures one round of about so many CPU seconds for each side: the ratio of their CPU times per request.
Round: TypeAlias = Callable[[float], float]


@dataclass(frozen=True)
class Case:
    """Opens both sides for a block, given the network and the microseconds per request to plant."""

    title: str
    opened: Callable[[Network, float], AbstractContextManager[Round]]
    needs_h2load: bool = False


_NATIVE = (Contestant("foldserve", "native"), Contestant("bare_native"))
_GRPCIO = (Contestant("foldserve", "grpcio"), Contestant("bare_aio"))

CASES: dict[CaseName, Case] = {
    # From messages to messages, without a transport: the part that is foldserve's own.
    "batch-of-32": Case("32 requests in a batch", partial(in_process, requests=32, images=1)),
    "batch-of-1": Case("a request alone", partial(in_process, requests=1, images=1)),
    "32-images": Case("a request of 32 images", partial(in_process, requests=1, images=32)),
    # The transports' own code, without their libraries: from a received call to the service and back.
    "native-code": Case("native's code alone", transports.native),
    "grpcio-code": Case("grpcio's code alone", transports.grpcio),
    # Whole servers, with one caller that sends a request after the other: only for quiet machines, as the
    # ratio contains what it costs to wake a thread (+-15 % at a load of 10). Not in the stored baseline.
    "native": Case("native, one caller", partial(over_the_wire, *_NATIVE, Load()), needs_h2load=True),
    "grpcio": Case("grpcio, one caller", partial(over_the_wire, *_GRPCIO, Load()), needs_h2load=True),
    "native-32-images": Case(
        "native, 32 images", partial(over_the_wire, *_NATIVE, Load(images=32)), needs_h2load=True
    ),
}
