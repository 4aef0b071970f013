"""The loaded versions of models, and the version that each name means."""
