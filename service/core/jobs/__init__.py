"""Evaluation jobs: what they are and how they move."""
