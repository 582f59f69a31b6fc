"""int8 and fp16 files against the network: the same bytes each time, and one wrong number is found out."""

import dataclasses
import hashlib
import subprocess
import sys
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from onnx import numpy_helper

from foldserve.artifact.format import Golden
from foldserve.artifact.golden import replay
from foldserve.artifact.golden_limits import max_tolerance
from foldserve.errors import ArtifactError
from foldserve.export.errors import ParityError
from foldserve.export.precision.fp16 import to_fp16
from foldserve.export.precision.quantize import activation_ranges, layer_names, quantize
from foldserve.export.verification.parity import run_logits
from foldserve.export.verification.reduced_precision import check_reduced_precision
from foldserve.export.verification.reference import TorchReference
from foldserve.export.verification.tolerances import FP16_UNIT, RUNTIME_FLOOR, fp16_tolerance, int8_tolerance
from foldserve.runtime.runner import ModelRunner
from foldserve.runtime.session import Session

ROOT = Path(__file__).parents[3]


@pytest.fixture(scope="module")
def images(taught):
    return taught.dataset.test_images.numpy()


@pytest.fixture(scope="module")
def expected(taught, images):
    return TorchReference(taught.checkpoint.build()).logits(images)


@pytest.fixture(scope="module")
def int8(taught):
    ranges = activation_ranges(taught.content, taught.dataset.train_images.numpy())
    return quantize(taught.content, ranges, layer_names(taught.content))


@pytest.fixture(scope="module")
def fp16(taught):
    return to_fp16(taught.content)


@pytest.fixture(scope="module")
def tolerances(taught, int8, expected):
    training = taught.dataset.train_images.numpy()
    exact, lower = Session(taught.content, device="cpu"), Session(int8, device="cpu")
    error = float(np.abs(run_logits(exact, training) - run_logits(lower, training)).max())
    return {"int8": int8_tolerance(expected, error), "fp16": fp16_tolerance(expected)}


def check(content, images, expected, tolerance, unit=0.0):
    golden = Golden(images[:64], expected[:64], expected[:64], tolerance, tolerance, synthetic=False)
    return check_reduced_precision(
        content, images, None, expected=expected, golden=golden, tolerance=tolerance, unit=unit
    )


def changed(content: bytes, name: str, change) -> bytes:
    """Return the file with ``change`` made to one of its constants."""
    model_proto = onnx.load_from_string(content)
    (tensor,) = (entry for entry in model_proto.graph.initializer if entry.name == name)
    array = numpy_helper.to_array(tensor).copy()
    tensor.CopyFrom(numpy_helper.from_array(np.asarray(change(array), dtype=array.dtype), name))
    return model_proto.SerializeToString()


def flip_first(array):
    array.reshape(-1)[0] = -array.reshape(-1)[0] * 8 - 1
    return array


@pytest.mark.parametrize("precision", ["int8", "fp16"])
def test_the_file_is_as_good_as_its_precision(precision, request, images, expected, tolerances):
    parity = check(request.getfixturevalue(precision), images, expected, tolerances[precision])
    assert {deviation.images for deviation in parity.deviations} == {"random", "real"}
    assert {deviation.batch_size for deviation in parity.deviations} == {1, 2, 7, 32}
    assert parity.golden.runtime_tolerance < parity.golden.reference_tolerance
    assert parity.to_manifest()["max_abs_err"] <= tolerances[precision]


def test_golden_pairs_of_fp16_hold_in_another_order_of_adding(fp16, taught, images, expected, tolerances):
    """PyTorch's half kernels stand for a GPU: another correct runtime, a few neighbouring halves away."""
    golden = check(fp16, images, expected, tolerances["fp16"], FP16_UNIT).golden
    module = taught.checkpoint.build().eval()
    with torch.inference_mode():
        seen = (torch.from_numpy(golden.images) / 255 - module.mean) / module.std
        elsewhere = module.network.half()(seen.half()).float().numpy()
    assert RUNTIME_FLOOR < np.abs(elsewhere - golden.runtime_logits).max() <= golden.runtime_tolerance


def test_a_tolerance_is_bounded_by_the_golden_pairs_own_logits(fp16, images, expected):
    """Other images may have larger logits, but a server sees those of the golden pairs alone."""
    small = np.argsort(np.abs(expected).max(axis=1))[:64]
    golden = Golden(images[small], expected[small], expected[small], 1e-4, 1e-5, synthetic=False)
    wide = 2 * max_tolerance(golden.reference_logits)
    lower = check_reduced_precision(fp16, images, None, expected=expected, golden=golden, tolerance=wide)
    assert lower.golden.reference_tolerance == max_tolerance(golden.reference_logits)
    lower.golden.check("fp16")


