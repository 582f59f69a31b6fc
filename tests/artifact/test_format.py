"""Tests artifacts on disk: round trips, complete versions only, and messages for damage."""

import dataclasses
import json
import threading

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from foldserve.artifact import writer as publishing
from foldserve.artifact.format import (
    GOLDEN_FILE,
    MANIFEST_FILE,
    MODEL_FILE,
    Golden,
    ModelMetadata,
    check_labels,
    read_artifact,
)
from foldserve.artifact.versions import list_versions
from foldserve.artifact.writer import publish_artifact
from foldserve.errors import ArtifactError
from foldserve.imaging import ImageSpec
from foldserve.imaging.prepare import FIT_RULES
from foldserve.text import is_legible

FINITE = st.floats(allow_nan=False, allow_infinity=False)
LEGIBLE = st.text().filter(is_legible)


@st.composite
def metadata(draw) -> ModelMetadata:
    order = draw(st.sampled_from(["L", "RGB"]))
    height, width = draw(st.integers(1, 300)), draw(st.integers(1, 300))
    count = len(order)
    decode = draw(st.sampled_from(["full", "scaled"]))
    fit = draw(st.sampled_from(FIT_RULES))
    more = draw(st.integers(0, 50)) if fit == "shorter-side" else 0
    return ModelMetadata(
        labels=tuple(draw(st.lists(LEGIBLE, min_size=1, max_size=5))),
        mean=tuple(draw(st.lists(FINITE, min_size=count, max_size=count))),
        std=tuple(draw(st.lists(FINITE.map(abs).filter(bool), min_size=count, max_size=count))),
        image=ImageSpec(order, height, width, max(height, width) + more, decode, fit),
        provenance=draw(st.dictionaries(LEGIBLE, LEGIBLE, max_size=3)),
    )


def golden(count: int = 4, **changes) -> Golden:
    random = np.random.default_rng(0)
    logits = random.normal(size=(count, 3)).astype(np.float32)
    pairs = Golden(
        images=random.integers(0, 256, (count, 1, 4, 4), dtype=np.uint8),
        reference_logits=logits,
        runtime_logits=logits + np.float32(1e-6),
        reference_tolerance=1e-4,
        runtime_tolerance=1e-5,
        synthetic=False,
    )
    return dataclasses.replace(pairs, **changes)


@pytest.fixture
def version(tmp_path):
    return publish_artifact(
        tmp_path / "net", model=b"the model", golden=golden(), manifest={"precision": "fp32"}
    )


@given(metadata())
def test_metadata_survives_the_file(facts):
    assert ModelMetadata.from_props(facts.to_props()) == facts


def test_files_from_before_there_were_two_rules_decode_in_full():
    """This version writes their text for that rule, so that exporting them again gives the same bytes."""
    text = '{"shorter_side": 6, "crop": [4, 5], "interpolation": "bilinear"}'
    image = ImageSpec("L", 4, 5, 6, "full")
    props = ModelMetadata(("a",), (0.5,), (0.5,), image).to_props()
    assert props["foldserve.resize"] == text
    assert ModelMetadata.from_props(props).image == image
    scaled = ModelMetadata(("a",), (0.5,), (0.5,), dataclasses.replace(image, decode="scaled")).to_props()
    assert scaled["foldserve.resize"] == text.replace("}", ', "decode": "scaled"}')


@pytest.mark.parametrize(
    ("height", "fit", "text"),
    [
        (5, "crop", '{"shorter_side": 5, "crop": [5, 5], "interpolation": "bilinear", "fit": "crop"}'),
        (4, "crop", '{"crop": [4, 5], "interpolation": "bilinear", "fit": "crop"}'),
        (5, "pad", '{"crop": [5, 5], "interpolation": "bilinear", "fit": "pad"}'),
        (5, "stretch", '{"crop": [5, 5], "interpolation": "bilinear", "fit": "stretch"}'),
    ],
)
def test_releases_that_do_not_know_a_fit_can_read_the_file_only_where_they_do_the_same(height, fit, text):
    """They need shorter_side, and ignore fit."""
    image = ImageSpec("L", height, 5, 5, fit=fit)
    props = ModelMetadata(("a",), (0.5,), (0.5,), image).to_props()
    assert props["foldserve.resize"] == text
    assert ModelMetadata.from_props(props).image == image


