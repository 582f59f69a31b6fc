"""Networks that answer probabilities: the last step is left out where that is exact, else refused.

Never is there a second softmax on top: what callers get is what the network itself answers.
"""

from __future__ import annotations

import json
import sys
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from foldserve.artifact.format import read_artifact
from foldserve.artifact.model_outputs import softmax
from foldserve.export.config import ExportConfig
from foldserve.export.errors import SourceError
from foldserve.export.pipeline import export_model
from foldserve.export.sources.load import load_source
from foldserve.export.verification.probabilities import check_logits, is_sigmoid_of
from foldserve.imaging import ImageSpec
from foldserve.runtime.session import Session
from foldserve.training.checkpoint import Checkpoint, save_checkpoint
from foldserve.training.datasets import Dataset
from foldserve.training.datasets.registry import DATASETS
from foldserve.training.models import create_model, register_custom_model
from tests.export.sources import test_onnx_file as files
from tests.support.own_project import make_project
from tests.support.probable_networks import BINARY, BINARY_REFUSED, ENDS, LOGITS, REFUSED, TAKEN_OFF

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path


K = 5
MEAN, STD = files.MEAN, files.STD

IMAGES = np.random.default_rng(9).integers(0, 256, (64, 3, 16, 16), dtype=np.uint8)


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    entered = make_project(tmp_path, monkeypatch)
    next(entered)
    (tmp_path / "ends.py").write_text(ENDS)
    yield
    next(entered, None)
    sys.modules.pop("ends", None)


def config(folder: Path, kind: str, index: int, **settings: Any) -> ExportConfig:
    labels = folder / "labels.txt"
    count = {
        "one logit": 1,
        "one probability": 1,
        "yes and no": 2,
        "choice": 1,
        "choice as a float": 1,
        "the best": 1,
    }
    if "binary" in kind:
        labels.write_text("no\nyes\n")
    if kind == "refused":
        labels.write_text("\n".join("abcde"[: count.get(REFUSED[index], K)]) + "\n")
    return files.config(
        folder / "unused",
        source=None,
        arch=f"ends:{kind}_{index}",
        weights=folder / "weights.pt",
        input="3x16x16",
        labels=labels,
        **settings,
    )


def own_answers(arch: str, weights: Path) -> np.ndarray:
    """The network's own, by PyTorch alone, in float64."""
    register_custom_model(arch)
    network = create_model(arch).double().eval()
    network.load_state_dict(torch.load(weights, weights_only=True))
    floats = (torch.from_numpy(IMAGES).double() / 255 - torch.tensor(MEAN).reshape(3, 1, 1)) / torch.tensor(
        STD
    ).reshape(3, 1, 1)
    with torch.no_grad():
        return np.asarray(network(floats))


def own_probabilities(given: ExportConfig) -> np.ndarray:
    """The same, where they are logarithms too."""
    assert given.arch is not None
    assert given.weights is not None
    answers = own_answers(given.arch, given.weights)
    return np.exp(answers) if answers.min() < 0 else answers


def served(folder: Path) -> tuple[np.ndarray, np.ndarray]:
    """Logits and probabilities of the published file."""
    session = Session(read_artifact(folder / "models/adopted/1").model, device="cpu", intra_op_threads=1)
    logits, probabilities = session.run(["logits", "probabilities"], {"image": IMAGES})
    return logits, probabilities


@pytest.mark.parametrize("index", range(len(TAKEN_OFF)), ids=TAKEN_OFF)
def test_final_softmax_of_a_network_is_removed(index, project, tmp_path):
    """What the file will be compared with answers logits, whose softmax is what the network answers."""
    given = config(tmp_path, "taken_off", index)
    source = load_source(given)
    assert any("its input is used as the logits" in remark for remark in source.remarks)
    reference = source.network.reference()
    logits, exact = reference.logits(IMAGES), reference.exact_logits(IMAGES)
    assert np.ptp(logits, axis=1).max() > 1  # they are no probabilities
    assert np.abs(softmax(logits) - own_probabilities(given)).max() < 2e-5
    assert exact is not None
    assert np.abs(softmax(exact) - own_probabilities(given)).max() < 1e-6


@pytest.mark.parametrize(
    "case",
    [
        "module",
        "of a map, reshaped",
        pytest.param("logarithms", marks=pytest.mark.slow),
        pytest.param("behind another", marks=pytest.mark.slow),
    ],
)
def test_callers_get_the_networks_own_probabilities(case, project, tmp_path, capsys):
    given = config(tmp_path, "taken_off", TAKEN_OFF.index(case))
    assert export_model(given) == 0
    assert "removed the final" in capsys.readouterr().out
    _, probabilities = served(tmp_path)
    assert np.abs(probabilities - own_probabilities(given)).max() < 2e-5
    manifest = json.loads((tmp_path / "models/adopted/1/manifest.json").read_text())
    assert manifest["parity"]["referee"] == "float64"
    assert any("removed the final" in remark for remark in manifest["source"]["remarks"])


