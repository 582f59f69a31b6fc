"""Every error that training raises on purpose; the message is one line that can be shown to the user.

TrainingError
├── ModelError        an architecture that is not known or cannot be built with these arguments
├── DatasetError      a data set that cannot be found, fetched or read
├── CheckpointError   a file that is not a checkpoint, or a damaged one
├── RunError          a run folder that cannot be written, or belongs to another run
└── DivergedError     the loss is no longer a number
"""

from __future__ import annotations

from foldserve.errors import FoldserveError


class TrainingError(FoldserveError):
    """Base of the tree."""


class ModelError(TrainingError):
    """The architecture is not in the registry, or its arguments do not make a network."""


class DatasetError(TrainingError):
    """The data set cannot be found, fetched or read; nothing of it is used."""


class CheckpointError(TrainingError):
    """The file is missing, not a checkpoint, damaged, or of a schema this version does not know."""


class RunError(TrainingError):
    """The run folder cannot be written, or holds a run with other settings."""


class DivergedError(TrainingError):
    """The loss became infinite or not a number; the last good checkpoint is kept."""
