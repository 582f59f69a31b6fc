"""`foldserve.LocalModel`: proven first, and the same bits as a real server's."""

from __future__ import annotations

import pickle
import shutil
import subprocess
import sys
from typing import TYPE_CHECKING

import numpy as np
import pytest

from foldserve import Client, LocalModel
from foldserve.errors import ArtifactError, ImageError
from foldserve.imaging import prepare_image
from foldserve.local.local_model import answer_all
from foldserve.local.sources import open_source
from tests.support.server_process import ServerProcess
from tests.support.sources import ROOT

if TYPE_CHECKING:
    from pathlib import Path

    from tests.support.artifacts import TinyNetwork


def test_outputs_are_a_servers_bit_for_bit(
    repository: Path, model: Path, pictures: Path, network: TinyNetwork, tmp_path: Path
) -> None:
    """The same files through a real server, as pixels and encoded; their order matters too."""
    paths = sorted(pictures.rglob("*.*"))
    local = LocalModel(model, device="cpu").predict(paths)
    pixels = np.stack([prepare_image(path.read_bytes(), network.image) for path in paths])
    with ServerProcess(repository, tmp_path / "server") as process, Client(process.address) as client:
        served = client.infer("colour", pixels)
        classified = client.classify("colour", paths, top_k=7)
    assert local.logits.tobytes() == served["logits"].tobytes()
    assert local.probabilities.tobytes() == served["probabilities"].tobytes()
    assert [[label.index for label in labels] for labels in classified.labels] == local.ranked(7).tolist()
    assert classified.sha256 == LocalModel(model).hash
    # The twin: one pixel more in one image is other bits.
    pixels[3, 0, 2, 2] ^= 16
    assert LocalModel(model).predict(pixels).logits.tobytes() != local.logits.tobytes()


def test_predictions_follow_numpy(model: Path, network: TinyNetwork) -> None:
    images = network.random_images(70)
    with LocalModel(model, batch_size=16) as opened:
        predictions = opened.predict(images)
    expected = network.logits(images)
    np.testing.assert_allclose(predictions.logits, expected, atol=1e-4)
    assert predictions.labels() == [network.labels[best] for best in expected.argmax(axis=1)]
    assert len(predictions) == 70


def test_no_images_give_no_predictions(model: Path) -> None:
    assert LocalModel(model).predict([]).logits.shape == (0, 7)


def test_low_confidence_is_unknown(model: Path, network: TinyNetwork) -> None:
    predictions = LocalModel(model).predict(network.random_images(20))
    least, most = predictions.confidences().min(), predictions.confidences().max()
    assert "unknown" not in predictions.labels(float(least))
    assert predictions.labels(float(np.nextafter(least, np.float32(1)))).count("unknown") >= 1
    assert set(predictions.labels(float(np.nextafter(most, np.float32(1))))) == {"unknown"}


def test_newest_version_is_taken_and_named(model: Path) -> None:
    assert LocalModel(model).version == "2"
    assert LocalModel(model / "1").version == "1"
    assert LocalModel(model).name == "colour"


@pytest.mark.parametrize("file", ["model.onnx", "golden.npz"])
def test_damaged_versions_are_refused(model: Path, tmp_path: Path, file: str) -> None:
    """The twin of every test here: a byte that was not exported."""
    shutil.copytree(model / "2", tmp_path / "m" / "1")
    path = tmp_path / "m" / "1" / file
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)
    with pytest.raises(ArtifactError, match=f"{file} (is not the file that was|cannot be read)"):
        LocalModel(tmp_path / "m")


def test_versions_of_other_weights_are_refused(model: Path, tmp_path: Path) -> None:
    """With hashes that fit: only the golden pairs tell."""
    from foldserve.artifact.format import read_artifact
    from foldserve.artifact.writer import publish_artifact

    first, second = read_artifact(model / "1"), read_artifact(model / "2")
    publish_artifact(tmp_path / "m", model=first.model, golden=second.golden, manifest={"precision": "fp32"})
    with pytest.raises(ArtifactError, match="golden pairs are not reproduced"):
        LocalModel(tmp_path / "m")


def test_paths_without_versions_are_explained(repository: Path, tmp_path: Path) -> None:
    with pytest.raises(ArtifactError, match="does not exist; expected the folder of a model"):
        LocalModel(tmp_path / "none")
    with pytest.raises(ArtifactError, match=r"it is a repository: give one of its models, such as .*colour"):
        LocalModel(repository)


def test_pickled_models_are_opened_and_proven_again(
    model: Path, network: TinyNetwork, tmp_path: Path
) -> None:
    """As a worker of Ray or Dask does, in a process that has imported nothing yet."""
    shutil.copytree(model / "2", tmp_path / "m" / "1")
    opened = LocalModel(tmp_path / "m")
    content = pickle.dumps(opened)
    assert len(content) < 1000
    code = (
        "import pickle, sys; import numpy as np; model = pickle.loads(sys.stdin.buffer.read());"
        f"images = np.full({(2, *network.image.shape)}, 7, np.uint8);"
        "sys.stdout.buffer.write(model.predict(images).logits.tobytes());"
        "assert not {'torch', 'onnx', 'grpc', 'matplotlib', 'pyarrow'} & sys.modules.keys()"
    )
    command = [sys.executable, "-c", code]
    there = subprocess.run(command, input=content, capture_output=True, cwd=ROOT, check=True).stdout
    here = opened.predict(np.full((2, *network.image.shape), 7, np.uint8)).logits.tobytes()
    assert there == here
    shutil.rmtree(tmp_path / "m")
    shutil.copytree(model / "1", tmp_path / "m" / "1")
    with pytest.raises(ArtifactError, match="has changed since it was pickled"):
        pickle.loads(content)


def test_closed_models_say_so(model: Path, network: TinyNetwork) -> None:
    opened = LocalModel(model)
    opened.close()
    with pytest.raises(ValueError, match="is closed"):
        opened.predict(network.random_images(1))


def test_bad_images_are_named_by_their_place(model: Path, pictures: Path, network: TinyNetwork) -> None:
    good = min(pictures.rglob("*.png"))
    opened = LocalModel(model)
    with pytest.raises(ImageError, match=r"^image 1: not an image"):
        opened.predict([good, b"text", good])
    with pytest.raises(ImageError, match=r"^image 1: the file does not exist"):
        opened.predict([str(good), "none.png"])
    with pytest.raises(
        ImageError, match=r"the pixels are uint8 \[1, 3, 9, 9\]; expected uint8 \[N, 3, 6, 10\]"
    ):
        opened.predict(np.zeros((1, 3, 9, 9), np.uint8))


def test_answers_keep_the_order_of_the_source(model: Path, pictures: Path) -> None:
    """In chunks of three, run by several threads."""
    opened = LocalModel(model, batch_size=3)
    names = [
        item.name for answered in answer_all([opened], open_source(pictures).items) for item in answered.items
    ]
    assert names == sorted(names)
    assert len(names) == 84