@pytest.mark.parametrize("index", range(len(BINARY)), ids=BINARY)
def test_one_logit_counts_for_the_second_of_two_labels(index, project, tmp_path):
    given = config(tmp_path, "binary", index)
    source = load_source(given)
    assert any("the logits are [0, logit]" in remark for remark in source.remarks)
    reference = source.network.reference()
    exact = reference.exact_logits(IMAGES)
    assert exact is not None
    assert exact.shape == (len(IMAGES), 2)
    own = own_answers(given.arch, given.weights).reshape(-1)
    probability = np.exp(own) if "logarithm" in BINARY[index] else own
    if BINARY[index].startswith("one logit"):
        probability = 1 / (1 + np.exp(-own))
    assert np.ptp(probability) > 0.2
    for logits in (exact, reference.logits(IMAGES)):
        assert np.abs(softmax(logits)[:, 1] - probability).max() < 2e-5


@pytest.mark.parametrize(
    "index",
    [
        BINARY.index("one probability, flat"),
        pytest.param(BINARY.index("one logit"), marks=pytest.mark.slow),
    ],
)
def test_callers_get_the_probabilities_of_two_labels(index, project, tmp_path, capsys):
    given = config(tmp_path, "binary", index)
    assert export_model(given) == 0
    assert "the logits are [0, logit]" in capsys.readouterr().out
    logits, probabilities = served(tmp_path)
    own = own_answers(given.arch, given.weights).reshape(-1)
    probability = own if "probability" in BINARY[index] else 1 / (1 + np.exp(-own))
    assert np.abs(probabilities[:, 1] - probability).max() < 2e-5
    assert not logits[:, 0].any()


@pytest.mark.parametrize("index", range(len(BINARY_REFUSED)), ids=BINARY_REFUSED)
def test_other_single_numbers_are_refused_with_advice(index, project, tmp_path):
    with pytest.raises(SourceError, match="logit") as raised:
        export_model(config(tmp_path, "binary_refused", index))
    assert "\n" not in str(raised.value)
    assert not list(tmp_path.glob("models/*/*/manifest.json"))


# Variants of others, a second each: `make test-all` has them.
SLOW = {"written out with a floor", "the best", "clipped to nothing", "over everything"} | {
    *(
        "over nothing",
        "sigmoid, reshaped",
        "sigmoid, clipped",
        "its opposite",
        "one probability",
        "one of all",
    )
}


@pytest.mark.parametrize(
    "index",
    [
        pytest.param(index, id=name, marks=[pytest.mark.slow] if name in SLOW else [])
        for index, name in enumerate(REFUSED)
    ],
)
def test_other_probabilities_are_refused_with_advice(index, project, tmp_path):
    with pytest.raises(SourceError) as raised:
        export_model(config(tmp_path, "refused", index))
    text = str(raised.value)
    assert "\n" not in text
    assert "logit" in text
    assert "output" in text
    assert not list(tmp_path.glob("models/*/*/manifest.json"))


@pytest.mark.parametrize(
    "index",
    [
        pytest.param(index, id=name, marks=[pytest.mark.slow] if index > 1 else [])
        for index, name in enumerate(LOGITS)
    ],
)
def test_networks_that_output_logits_are_published_unchanged(index, project, tmp_path, capsys):
    given = config(tmp_path, "logits", index)
    assert export_model(given) == 0
    printed = capsys.readouterr().out
    assert "removed" not in printed
    assert "between 0 and 1" not in printed
    logits, _ = served(tmp_path)
    assert np.abs(logits - own_answers(given.arch, given.weights)).max() < 1e-4


@pytest.mark.parametrize(
    "name",
    [
        "sigmoid",
        *(
            pytest.param(name, marks=pytest.mark.slow)
            for name in ("written out with a floor", "yes and no", "one logit", "clipped")
        ),
    ],
)
def test_output_is_treated_as_logits_with_as_logits(name, project, tmp_path):
    given = config(tmp_path, "refused", REFUSED.index(name), as_logits=True)
    assert export_model(given) == 0
    manifest = json.loads((tmp_path / "models/adopted/1/manifest.json").read_text())
    assert "its output is treated as logits (--as-logits)" in manifest["source"]["remarks"]
    logits, _ = served(tmp_path)
    assert np.abs(logits - own_answers(given.arch, given.weights)).max() < 1e-4


def test_softmax_is_kept_with_as_logits(project, tmp_path):
    given = config(tmp_path, "taken_off", 0, as_logits=True)
    assert export_model(given) == 0
    logits, _ = served(tmp_path)
    assert np.abs(logits - own_answers(given.arch, given.weights)).max() < 1e-4


