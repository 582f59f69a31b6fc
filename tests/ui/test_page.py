"""What the page does, against a real server process; no browser and no Gradio."""

from __future__ import annotations

import io
from typing import TYPE_CHECKING

import numpy as np
import pytest
from PIL import Image

from foldserve.errors import ArtifactError
from foldserve.imaging import prepare_image
from foldserve.serving.client.sync_client import Client
from foldserve.serving.errors import InvalidArgumentError, NotFoundError, UnavailableError
from foldserve.serving.security.tokens import Caller, create_token, to_line
from foldserve.ui.corrections import Corrections
from foldserve.ui.errors import UiError
from foldserve.ui.examples import COUNT
from foldserve.ui.occlusion import hide_parts
from foldserve.ui.page import Page
from foldserve.ui.server_connection import ServerConnection
from tests.support.encoded_images import encode, photograph, png_that_claims
from tests.support.free_ports import free_ports
from tests.support.server_process import ServerProcess
from tests.ui.conftest import LABELS, named

if TYPE_CHECKING:
    from pathlib import Path

    from tests.support.artifacts import TinyNetwork

PICTURE = encode(np.asarray(photograph(40, 30)))


def page_of(address: str, repository: Path | None = None, keep: Path | None = None, **settings: int) -> Page:
    return Page(
        ServerConnection(address, {}, timeout_s=30.0),
        top_k=settings.get("top_k", 3),
        max_upload_bytes=settings.get("max_upload_bytes", 2**20),
        repository=repository,
        corrections=None if keep is None else Corrections(keep),
    )


def expected(network: TinyNetwork, picture: bytes) -> np.ndarray:
    """Return the probabilities of a picture, by numpy."""
    logits = network.logits(prepare_image(picture, network.image)[np.newaxis])[0].astype(np.float64)
    exponentials = np.exp(logits - logits.max())
    return exponentials / exponentials.sum()


def test_answers_are_the_models_with_what_computed_them(server: ServerProcess) -> None:
    page = page_of(server.address)
    for version, seed in (("1", 1), ("2", 2), ("", 2)):
        answer = page.classify(page.take(PICTURE), "grey", version).answer
        assert answer is not None
        probabilities = expected(named(seed), PICTURE)
        assert [label.index for label in answer.labels] == np.argsort(-probabilities).tolist()
        for label in answer.labels:
            assert label.name == LABELS[label.index]
            assert label.probability == pytest.approx(probabilities[label.index], abs=1e-4)
        assert answer.description.version == (version or "2")
        with Client(server.address) as client:
            assert answer.description.sha256 == client.describe("grey", version).sha256
        assert answer.round_trip_ms > answer.compute_ms > 0
        assert answer.queue_ms >= 0


def test_the_preview_is_what_the_network_sees(server: ServerProcess) -> None:
    page = page_of(server.address)
    shown = page.classify(page.take(PICTURE), "colour", "")
    answer = shown.answer
    assert answer is not None
    spec = answer.description.metadata.image
    # Small inputs are enlarged by whole numbers, so the preview can be scaled back without a loss.
    preview = Image.open(io.BytesIO(page.seen(shown)))
    small = np.asarray(preview.resize((spec.width, spec.height), Image.Resampling.NEAREST))
    np.testing.assert_array_equal(small.transpose(2, 0, 1), prepare_image(PICTURE, spec))


def test_models_and_versions_are_those_that_are_ready(server: ServerProcess) -> None:
    status = page_of(server.address).status()
    assert status.is_reached
    assert status.trouble == ""
    assert status.models == {"colour": ["1"], "grey": ["2", "1"]}


def test_examples_are_golden_images_and_get_the_label_that_the_model_was_verified_with(
    server: ServerProcess, repository: Path
) -> None:
    page = page_of(server.address, repository)
    examples = page.examples("grey", "1")
    assert len(examples) == COUNT
    golden = named(1).random_images(32, seed=1001)
    classes = {int(logits.argmax()) for logits in named(1).logits(golden)}
    assert {example.index for example, _ in examples} == classes
    for example, label in examples:
        answer = page.classify(page.take(example.png), "grey", "1").answer
        assert answer is not None
        assert answer.top.name == label == LABELS[example.index]
    assert page_of(server.address).examples("grey", "1") == ()


def test_examples_of_another_file_than_the_served_one_are_not_offered(
    server: ServerProcess, repository: Path, tmp_path: Path
) -> None:
    named(7).publish(tmp_path / "grey")
    with pytest.raises(ArtifactError, match="is not the version that the server serves"):
        page_of(server.address, tmp_path).examples("grey", "1")
    with pytest.raises(ArtifactError, match=r"manifest\.json is missing"):
        page_of(server.address, tmp_path).examples("grey", "2")


def test_explanations_agree_with_hiding_the_part_by_hand(server: ServerProcess) -> None:
    page = page_of(server.address)
    shown = page.classify(page.take(PICTURE), "colour", "1")
    assert shown.answer is not None
    found = page.explain(shown)
    assert found.label == shown.answer.top.name
    assert found.occlusion.probability == pytest.approx(shown.answer.top.probability, abs=1e-5)
    network = named(3, shown.answer.description.metadata.image)
    pixels = prepare_image(PICTURE, network.image)
    cells = len(found.occlusion.drops)
    hidden = hide_parts(pixels, cells, np.full(3, 64, np.uint8), range(cells * cells))
    logits = network.logits(hidden).astype(np.float64)
    probabilities = np.exp(logits - logits.max(axis=1, keepdims=True))
    probabilities /= probabilities.sum(axis=1, keepdims=True)
    least = probabilities[:, shown.answer.top.index].min()
    assert found.occlusion.least_probability == pytest.approx(least, abs=1e-4)
    assert found.occlusion.request_count <= 3


