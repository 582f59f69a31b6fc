"""Gives export and verification a PyTorch module as a network to trace and compare with."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch

from foldserve.export.graph.channel_order import reverse_input_channels
from foldserve.export.graph.trace import trace
from foldserve.export.verification.reference import TorchReference
from foldserve.training.models import Normalized

if TYPE_CHECKING:
    from collections.abc import Callable, Collection

    import numpy as np
    import onnx_ir as ir
    from numpy.typing import NDArray

    from foldserve.export.sources.mapped_weights import MappedWeights
    from foldserve.export.verification.divergence import Recording


class ReversedChannels(Normalized):
    """Computes ``network``, which takes BGR, from pixels of RGB; ``mean`` and ``std`` are those of BGR."""

    def forward(self, pixels: torch.Tensor) -> torch.Tensor:
        """Return logits [N, K] of ``pixels`` [N, 3, H, W] in RGB."""
        return super().forward(pixels.flip(1))


@dataclass(frozen=True)
class TorchNetwork:
    """A PyTorch network in eval mode; implements `foldserve.export.sources.source.Network`.

    Attributes:
        module: takes uint8 pixels [N, C, H, W], returns logits [N, K].
        image_shape: [C, H, W].
        weights: those of ``module``, if they may leave memory.
    """

    module: Normalized
    image_shape: tuple[int, int, int]
    weights: MappedWeights | None = None

    def to_graph(self) -> ir.Model:
        """Trace the network, without its normalisation, into a new graph.

        Raises:
            TraceError: it cannot be traced or converted.
            FoldError: a batch norm depends on the batch.
        """
        model = trace(self.module.network, self.image_shape).model
        if isinstance(self.module, ReversedChannels):
            reverse_input_channels(model.graph)
        return model

    def reference(self) -> TorchReference:
        """Return the module's own logits."""
        return TorchReference(self.module)

    def release_weights(self) -> None:
        """Let the weights leave memory until they are read again."""
        if self.weights is not None:
            self.weights.release()

    def layer_recorder(self) -> TorchLayerRecorder:
        """Return what computes every float tensor of the traced network, by its name in the ONNX graph."""
        program = trace(self.module.network, self.image_shape)
        assert program.exported_program is not None
        (last,) = (str(value.name) for value in program.model.graph.outputs)
        return TorchLayerRecorder(self.module, program.exported_program.module(), last)


@dataclass(frozen=True)
class TorchLayerRecorder:
    """Runs a traced network, node by node.

    Implements `foldserve.export.verification.divergence.LayerRecorder`.

    Attributes:
        module: takes uint8 pixels [N, C, H, W], returns logits [N, K].
        traced: the same without normalisation.
        logits: what the graph calls the logits.
    """

    module: Normalized
    traced: torch.fx.GraphModule
    logits: str

    def image_bytes(self, image: NDArray[np.uint8]) -> dict[str, int]:
        """Return the size of every tensor for one image uint8 [1, C, H, W]."""
        sizes: dict[str, int] = {}

        def note_size(name: str, value: torch.Tensor) -> None:
            sizes[name] = value.nbytes

        self._run(image, note_size)
        return sizes

    def recording(self, names: Collection[str]) -> Recording:
        """Return what computes the tensors called ``names``, and holds no others."""

        def record(images: NDArray[np.uint8]) -> dict[str, NDArray[np.float32]]:
            values: dict[str, NDArray[np.float32]] = {}

            def keep(name: str, value: torch.Tensor) -> None:
                if name in names:
                    values[name] = value.numpy().copy()

            self._run(images, keep)
            return values

        return record

    def _run(self, images: NDArray[np.uint8], visit: Callable[[str, torch.Tensor], None]) -> None:
        with torch.inference_mode():
            pixels = torch.from_numpy(images).to(torch.float32)
            if isinstance(self.module, ReversedChannels):
                pixels = pixels.flip(1)
            network = _VisitedNetwork(self.traced, visit)
            logits = network.run((pixels / 255 - self.module.mean) / self.module.std)
            visit(self.logits, logits[0] if isinstance(logits, tuple | list) else logits)


class _VisitedNetwork(torch.fx.Interpreter):
    """Runs a traced graph and shows ``visit`` the float32 tensor that each node computed, with its name."""

    def __init__(self, module: torch.fx.GraphModule, visit: Callable[[str, torch.Tensor], None]) -> None:
        super().__init__(module)
        self.visit = visit

    def run_node(self, n: torch.fx.Node) -> Any:
        result = super().run_node(n)
        if n.op == "call_function" and isinstance(result, torch.Tensor) and result.dtype == torch.float32:
            self.visit(n.name, result)
        return result
