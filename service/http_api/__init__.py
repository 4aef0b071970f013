"""The HTTP frontend: a thin adapter around ``service.core``."""
