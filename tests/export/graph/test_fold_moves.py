"""Batch norms that reach a layer past reshapes, concatenations, sums and averages, and others that do not."""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.support.foldable import batch_norm, check, fold, model_of, node, statistics, weights


def integers(**arrays):
    return {name: np.array(array, dtype=np.int64) for name, array in arrays.items()}


# Linear layers of tokens.


def token_norm(*, bias=True, flat=(-1, 6), perm=None, tokens=5):
    """LeViT's: a linear layer of tokens, batch norm on [N * T, C], and back."""
    nodes = [node("MatMul", "x fc.weight -> a")]
    nodes += [node("Add", "a fc.bias -> b")] if bias else [node("Relu", "x -> unused")]
    nodes += [node("Transpose", f"{'b' if bias else 'a'} -> c", perm=perm or [0, 1, 2])]
    nodes += [node("Reshape", "c flat -> d"), batch_norm("d -> e", "norm"), node("Relu", "e -> y")]
    constants = weights(fc_weight=(4, 6)) | integers(flat=list(flat)) | statistics("norm", 6)
    constants |= weights(fc_bias=(6,)) if bias else {}
    return model_of(nodes if bias else [nodes[0], *nodes[2:]], constants, shape=(tokens, 4))


@pytest.mark.parametrize("bias", [True, False], ids=["bias", "no bias"])
def test_linear_layer_of_tokens_takes_batch_norm_past_a_reshape(bias):
    folded = check(token_norm(bias=bias), ["folded"])
    assert folded.operations == ["MatMul", "Add", "Transpose", "Reshape", "Relu"]


def test_tokens_transposed_to_channels_first_keep_their_channels():
    nodes = [
        node("MatMul", "x fc.weight -> a"),
        node("Transpose", "a -> b", perm=[0, 2, 1]),
        node("Reshape", "b image -> c"),
        batch_norm("c -> y", "norm"),
    ]
    constants = weights(fc_weight=(4, 6)) | integers(image=[-1, 6, 2, 3]) | statistics("norm", 6)
    folded = check(model_of(nodes, constants, shape=(6, 4)), ["folded"])
    assert folded.operations == ["MatMul", "Add", "Transpose", "Reshape"]


def test_tokens_taken_for_channels_are_not_folded():
    """The twin: as many tokens as channels, and batch norm over the tokens."""
    nodes = [
        node("MatMul", "x fc.weight -> a"),
        node("Reshape", "a image -> b"),
        batch_norm("b -> y", "norm"),
    ]
    constants = weights(fc_weight=(4, 6)) | integers(image=[-1, 6, 2, 3]) | statistics("norm", 6)
    folded = check(model_of(nodes, constants, shape=(6, 4)), ["rewritten"])
    assert "fc before it has its channels on another axis" in folded.reasons


def test_a_reshape_that_mixes_channels_is_no_way():
    nodes = [
        node("Conv", "x w.weight -> a"),
        node("Reshape", "a sides -> b"),
        batch_norm("b -> y", "norm"),
    ]
    constants = weights(w_weight=(6, 3, 1, 1)) | integers(sides=[-1, 6, 4, 3]) | statistics("norm", 6)
    # [N, 6, 2, 6] -> [N, 6, 4, 3] keeps 12 numbers to a channel; [N, 4, 18] does not.
    check(model_of(nodes, constants, shape=(3, 2, 6)), ["folded"])
    constants = weights(w_weight=(6, 3, 1, 1)) | integers(sides=[-1, 4, 18]) | statistics("norm", 4)
    folded = check(model_of(nodes, constants, shape=(3, 2, 6)), ["rewritten"])
    assert "does not keep the channels together" in folded.reasons