DAMAGE = {
    "int8 scale of a weight": ("int8", "features.4.conv.weight_scale", lambda scale: scale * 2),
    "int8 scale of an activation": ("int8", "relu_1_scale", lambda scale: scale * 0.05),
    "int8 weights": ("int8", "classifier.5.weight_quantized", lambda weight: -weight),
    "fp16 weights": ("fp16", "features.2.conv.weight", lambda weight: weight * 1.1),
    "fp16 bias": ("fp16", "classifier.5.bias", flip_first),
    "fp16 overflow": ("fp16", "features.0.conv.weight", lambda weight: weight * np.float16(np.inf)),
}


@pytest.mark.parametrize("case", DAMAGE)
def test_a_wrong_constant_fails(case, request, images, expected, tolerances):
    precision, name, change = DAMAGE[case]
    damaged = changed(request.getfixturevalue(precision), name, change)
    with pytest.raises(ParityError, match=r"(off|differ) by up to"):
        check(damaged, images, expected, tolerances[precision])


@pytest.mark.parametrize(
    "case", ["int8 images", "int8 reference_logits", "fp16 images", "fp16 reference_logits"]
)
def test_golden_pairs_are_replayed_before_they_are_published(case, request, images, expected, tolerances):
    """All images agree; one golden pair is not the network's, which only the replay sees."""
    precision, part = case.split()
    content, tolerance = request.getfixturevalue(precision), tolerances[precision]
    golden = check(content, images, expected, tolerance).golden
    array = getattr(golden, part).copy()
    array[7] = 255 - array[7] if part == "images" else array[7] + 3 * tolerance
    with pytest.raises(ParityError, match=r"golden.*nothing was published"):
        check_reduced_precision(
            content,
            images,
            None,
            expected=expected,
            golden=dataclasses.replace(golden, **{part: array}),
            tolerance=tolerance,
        )


def test_golden_pairs_of_int8_detect_errors_below_its_tolerance(int8, images, expected, tolerances):
    """One scale off by two hundredths is within what int8 may err by, and far from what this file answers."""
    golden = check(int8, images, expected, tolerances["int8"]).golden
    damaged = changed(int8, "classifier.5.weight_scale", lambda scale: scale * 1.02)
    check(damaged, images, expected, tolerances["int8"])
    session = Session(damaged, device="cpu")
    with pytest.raises(ArtifactError, match="compared with this file at export"):
        replay(ModelRunner(session).run_unchecked, golden, batch_size=32, where="CPU")


def test_layers_left_out_stay_in_float(taught):
    names = layer_names(taught.content)
    assert list(names.values()) == [
        "features.0.conv",
        "features.2.conv",
        "features.4.conv",
        "classifier.2",
        "classifier.5",
    ]
    ranges = activation_ranges(taught.content, taught.dataset.train_images.numpy()[:50])
    chosen = [node for node, name in names.items() if name != "classifier.2"]
    model_proto = onnx.load_from_string(quantize(taught.content, ranges, chosen))
    types = {tensor.name: tensor.data_type for tensor in model_proto.graph.initializer}
    assert types["classifier.2.weight"] == onnx.TensorProto.FLOAT
    assert types["classifier.5.weight_quantized"] == onnx.TensorProto.INT8


QUANTIZE_ELSEWHERE = """
import sys
from pathlib import Path
import numpy as np
from foldserve.export.precision.fp16 import to_fp16
from foldserve.export.precision.quantize import activation_ranges, layer_names, quantize
content = Path(sys.argv[1]).read_bytes()
ranges = activation_ranges(content, np.load(sys.argv[2]))
Path("int8.onnx").write_bytes(quantize(content, ranges, layer_names(content)))
Path("fp16.onnx").write_bytes(to_fp16(content))
"""


def test_bytes_are_the_same_from_any_folder_and_process(taught, int8, fp16, tmp_path):
    (tmp_path / "fp32.onnx").write_bytes(taught.content)
    np.save(tmp_path / "images.npy", taught.dataset.train_images.numpy())
    subprocess.run(
        [sys.executable, "-c", QUANTIZE_ELSEWHERE, "fp32.onnx", "images.npy"],
        cwd=tmp_path,
        check=True,
        env={"PATH": "/usr/bin:/bin", "PYTHONPATH": str(ROOT), "PYTHONHASHSEED": "1", "HOME": str(tmp_path)},
    )
    for name, content in (("int8", int8), ("fp16", fp16)):
        elsewhere = (tmp_path / f"{name}.onnx").read_bytes()
        assert hashlib.sha256(elsewhere).digest() == hashlib.sha256(content).digest()
        assert str(tmp_path).encode() not in elsewhere
