"""Batch norm before a layer: exact only where every tap of the kernel always meets what was normalised."""

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from onnx import TensorProto

from foldserve.export.graph.fold_pass import FoldPass
from foldserve.export.graph.weights import Float64Initializers
from tests.support.foldable import batch_norm, check, model_of, node, statistics, weights


def norm_conv(*between, constants, channels=3, operation="Conv", wires="b w.weight", **attributes):
    between = between or (node("Identity", "a -> b"),)
    nodes = [node("Relu", "x -> r"), batch_norm("r -> a", "norm"), *between]
    if between[0].op_type == "Identity":
        nodes = [nodes[0], batch_norm("r -> b", "norm")]
    nodes.append(node(operation, f"{wires} -> y", **attributes))
    return model_of(nodes, statistics("norm", channels) | constants)


KERNEL = weights(w_weight=(6, 3, 3, 3))
DEPTHWISE = weights(w_weight=(6, 1, 3, 3))


@pytest.mark.parametrize(
    ("attributes", "expected"),
    [
        ({}, "folded"),
        ({"pads": [0, 0, 0, 0]}, "folded"),
        ({"auto_pad": "VALID"}, "folded"),
        ({"auto_pad": "NOTSET"}, "folded"),
        ({"strides": [2, 1], "dilations": [1, 2]}, "folded"),
        ({"pads": [0, 0, 0, 1]}, "rewritten"),
        ({"pads": [1, 0, 0, 0]}, "rewritten"),
        ({"auto_pad": "SAME_UPPER"}, "rewritten"),
        ({"auto_pad": "SAME_LOWER"}, "rewritten"),
    ],
    ids=str,
)
def test_a_convolution_takes_the_batch_norm_before_it_only_without_padding(attributes, expected):
    folded = check(norm_conv(constants=KERNEL, **attributes), [expected])
    if expected == "rewritten":
        assert "w behind it is zero-padded" in folded.reasons


def test_fold_before_a_grouped_convolution_is_exact():
    check(norm_conv(constants=DEPTHWISE, group=3), ["folded"])


def without_shift(channels=3):
    return statistics("norm", channels) | {
        "norm.bias": np.zeros(channels, np.float32),
        "norm.running_mean": np.zeros(channels, np.float32),
    }


@pytest.mark.parametrize("attributes", [{"pads": [1, 1, 1, 1]}, {"auto_pad": "SAME_UPPER"}], ids=str)
def test_a_batch_norm_that_keeps_zero_goes_into_a_zero_padded_convolution(attributes):
    check(norm_conv(constants=KERNEL | without_shift(), **attributes), ["folded"])


def test_shift_in_one_channel_stops_folding():
    shift = without_shift() | {"norm.bias": np.array([0, 0, 0.25], np.float32)}
    check(norm_conv(constants=KERNEL | shift, pads=[1, 1, 1, 1]), ["rewritten"])


def test_a_transposed_convolution_takes_only_what_keeps_zero():
    constants = weights(w_weight=(3, 2, 3, 3))
    up = {"operation": "ConvTranspose", "strides": [2, 2]}
    folded = check(norm_conv(constants=constants, **up), ["rewritten"])
    assert "taps overlap unevenly" in folded.reasons
    check(norm_conv(constants=constants | without_shift(), **up), ["folded"])


@pytest.mark.parametrize(
    ("padding", "expected"), [(0, "folded"), (1, "rewritten")], ids=["unpadded", "one of them padded"]
)
def test_a_batch_norm_that_several_layers_read_is_folded_into_all_or_none(padding, expected):
    nodes = [
        node("Relu", "x -> r"),
        batch_norm("r -> a", "norm"),
        node("Conv", "a one.weight -> y"),
        node("Conv", "a two.weight -> z", pads=[padding] * 4),
    ]
    constants = weights(one_weight=(6, 3, 3, 3), two_weight=(6, 3, 1, 1)) | statistics("norm", 3)
    folded = check(model_of(nodes, constants, outputs=("y", "z")), [expected])
    assert folded.reasons in (
        "into one, two, which follows it",
        "Relu (r) before it is neither convolution nor linear; its output goes to 2 places: two behind it is "
        "zero-padded",
    )


def test_batch_norm_that_is_a_graph_output_is_rewritten():
    nodes = [
        node("Relu", "x -> r"),
        batch_norm("r -> a", "norm"),
        node("Conv", "a one.weight -> y"),
    ]
    constants = weights(one_weight=(6, 3, 3, 3)) | statistics("norm", 3)
    check(model_of(nodes, constants, outputs=("y", "a")), ["rewritten"])
    alone = model_of(nodes[:2], statistics("norm", 3), outputs=("a",))
    assert "its output is the network's output" in check(alone, ["rewritten"]).reasons


