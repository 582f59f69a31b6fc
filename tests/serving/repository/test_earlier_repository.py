"""A repository that the version before the package `foldserve` wrote, with its settings, serves unchanged."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np

from foldserve.runtime.model_settings import ModelSettings
from foldserve.serving.repository.repository import ModelRepository
from tests.support.artifacts import TinyNetwork

EARLIER = Path(__file__).parent / "data" / "earlier_repository"


def test_a_repository_of_the_version_before_serves_unchanged(tmp_path: Path) -> None:
    shutil.copytree(EARLIER, tmp_path / "models")
    repository = ModelRepository(tmp_path / "models", ModelSettings(device="cpu"))
    try:
        repository.load_all()
        model = repository.index.find("tiny", "1")
        assert (model.settings.max_batch_size, model.settings.max_queue_delay_ms) == (16, 1.5)
        assert model.settings.cuda.gpu_mem_limit_mib == 512
        network = TinyNetwork(seed=12)
        logits, probabilities = model.verified.runner(network.random_images(5))
        assert np.abs(logits - network.logits(network.random_images(5))).max() < 1e-5
        assert np.abs(probabilities.sum(axis=1) - 1).max() < 1e-6
    finally:
        repository.close(grace_s=5)
