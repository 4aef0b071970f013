"""One process of several of a run, without ``torchrun``'s agent. Arguments: CONFIG OUT OVERRIDES."""

from __future__ import annotations

import sys
from pathlib import Path

import torch

from training.config import load_config
from training.run.run import RunOptions, train

torch.set_num_threads(1)
config, out, *overrides = sys.argv[1:]
train(load_config(config, overrides), RunOptions(Path(out), resume=True))