def test_convolution_that_reads_it_as_kernel_is_not_changed():
    """The normalised map is the *weight* of the convolution behind."""
    nodes = [
        node("Relu", "x -> r"),
        batch_norm("r -> w", "norm"),
        node("Conv", "picture w -> y"),
    ]
    constants = weights(picture=(1, 3, 8, 8)) | statistics("norm", 3)
    folded = check(model_of(nodes, constants, shape=(3, 3, 3)), ["rewritten"])
    assert "takes it as weights" in folded.reasons


def test_a_linear_layer_on_the_transposed_input_is_left_alone():
    """transA: what batch norm calls an image is a feature there."""
    nodes = [batch_norm("x -> a", "norm"), node("Gemm", "a fc.weight -> y", transA=1)]
    constants = weights(fc_weight=(4, 5)) | statistics("norm", 4)
    model_proto = model_of(nodes, constants, shape=(4,))
    model_proto.graph.input[0].type.tensor_type.shape.dim[0].dim_value = 4
    check(onnx.shape_inference.infer_shapes(model_proto), ["rewritten"])


# Padding of its own between batch norm and convolution.

BORDERS = np.array([0, 0, 1, 2, 0, 0, 2, 1], np.int64)


def padded(value=None, *, mode="constant", borders=BORDERS, channels=3, norm=None, wires="a pads"):
    constants = {"pads": borders, "w.weight": weights(w=(6, channels, 3, 3))["w"]}
    if value is not None:
        constants["value"] = np.float32(value)
        wires += " value"
    nodes = [
        node("Relu", "x -> r"),
        batch_norm("r -> a", "norm"),
        node("Pad", f"{wires} -> b", mode=mode),
        node("Conv", "b w.weight -> y"),
    ]
    norm = norm or statistics("norm", channels)
    return model_of(nodes, constants | norm, shape=(channels, 8, 8))


@pytest.mark.parametrize("mode", ["reflect", "edge"])
def test_batch_norm_folds_through_reflected_and_repeated_borders(mode):
    check(padded(mode=mode), ["folded"])


@pytest.mark.parametrize("value", [None, 0.0, 0.7])
def test_a_constant_border_stops_a_batch_norm_whose_channels_would_need_several(value):
    folded = check(padded(value), ["rewritten"])
    assert "is padded with a constant" in folded.reasons


@pytest.mark.parametrize("value", [None, 0.0])
def test_batch_norm_that_keeps_zero_folds_through_a_border_of_zero(value):
    check(padded(value, norm=without_shift()), ["folded"])
    check(padded(0.7, norm=without_shift()), ["rewritten"])


@pytest.mark.parametrize("value", [None, 0.0, 0.7])
def test_a_single_channel_has_one_border_value_that_makes_it_exact(value):
    folded = check(padded(value, channels=1), ["folded"])
    assert "w, which follows it" in folded.reasons


@pytest.mark.parametrize("value", [None, 0.0, 0.7])
def test_channels_that_agree_on_a_border_value_are_exact_with_it(value):
    """Where beta is the constant itself, each channel's border is the mean, whatever its scale."""
    agreed = statistics("norm", 3) | {
        "norm.bias": np.full(3, value or 0.0, np.float32),
        "norm.running_mean": np.full(3, 0.3, np.float32),
    }
    folded = check(padded(value, norm=agreed), ["folded"])
    assert "w, which follows it" in folded.reasons
    agreed["norm.running_mean"][2] += 1e-3
    check(padded(value, norm=agreed), ["rewritten"])


def test_channel_with_scale_zero_has_no_border_value():
    off = statistics("norm", 1) | {"norm.weight": np.zeros(1, np.float32)}
    check(padded(0.7, channels=1, norm=off), ["rewritten"])


def test_a_channel_that_is_zero_throughout_may_have_a_border_of_zero():
    """Scale and shift 0: any border value would do there, and 0 does for the other channels."""
    dead = without_shift() | {"norm.weight": np.array([1.5, 0.0, -0.5], np.float32)}
    check(padded(norm=dead), ["folded"])


def test_shared_border_value_is_not_changed():
    nodes = [
        node("Relu", "x -> r"),
        batch_norm("r -> a", "norm"),
        node("Pad", "a pads value -> b"),
        node("Conv", "b w.weight -> c"),
        node("Add", "c value -> y"),
    ]
    constants = {"pads": BORDERS, "value": np.float32(0.7)} | weights(w_weight=(6, 1, 3, 3))
    check(model_of(nodes, constants | statistics("norm", 1), shape=(1, 8, 8)), ["folded"])


@pytest.mark.parametrize("axis", [0, 1])
@pytest.mark.parametrize("end", [0, 4])
def test_padding_of_images_or_channels_stops_folding(axis, end):
    borders = np.zeros(8, np.int64)
    borders[axis + end] = 1
    channels = 3 + (axis == 1)
    constants = {"pads": borders} | weights(w_weight=(6, channels, 3, 3)) | without_shift()
    nodes = [
        node("Relu", "x -> r"),
        batch_norm("r -> a", "norm"),
        node("Pad", "a pads -> b"),
        node("Conv", "b w.weight -> y"),
    ]
    check(model_of(nodes, constants), ["rewritten"])


