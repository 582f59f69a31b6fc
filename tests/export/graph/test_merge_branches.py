"""Parallel branches become one convolution where their taps meet, and stay apart everywhere else."""

import numpy as np
import onnx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.support.foldable import TOLERANCE, batch_norm, check, fold, model_of, node, statistics, weights


def repvgg(*, channels=4, groups=1, stride=1, identity=True, kernel=3, padding=1, point_padding=0):
    """Convolution, convolution of one tap, and batch norm of the input, as Ding et al. sum them."""
    size = {"strides": [stride] * 2, "group": groups}
    nodes = [
        node("Relu", "x -> r"),
        node("Conv", "r three.weight -> a", pads=[padding] * 4, **size),
        batch_norm("a -> b", "norm1"),
        node("Conv", "r point.weight -> c", pads=[point_padding] * 4, **size),
        batch_norm("c -> d", "norm2"),
        node("Add", "b d -> e"),
    ]
    if identity:
        nodes += [batch_norm("r -> f", "norm3"), node("Add", "e f -> s")]
    nodes.append(node("Relu", "s -> y" if identity else "e -> y"))
    inner = channels // groups
    constants = weights(three_weight=(channels, inner, kernel, kernel), point_weight=(channels, inner, 1, 1))
    for index, name in enumerate(["norm1", "norm2", "norm3"][: 2 + identity]):
        constants |= statistics(name, channels, index)
    return model_of(nodes, constants, shape=(channels, 9, 9))


@pytest.mark.parametrize("groups", [1, 2, 4])
def test_repvgg_block_is_one_convolution(groups):
    folded = check(repvgg(groups=groups), ["folded"] * 3)
    assert folded.operations == ["Relu", "Conv", "Relu"]
    assert "into three, parallel to it" in folded.reasons


def test_strided_block_without_identity_is_one_convolution():
    folded = check(repvgg(stride=2, identity=False), ["folded"] * 2)
    assert folded.operations == ["Relu", "Conv", "Relu"]


def test_another_kernel_is_seen():
    """The twin: one weight of the small kernel is off by a hundredth."""
    model_proto = repvgg()
    folded = fold(model_proto).model_proto
    (weight,) = (entry for entry in folded.graph.initializer if entry.name == "three.weight")
    array = onnx.numpy_helper.to_array(weight).copy()
    array[0, 0, 1, 1] += 1e-2
    weight.CopyFrom(onnx.numpy_helper.from_array(array, weight.name))
    from tests.support.foldable import answers

    feeds = {"x": np.random.default_rng(0).normal(0, 1, (2, 4, 9, 9)).astype(np.float32)}
    (expected,), (actual,) = answers(model_proto, feeds), answers(folded, feeds)
    assert np.abs(expected - actual).max() > 100 * TOLERANCE


