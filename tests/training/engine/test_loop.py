"""Training one epoch, and evaluation."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import pytest
import torch

from foldserve.errors import DeviceError
from foldserve.training.augmentation.augment import Augmentation
from foldserve.training.augmentation.mixing import mixup
from foldserve.training.datasets import Dataset, Examples, split_train
from foldserve.training.engine.evaluation import evaluate, macro_f1
from foldserve.training.engine.loop import check_finite, train_one_epoch
from foldserve.training.engine.random_seeds import derived_seed
from foldserve.training.engine.sampling import epoch_order
from foldserve.training.errors import DivergedError, RunError
from foldserve.training.models import Normalized
from foldserve.training.run.run_state import RunState, start_run

if TYPE_CHECKING:
    from foldserve.training.config import TrainConfig

CPU = torch.device("cpu")


def start(config: TrainConfig, dataset: Dataset) -> tuple[RunState, Examples, Examples]:
    training, validation = split_train(dataset, config.validation_count)
    return start_run(config, dataset, training, CPU), training, validation


def test_an_epoch_takes_each_image_at_most_once_and_reports_its_means(
    tiny: Dataset, tiny_config: TrainConfig
):
    state, training, _ = start(tiny_config.model_copy(update={"augment": False}), tiny)
    seen = []
    state.trainer.model.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0].clone()))
    reports = []
    progress = train_one_epoch(state.trainer, training, reports.append)
    images = torch.cat(seen)
    assert len(images) == len(images.flatten(1).unique(dim=0)) == 5 * 32
    assert state.trainer.step == progress.step == progress.steps == 5
    assert reports[-1] == progress
    assert 0 <= progress.accuracy <= 1


def test_another_epoch_has_another_order(tiny: Dataset, tiny_config: TrainConfig):
    state, training, _ = start(tiny_config.model_copy(update={"augment": False}), tiny)
    seen = []
    state.trainer.model.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0].clone()))
    for _ in range(2):
        train_one_epoch(state.trainer, training, lambda _: None)
    assert not torch.equal(torch.cat(seen[:5]), torch.cat(seen[5:]))


def test_training_sees_augmented_images_and_evaluation_never_does(tiny: Dataset, tiny_config: TrainConfig):
    config = tiny_config.model_copy(update={"erase_probability": 1.0})
    state, training, validation = start(config, tiny)
    originals = {image.numpy().tobytes() for image in tiny.train_images}
    seen: list[bytes] = []
    state.trainer.model.register_forward_pre_hook(
        lambda _, inputs: seen.extend(image.numpy().tobytes() for image in inputs[0].contiguous())
    )
    train_one_epoch(state.trainer, training, lambda _: None)
    assert len(seen) == 160
    assert not originals & set(seen)
    seen.clear()
    evaluate(state.trainer.model, validation)
    assert len(seen) == 40
    assert set(seen) <= originals


def test_the_last_steps_take_the_images_as_they_are(tiny: Dataset, tiny_config: TrainConfig):
    """Of 3 epochs of 5 steps, 9 are augmented and mixed; a run that stopped in between goes on the same."""
    config = tiny_config.model_copy(
        update={"erase_probability": 1.0, "mixup": 0.5, "augment_until": 0.6, "label_smoothing": 0.0}
    )
    originals = {image.float().numpy().tobytes() for image in tiny.train_images}
    for first_step in (0, 7):
        state, training, _ = start(config, tiny)
        state.trainer.step = first_step
        shares: list[float] = []
        state.trainer.model.register_forward_pre_hook(
            lambda _, inputs, shares=shares: shares.append(
                sum(image.float().contiguous().numpy().tobytes() in originals for image in inputs[0]) / 32
            )
        )
        for _ in range(first_step // 5, 3):
            train_one_epoch(state.trainer, training, lambda _: None)
        assert shares == [float(step >= 9) for step in range(first_step, 15)]


def test_flips_are_disabled_if_they_change_the_class(tiny: Dataset, tiny_config: TrainConfig):
    assert start(tiny_config, tiny)[0].trainer.augmentation == Augmentation(
        1, flip=False, erase_probability=0.0
    )


def test_evaluation_uses_running_statistics_and_restores_the_mode(tiny: Dataset, tiny_config: TrainConfig):
    state, training, validation = start(tiny_config, tiny)
    train_one_epoch(state.trainer, training, lambda _: None)
    model = state.trainer.model
    before = {name: value.clone() for name, value in model.state_dict().items()}
    whole = evaluate(model, validation)
    assert model.training
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    one_by_one = [
        evaluate(model, Examples(i[None], n[None])) for i, n in zip(*vars(validation).values(), strict=True)
    ]
    assert whole.predictions.tolist() == [evaluation.predictions.item() for evaluation in one_by_one]
    assert whole.accuracy == pytest.approx(sum(e.accuracy for e in one_by_one) / 40)
    # Means of 40 float32 losses, summed in another order.
    assert whole.loss == pytest.approx(sum(e.loss for e in one_by_one) / 40, abs=1e-5)


def test_evaluation_of_known_logits_is_exact():
    """The logits are the pixel values: class 0 wins in the first image, class 1 in the second."""
    images = torch.tensor([[200, 100], [0, 255]], dtype=torch.uint8).reshape(2, 2, 1, 1)
    model = Normalized(torch.nn.Flatten(), (0.0, 0.0), (1.0, 1.0))
    evaluation = evaluate(model, Examples(images, torch.tensor([0, 0])))
    losses = [math.log(1 + math.exp((100 - 200) / 255)), math.log(1 + math.exp(1))]
    assert evaluation.predictions.tolist() == [0, 1]
    assert evaluation.accuracy == 0.5
    assert evaluation.loss == pytest.approx(sum(losses) / 2, abs=1e-6)


def test_a_loss_that_is_not_finite_stops_the_epoch_and_names_the_step(
    tiny: Dataset, tiny_config: TrainConfig
):
    state, training, _ = start(tiny_config, tiny)
    with torch.no_grad():
        state.trainer.model.network.classifier[-1].bias[0] = math.nan
    with pytest.raises(
        DivergedError,
        match=r"loss is no longer finite at step 1 of 15 \(loss nan.*pixels 0\.\.219.*--lr \(now 0.02\)",
    ):
        train_one_epoch(state.trainer, training, lambda _: None)


def test_a_batch_larger_than_the_data_set_is_refused(tiny: Dataset, tiny_config: TrainConfig):
    with pytest.raises(RunError, match="batch-size is 161, more than the 160 training images"):
        start(tiny_config.model_copy(update={"batch_size": 161}), tiny)


def one_step(config: TrainConfig, dataset: Dataset) -> dict[str, torch.Tensor]:
    state, training, _ = start(config, dataset)
    train_one_epoch(state.trainer, training, lambda _: None)
    return state.trainer.model.network.state_dict()


def test_parts_of_a_batch_give_the_step_of_the_whole_batch(tiny: Dataset, tiny_config: TrainConfig):
    """Without batch norm, which sees one part at a time; float32 sums in another order, below 1."""
    plain = tiny_config.model_copy(
        update={"batch_norm": False, "batch_size": 160, "augment": False, "precision": "fp32"}
    )
    whole, parts = one_step(plain, tiny), one_step(plain.model_copy(update={"accumulate": 3}), tiny)
    for name, value in whole.items():
        torch.testing.assert_close(parts[name], value, rtol=0, atol=1e-7)
    fewer = one_step(plain.model_copy(update={"lr": 0.021}), tiny)
    assert any((fewer[name] - value).abs().max() > 1e-6 for name, value in whole.items()), (
        "the check can fail"
    )


def test_gradients_are_clipped_to_their_norm(tiny: Dataset, tiny_config: TrainConfig):
    """One step of plain descent moves the weights by lr times the clipped norm."""
    config = tiny_config.model_copy(
        update={"batch_size": 160, "clip_norm": 0.01, "weight_decay": 0.0, "warmup": 0.0, "epochs": 1}
    )
    state, training, _ = start(config, tiny)
    state.trainer.optimizer.param_groups[0]["nesterov"] = False
    state.trainer.optimizer.param_groups[1]["nesterov"] = False
    before = [parameter.detach().clone() for parameter in state.trainer.model.parameters()]
    train_one_epoch(state.trainer, training, lambda _: None)
    moved = [old - new for old, new in zip(before, state.trainer.model.parameters(), strict=True)]
    assert torch.cat([m.flatten() for m in moved]).norm().item() == pytest.approx(0.02 * 0.01, rel=1e-3)


def test_the_loss_of_mixed_images_is_that_of_their_soft_targets(tiny: Dataset, tiny_config: TrainConfig):
    config = tiny_config.model_copy(update={"batch_size": 160, "mixup": 0.5, "crop_padding": 0, "epochs": 1})
    state, training, _ = start(config, tiny)
    seen = []
    state.trainer.model.register_forward_hook(
        lambda _m, inputs, output: seen.append((inputs[0], output.detach().float()))
    )
    progress = train_one_epoch(state.trainer, training, lambda _: None)
    images, logits = seen[0]
    generator = torch.Generator().manual_seed(derived_seed(0, "step", 0))
    batch = epoch_order(160, 0, 0)
    mixed, targets = mixup(training.images[batch], torch.eye(4)[training.labels[batch]], 0.5, generator)
    assert torch.equal(images, mixed)
    expected = -(targets * logits.log_softmax(dim=1)).sum(dim=1).mean().item()
    assert progress.loss == pytest.approx(expected, abs=1e-5)


def test_label_smoothing_spreads_part_of_the_target_over_all_classes(tiny: Dataset, tiny_config: TrainConfig):
    config = tiny_config.model_copy(
        update={"batch_size": 160, "label_smoothing": 0.2, "augment": False, "epochs": 1}
    )
    state, training, _ = start(config, tiny)
    outputs = []
    state.trainer.model.register_forward_hook(lambda _m, _i, output: outputs.append(output.detach().float()))
    progress = train_one_epoch(state.trainer, training, lambda _: None)
    targets = torch.nn.functional.one_hot(training.labels[epoch_order(160, 0, 0)], 4) * 0.8 + 0.2 / 4
    expected = -(targets * outputs[0].log_softmax(dim=1)).sum(dim=1).mean().item()
    assert progress.loss == pytest.approx(expected, abs=1e-5)


def test_channels_last_changes_the_memory_and_not_the_weights(tiny: Dataset, tiny_config: TrainConfig):
    """Other kernels round otherwise: float32 at weights below 1, over five steps."""
    plain = tiny_config.model_copy(update={"precision": "fp32", "channels_last": False})
    last = plain.model_copy(update={"channels_last": True})
    convolution = start(last, tiny)[0].trainer.model.network.features[2].conv
    assert convolution.weight.is_contiguous(memory_format=torch.channels_last)
    one, other = one_step(plain, tiny), one_step(last, tiny)
    for name, value in one.items():
        torch.testing.assert_close(other[name], value, rtol=0, atol=1e-4)


def test_bf16_computes_the_forward_pass_in_bf16_and_keeps_weights_in_float32(
    tiny: Dataset, tiny_config: TrainConfig
):
    state, training, validation = start(tiny_config.model_copy(update={"precision": "bf16"}), tiny)
    outputs = []
    state.trainer.model.network.register_forward_hook(lambda _m, _i, output: outputs.append(output.dtype))
    train_one_epoch(state.trainer, training, lambda _: None)
    assert set(outputs) == {torch.bfloat16}
    assert {value.dtype for value in state.trainer.model.parameters()} == {torch.float32}
    outputs.clear()
    evaluate(state.trainer.model, validation)
    assert set(outputs) == {torch.float32}


def test_fp16_without_a_gpu_is_refused(tiny: Dataset, tiny_config: TrainConfig):
    with pytest.raises(DeviceError, match="fp16 needs a GPU; use --precision bf16 or fp32"):
        start(tiny_config.model_copy(update={"precision": "fp16"}), tiny)


@pytest.mark.slow
@pytest.mark.filterwarnings(
    "ignore:.torch.jit.script_method. is deprecated:DeprecationWarning"
)  # torch's own
def test_a_compiled_network_learns_as_the_plain_one_does(tiny: Dataset, tiny_config: TrainConfig):
    """Fused kernels round otherwise: float32 at weights below 1, over five steps."""
    config = tiny_config.model_copy(update={"deterministic": False, "precision": "fp32"})
    plain, compiled = one_step(config, tiny), one_step(config.model_copy(update={"compile": True}), tiny)
    for name, value in plain.items():
        torch.testing.assert_close(compiled[name], value, rtol=0, atol=1e-4)


def test_weights_that_are_not_finite_are_never_saved(tiny: Dataset, tiny_config: TrainConfig):
    state, training, _ = start(tiny_config, tiny)

    def spoil() -> None:
        if state.trainer.step == 3:
            next(state.trainer.model.parameters()).data[0] = math.inf
            check_finite(state.trainer, training)

    with pytest.raises(DivergedError, match="the weights are no longer finite at step 3 of 15"):
        train_one_epoch(state.trainer, training, lambda _: None, spoil)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"batch_size": 32, "accumulate": 17}, "too few for 17 parts of at least 2"),
    ],
)
def test_a_batch_that_cannot_be_divided_is_refused(
    tiny: Dataset, tiny_config: TrainConfig, settings: dict[str, int], message: str
):
    with pytest.raises(RunError, match=message):
        start(tiny_config.model_copy(update=settings), tiny)


def test_seeds_differ_in_the_32_bits_that_the_generator_takes():
    seeds = {
        derived_seed(s, p, i) & 0xFFFFFFFF for s in range(10) for p in ("epoch", "step") for i in range(100)
    }
    assert len(seeds) == 2000
    assert derived_seed(1, "step", 2) == derived_seed(1, "step", 2)


def test_macro_f1_counts_each_class_the_same():
    """By hand: class 0 has F1 2*3/(2*3+1+0), class 1 has 2*1/(2*1+0+1), class 3 only occurs as an answer."""
    targets = torch.tensor([0, 0, 0, 1, 1, 2])
    predictions = torch.tensor([0, 0, 0, 0, 1, 3])
    assert macro_f1(targets, predictions) == pytest.approx((6 / 7 + 2 / 3 + 0 + 0) / 4)
    assert macro_f1(targets, targets) == 1.0
    assert macro_f1(2 * targets, 2 * targets) == 1.0, "a class that does not occur counts nothing"
