"""Runs ``foldserve models verify --against CHECKPOINT``: was this version made from that training run?

The golden pairs in a version record the network's logits at the time of the export. Here the unfolded PyTorch
network of the checkpoint is run again and compared with the published file, as in an export, and with the
version's metadata.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from foldserve.artifact.format import ModelMetadata, read_artifact
from foldserve.artifact.versions import list_versions
from foldserve.errors import ArtifactError
from foldserve.export.config import ExportConfig
from foldserve.export.errors import ParityError, SourceError
from foldserve.export.graph.model_file import ModelFile
from foldserve.export.report import Report
from foldserve.export.sources.load import load_source
from foldserve.export.verification.agreement import check_agreement
from foldserve.export.verification.divergence import first_divergence
from foldserve.export.verification.parity import check_parity, make_judge
from foldserve.export.verification.reduced_precision import check_reduced_precision
from foldserve.export.verification.tolerances import golden_tolerance
from foldserve.runtime.model_settings import ModelSettings
from foldserve.runtime.session import Session, cuda_is_present, require_device
from foldserve.runtime.verified_model import open_artifact

if TYPE_CHECKING:
    from pathlib import Path

    from numpy.typing import NDArray

    from foldserve.artifact.format import Artifact
    from foldserve.export.sources.load import Source
    from foldserve.runtime.options import Device
    from foldserve.verify_config import VerifyConfig

_DIVERGENCE_COUNT = 32
_FLOAT64_COUNT = 32


def verify_checkpoint(config: VerifyConfig) -> int:
    """Compare a published version with the checkpoint and print each step; return 1 if they differ, else 0.

    Raises:
        ExportError: the checkpoint cannot be exported, or the version does not exist.
        TrainingError: the checkpoint or its data set cannot be read.
        DeviceError: the device asked for is not present.
    """
    assert config.against is not None
    require_device(config.device)
    report = Report()
    source = load_source(
        ExportConfig(source=config.against, data_dir=config.data_dir, verify_images=config.verify_images)
    )
    folder = _find_version(config, source)
    report.verifying(folder, config.against)
    try:
        artifact = read_artifact(folder)
        _check_facts(artifact, source)
        _check_golden(artifact, source)
        _check_answers(artifact, source, config.device, report)
        for device in _devices(config.device):  # as a server does: both outputs, and the golden pairs
            open_artifact(artifact, ModelSettings(device=device))
    except (ArtifactError, ParityError) as error:
        report.not_made_from(config.against, str(error).removesuffix("; nothing was published"))
        return 1
    report.made_from(folder, config.against)
    return 0


def _find_version(config: VerifyConfig, source: Source) -> Path:
    """Return the folder of the version asked for; by default the newest of the model named as the run."""
    if not config.repository.is_dir():
        raise SourceError(f"{config.repository} is not a folder; expected a model repository")
    name = config.name or _only_name(config.repository, source.suggested_name)
    model_folder = config.repository / name
    versions = list_versions(model_folder) if model_folder.is_dir() else []
    if not versions:
        raise SourceError(f"there is no model {name!r} in {config.repository}; give its name with --name")
    version = config.model_version or versions[-1]
    if version not in versions:
        raise SourceError(f"{name} has no version {version}, only {', '.join(map(str, versions))}")
    return model_folder / str(version)


def _only_name(repository: Path, suggested: str) -> str:
    names = sorted(entry.name for entry in repository.iterdir() if entry.is_dir() and entry.name[0] != ".")
    return names[0] if len(names) == 1 else suggested


def _check_facts(artifact: Artifact, source: Source) -> None:
    """Compare the labels, normalisation and image of file and checkpoint."""
    says = ModelMetadata.from_props(Session(artifact.model, device="cpu").props)
    for fact in ("labels", "mean", "std", "image"):
        published, trained = getattr(says, fact), getattr(source.metadata, fact)
        if published != trained:
            raise ParityError(f"the version's {fact} are {published}, the checkpoint's {trained}")


def _check_golden(artifact: Artifact, source: Source) -> None:
    """Compute the logits of the golden images again, which in any precision are those of fp32 PyTorch.

    PyTorch's results vary with machine and number of threads, so they get the tolerance of ONNX Runtime.
    """
    golden, reference = artifact.golden, source.network.reference()
    logits = reference.logits(golden.images)
    few = _spread(golden.images)
    exact = reference.exact_logits(few)
    rounding = 0.0 if exact is None else float(np.abs(reference.logits(few) - exact).max())
    tolerance = golden_tolerance(logits, rounding)
    error = float(np.abs(logits.astype(np.float64) - golden.reference_logits).max())
    if not error <= tolerance:
        raise ParityError(
            f"the network's logits of the golden images differ by up to {error:.3g} from those in the "
            f"version (allowed: {tolerance:.3g}): it was made from another network or from other weights"
        )


def _spread(images: NDArray[np.uint8]) -> NDArray[np.uint8]:
    return images[:: -(-len(images) // _FLOAT64_COUNT)]


def _check_answers(artifact: Artifact, source: Source, device: Device, report: Report) -> None:
    """Make the comparisons of an export on the published file."""
    reference, verification = source.network.reference(), source.verification
    precision = str(artifact.manifest.get("precision", "fp32"))
    sessions = [Session(artifact.model, device=name) for name in _devices(device)]
    with report.counting("accuracy", len(verification.images)) as on_progress:
        expected = reference.logits(verification.images, on_progress)
    if precision != "fp32":
        lower = check_reduced_precision(
            artifact.model,
            verification.images,
            verification.labels,
            expected=expected,
            golden=artifact.golden,
            tolerance=artifact.golden.reference_tolerance,
        )
        report.agreed(lower.agreements, verification)
        return
    try:
        compared = [
            entry
            for session in sessions
            for entry in check_parity(session, reference, verification.images, verification.kind)
        ]
        report.compared(compared, verification)
        agreements = [
            check_agreement(
                session,
                expected,
                verification.images,
                verification.labels,
                judge=make_judge(reference, compared),
            )
            for session in sessions
        ]
        report.agreed(agreements, verification)
    except ParityError as error:
        raise ParityError(f"{error}; {_where(source, artifact.model, verification.images)}") from error


def _devices(device: Device) -> list[Device]:
    if device != "auto":
        return [device]
    return ["cpu", "cuda"] if cuda_is_present() else ["cpu"]


def _where(source: Source, content: bytes, images: NDArray[np.uint8]) -> str:
    images = images[:_DIVERGENCE_COUNT]
    return first_divergence(source.network.layer_recorder(), ModelFile(content), images)
