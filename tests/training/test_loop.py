"""One epoch, and evaluation."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import pytest
import torch

from training.augment import Augmentation
from training.datasets import Dataset, Examples, split_train
from training.errors import DivergedError, RunError
from training.evaluation import evaluate
from training.loop import derived_seed, train_one_epoch
from training.models import Normalized
from training.run_state import RunState, start_run

if TYPE_CHECKING:
    from training.config import TrainConfig

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


def test_mirroring_is_left_out_where_it_changes_the_class(tiny: Dataset, tiny_config: TrainConfig):
    assert start(tiny_config, tiny)[0].trainer.augmentation == Augmentation(
        1, flip=False, erase_probability=0.0
    )


def test_evaluation_uses_running_statistics_and_puts_the_mode_back(tiny: Dataset, tiny_config: TrainConfig):
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
    """Pixel values as logits: class 0 wins in the first image, class 1 in the second."""
    images = torch.tensor([[200, 100], [0, 255]], dtype=torch.uint8).reshape(2, 2, 1, 1)
    model = Normalized(torch.nn.Flatten(), (0.0, 0.0), (1.0, 1.0))
    evaluation = evaluate(model, Examples(images, torch.tensor([0, 0])))
    losses = [math.log(1 + math.exp((100 - 200) / 255)), math.log(1 + math.exp(1))]
    assert evaluation.predictions.tolist() == [0, 1]
    assert evaluation.accuracy == 0.5
    assert evaluation.loss == pytest.approx(sum(losses) / 2, abs=1e-6)


def test_a_loss_that_is_no_number_stops_the_epoch_and_says_where(tiny: Dataset, tiny_config: TrainConfig):
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


def test_seeds_differ_in_the_32_bits_that_the_generator_takes():
    seeds = {
        derived_seed(s, p, i) & 0xFFFFFFFF for s in range(10) for p in ("epoch", "step") for i in range(100)
    }
    assert len(seeds) == 2000
    assert derived_seed(1, "step", 2) == derived_seed(1, "step", 2)
