"""Labelled pictures on disk, class lists, confined paths."""
