"""Everything that can go wrong in ``training``, as one tree.

TrainingError                     a run that cannot start or go on, or a data set that cannot be made
├── ConfigError                   a recipe or an override that is malformed, unknown or out of range
├── ResumeError                   the state in the output folder does not belong to this run
├── FinetuneError                 no tensor of the weights to begin with fits
├── InterchangeError              a data set of another program that cannot be imported, or be written for one
├── CheckpointError               a checkpoint is missing, damaged or cannot be written
├── RunNotFoundError              a folder holds no run that could be shown
├── WatchError                    the page of a run cannot be served
├── TimeLimitError                the run does not fit into its time limit
└── NonFiniteLossError            the loss is NaN or infinite
"""

from __future__ import annotations


class TrainingError(Exception):
    """A run cannot start or go on, or a data set cannot be made."""


class ConfigError(TrainingError):
    """A recipe or an override is malformed, unknown or out of range."""


class ResumeError(TrainingError):
    """The state in the output folder does not belong to this run."""


class FinetuneError(TrainingError):
    """No tensor of the weights to begin with fits the network."""


class InterchangeError(TrainingError):
    """A data set of another program cannot be imported, or be written for one."""


class CheckpointError(TrainingError):
    """A checkpoint is missing, damaged or cannot be written."""


class RunNotFoundError(TrainingError):
    """A folder holds no run that could be shown."""


class WatchError(TrainingError):
    """The page of a run cannot be served: its port is taken."""


class TimeLimitError(TrainingError):
    """The run does not fit into its time limit; the message lists the durations."""


class NonFiniteLossError(TrainingError):
    """The loss is NaN or infinite; the message names the step and its pictures."""