def test_computed_padding_and_named_axes_stop_folding():
    nodes = [
        node("Relu", "x -> r"),
        batch_norm("r -> a", "norm"),
        node("Pad", "a pads _ axes -> b"),
        node("Conv", "b w.weight -> y"),
    ]
    constants = {"pads": np.array([1, 1], np.int64), "axes": np.array([2], np.int64)}
    check(model_of(nodes, constants | KERNEL | without_shift()), ["rewritten"])
    nodes[2:3] = [node("Abs", "pads -> border"), node("Pad", "a border -> b")]
    check(model_of(nodes, {"pads": BORDERS} | KERNEL | without_shift()), ["rewritten"])


def test_padding_whose_third_axis_is_the_channels_stops_folding():
    """Read as if all axes stood in order, this would pad a border."""
    nodes = [
        node("Relu", "x -> r"),
        batch_norm("r -> a", "norm"),
        node("Pad", "a pads _ axes -> b"),
        node("Conv", "b w.weight -> y"),
    ]
    constants = {"pads": np.array([0, 0, 1, 0, 0, 0], np.int64), "axes": np.array([2, 3, 1], np.int64)}
    constants |= weights(w_weight=(6, 4, 3, 3)) | without_shift()
    check(model_of(nodes, constants), ["rewritten"])


def test_padding_of_another_domain_stops_folding():
    """Whatever it is, it is not known to write what it was given."""
    model = ir.from_proto(padded(mode="reflect"))
    next(entry for entry in model.graph if entry.op_type == "Pad").domain = "somebody.else"
    (record,) = FoldPass(model.graph, Float64Initializers(model.graph)).fold_batch_norms()
    assert record.action == "rewritten"


def test_computed_border_value_stops_folding():
    nodes = [
        node("Relu", "x -> r"),
        batch_norm("r -> a", "norm"),
        node("Abs", "v -> value"),
        node("Pad", "a pads value -> b"),
        node("Conv", "b w.weight -> y"),
    ]
    constants = {"pads": BORDERS, "v": np.float32(0.0)} | KERNEL | without_shift()
    assert "pads with is computed" in check(model_of(nodes, constants), ["rewritten"]).reasons


def test_padded_map_with_two_consumers_stops_folding():
    nodes = [
        node("Relu", "x -> r"),
        batch_norm("r -> a", "norm"),
        node("Pad", "a pads -> b", mode="reflect"),
        node("Conv", "b w.weight -> c"),
        node("ReduceMean", "b axes -> d"),
        node("ReduceMean", "c axes -> e"),
        node("Concat", "d e -> y", axis=1),
    ]
    constants = {"pads": BORDERS, "axes": np.array([2, 3], np.int64)} | KERNEL | statistics("norm", 3)
    check(model_of(nodes, constants), ["rewritten"])


@pytest.mark.parametrize("mode", ["constant", "reflect"])
def test_batch_norm_that_computes_the_border_value_is_not_folded(mode):
    """The wire goes into the Pad's value, not its data; a reflected border does not even use it."""
    nodes = [
        node("Relu", "one -> r"),
        batch_norm("r -> value", "norm"),
        node("Pad", "x pads value -> b", mode=mode),
        node("Conv", "b w.weight -> y"),
    ]
    constants = {"pads": BORDERS, "one": np.full((1, 1), 3.0, np.float32)} | weights(w_weight=(6, 1, 3, 3))
    check(model_of(nodes, constants | statistics("norm", 1), shape=(1, 8, 8)), ["rewritten"])


def test_a_shape_is_no_consumer():
    """Networks that read their batch size: neither Shape nor Size sees a number of the value."""
    nodes = [
        node("Relu", "x -> r"),
        batch_norm("r -> a", "norm"),
        node("Shape", "a -> shape", start=0, end=1),
        node("Size", "a -> count"),
        node("Cast", "shape -> sides", to=TensorProto.FLOAT),
        node("Cast", "count -> size", to=TensorProto.FLOAT),
        node("Conv", "a w.weight -> y"),
    ]
    constants = weights(w_weight=(6, 3, 3, 3)) | statistics("norm", 3)
    folded = check(model_of(nodes, constants, outputs=("y", "sides", "size")), ["folded"])
    assert "w, which follows it" in folded.reasons


def test_a_consumer_of_numbers_is_one():
    """The twin: what reads the numbers would see others."""
    nodes = [
        node("Relu", "x -> r"),
        batch_norm("r -> a", "norm"),
        node("Abs", "a -> z"),
        node("Conv", "a w.weight -> y"),
    ]
    constants = weights(w_weight=(6, 3, 3, 3)) | statistics("norm", 3)
    folded = check(model_of(nodes, constants, outputs=("y", "z")), ["rewritten"])
    assert "its output goes to 2 places" in folded.reasons
