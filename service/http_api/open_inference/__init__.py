"""The Open Inference Protocol v2 over HTTP: below ``/v2``."""
