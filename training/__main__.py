"""``python -m training``: the same command without the entry point."""

import os

from model.quotas import passive_threads
from training.cli import app

os.environ.update(passive_threads(os.environ))
app(prog_name="bisenet")
