"""One training run from start to published artifact."""
