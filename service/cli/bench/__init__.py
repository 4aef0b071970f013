"""`bisenet bench` and its load generators."""
