"""Bytes in, encoded answer out."""