def test_corrections_are_kept(server: ServerProcess, tmp_path: Path) -> None:
    page = page_of(server.address, keep=tmp_path / "kept")
    shown = page.classify(page.take(PICTURE), "grey", "")
    assert page.labels("grey", "") == LABELS
    kept = page.keep(shown, LABELS[0])
    assert kept.path.read_bytes() == PICTURE
    assert kept.path.parent.name == "T-shirt%2Ftop"
    with pytest.raises(UiError, match="start the page with --keep FOLDER"):
        page_of(server.address).keep(shown, LABELS[0])
    with pytest.raises(UiError, match="no answer to correct"):
        page.keep(page.take(PICTURE), LABELS[0])


@pytest.mark.parametrize(
    ("picture", "model", "version", "error"),
    [
        pytest.param(b"no picture", "grey", "", InvalidArgumentError, id="not an image"),
        pytest.param(png_that_claims(30_000, 30_000), "grey", "", InvalidArgumentError, id="huge"),
        pytest.param(PICTURE[: len(PICTURE) // 2], "grey", "", InvalidArgumentError, id="damaged"),
        pytest.param(PICTURE, "nothing", "", NotFoundError, id="unknown model"),
        pytest.param(PICTURE, "grey", "7", NotFoundError, id="unknown version"),
        pytest.param(PICTURE, "grey", "one", NotFoundError, id="no version"),
    ],
)
def test_refusals_have_the_servers_words(
    picture: bytes, model: str, version: str, error: type[Exception], server: ServerProcess
) -> None:
    with Client(server.address) as client, pytest.raises(error) as refused:
        client.classify(model, [picture], version)
    page = page_of(server.address)
    with pytest.raises(error) as shown:
        page.classify(page.take(picture), model, version)
    assert str(shown.value) == str(refused.value)


def test_uploads_are_bounded_and_old_pictures_forgotten(server: ServerProcess) -> None:
    page = page_of(server.address, max_upload_bytes=2**20)
    with pytest.raises(UiError, match="at most 1 MiB are taken"):
        page.take(bytes(2**20 + 1))
    with pytest.raises(UiError, match="there is no label to explain yet"):
        page.explain(page.take(PICTURE))
    with pytest.raises(UiError, match="no model is chosen"):
        page.classify(page.take(PICTURE), "", "")


def test_a_server_that_goes_and_comes_back_is_noticed(repository: Path, tmp_path: Path) -> None:
    port = str(*free_ports(1))
    now = 0.0
    connection = ServerConnection(f"127.0.0.1:{port}", {}, timeout_s=30.0, clock=lambda: now)
    page = Page(connection, top_k=1, max_upload_bytes=2**20)
    gone = page.status()
    assert not gone.is_reached
    assert gone.trouble.startswith(f"no server answers at 127.0.0.1:{port}; start one with `foldserve serve`")
    for name in ("first", "second"):
        with ServerProcess(repository, tmp_path / name, "--port", port):
            assert page.status() is gone, "asked at most once a second, however many visitors there are"
            now += 2
            assert page.status().models["grey"] == ["2", "1"]
            assert page.classify(page.take(PICTURE), "grey", "").answer is not None
        now += 2
        gone = page.status()
        assert not gone.is_reached
        with pytest.raises(UnavailableError):
            page.classify(page.take(PICTURE), "grey", "")


def test_a_file_of_the_connection_that_is_gone_is_told_on_the_page(tmp_path: Path) -> None:
    connection = ServerConnection("127.0.0.1:1", {"tls_ca": tmp_path / "ca.pem"}, timeout_s=30.0)
    status = Page(connection, top_k=1, max_upload_bytes=2**20).status()
    assert not status.is_reached
    assert "ca.pem cannot be read: No such file" in status.trouble


def test_the_number_of_an_example_may_be_anything(repository: Path, server: ServerProcess) -> None:
    gradio = pytest.importorskip("gradio")
    handlers = pytest.importorskip("foldserve.ui.handlers").Handlers(page_of(server.address, repository))
    for forged in (None, [], {}, {"number": "1"}, {"number": 99}, {"number": -1}):
        shown, told = handlers.take_example("grey", "1", gradio.EventData(target=None, _data=forged))
        assert shown is None
        assert "there is no such example; reload the page" in told


def test_a_server_with_nothing_to_serve_says_why(tmp_path: Path) -> None:
    version = named(1).publish(tmp_path / "models" / "broken")
    (version / "model.onnx").write_bytes(b"damaged")
    with ServerProcess(tmp_path / "models", tmp_path / "server") as process:
        status = page_of(process.address).status()
    assert status.is_reached
    assert status.models == {}
    assert status.trouble.startswith(
        "no model is ready: broken/1: model.onnx is not the file that was exported"
    )


def test_a_server_that_refuses_the_token_is_not_said_to_be_gone(repository: Path, tmp_path: Path) -> None:
    token = create_token()
    (tmp_path / "tokens").write_text(to_line(Caller("page", "infer"), token) + "\n")
    with ServerProcess(repository, tmp_path / "server", "--tokens", str(tmp_path / "tokens")) as process:
        refused = page_of(process.address).status()
        assert refused.is_reached
        assert refused.trouble.startswith("the server refuses: ")
        allowed = ServerConnection(process.address, {"token": token}, timeout_s=30.0)
        assert allowed.status().models["grey"] == ["2", "1"]