def test_metadata_has_a_fixed_order():
    spec = ImageSpec("L", 4, 4, 4)
    one = ModelMetadata(("a",), (0.5,), (0.5,), spec, {"x": "1", "b": "2"})
    two = ModelMetadata(("a",), (0.5,), (0.5,), spec, {"b": "2", "x": "1"})
    assert list(one.to_props().items()) == list(two.to_props().items())


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        pytest.param("foldserve.labels", None, "no metadata entry 'foldserve.labels'", id="missing"),
        pytest.param("foldserve.labels", "[1, ", "malformed metadata", id="not JSON"),
        pytest.param("foldserve.mean", '["x"]', "malformed metadata", id="not numbers"),
        pytest.param("foldserve.channel_order", "BGR", "channel_order: .*'BGR'", id="unknown colours"),
        pytest.param(
            "foldserve.network_channel_order", "GBR", "network_channel_order: .*'GBR'", id="unknown order"
        ),
        pytest.param("foldserve.resize", '{"crop": [4]}', "malformed metadata", id="one side"),
        pytest.param(
            "foldserve.resize",
            '{"crop": [4, 4], "shorter_side": 4, "decode": "half"}',
            "resize.decode: .*'half'",
            id="unknown rule",
        ),
        pytest.param(
            "foldserve.resize",
            '{"crop": [4, 4], "fit": "bend"}',
            "resize.fit: .*'bend'",
            id="fit",
        ),
        pytest.param(
            "foldserve.resize",
            '{"crop": [4, 4], "shorter_side": 5, "fit": "pad"}',
            "shorter_side is 5, which contradicts fit pad",
            id="contradicting side",
        ),
        pytest.param("foldserve.resize", '{"crop": [4, 4]}', "shorter_side: Field required", id="no side"),
        pytest.param("foldserve.schema", "2", "schema 2.*upgrade foldserve", id="future"),
    ],
)
def test_invalid_metadata_is_reported(key, value, message):
    props = ModelMetadata(("a",), (0.5,), (0.5,), ImageSpec("L", 4, 4, 4)).to_props()
    if value is None:
        del props[key]
    else:
        props[key] = value
    with pytest.raises(ArtifactError, match=message):
        ModelMetadata.from_props(props)


def test_golden_pairs_survive_the_file():
    before = golden()
    after = Golden.from_bytes(before.to_bytes())
    for name in ("images", "reference_logits", "runtime_logits"):
        written, read = getattr(before, name), getattr(after, name)
        assert written.dtype == read.dtype
        assert np.array_equal(written, read)
    assert (after.reference_tolerance, after.runtime_tolerance, after.synthetic) == (1e-4, 1e-5, False)


NAN = np.full((4, 3), np.nan, dtype=np.float32)


@pytest.mark.parametrize(
    "changes",
    [
        pytest.param({"images": np.zeros((0, 1, 4, 4), np.uint8)}, id="no pairs"),
        pytest.param({"images": np.zeros((3, 1, 4, 4), np.uint8)}, id="fewer images"),
        pytest.param({"images": np.zeros((4, 1, 4, 4), np.float32)}, id="float images"),
        pytest.param({"runtime_logits": np.zeros((4, 2), np.float32)}, id="fewer classes"),
        pytest.param({"reference_logits": NAN}, id="not a number"),
        pytest.param({"reference_tolerance": float("nan")}, id="tolerance not a number"),
        pytest.param({"runtime_tolerance": float("inf")}, id="infinite tolerance"),
        pytest.param({"runtime_tolerance": 0.0}, id="no tolerance"),
    ],
)
def test_invalid_golden_pairs_are_refused_by_reader_and_writer(changes, tmp_path):
    bad = golden(**changes)
    with pytest.raises(ArtifactError):
        Golden.from_bytes(bad.to_bytes())
    with pytest.raises(ArtifactError):
        publish_artifact(tmp_path / "net", model=b"m", golden=bad, manifest={})
    assert not (tmp_path / "net").exists()