@given(
    sides=st.lists(st.sampled_from([1, 2, 3, 4]), min_size=1, max_size=3),
    split=st.integers(0, 3),
    permutation=st.permutations([1, 2]),
    channels=st.sampled_from([1, 2, 4, 6]),
)
@settings(max_examples=60, deadline=None, derandomize=True)
def test_any_reshape_and_transposition_gives_the_same_answers(sides, split, permutation, channels):
    """`check` compares the answers, whether the batch norm was folded or not."""
    total = channels * math.prod(sides)
    target = [-1, channels if split == 3 else sides[0], *([total] if split == 2 else sides[1:])]
    if total % abs(math.prod(target[1:])):
        return
    target = [-1, target[1], total // target[1]]
    nodes = [
        node("Conv", "x w.weight -> a"),
        node("Reshape", "a rows -> b"),
        node("Transpose", "b -> c", perm=[0, *permutation]),
        node("Reshape", "c target -> d"),
        batch_norm("d -> y", "norm"),
    ]
    constants = weights(w_weight=(channels, 3, 1, 1)) | integers(rows=[-1, channels, math.prod(sides)])
    constants |= integers(target=target) | statistics("norm", target[1])
    folded = fold(model_of(nodes, constants, shape=(3, 1, math.prod(sides))))
    assert folded.difference < 1e-5, folded.reasons


# Concatenations.


def joined(*, axis=1, last="Conv", shape=(3, 6, 6)):
    nodes = [
        node("Conv", "x one.weight -> a"),
        node("Relu", "x -> r"),
        node(last, "r two.weight -> b" if last == "Conv" else "r -> b"),
        node("Concat", "a b -> c", axis=axis),
        batch_norm("c -> y", "norm"),
    ]
    channels = {1: 5 if last == "Conv" else 6}.get(axis, 3)
    out = 2 if axis == 1 and last == "Conv" else 3
    constants = weights(one_weight=(3, 3, 1, 1)) | statistics("norm", channels)
    constants |= weights(two_weight=(out, 3, 1, 1)) if last == "Conv" else {}
    return model_of(nodes, constants, shape=shape)


@pytest.mark.parametrize("axis", [1, -1, 2], ids=["channels", "columns", "rows"])
def test_concatenated_convolutions_take_their_parts(axis):
    folded = check(joined(axis=axis), ["folded"])
    assert "into one, two" in folded.reasons


@pytest.mark.parametrize("axis", [1, 2])
def test_one_input_that_is_no_layer_keeps_all_from_being_folded(axis):
    """And none of them is changed, which `check` would see in the answers."""
    folded = check(joined(axis=axis, last="Abs"), ["rewritten"])
    assert "Abs (b) before it is neither convolution nor linear" in folded.reasons


def test_batch_norm_of_one_input_of_a_concatenation_goes_into_the_layer_behind():
    nodes = [
        node("Relu", "x -> r"),
        batch_norm("r -> a", "norm"),
        node("Concat", "x a -> b", axis=1),
        node("Conv", "b w.weight -> y"),
    ]
    constants = weights(w_weight=(4, 6, 3, 3)) | statistics("norm", 3)
    check(model_of(nodes, constants), ["folded"])
    nodes[-1] = node("Conv", "b w.weight -> y", pads=[1, 1, 1, 1])
    check(model_of(nodes, constants), ["rewritten"])


def test_batch_norm_joined_in_space_stays():
    nodes = [
        node("Relu", "x -> r"),
        batch_norm("r -> a", "norm"),
        node("Concat", "x a -> b", axis=2),
        node("Conv", "b w.weight -> y"),
    ]
    folded = check(model_of(nodes, weights(w_weight=(4, 3, 3, 3)) | statistics("norm", 3)), ["rewritten"])
    assert "joins it with other values" in folded.reasons


# Splits.


def split(*, axis=1, behind=False, last="Conv"):
    """Batch norm of one part of a convolution's output, as in lambda networks, or of all before a split."""
    parts = node("Split", "a sides -> b c", axis=axis)
    if behind:
        nodes = [node("Relu", "x -> r"), batch_norm("r -> a", "norm"), parts]
        nodes += [
            node("Conv", "b one.weight -> y"),
            node(last, "c two.weight -> z" if last == "Conv" else "c -> z"),
        ]
    else:
        nodes = [node("Conv", "x w.weight -> a"), parts, batch_norm("c -> y", "norm"), node("Abs", "b -> z")]
    sides = [2, 4] if axis == 1 else [3, 5]
    inside = (2, 4) if axis == 1 else (6, 6)
    channels = 6 if behind else inside[1]
    constants = integers(sides=sides) | statistics("norm", channels)
    constants |= weights(
        one_weight=(3, inside[0], 1, 1), two_weight=(3, inside[1], 1, 1), w_weight=(6, 6, 1, 1)
    )
    used = {name for entry in nodes for name in entry.input}
    constants = {name: array for name, array in constants.items() if name in used}
    return model_of(nodes, constants, shape=(6, 8, 8), outputs=("y", "z"))


def test_batch_norm_of_a_part_goes_into_those_channels_of_the_layer_before():
    folded = check(split(), ["folded"])
    assert folded.operations == ["Conv", "Split", "Abs"]


@pytest.mark.parametrize("axis", [1, 2])
def test_batch_norm_before_a_split_goes_into_the_layers_of_all_parts(axis):
    check(split(axis=axis, behind=True), ["folded"])


def test_a_part_that_is_no_channels_and_a_part_that_no_layer_reads_stop_folding():
    """Of rows the other part would change too; `check` sees in the answers if one part was changed alone."""
    assert "has other parts" in check(split(axis=2), ["rewritten"]).reasons
    check(split(behind=True, last="Abs"), ["rewritten"])


# Sums.


@pytest.mark.parametrize("other", ["Conv", "Abs"])
def test_sum_of_two_layers_takes_batch_norm(other):
    nodes = [
        node("Conv", "x one.weight one.bias -> a"),
        node("Relu", "x -> r"),
        node(other, "r two.weight -> b" if other == "Conv" else "r -> b"),
        node("Add", "a b -> c"),
        batch_norm("c -> y", "norm"),
    ]
    constants = weights(one_weight=(3, 3, 1, 1), one_bias=(3,)) | statistics("norm", 3)
    constants |= weights(two_weight=(3, 3, 1, 1)) if other == "Conv" else {}
    check(model_of(nodes, constants), ["folded" if other == "Conv" else "rewritten"])


def test_sum_with_one_number_for_all_channels_is_rewritten():
    nodes = [
        node("Conv", "x one.weight -> a"),
        node("Conv", "x two.weight -> b"),
        node("Add", "a b -> c"),
        batch_norm("c -> y", "norm"),
    ]
    constants = weights(one_weight=(3, 3, 1, 1), two_weight=(1, 3, 1, 1)) | statistics("norm", 3)
    check(model_of(nodes, constants), ["rewritten"])


@pytest.mark.parametrize(
    ("shape", "expected"),
    [
        ((3, 6, 6), "folded"),
        ((3, 1, 1), "folded"),
        ((1,), "folded"),
        ((6, 6), "rewritten"),
        ((1, 3, 6, 6), "folded"),
    ],
    ids=str,
)
def test_constant_that_is_added_is_mapped_too(shape, expected):
    nodes = [
        node("Conv", "x w.weight -> a"),
        node("Add", "position a -> b"),
        batch_norm("b -> y", "norm"),
        node("Relu", "position -> z"),
    ]
    constants = weights(w_weight=(3, 3, 1, 1), position=shape) | statistics("norm", 3)
    check(model_of(nodes, constants, shape=(3, 6, 6), outputs=("y", "z")), [expected])


def test_a_bias_that_widens_one_channel_to_several_is_no_bias():
    nodes = [
        node("Conv", "x w.weight -> a"),
        node("Add", "a c -> b"),
        batch_norm("b -> y", "norm"),
    ]
    constants = weights(w_weight=(1, 3, 1, 1), c=(3, 1, 1)) | statistics("norm", 3)
    check(model_of(nodes, constants), ["rewritten"])


# Averages.

AVERAGES = {
    "over space": (node("GlobalAveragePool", "a -> b"), "folded"),
    "padded, borders left out": (
        node("AveragePool", "a -> b", kernel_shape=[3, 3], pads=[1] * 4, count_include_pad=0),
        "folded",
    ),
    "padded, borders counted": (
        node("AveragePool", "a -> b", kernel_shape=[3, 3], pads=[1] * 4, count_include_pad=1),
        "rewritten",
    ),
    "not padded": (
        node("AveragePool", "a -> b", kernel_shape=[3, 3], strides=[2, 2], count_include_pad=1),
        "folded",
    ),
    "kept sides": (node("ReduceMean", "a space -> b", keepdims=1), "folded"),
    "largest values": (node("MaxPool", "a -> b", kernel_shape=[2, 2]), "rewritten"),
}


@pytest.mark.parametrize(("average", "expected"), AVERAGES.values(), ids=AVERAGES)
@pytest.mark.parametrize("is_before", [True, False], ids=["layer before", "layer behind"])
def test_averages_are_a_way_in_both_directions(average, expected, is_before):
    if is_before:
        nodes = [node("Conv", "x w.weight -> a"), average, batch_norm("b -> y", "norm")]
    else:
        nodes = [
            node("Relu", "x -> r"),
            batch_norm("r -> a", "norm"),
            average,
            node("Conv", "b w.weight -> y"),
        ]
    constants = weights(w_weight=(3, 3, 1, 1)) | integers(space=[2, 3]) | statistics("norm", 3)
    used = {name: array for name, array in constants.items() if name != "space" or "space" in average.input}
    check(model_of(nodes, used), [expected])


def test_mean_over_space_before_a_linear_layer():
    nodes = [
        node("Relu", "x -> r"),
        batch_norm("r -> a", "norm"),
        node("ReduceMean", "a space -> b", keepdims=0),
        node("Gemm", "b fc.weight fc.bias -> y"),
    ]
    constants = weights(fc_weight=(3, 5), fc_bias=(5,)) | integers(space=[2, 3]) | statistics("norm", 3)
    check(model_of(nodes, constants), ["folded"])


def test_mean_over_channels_is_no_way():
    nodes = [
        node("Relu", "x -> r"),
        batch_norm("r -> a", "norm"),
        node("ReduceMean", "a channels -> b", keepdims=1),
        node("Conv", "b w.weight -> y"),
    ]
    constants = weights(w_weight=(3, 1, 1, 1)) | integers(channels=[1]) | statistics("norm", 3)
    folded = check(model_of(nodes, constants), ["rewritten"])
    assert "joins channels" in folded.reasons


def test_several_linear_layers_of_tokens_read_one_batch_norm():
    """Query, key and value: the shift becomes a bias of each."""
    nodes = [
        node("Relu", "x -> r"),
        batch_norm("r -> a", "norm"),
        node("Transpose", "a -> b", perm=[0, 2, 1]),
        node("MatMul", "b q.weight -> q"),
        node("MatMul", "b k.weight -> k"),
        node("Add", "k k.bias -> kb"),
        node("Concat", "q kb -> y", axis=2),
    ]
    constants = weights(q_weight=(4, 5), k_weight=(4, 5), k_bias=(5,)) | statistics("norm", 4)
    folded = check(model_of(nodes, constants, shape=(4, 6)), ["folded"])
    assert folded.operations.count("Add") == 2
