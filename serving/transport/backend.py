"""Holds what every transport passes its calls to."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from foldserve.serving.server_state import Lifecycle
    from foldserve.serving.services.inference import InferenceService
    from foldserve.serving.services.management import ManagementService


@dataclass(frozen=True)
class Backend:
    """The services behind a transport.

    Attributes:
        inference: answers inference.
        management: answers the other RPCs.
        lifecycle: the server's state; draining does not wait for calls that come in DRAINING or later.
    """

    inference: InferenceService
    management: ManagementService
    lifecycle: Lifecycle