def test_module_kept_by_the_factory_is_not_changed(project, tmp_path):
    (tmp_path / "kept.py").write_text(
        "import ends\nTHE_ONE = ends.taken_off_0()\ndef net():\n    return THE_ONE\n"
    )
    given = files.config(
        tmp_path / "unused",
        source=None,
        arch="kept:net",
        weights=tmp_path / "weights.pt",
        input="3x16x16",
        labels=tmp_path / "labels.txt",
    )
    try:
        assert export_model(given) == 0
        network = sys.modules["kept"].THE_ONE.eval()
        with torch.no_grad():
            assert network(torch.rand(4, 3, 16, 16)).sum(1).numpy() == pytest.approx(1)
    finally:
        sys.modules.pop("kept", None)


def test_run_that_ends_in_a_softmax_keeps_its_probabilities(project, tmp_path, monkeypatch, capsys):
    """Trained by foldserve: the loss had a softmax of its own on top, callers get the network's."""
    images = torch.from_numpy(IMAGES)
    spec = ImageSpec("RGB", 16, 16, 16)
    places = torch.arange(len(images)) % K
    dataset = Dataset("ended", tuple("abcde"), spec, images, places, images, places)
    monkeypatch.setitem(DATASETS, "ended", lambda *_: dataset)
    weights = torch.load(tmp_path / "weights.pt", weights_only=True)
    checkpoint = Checkpoint(
        arch="ends:taken_off_0",
        arch_args={},
        image=spec,
        mean=MEAN,
        std=STD,
        labels=dataset.labels,
        dataset="ended",
        metrics={},
        weights=weights,
    )
    (tmp_path / "run").mkdir()
    save_checkpoint(tmp_path / "run/best.pt", checkpoint)
    given = ExportConfig(
        source=tmp_path / "run", arch="ends:taken_off_0", repository=tmp_path / "models", name="adopted"
    )
    assert export_model(given) == 0
    assert "removed the final softmax" in capsys.readouterr().out
    _, probabilities = served(tmp_path)
    expected = own_answers("ends:taken_off_0", tmp_path / "weights.pt")
    assert np.abs(probabilities - expected).max() < 2e-5


def random_rows(seed: int, scale: float) -> np.ndarray:
    return (scale * np.random.default_rng(seed).normal(size=(64, K))).astype(np.float32)


@pytest.mark.parametrize("scale", [1e-3, 0.1, 1.0, 20.0])
def test_probabilities_are_detected_by_their_values(scale):
    rows = torch.from_numpy(random_rows(1, scale))
    for answers in (F.softmax(rows, 1), F.softmax(rows, 1).half().float(), F.softmax(rows, 1).clamp(1e-5)):
        with pytest.raises(SourceError, match="add up to 1 for each"):
            check_logits(answers.numpy())
    sigmoid = torch.sigmoid(rows).numpy()
    if scale >= 1:
        with pytest.raises(SourceError, match="as after a sigmoid"):
            check_logits(sigmoid)
    else:
        assert check_logits(sigmoid).startswith(
            "warning: the network's outputs for 64 images all lie between"
        )


@pytest.mark.parametrize("scale", [0.1, 1.0, 20.0])
def test_shares_of_another_sum_are_detected_by_their_values(scale):
    shares = F.softmax(torch.from_numpy(random_rows(2, scale)), 1)
    for total in (100, 255, 1000):
        with pytest.raises(SourceError, match="add up to the same number"):
            check_logits((total * shares).numpy())
    # Twins: rows that add up to other numbers, and rows that are one number each.
    assert check_logits((100 * shares * torch.linspace(0.9, 1, len(shares))[:, None]).numpy()) == ""
    assert check_logits(np.full((64, K), 3, np.float32)) == ""


def test_logits_of_images_that_are_alike_are_not_taken_for_shares():
    """A network may answer nearly the same for all images of noise, with sums that are nearly the same."""
    for seed in range(200):
        random = np.random.default_rng(seed)
        usual = random.uniform(1.5, 9, int(random.integers(2, 12)))
        for movement in (1e-2, 1e-4):
            logits = usual + movement * random.uniform(-0.5, 0.5, (32, len(usual)))
            assert check_logits(logits.astype(np.float32)) == ""


def test_logits_are_not_taken_for_probabilities():
    """Those of any scale, of two classes, whose logits training makes opposite, and shares' logarithms."""
    for seed in range(200):
        rows = random_rows(seed, float(10 ** np.random.default_rng(seed).uniform(0.5, 2)))
        shares = rows - np.log(np.exp(rows.astype(np.float64)).sum(1, keepdims=True))
        opposite = np.stack([rows[:, 0], -rows[:, 0]], 1)
        for logits in (rows, np.maximum(rows, 0), opposite, np.abs(rows) + 1, shares):
            assert check_logits(np.asarray(logits, np.float32)) == ""


def test_a_logit_of_any_size_has_a_sigmoid():
    logits = np.array([[-3e38], [-1000], [-2], [0], [1000]], np.float32)
    shares = np.array([[0], [0], [1 / (1 + np.exp(2))], [0.5], [1]])
    assert is_sigmoid_of(shares, logits)
    assert not is_sigmoid_of(1 - shares, logits)