def two_convolutions(first, second, *, shape=(4, 12, 12), more=(), inputs=("x", "x"), operation="Add"):
    """Two convolutions with the settings of ``first`` and ``second``, summed."""
    nodes, constants = list(more), {}
    for name, given_settings, value in (("one", first, inputs[0]), ("two", second, inputs[1])):
        kernel, group = given_settings["kernel"], given_settings.get("group", 1)
        attributes = {key: entry for key, entry in given_settings.items() if key != "kernel"}
        nodes.append(node("Conv", f"{value} {name}.weight {name}.bias -> {name}", **attributes))
        generator = np.random.default_rng(len(constants))
        constants[f"{name}.weight"] = generator.normal(0, 0.5, (4, 4 // group, *kernel)).astype(np.float32)
        constants[f"{name}.bias"] = generator.normal(0, 0.5, 4).astype(np.float32)
    nodes.append(node(operation, "one two -> y"))
    return model_of(nodes, constants, shape=shape)


MERGED = {
    "same kernels": ({"kernel": (3, 3)}, {"kernel": (3, 3)}),
    "one tap": ({"kernel": (3, 3), "pads": [1] * 4}, {"kernel": (1, 1)}),
    "the small one first": ({"kernel": (1, 1)}, {"kernel": (5, 5), "pads": [2] * 4}),
    "a row": ({"kernel": (3, 3), "pads": [1] * 4}, {"kernel": (1, 3), "pads": [0, 1, 0, 1]}),
    "off the centre": ({"kernel": (2, 2), "pads": [1, 1, 0, 0]}, {"kernel": (1, 1)}),
    "dilated with one tap": (
        {"kernel": (3, 3), "pads": [2] * 4, "dilations": [2, 2]},
        {"kernel": (1, 1)},
    ),
    "dilated with every other tap": (
        {"kernel": (5, 5), "pads": [2] * 4},
        {"kernel": (3, 3), "pads": [2] * 4, "dilations": [2, 2]},
    ),
    "strided and grouped": (
        {"kernel": (3, 3), "pads": [1] * 4, "strides": [2, 1], "group": 2},
        {"kernel": (1, 1), "strides": [2, 1], "group": 2},
    ),
}
APART = {
    "rows and columns": (
        {"kernel": (3, 1), "pads": [1, 0, 1, 0]},
        {"kernel": (1, 3), "pads": [0, 1, 0, 1]},
    ),
    "taps between those of the other": (
        {"kernel": (3, 3), "pads": [2] * 4, "dilations": [2, 2]},
        {"kernel": (3, 3), "pads": [1] * 4},
    ),
    "other groups": ({"kernel": (3, 3), "group": 2}, {"kernel": (3, 3)}),
    "shifted against each other": (
        {"kernel": (3, 3), "pads": [2, 2, 0, 0]},
        {"kernel": (3, 3), "pads": [0, 0, 2, 2]},
    ),
    "padded by the other's size": (
        {"kernel": (3, 3), "auto_pad": "SAME_UPPER"},
        {"kernel": (1, 1)},
    ),
}


@pytest.mark.parametrize(("first", "second"), MERGED.values(), ids=MERGED)
@pytest.mark.parametrize("operation", ["Add", "Sub"])
def test_convolutions_whose_taps_meet_are_one(first, second, operation):
    folded = check(two_convolutions(first, second, operation=operation), [])
    assert folded.operations == ["Conv"]


@pytest.mark.parametrize(("first", "second"), APART.values(), ids=APART)
def test_convolutions_whose_taps_do_not_meet_stay_apart(first, second):
    folded = check(two_convolutions(first, second), [])
    assert folded.operations.count("Conv") == 2


def test_convolutions_of_other_values_stay_apart():
    more = [node("Relu", "x -> r")]
    folded = check(two_convolutions({"kernel": (3, 3)}, {"kernel": (3, 3)}, more=more, inputs=("x", "r")), [])
    assert folded.operations.count("Conv") == 2


def test_a_broadcast_sum_stays():
    """One branch has one position only, which the other's positions all share."""
    nodes = [
        node("Conv", "x one.weight -> a"),
        node("Conv", "x two.weight -> b"),
        node("Add", "a b -> y"),
    ]
    constants = weights(one_weight=(4, 4, 1, 1), two_weight=(4, 4, 5, 5))
    folded = check(model_of(nodes, constants, shape=(4, 5, 5)), [])
    assert folded.operations.count("Conv") == 2


def test_an_output_that_is_read_elsewhere_stays():
    nodes = [
        node("Conv", "x one.weight -> a"),
        node("Conv", "x two.weight -> b"),
        node("Add", "a b -> y"),
        node("Relu", "a -> z"),
    ]
    constants = weights(one_weight=(4, 4, 1, 1), two_weight=(4, 4, 1, 1))
    folded = check(model_of(nodes, constants, shape=(4, 5, 5), outputs=("y", "z")), [])
    assert folded.operations.count("Conv") == 2


def test_layer_scale_and_residual_of_a_mixer_are_one_convolution():
    """FastViT's RepMixer: x + gamma * (depthwise(x) - norm(x))."""
    nodes = [
        node("Relu", "x -> r"),
        node("Conv", "r mix.weight mix.bias -> a", pads=[1] * 4, group=4),
        batch_norm("r -> b", "norm"),
        node("Sub", "a b -> c"),
        node("Mul", "c gamma -> d"),
        node("Add", "r d -> y"),
    ]
    constants = weights(mix_weight=(4, 1, 3, 3), mix_bias=(4,), gamma=(4, 1, 1)) | statistics("norm", 4)
    folded = check(model_of(nodes, constants, shape=(4, 6, 6)), ["folded"])
    assert folded.operations == ["Relu", "Conv"]


@pytest.mark.parametrize("shape", [(4, 6, 6), (1, 6, 6), (6,), (1, 6)], ids=str)
def test_products_that_differ_from_place_to_place_stay(shape):
    nodes = [node("Conv", "x w.weight -> a"), node("Mul", "a gamma -> y")]
    constants = weights(w_weight=(4, 4, 1, 1), gamma=shape)
    assert check(model_of(nodes, constants, shape=(4, 6, 6)), []).operations == ["Conv", "Mul"]


def test_a_product_that_makes_more_channels_stays():
    nodes = [node("Conv", "x w.weight -> a"), node("Mul", "a gamma -> y")]
    constants = weights(w_weight=(1, 4, 1, 1), gamma=(4, 1, 1))
    assert check(model_of(nodes, constants, shape=(4, 6, 6)), []).operations == ["Conv", "Mul"]


def test_a_constant_minus_a_branch_stays():
    nodes = [node("Conv", "x w.weight -> a"), node("Sub", "c a -> y")]
    constants = weights(w_weight=(4, 4, 1, 1), c=(4, 1, 1))
    assert check(model_of(nodes, constants, shape=(4, 6, 6)), []).operations == ["Conv", "Sub"]


@st.composite
def kernels(draw):
    """A kernel with its paddings and dilations; at stride 1 the output is as large as the input."""
    sides = [draw(st.integers(1, 3)) for _ in range(2)]
    dilations = [draw(st.integers(1, 2)) for _ in range(2)]
    reach = [(side - 1) * dilation for side, dilation in zip(sides, dilations, strict=True)]
    before = [draw(st.integers(0, most)) for most in reach]
    behind = [most - pad for most, pad in zip(reach, before, strict=True)]
    return {"kernel": tuple(sides), "pads": [*before, *behind], "dilations": dilations}


@given(
    first=kernels(),
    second=kernels(),
    strides=st.tuples(st.integers(1, 2), st.integers(1, 2)),
    groups=st.tuples(st.sampled_from([1, 2, 4]), st.booleans()),
    operation=st.sampled_from(["Add", "Sub"]),
)
@settings(max_examples=100, deadline=None, derandomize=True)
def test_any_two_convolutions_give_the_same_answers(first, second, strides, groups, operation):
    """`check` compares the answers, whether the two were merged or not."""
    group, is_same = groups
    first |= {"strides": strides, "group": group}
    second |= {"strides": strides, "group": group if is_same else 1}
    check(two_convolutions(first, second, shape=(4, 7, 7), operation=operation), [])


@given(first=kernels(), groups=st.sampled_from([1, 2, 4]), is_first=st.booleans())
@settings(max_examples=50, deadline=None, derandomize=True)
def test_any_convolution_and_its_input_are_one(first, groups, is_first):
    attributes = {name: entry for name, entry in first.items() if name != "kernel"}
    nodes = [
        node("Conv", "x w.weight -> a", group=groups, **attributes),
        node("Add", "x a -> y" if is_first else "a x -> y"),
    ]
    constants = weights(w_weight=(4, 4 // groups, *first["kernel"]))
    folded = check(model_of(nodes, constants, shape=(4, 7, 7)), [])
    # Even kernels may read the input itself at no tap: with a dilation of 2 and a padding of 1.
    reads_itself = all(
        pad % dilation == 0 for pad, dilation in zip(first["pads"][:2], first["dilations"], strict=True)
    )
    assert folded.operations == (["Conv"] if reads_itself else ["Conv", "Add"])
