"""Which versions are loaded and what a name means."""
