"""``python -m training``: the same command without the entry point."""

from training.cli import app

app(prog_name="bisenet")