@pytest.mark.parametrize(
    "content", [b"", b"not npz", golden().to_bytes()[:-50]], ids=["empty", "text", "cut"]
)
def test_damaged_golden_files_are_reported(content):
    with pytest.raises(ArtifactError, match=r"golden\.npz cannot be read"):
        Golden.from_bytes(content)


def test_published_version_can_be_read(version):
    read = read_artifact(version)
    assert version.name == "1"
    assert read.model == b"the model"
    assert read.manifest["precision"] == "fp32"
    assert read.manifest["files"][MODEL_FILE]["bytes"] == len(b"the model")
    assert np.array_equal(read.golden.images, golden().images)


def test_a_version_can_be_renamed_and_copied(version, tmp_path):
    version.rename(tmp_path / "elsewhere")
    assert read_artifact(tmp_path / "elsewhere").model == b"the model"


def test_versions_count_up_and_gaps_are_not_filled(tmp_path):
    folder = tmp_path / "net"
    (folder / "7").mkdir(parents=True)
    for expected in ("8", "9"):
        assert publish_artifact(folder, model=b"m", golden=golden(), manifest={}).name == expected
    assert list_versions(folder) == [7, 8, 9]


def test_names_that_are_not_versions_are_ignored(tmp_path):
    for name in ("1", "01", "0", "x", ".2", "-3", "4.0", "\u0665"):
        (tmp_path / name).mkdir()
    (tmp_path / "5").write_text("a file")
    assert list_versions(tmp_path) == [1]


def test_concurrent_exports_get_a_version_each(tmp_path):
    barrier, versions = threading.Barrier(6), []

    def publish() -> None:
        barrier.wait()
        versions.append(publish_artifact(tmp_path / "net", model=b"m", golden=golden(), manifest={}))

    threads = [threading.Thread(target=publish) for _ in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(version.name for version in versions) == list("123456")
    assert all(read_artifact(version).model == b"m" for version in versions)


@pytest.mark.parametrize("failing", ["_write_synced", "_rename_to_next_version"])
def test_a_failed_write_leaves_no_trace(version, monkeypatch, failing):
    def fail(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(publishing, failing, fail)
    with pytest.raises(OSError, match="No space left"):
        publish_artifact(version.parent, model=b"m", golden=golden(), manifest={})
    assert [path.name for path in version.parent.iterdir() if path.is_dir()] == ["1"]
    assert read_artifact(version).model == b"the model"


@pytest.mark.parametrize("name", [MODEL_FILE, GOLDEN_FILE])
def test_one_changed_byte_is_refused_by_the_hash(version, name):
    content = bytearray((version / name).read_bytes())
    content[len(content) // 2] ^= 1
    (version / name).write_bytes(content)
    with pytest.raises(ArtifactError, match=f"{name} is not the file that was exported: its SHA-256 is"):
        read_artifact(version)


@pytest.mark.parametrize("name", [MODEL_FILE, GOLDEN_FILE, MANIFEST_FILE])
def test_missing_file_is_reported(version, name):
    (version / name).unlink()
    with pytest.raises(ArtifactError, match=f"{name} is missing"):
        read_artifact(version)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        pytest.param(lambda _: "{", "is malformed", id="cut short"),
        pytest.param(lambda _: "[]", "is malformed", id="a list"),
        pytest.param(
            lambda manifest: json.dumps(manifest | {"schema_version": 2}), "upgrade foldserve", id="future"
        ),
        pytest.param(
            lambda manifest: json.dumps(manifest | {"files": []}), "is malformed", id="files a list"
        ),
        pytest.param(lambda manifest: json.dumps(manifest | {"files": {}}), "has no SHA-256", id="no hashes"),
    ],
)
def test_invalid_manifest_is_reported(version, change, message):
    path = version / MANIFEST_FILE
    path.write_text(change(json.loads(path.read_text())))
    with pytest.raises(ArtifactError, match=message):
        read_artifact(version)


def test_label_count_must_equal_class_count():
    check_labels(["a", "b"], 2)
    with pytest.raises(ArtifactError, match="2 labels for 3 classes"):
        check_labels(["a", "b"], 3)
