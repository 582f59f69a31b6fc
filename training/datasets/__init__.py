"""Finds or downloads data sets, checks them, and loads them into memory as uint8."""

from foldserve.training.datasets.dataset import Dataset, Examples, channel_statistics, split_train
from foldserve.training.datasets.registry import DATASETS, load_dataset

__all__ = ["DATASETS", "Dataset", "Examples", "channel_statistics", "load_dataset", "split_train"]
