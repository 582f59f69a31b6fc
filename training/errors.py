"""Defines the errors that training raises on purpose; each message is one line to show to the user.

TrainingError
├── ModelError        an architecture is unknown or cannot be built with these arguments
├── DatasetError      a data set cannot be found, downloaded or read
├── CheckpointError   a file is not a checkpoint, or is damaged
├── RunError          a run folder cannot be written, or belongs to another run
└── DivergedError     the loss is no longer finite
"""

from __future__ import annotations

from foldserve.errors import FoldserveError


class TrainingError(FoldserveError):
    """Base of the tree."""


class ModelError(TrainingError):
    """The architecture is not in the registry, or its arguments do not make a network."""


class DatasetError(TrainingError):
    """The data set cannot be found, downloaded or read; no part of it is used."""


class CheckpointError(TrainingError):
    """The file is missing, not a checkpoint, damaged, or of a schema that this version does not know."""


class RunError(TrainingError):
    """The run folder cannot be written, or has a run with other settings."""


class DivergedError(TrainingError):
    """The loss became infinite or NaN; the last good checkpoint is kept."""
