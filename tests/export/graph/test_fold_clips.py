"""Batch norm before a ReLU or another clip: exact with one bound per channel, and its twins."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import TensorProto, numpy_helper

from foldserve.export.graph import fold_clips
from tests.support.foldable import TOLERANCE, batch_norm, check, fold, model_of, node, statistics, weights

RELU = (node("Relu", "a -> b"),)
KERNEL = weights(w_weight=(6, 3, 3, 3), w_bias=(6,))


def rising(channels=3):
    """Statistics with scales above 0 only."""
    arrays = statistics("norm", channels)
    return arrays | {"norm.weight": np.abs(arrays["norm.weight"])}


def falling(channels=3):
    arrays = statistics("norm", channels)
    return arrays | {"norm.weight": -np.abs(arrays["norm.weight"])}


def clipped(norm, *between, last=None, constants=KERNEL, shape=(3, 8, 8), outputs=("y",)):
    """batch norm - clip - convolution, behind something that is no layer."""
    nodes = [node("Abs", "x -> r"), batch_norm("r -> a", "norm"), *(between or RELU)]
    nodes.append(last or node("Conv", "b w.weight w.bias -> y"))
    return model_of(nodes, norm | constants, shape=shape, outputs=outputs)


@pytest.mark.parametrize(("norm", "operation"), [(rising(), "Max"), (falling(), "Min")], ids=["up", "down"])
def test_batch_norm_before_a_relu_becomes_its_bound(norm, operation):
    folded = check(clipped(norm), ["folded"])
    assert folded.operations == ["Abs", operation, "Conv"]
    assert folded.reasons == "into w, which follows it"


def test_scales_of_both_signs_leave_a_second_comparison():
    """There is one operation more than without batch norm, so it does not count as folded."""
    folded = check(clipped(statistics("norm", 3)), ["rewritten"])
    assert folded.operations == ["Abs", "Max", "Min", "Conv"]
    assert folded.reasons.startswith("into w, which follows it, but for Relu (")


def test_a_channel_of_scale_zero_is_a_constant_of_the_layer_behind():
    for shift in (0.5, -0.5):
        norm = rising() | {"norm.weight": np.array([1, 0, 0.5], np.float32)}
        norm["norm.bias"][1] = shift
        assert check(clipped(norm), ["folded"]).operations == ["Abs", "Max", "Conv"]


CLIPS = {
    "ReLU6": ("a zero six -> b", {"zero": 0.0, "six": 1.5}, ["Max", "Min"], "rewritten"),
    "from below": ("a low -> b", {"low": -0.3}, ["Max"], "folded"),
    "from above": ("a _ high -> b", {"high": 0.4}, ["Min"], "folded"),
    "not at all": ("a -> b", {}, ["Clip"], "folded"),
}


@pytest.mark.parametrize(("wires", "bounds", "operations", "action"), CLIPS.values(), ids=CLIPS)
def test_other_clips_have_bounds_of_their_own(wires, bounds, operations, action):
    constants = KERNEL | {name: np.float32(bound) for name, bound in bounds.items()}
    folded = check(clipped(rising(), node("Clip", wires), constants=constants), [action])
    assert folded.operations == ["Abs", *operations, "Conv"]


def test_clips_whose_bounds_are_computed_or_in_no_order_stay():
    nodes = [node("Exp", "v -> low"), node("Clip", "a low -> b")]
    folded = check(clipped(rising(), *nodes, constants=KERNEL | {"v": np.float32(-1)}), ["rewritten"])
    assert "are computed, not stored" in folded.reasons
    bounds = {"one": np.float32(1), "two": np.float32(2)}
    folded = check(
        clipped(rising(), node("Clip", "a two one -> b"), constants=KERNEL | bounds), ["rewritten"]
    )
    assert "in no order" in folded.reasons


def test_other_activations_stay_between():
    folded = check(clipped(rising(), node("LeakyRelu", "a -> b")), ["rewritten"])
    assert folded.operations == ["Abs", "Mul", "Add", "LeakyRelu", "Conv"]


def test_a_zero_padded_convolution_behind_the_relu_stops_folding():
    """Its border of zeros stands for what the ReLU lets through last, other numbers for other channels."""
    padded = node("Conv", "b w.weight w.bias -> y", pads=[1, 1, 1, 1])
    folded = check(clipped(rising(), last=padded), ["rewritten"])
    assert "w behind it is zero-padded" in folded.reasons


def test_what_else_reads_the_relu_stops_folding():
    between = (*RELU, node("Neg", "b -> z"))
    folded = check(clipped(rising(), *between, outputs=("y", "z")), ["rewritten"])
    assert "its output goes to 2 places" in folded.reasons
    check(clipped(rising(), outputs=("y", "b")), ["rewritten"])


def test_a_layer_that_reads_the_batch_norm_beside_the_relu_takes_it_too():
    """The shortcut of a network with its activations first."""
    between = (*RELU, node("Conv", "a s.weight -> z"))
    constants = KERNEL | weights(s_weight=(6, 3, 1, 1))
    folded = check(clipped(rising(), *between, constants=constants, outputs=("y", "z")), ["folded"])
    assert "s" in folded.reasons.removeprefix("into ").removesuffix(", which follows it").split(", ")


def test_dense_layers_and_the_head_are_folded_without_rest():
    """DenseNet's: a concatenation that grows, each layer's batch norm of all of it, the mean and a head."""
    nodes = [
        *(node("Conv", "x first.weight -> f"), batch_norm("f -> n", "one"), node("Relu", "n -> o")),
        node("Conv", "o second.weight -> s"),
        node("Concat", "f s -> c", axis=1),
        *(batch_norm("c -> d", "two"), node("Relu", "d -> e"), node("Conv", "e third.weight -> t")),
        node("Concat", "c t -> g", axis=1),
        *(batch_norm("g -> h", "three"), node("Relu", "h -> i")),
        *(node("GlobalAveragePool", "i -> p"), node("Flatten", "p -> q")),
        node("Gemm", "q head.weight head.bias -> y"),
    ]
    constants = weights(
        first_weight=(4, 3, 3, 3),
        second_weight=(2, 4, 1, 1),
        third_weight=(2, 6, 1, 1),
        head_weight=(8, 5),
        head_bias=(5,),
    )
    for name, channels in (("one", 4), ("two", 6), ("three", 8)):
        constants |= statistics(name, channels)
        constants[f"{name}.weight"] = np.abs(constants[f"{name}.weight"])
    folded = check(model_of(nodes, constants), ["folded"] * 3)
    assert {"Mul", "Add", "Relu"}.isdisjoint(folded.operations)
    assert folded.operations.count("Max") == 3


def test_a_bound_off_by_a_thousandth_is_seen(monkeypatch):
    """The twin of all above."""
    exact = fold_clips.clip_before

    def off(*arguments):
        clip = exact(*arguments)
        assert clip.bounds is not None
        return fold_clips.ChannelClip(clip.node, clip.affine, (clip.bounds[0] + 1e-3, clip.bounds[1]))

    monkeypatch.setattr("foldserve.export.graph.fold_moves.clip_before", off)
    assert fold(clipped(rising())).difference > 10 * TOLERANCE


def test_a_constant_channel_that_is_not_cut_off_is_seen(monkeypatch):
    exact = fold_clips.clip_before

    def uncut(node_, affine, constants):
        clip = exact(node_, affine, constants)
        return fold_clips.ChannelClip(clip.node, affine, clip.bounds)

    monkeypatch.setattr("foldserve.export.graph.fold_moves.clip_before", uncut)
    norm = rising() | {"norm.weight": np.array([1, 0, 0.5], np.float32)}
    norm["norm.bias"][1] = -0.5
    assert fold(clipped(norm)).difference > 10 * TOLERANCE


def test_bounds_too_large_for_fp16_are_declined():
    norm = rising() | {"norm.weight": np.array([1, 1e-7, 0.5], np.float32)}
    folded = check(clipped(norm), ["rewritten"])
    assert "too large numbers" in folded.reasons


def test_bounds_are_rounded_once():
    norm = rising(32)
    folded = check(
        clipped(norm, constants=weights(w_weight=(6, 32, 1, 1), w_bias=(6,)), shape=(32, 4, 4)), ["folded"]
    )
    gamma, beta, mean, variance = (
        norm[f"norm.{part}"].astype(np.float64) for part in ("weight", "bias", "running_mean", "running_var")
    )
    scale = gamma / np.sqrt(variance + 1e-5)
    (tensor,) = (entry for entry in folded.model_proto.graph.initializer if entry.name.endswith(".least"))
    expected = (-(beta - mean * scale) / scale).astype(np.float32)
    assert np.array_equal(numpy_helper.to_array(tensor).reshape(-1), expected)


def test_half_precision_stays_half():
    nodes = [
        *(
            node("Cast", "x -> h", to=TensorProto.FLOAT16),
            batch_norm("h -> a", "norm"),
            node("Relu", "a -> b"),
        ),
        *(node("Conv", "b w.weight w.bias -> c"), node("Cast", "c -> y", to=TensorProto.FLOAT)),
    ]
    constants = {name: array.astype(np.float16) for name, array in (rising() | KERNEL).items()}
    folded = fold(model_of(nodes, constants))
    assert folded.actions == ["folded"]
    assert folded.difference < 5e-3  # some units in the last place of float16


def test_a_scale_that_keeps_zero_leaves_the_relu_as_it_is():
    """As that of the input: nothing is compared with another number."""
    norm = rising() | dict.fromkeys(("norm.bias", "norm.running_mean"), np.zeros(3, np.float32))
    last = node("Conv", "b w.weight w.bias -> y", pads=[1, 1, 1, 1])
    assert check(clipped(norm, last=last), ["folded"]).operations == ["Abs", "Relu", "Conv"]


@given(
    scales=st.lists(st.sampled_from([-2.0, -0.5, 0.0, 0.25, 3.0]), min_size=1, max_size=5),
    shift=st.floats(-2, 2),
    bounds=st.tuples(st.sampled_from([-np.inf, -1.0, 0.0]), st.sampled_from([np.inf, 0.5, 6.0])),
)
@settings(max_examples=100, deadline=None)
def test_any_clip_and_map_change_places(scales, shift, bounds):
    """The arithmetic alone, in float64."""
    low, high = bounds
    wires = f"a {'low' if np.isfinite(low) else '_'} {'high' if np.isfinite(high) else '_'} -> b"
    used = {name: np.float32(bound) for name, bound in (("low", low), ("high", high)) if np.isfinite(bound)}
    norm = {
        "norm.weight": np.array(scales, np.float32),
        "norm.bias": np.full(len(scales), shift, np.float32),
        "norm.running_mean": np.zeros(len(scales), np.float32),
        "norm.running_var": np.ones(len(scales), np.float32),
    }
    constants = used | weights(w_weight=(4, len(scales), 1, 1)) | {"w.bias": np.ones(4, np.float32)}
    folded = fold(clipped(norm, node("Clip", wires), constants=constants, shape=(len(scales), 3, 3)))
    assert folded.difference < TOLERANCE
    assert {"Mul", "Add"}.isdisjoint(folded.operations)


# The largest of some numbers.


def largest(norm, pool, before=False, constants=None):
    nodes = [
        *(node("Abs", "x -> z"), batch_norm("z -> r", "norm")),
        *(pool, node("Conv", "b w.weight w.bias -> y")),
    ]
    if before:
        nodes = [node("Conv", "x w.weight w.bias -> r"), pool, batch_norm("b -> y", "norm")]
    return model_of(nodes, norm | (constants or KERNEL))


POOLS = {
    "MaxPool": node("MaxPool", "r -> b", kernel_shape=[3, 3], pads=[1, 1, 1, 1]),
    "GlobalMaxPool": node("GlobalMaxPool", "r -> b"),
    "ReduceMax": node("ReduceMax", "r axes -> b", keepdims=1),
}


@pytest.mark.parametrize("before", [True, False], ids=["into the layer before", "into the layer behind"])
@pytest.mark.parametrize("pool", POOLS)
def test_the_largest_of_what_rises_is_found_at_the_same_place(pool, before):
    constants = weights(w_weight=(6, 3, 1, 1), w_bias=(6,)) | {"axes": np.array([2, 3])}
    channels = 6 if before else 3
    folded = check(largest(rising(channels), POOLS[pool], before, constants), ["folded"])
    assert {"Mul", "Add"}.isdisjoint(folded.operations)
    folded = check(largest(statistics("norm", channels), POOLS[pool], before, constants), ["rewritten"])
    assert "takes the largest, and a scale is negative" in folded.reasons


def test_the_largest_of_several_channels_stays():
    constants = KERNEL | {"axes": np.array([1])} | weights(w_weight=(6, 1, 3, 3))
    check(largest(rising(), node("ReduceMax", "r axes -> b", keepdims=1), constants=constants), ["rewritten"])


def test_a_maximum_that_tells_its_place_stays():
    nodes = [
        *(node("Abs", "x -> z"), batch_norm("z -> r", "norm")),
        node("MaxPool", "r -> b places", kernel_shape=[2, 2]),
        *(node("Conv", "b w.weight w.bias -> y"), node("Cast", "places -> p", to=TensorProto.FLOAT)),
    ]
    check(model_of(nodes, rising() | KERNEL, outputs=("y", "p")), ["rewritten"])
