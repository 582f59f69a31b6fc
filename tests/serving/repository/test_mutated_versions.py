"""Mutates versions' files: each is refused or served, and valid models beside them keep serving."""

from __future__ import annotations

import json
import shutil
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as st_numpy

from foldserve.runtime.model_settings import ModelSettings
from foldserve.serving.repository.repository import ModelRepository
from foldserve.text import is_legible
from tests.support.artifacts import TinyNetwork
from tests.support.strange_versions import (
    GOLDEN,
    MANIFEST,
    MODEL,
    SETTINGS,
    change_golden,
    change_metadata,
    mend_hashes,
    put_into_golden,
)

if TYPE_CHECKING:
    from collections.abc import Callable

    Mutation = Callable[[Path], object]

RUN_AS = ModelSettings(device="cpu", intra_op_threads=1, max_batch_size=2)
NETWORK = TinyNetwork()
IMAGES = NETWORK.random_images(2)

_numbers = st.one_of(
    st.integers(), st.sampled_from([0, 1, -1, 2**63, 10**4000, 10**400]), st.floats(), st.booleans()
)
_texts = st.one_of(
    st.text(max_size=12), st.sampled_from(["", "/etc/shadow", "../../x", "x" * 5000, "\ud800"])
)
_json = st.recursive(
    st.one_of(st.none(), _numbers, _texts),
    lambda inner: st.one_of(st.lists(inner, max_size=4), st.dictionaries(_texts, inner, max_size=4)),
    max_leaves=8,
)
_files = st.sampled_from([MODEL, GOLDEN, MANIFEST, SETTINGS])


@st.composite
def changed_bytes(draw: st.DrawFn) -> Mutation:
    """Change, remove or insert bytes of one of the files; sometimes correct its hash in the manifest.

    The model file is left alone: how ONNX Runtime handles bytes with a valid hash is not tested here.
    """
    name = draw(_files)
    changes = draw(st.lists(st.tuples(st.floats(0, 1), st.integers(0, 3), st.binary(max_size=4)), min_size=1))
    is_mended = draw(st.booleans()) and name == GOLDEN

    def mutate(version: Path) -> None:
        path = version.parent / name if name == SETTINGS else version / name
        content = bytearray(path.read_bytes())
        for place, length, put_in in changes:
            start = int(place * len(content))
            content[start : start + length] = put_in
        path.write_bytes(content)
        if is_mended:
            mend_hashes(version)

    return mutate


@st.composite
def changed_manifests(draw: st.DrawFn) -> Mutation:
    """Replace the manifest, or one of its values at any depth, by any JSON."""
    value = draw(_json)
    steps = draw(st.lists(st.floats(0, 0.999), max_size=4))

    def mutate(version: Path) -> None:
        path = version / MANIFEST
        manifest = {"whole": json.loads(path.read_text())}
        owner, key = manifest, "whole"
        for step in steps:
            if not isinstance(owner[key], dict) or not owner[key]:
                break
            owner = owner[key]
            key = sorted(owner)[int(step * len(owner))]
        owner[key] = value
        path.write_text(json.dumps(manifest["whole"]))

    return mutate


@st.composite
def changed_metadata(draw: st.DrawFn) -> Mutation:
    """Replace an entry of the metadata by any JSON or text."""
    name = draw(
        st.sampled_from(["schema", "labels", "mean", "std", "resize", "channel_order", "provenance.x"])
    )
    value: Any = draw(_json)
    if name == "resize" and draw(st.booleans()):
        resize = {"shorter_side": 8, "crop": [8, 8], "interpolation": "bilinear"}
        value = resize | {draw(st.sampled_from(sorted(resize))): value}
    if name in {"labels", "mean", "std"} and draw(st.booleans()):
        value = [value, *draw(st.lists(_json, max_size=2))]
    text = json.dumps(value)
    return lambda version: change_metadata(version, **{name: text})


@st.composite
def changed_golden(draw: st.DrawFn) -> Mutation:
    """Replace a member of golden.npz by any array, or by bytes that are not an array."""
    names = ["images", "reference_logits", "runtime_logits"]
    names += ["reference_tolerance", "runtime_tolerance", "synthetic", "alien"]
    name = draw(st.sampled_from(names))
    if draw(st.booleans()):
        suffix, content = draw(st.sampled_from(["", ".npy"])), draw(st.binary(max_size=100))
        return lambda version: put_into_golden(version, name + suffix, content)
    array = draw(
        st_numpy.arrays(
            draw(st.one_of(st_numpy.scalar_dtypes(), st.sampled_from([np.dtype("f8"), np.dtype("f4")]))),
            draw(st.one_of(st.just(()), st_numpy.array_shapes(max_dims=4, max_side=4, min_side=0))),
        )
    )
    return lambda version: change_golden(version, **{name: array})


mutations = st.one_of(changed_bytes(), changed_manifests(), changed_metadata(), changed_golden())


@pytest.fixture(scope="module")
def sound(tmp_path_factory: pytest.TempPathFactory) -> Path:
    version = NETWORK.publish(tmp_path_factory.mktemp("sound") / "tiny")
    (version.parent / SETTINGS).write_text("max_batch_size = 2\n[cuda]\nuse_tf32 = false\n")
    return version


@given(mutated=st.lists(mutations, min_size=1, max_size=3), is_serving=st.booleans())
@settings(max_examples=60, suppress_health_check=[HealthCheck.too_slow, HealthCheck.function_scoped_fixture])
def test_mutated_version_never_disturbs_its_neighbours(
    sound: Path, mutated: list[Mutation], is_serving: bool
) -> None:
    with tempfile.TemporaryDirectory() as folder:
        models = Path(folder)
        for name in ("a", "m", "z"):
            shutil.copytree(sound.parent, models / name)
        repository = ModelRepository(models, RUN_AS, settle_s=0.0)
        if is_serving:
            repository.load_all()
        for mutate in mutated:
            try:
                mutate(models / "m" / "1")
            except Exception:  # the mutation before left nothing that this one could read
                continue
        repository.refresh() if is_serving else repository.load_all()
        shutil.copytree(sound.parent, models / "zz")
        for _ in range(2):
            repository.refresh()
        serving = {model.name for model in repository.index.ready_models()}
        assert serving >= {"a", "z", "zz"}
        assert not is_serving or "m" in serving, "what served goes on"
        for entry in repository.index.entries():
            assert is_legible(entry.reason)
            assert bool(entry.reason) or entry.state == "READY"
        for name in serving:
            logits = repository.index.find(name, "").verified.runner.run_unchecked(IMAGES)[0]
            assert np.abs(logits - NETWORK.logits(IMAGES)).max() < 1e-5
            repository.index.find(name, "").metadata.to_properties()["labels"].encode()
        repository.close(grace_s=5)
